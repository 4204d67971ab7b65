package rest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/registry"
	"github.com/atelier-edge/atelier/hub/store"
)

const (
	sseType     = "text/event-stream"
	sseBatch    = 200              // events read at once
	ssePatience = 30 * time.Second // for a client to take what is written to it
)

// WatchParams are the parameters of a route that can be watched. They are
// declared for the OpenAPI document; watch reads them from the request.
type WatchParams struct {
	Watch bool  `query:"watch" doc:"Answer events as they happen (text/event-stream) in place of a list; also asked for by Accept: text/event-stream"`
	After int64 `query:"after" minimum:"0" doc:"With watch: the sequence after which events are told; only new ones without it. Last-Event-ID goes before it"`
}

// watch answers a request with ?watch=true or Accept: text/event-stream by the
// events of the route's kind (of all kinds for the kind "event"), only those of
// its object where it has one, until the caller goes.
func (s *server) watch(op operation) func(huma.Context, func(huma.Context)) {
	return func(c huma.Context, next func(huma.Context)) {
		if c.Query("watch") != "true" && !strings.HasPrefix(c.Header("Accept"), sseType) {
			next(c)
			return
		}
		q := store.EventQuery{Workspace: workspaceOf(c.Context()), Kind: op.Kind, Limit: sseBatch}
		if op.Kind == kindEvent {
			q.Kind, q.ID, q.AnyWorkspace = c.Query("kind"), c.Query("id"), q.Workspace == ""
		}
		if p := access.PrincipalFrom(c.Context()); p.Workspace != "" && q.Workspace == "" && op.Kind == catalog.Workspaces.Kind {
			q.ID = p.Workspace // of the others a bound caller hears nothing
		}
		if op.Object != "" {
			id, err := s.resolveID(c, op, q.Workspace)
			if err != nil {
				fail(c, err)
				return
			}
			q.ID = id
		}
		s.stream(c, q)
	}
}

// resolveID returns the id of the resource that the path names.
func (s *server) resolveID(c huma.Context, op operation, workspace string) (id string, err error) {
	kind, ref := op.Kind, c.Param(op.Object)
	err = s.store.View(c.Context(), func(tx store.Tx) error {
		if kind == catalog.Versions.Kind {
			_, v, err := registry.FindVersion(tx, workspace, c.Param("model"), c.Param("number"))
			id = v.ID
			return err
		}
		get := func() (store.Resource, error) { return tx.Find(kind, workspace, "", ref) }
		if atelier.IsID(ref) {
			get = func() (store.Resource, error) { return tx.Get(kind, workspace, ref) }
		}
		r, err := get()
		id = r.ID
		return err
	})
	return id, err
}

// stream writes the events that q selects, from where the caller wants them.
// Every sseHeartbeat it writes a comment, and looks whether the caller's token
// is still good.
func (s *server) stream(c huma.Context, q store.EventQuery) {
	ctx := c.Context()
	r, w := humago.Unwrap(c)
	changes := s.store.Changes(ctx)
	var err error
	if q.After, err = s.startOf(r); err != nil {
		fail(c, err)
		return
	}
	w.Header().Set("Content-Type", sseType)
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold events back
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	beat := time.NewTicker(s.heartbeat)
	defer beat.Stop()
	for {
		_ = out.SetWriteDeadline(time.Now().Add(ssePatience)) // not every transport has deadlines
		more, err := s.tell(r, w, &q)
		if err != nil || out.Flush() != nil {
			return // the client resumes with Last-Event-ID
		}
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case _, open := <-changes:
			if !open {
				return
			}
		case <-beat.C:
			if _, err := s.access.Authenticate(ctx, secretFrom(ctx)); err != nil {
				return // revoked meanwhile
			}
			if _, err := fmt.Fprint(w, ": still here\n\n"); err != nil {
				return
			}
		}
	}
}

// startOf returns the sequence after which a watch begins.
func (s *server) startOf(r *http.Request) (int64, error) {
	from, field := r.Header.Get("Last-Event-ID"), "Last-Event-ID"
	if from == "" {
		from, field = r.URL.Query().Get("after"), "after"
	}
	if from != "" {
		n, err := strconv.ParseInt(from, 10, 64)
		if err != nil || n < 0 {
			return 0, atelier.Errorf(atelier.Invalid, "%q is no sequence of an event", from).WithField(field).
				WithRemedy("Send the id of the last event that you saw, or 0 for all that are kept.")
		}
		return n, nil
	}
	var last int64
	err := s.store.View(r.Context(), func(tx store.Tx) (err error) {
		last, err = tx.LastEvent()
		return err
	})
	return last, err
}

// tell writes one batch of events and reports whether there may be more.
func (s *server) tell(r *http.Request, w http.ResponseWriter, q *store.EventQuery) (more bool, err error) {
	var events []atelier.Event
	err = s.store.View(r.Context(), func(tx store.Tx) (err error) {
		events, err = tx.Events(*q)
		return err
	})
	if err != nil {
		return false, err
	}
	for _, e := range events {
		data, err := json.Marshal(e)
		if err != nil {
			return false, err
		}
		if _, err := fmt.Fprintf(w, "id: %d\ndata: %s\n\n", e.Sequence, data); err != nil {
			return false, err
		}
		q.After = e.Sequence
	}
	return len(events) == q.Limit, nil
}
