package storetest

import (
	"context"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

func testEventPerChange(t *testing.T, s store.Store) {
	made := insert(t, s, store.Resource{Kind: "thing", Workspace: "w", Name: "a", Doc: json.RawMessage(`{"id":"","x":1}`)})
	changed := made
	changed.Name, changed.Doc = "b", json.RawMessage(`{"x":2}`)
	update(t, s, func(tx store.Tx) (err error) {
		changed, err = tx.Update(changed)
		return err
	})
	quiet := insert(t, s, store.Resource{Kind: "secret", Workspace: "w", Doc: json.RawMessage(`{"hash":"x"}`), Quiet: true})
	update(t, s, func(tx store.Tx) error { return tx.Delete("thing", "w", made.ID, 0) })

	events := allEvents(t, s)
	want := []atelier.Event{
		{Kind: "thing", ID: made.ID, Name: "a", Change: atelier.Created, Revision: 1},
		{Kind: "thing", ID: made.ID, Name: "b", Change: atelier.Updated, Revision: 2},
		{Kind: "secret", ID: quiet.ID, Change: atelier.Created, Revision: 1},
		{Kind: "thing", ID: made.ID, Name: "b", Change: atelier.Deleted, Revision: 2},
	}
	if len(events) != len(want) {
		t.Fatalf("%d events, want %d", len(events), len(want))
	}
	documents := []map[string]any{
		{
			"id": made.ID, "name": "a", "revision": 1.0, "x": 1.0,
			"created": made.Created.Format(time.RFC3339Nano), "updated": made.Updated.Format(time.RFC3339Nano),
		},
		{
			"id": made.ID, "name": "b", "revision": 2.0, "x": 2.0,
			"created": made.Created.Format(time.RFC3339Nano), "updated": changed.Updated.Format(time.RFC3339Nano),
		},
		nil, nil,
	}
	for i, e := range events {
		if i > 0 && e.Sequence <= events[i-1].Sequence {
			t.Errorf("sequence %d comes after %d", e.Sequence, events[i-1].Sequence)
		}
		if e.Sequence < 1 || time.Since(e.Time) > time.Minute {
			t.Errorf("event %d has sequence %d and time %v", i, e.Sequence, e.Time)
		}
		var document map[string]any
		if e.Resource != nil {
			if err := json.Unmarshal(e.Resource, &document); err != nil {
				t.Errorf("event %d: %v", i, err)
			}
		}
		if !reflect.DeepEqual(document, documents[i]) {
			t.Errorf("event %d carries %v\nwant %v", i, document, documents[i])
		}
		e.Sequence, e.Time, e.Resource = 0, time.Time{}, nil
		want[i].Workspace, want[i].Actor, want[i].Request = "w", by.Actor, by.Request
		if !reflect.DeepEqual(e, want[i]) {
			t.Errorf("event %d = %+v\nwant %+v", i, e, want[i])
		}
	}
	view(t, s, func(tx store.Tx) error {
		last, err := tx.LastEvent()
		if last != events[len(events)-1].Sequence {
			t.Errorf("LastEvent = %d, want %d", last, events[len(events)-1].Sequence)
		}
		return err
	})
}

func testEventQueries(t *testing.T, s store.Store) {
	view(t, s, func(tx store.Tx) error {
		last, err := tx.LastEvent()
		if last != 0 {
			t.Errorf("LastEvent of an empty store = %d", last)
		}
		return err
	})
	insert(t, s, store.Resource{Kind: "a", ID: "1"})
	insert(t, s, store.Resource{Kind: "a", ID: "2", Workspace: "w"})
	insert(t, s, store.Resource{Kind: "b", ID: "3", Workspace: "w"})
	insert(t, s, store.Resource{Kind: "b", ID: "4", Workspace: "v"})
	all := allEvents(t, s)
	for _, c := range []struct {
		q    store.EventQuery
		want string
	}{
		{store.EventQuery{}, "1"},
		{store.EventQuery{AnyWorkspace: true}, "1 2 3 4"},
		{store.EventQuery{AnyWorkspace: true, Kind: "a"}, "1 2"},
		{store.EventQuery{AnyWorkspace: true, After: all[1].Sequence}, "3 4"},
		{store.EventQuery{AnyWorkspace: true, Limit: 2}, "1 2"},
		{store.EventQuery{AnyWorkspace: true, Kind: "b", ID: "4"}, "4"},
		{store.EventQuery{Workspace: "w"}, "2 3"},
		{store.EventQuery{Workspace: "w", Kind: "b"}, "3"},
		{store.EventQuery{Workspace: "w", ID: "4"}, ""},
		{store.EventQuery{Workspace: "w", After: all[3].Sequence}, ""},
	} {
		if c.q.Limit == 0 {
			c.q.Limit = 10
		}
		view(t, s, func(tx store.Tx) error {
			events, err := tx.Events(c.q)
			var got []string
			for _, e := range events {
				got = append(got, e.ID)
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("Events(%+v) = %v, want %v", c.q, got, c.want)
			}
			return err
		})
	}
}

func testChanges(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first, second := s.Changes(ctx), s.Changes(t.Context())
	wait := func(what string, ch <-chan struct{}, wantOpen bool) {
		t.Helper()
		select {
		case _, open := <-ch:
			if open != wantOpen {
				t.Fatalf("%s: the channel's end is %v", what, !open)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: nothing came", what)
		}
	}
	insert(t, s, store.Resource{Kind: "thing"})
	wait("after a commit", first, true)
	wait("after a commit", second, true)

	// Nobody reads for a while: the values coalesce, and writers do not wait.
	for range 5 {
		insert(t, s, store.Resource{Kind: "thing"})
	}
	wait("after five commits", first, true)
	cancel()
	for open := true; open; { // what came before the end may still be there
		select {
		case _, open = <-first:
		case <-time.After(30 * time.Second):
			t.Fatal("the channel does not close with its context")
		}
	}
	wait("the other watcher", second, true)

	// No event, no value: neither a failed change nor an audit entry wakes anybody.
	_ = s.Update(t.Context(), by, func(tx store.Tx) error { // the error is errGiveUp
		_, err := tx.Insert(store.Resource{Kind: "thing", Doc: json.RawMessage(`{}`)})
		if err != nil {
			t.Error(err)
		}
		return errGiveUp
	})
	update(t, s, func(tx store.Tx) error { return tx.Audit(store.AuditEntry{Verb: "a.b"}) })
	select {
	case <-second:
		t.Error("a value came without an event")
	default: // it would have been there when Update returned
	}
}

func testAudit(t *testing.T, s store.Store) {
	at := time.UnixMicro(1_700_000_000_123_456).UTC()
	full := store.AuditEntry{
		Time: at, Workspace: "w", Actor: "device:d", Verb: "content.pull", Kind: "device", Object: "d",
		Allowed: true, Why: "its own", Request: "r",
	}
	update(t, s, func(tx store.Tx) error {
		for _, a := range []store.AuditEntry{full, {Workspace: "w", Verb: "model.delete"}, {Verb: "hub.show"}, {Workspace: "v"}} {
			if err := tx.Audit(a); err != nil {
				return err
			}
		}
		return nil
	})
	view(t, s, func(tx store.Tx) error {
		got, err := tx.AuditTrail("w", 0, 10)
		if err != nil || len(got) != 2 {
			t.Fatalf("AuditTrail: %d entries, %v; want 2", len(got), err)
		}
		full.Sequence = got[0].Sequence
		if got[0] != full {
			t.Errorf("entry = %+v\nwant %+v", got[0], full)
		}
		if got[1].Actor != by.Actor || got[1].Request != by.Request || time.Since(got[1].Time) > time.Minute || got[1].Allowed {
			t.Errorf("entry = %+v; want what Update knows", got[1])
		}
		if rest, err := tx.AuditTrail("w", got[0].Sequence, 10); err != nil || len(rest) != 1 || rest[0] != got[1] {
			t.Errorf("entries after the first: %+v, %v", rest, err)
		}
		if one, err := tx.AuditTrail("w", 0, 1); err != nil || len(one) != 1 || one[0] != got[0] {
			t.Errorf("one entry: %+v, %v", one, err)
		}
		if hub, err := tx.AuditTrail("", 0, 10); err != nil || len(hub) != 1 || hub[0].Verb != "hub.show" {
			t.Errorf("the hub's own: %+v, %v", hub, err)
		}
		return nil
	})
	if n := len(allEvents(t, s)); n != 0 {
		t.Errorf("audit entries made %d events", n)
	}
}
