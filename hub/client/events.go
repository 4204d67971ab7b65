package client

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// EventFilter selects events.
type EventFilter struct {
	Kind  string // "" for any
	ID    string // "" for any
	After int64  // the sequence after which to begin
}

func (f EventFilter) query() url.Values {
	query := url.Values{}
	if f.Kind != "" {
		query.Set("kind", f.Kind)
	}
	if f.ID != "" {
		query.Set("id", f.ID)
	}
	if f.After > 0 {
		query.Set("after", strconv.FormatInt(f.After, 10))
	}
	return query
}

// Events lists what happened in a workspace, oldest first.
func (c *Client) Events(ctx context.Context, ws string, f EventFilter) iter.Seq2[atelier.Event, error] {
	return list[atelier.Event](ctx, c, in(ws, "events"), f.query())
}

// Watch yields the events of a workspace as they happen, until ctx ends or the
// connection breaks; the caller watches again after the last sequence it saw.
func (c *Client) Watch(ctx context.Context, ws string, f EventFilter) iter.Seq2[atelier.Event, error] {
	return func(yield func(atelier.Event, error) bool) {
		res, err := c.send(ctx, request{
			method: http.MethodGet, path: in(ws, "events"), query: f.query(),
			header: http.Header{"Accept": {"text/event-stream"}},
		})
		if err != nil {
			yield(atelier.Event{}, err)
			return
		}
		defer func() { _ = res.Body.Close() }()
		lines := bufio.NewScanner(res.Body)
		lines.Buffer(nil, 8<<20)
		for lines.Scan() {
			data, ok := strings.CutPrefix(lines.Text(), "data:")
			if !ok {
				continue // id:, event: and heartbeats; the event itself holds its sequence
			}
			var e atelier.Event
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				yield(e, atelier.Errorf(atelier.Internal, "an event is not what was expected: %w", err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		err = lines.Err()
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		yield(atelier.Event{}, atelier.Errorf(atelier.Unavailable, "the watch broke off: %w", err))
	}
}

// AuditEntry is one decision on one verb.
type AuditEntry struct {
	Sequence int64     `json:"sequence"`
	Time     time.Time `json:"time"`
	Actor    string    `json:"actor"`
	Verb     string    `json:"verb"`
	Kind     string    `json:"kind,omitempty"`
	Object   string    `json:"object,omitempty"`
	Allowed  bool      `json:"allowed"`
	Why      string    `json:"why,omitempty"`
	Request  string    `json:"request,omitempty"`
}

// Audit lists the audit trail of a workspace, oldest first.
func (c *Client) Audit(ctx context.Context, ws string) iter.Seq2[AuditEntry, error] {
	return list[AuditEntry](ctx, c, in(ws, "audit"), nil)
}
