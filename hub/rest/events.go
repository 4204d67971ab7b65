package rest

import (
	"context"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/store"
)

const (
	kindEvent = "event"
	kindAudit = "audit"
)

// EventPaging is the part of an input that asks for a page of what is in the order
// of sequences.
type EventPaging struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Most items of a page"`
	Cursor string `query:"cursor" maxLength:"256" doc:"Where the page begins: next of the page before"`
	After  int64  `query:"after" minimum:"0" doc:"The sequence after which the first page, or the watch, begins; a watch without it tells what is new"`
}

// begin returns the sequence after which the page of kind begins.
func (p EventPaging) begin(kind string) (int64, error) {
	if p.Cursor == "" {
		return p.After, nil
	}
	after, err := openCursor(kind, p.Cursor)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(after, 10, 64)
	if err != nil {
		return 0, atelier.Errorf(atelier.Invalid, "the cursor is none that this list gave").WithField("cursor")
	}
	return n, nil
}

// EventParams select events.
type EventParams struct {
	EventPaging
	Watch bool   `query:"watch" doc:"Answer events as they happen (text/event-stream); also asked for by Accept: text/event-stream"`
	Kind  string `query:"kind" maxLength:"63" doc:"Only those of resources of this kind"`
	ID    string `query:"id" maxLength:"26" doc:"Only those of the resource with this id"`
}

func (s *server) registerEvents(api huma.API) {
	const tag = "History"
	register(s, api, operation{
		ID: "list-events", Method: http.MethodGet, Path: inWorkspace + "/events", Tag: tag,
		Summary: "List or watch the events of a workspace", Description: "Oldest first. With Accept: text/event-stream the events come as they happen.",
		Verb: access.EventWatch, Kind: kindEvent, Watch: true,
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		EventParams
	}) (*list[atelier.Event], error) {
		return s.events(ctx, in.EventParams)
	})
	register(s, api, operation{
		ID: "list-hub-events", Method: http.MethodGet, Path: "/v1/events", Tag: tag,
		Summary: "List or watch the events of the hub and all workspaces", Description: "Oldest first. With Accept: text/event-stream the events come as they happen.",
		Verb: access.EventWatch, Kind: kindEvent, Watch: true,
	}, func(ctx context.Context, in *EventParams) (*list[atelier.Event], error) {
		return s.events(ctx, *in)
	})
	register(s, api, operation{
		ID: "list-audit", Method: http.MethodGet, Path: inWorkspace + "/audit", Tag: tag,
		Summary: "Show the audit trail of a workspace", Description: "Oldest first.",
		Verb: access.AuditShow, Kind: kindAudit,
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		EventPaging
	}) (*list[store.AuditEntry], error) {
		return s.audit(ctx, in.EventPaging)
	})
	register(s, api, operation{
		ID: "list-hub-audit", Method: http.MethodGet, Path: "/v1/audit", Tag: tag,
		Summary: "Show the audit trail of the hub itself", Description: "Oldest first.",
		Verb: access.AuditShow, Kind: kindAudit,
	}, func(ctx context.Context, in *EventPaging) (*list[store.AuditEntry], error) {
		return s.audit(ctx, *in)
	})
}

func (s *server) events(ctx context.Context, p EventParams) (*list[atelier.Event], error) {
	ws := workspaceOf(ctx)
	q := store.EventQuery{Workspace: ws, AnyWorkspace: ws == "", Kind: p.Kind, ID: p.ID, Limit: p.Limit}
	read := func(tx store.Tx, after int64) ([]atelier.Event, error) {
		q.After = after
		return tx.Events(q)
	}
	return sequenceList(ctx, s, kindEvent, p.EventPaging, read, func(e atelier.Event) int64 { return e.Sequence })
}

func (s *server) audit(ctx context.Context, p EventPaging) (*list[store.AuditEntry], error) {
	read := func(tx store.Tx, after int64) ([]store.AuditEntry, error) {
		return tx.AuditTrail(workspaceOf(ctx), after, p.Limit)
	}
	return sequenceList(ctx, s, kindAudit, p, read, func(e store.AuditEntry) int64 { return e.Sequence })
}

// sequenceList answers a page of what read returns after a sequence.
func sequenceList[T any](ctx context.Context, s *server, kind string, p EventPaging,
	read func(tx store.Tx, after int64) ([]T, error), sequence func(T) int64) (*list[T], error) {
	after, err := p.begin(kind)
	if err != nil {
		return nil, err
	}
	out := &list[T]{}
	err = s.store.View(ctx, func(tx store.Tx) (err error) {
		if out.Body.Items, err = read(tx, after); err != nil {
			return err
		}
		out.Sequence, err = tx.LastEvent()
		return err
	})
	if n := len(out.Body.Items); n == 0 {
		out.Body.Items = []T{}
	} else if n == p.Limit {
		out.Body.Next = sealCursor(kind, strconv.FormatInt(sequence(out.Body.Items[n-1]), 10))
	}
	return out, err
}
