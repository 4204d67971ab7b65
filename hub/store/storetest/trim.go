package storetest

import (
	"encoding/json"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

func testTrim(t *testing.T, s store.Store) {
	for range 5 {
		insert(t, s, store.Resource{Kind: "thing", Workspace: "w", Doc: json.RawMessage(`{}`)})
	}
	now := time.Now()
	update(t, s, func(tx store.Tx) error {
		for i, age := range []time.Duration{4 * time.Hour, 3 * time.Hour, 2 * time.Hour, 0} {
			if err := tx.Audit(store.AuditEntry{Time: now.Add(-age), Workspace: "w", Verb: "thing.create", Object: string(rune('a' + i))}); err != nil {
				return err
			}
		}
		return nil
	})
	before := allEvents(t, s)
	trim := func(events, audit time.Time, limit int) (removed int64) {
		update(t, s, func(tx store.Tx) (err error) {
			removed, err = tx.Trim(events, audit, limit)
			return err
		})
		return removed
	}
	trail := func() (objects string) {
		view(t, s, func(tx store.Tx) error {
			entries, err := tx.AuditTrail("w", 0, 100)
			for _, e := range entries {
				objects += e.Object
			}
			return err
		})
		return objects
	}
	long := now.Add(-time.Hour)
	if n := trim(long, now.Add(-150*time.Minute), 100); n != 2 || trail() != "cd" {
		t.Errorf("%d were removed, the trail is %s; two entries were old", n, trail())
	}
	if n := trim(now.Add(time.Hour), long, 1); n != 2 || trail() != "d" {
		t.Errorf("%d were removed, the trail is %s; an event and an entry were to go", n, trail())
	}
	if n := trim(now.Add(time.Hour), now.Add(time.Hour), 100); n != 3 {
		t.Errorf("%d were removed, all but the newest of 4 events and of 1 entry were to go", n)
	}
	left := allEvents(t, s)
	if len(left) != 1 || left[0].Sequence != before[len(before)-1].Sequence {
		t.Errorf("left are %+v, expected was the newest of %d", left, len(before))
	}
	insert(t, s, store.Resource{Kind: "thing", Workspace: "w", Doc: json.RawMessage(`{}`)})
	if after := allEvents(t, s); after[len(after)-1].Sequence != left[0].Sequence+1 {
		t.Errorf("the next event has the sequence %d, after %d", after[len(after)-1].Sequence, left[0].Sequence)
	}
	err := s.Update(t.Context(), by, func(tx store.Tx) error {
		_, err := tx.Trim(now, now, 0)
		return err
	})
	if atelier.CodeOf(err) != atelier.Invalid {
		t.Errorf("a limit of 0: %v", err)
	}
}
