package rest

import (
	"context"
	"encoding/base64"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

// resource is the answer that holds one resource, with its revision as ETag.
type resource[T any] struct {
	ETag string `header:"ETag" doc:"The resource's revision, for If-Match"`
	Body T
}

// resourceOf makes the answer from what a call returned.
func resourceOf[T any](v T, err error, meta func(*T) *atelier.Meta) (*resource[T], error) {
	if err != nil {
		return nil, err
	}
	return &resource[T]{ETag: etag(meta(&v).Revision), Body: v}, nil
}

// answer is the answer that holds something without a revision.
type answer[T any] struct{ Body T }

// empty is the answer that holds nothing.
type empty struct{}

// stream is an answer that is not JSON: Body writes it.
type stream struct{ Body func(huma.Context) }

// list is one page of a list.
type list[T any] struct {
	// Sequence is the newest event's at the moment of the list, so that a watch
	// with ?after= it misses nothing in between.
	Sequence int64 `header:"X-Atelier-Sequence" doc:"Sequence of the newest event when the list was made; watch from here on with ?watch=true&after="`
	Body     listBody[T]
}

type listBody[T any] struct {
	Items []T    `json:"items" nullable:"false"`
	Next  string `json:"next,omitempty" doc:"Cursor of the next page; absent on the last"`
}

// Paging is the part of an input that asks for a page, or for a watch.
type Paging struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Most items of a page"`
	Cursor string `query:"cursor" maxLength:"256" doc:"Where the page begins: next of the page before"`
	WatchParams
}

// listOf answers the page of a collection that q and p ask for.
func listOf[T any](ctx context.Context, s *server, c store.Collection[T], q store.Query, p Paging) (*list[T], error) {
	return listAs(ctx, s, c, q, p, func(v T) T { return v })
}

// listAs is listOf for what is shown in another form than it is stored.
func listAs[T, V any](ctx context.Context, s *server, c store.Collection[T], q store.Query, p Paging, show func(T) V) (*list[V], error) {
	after, err := openCursor(c.Kind, p.Cursor)
	if err != nil {
		return nil, err
	}
	q.After, q.Limit = after, p.Limit
	out := &list[V]{Body: listBody[V]{Items: []V{}}}
	err = s.store.View(ctx, func(tx store.Tx) error {
		items, err := c.List(tx, q)
		if err != nil {
			return err
		}
		for _, v := range items {
			out.Body.Items = append(out.Body.Items, show(v))
		}
		if len(items) == q.Limit {
			out.Body.Next = sealCursor(c.Kind, c.Meta(&items[len(items)-1]).ID)
		}
		out.Sequence, err = tx.LastEvent()
		return err
	})
	return out, err
}

// A cursor is the id (or sequence) after which the next page begins, in a form
// that invites nobody to make one: it may come to mean more.
func sealCursor(kind, after string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(kind + "\x00" + after))
}

func openCursor(kind, cursor string) (string, error) {
	if cursor == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	of, after, ok := strings.Cut(string(raw), "\x00")
	if err != nil || !ok || of != kind || after == "" {
		return "", atelier.Errorf(atelier.Invalid, "the cursor is none that this list gave").
			WithField("cursor").WithRemedy("Send the value of next from the page before as it came, or begin without a cursor.")
	}
	return after, nil
}

func etag(revision int64) string { return `"` + strconv.FormatInt(revision, 10) + `"` }

// IfMatch is the part of an input that must say which revision it changes.
type IfMatch struct {
	IfMatch string `header:"If-Match" maxLength:"64" doc:"ETag of the revision to change, or * for whatever is there; required"`
}

// revision returns the revision that the caller read, 0 for "*".
func (m IfMatch) revision() (int64, error) {
	if m.IfMatch == "" {
		return 0, atelier.Errorf(atelier.Invalid, "the If-Match header is missing").WithField("If-Match").
			WithRemedy("Send the ETag of the resource as you read it, or * to change whatever is there.")
	}
	return parseRevision(m.IfMatch)
}

// IfMatchOptional is the part of an input that may say which revision it removes.
type IfMatchOptional struct {
	IfMatch string `header:"If-Match" maxLength:"64" doc:"ETag of the revision to remove; whatever is there without it"`
}

// revision returns the revision that the caller read, 0 for any.
func (m IfMatchOptional) revision() (int64, error) {
	if m.IfMatch == "" {
		return 0, nil
	}
	return parseRevision(m.IfMatch)
}

func parseRevision(s string) (int64, error) {
	if s == "*" {
		return 0, nil
	}
	n, err := strconv.ParseInt(strings.Trim(s, `"`), 10, 64)
	if err != nil || n < 1 || etag(n) != s {
		return 0, atelier.Errorf(atelier.Invalid, "If-Match %q is no ETag of this API", s).WithField("If-Match").
			WithRemedy("Send one ETag as a GET gave it, with its quotation marks, or *.")
	}
	return n, nil
}
