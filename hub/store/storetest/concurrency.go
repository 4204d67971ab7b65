package storetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/atelier-edge/atelier/hub/store"
)

const (
	writers = 12
	rounds  = 15
)

// each runs fn on many goroutines at once, many times on each.
func each(fn func(writer, round int)) {
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for r := range rounds {
				fn(w, r)
			}
		})
	}
	wg.Wait()
}

func testNoLostUpdates(t *testing.T, s store.Store) {
	id := newCounter(t, s, 0)
	each(func(int, int) {
		if err := s.Update(t.Context(), by, func(tx store.Tx) error { return add(tx, id, 1) }); err != nil {
			t.Errorf("Update: %v", err)
		}
	})
	view(t, s, func(tx store.Tx) error {
		r, err := tx.Get("counter", "w", id)
		if err != nil {
			return err
		}
		if c, err := readCounter(r); err != nil || c.N != writers*rounds || r.Revision != writers*rounds+1 {
			t.Errorf("counted %d at revision %d (%v), want %d", c.N, r.Revision, err, writers*rounds)
		}
		return nil
	})
	if n := len(allEvents(t, s)); n != writers*rounds+1 {
		t.Errorf("%d events, want one per change: %d", n, writers*rounds+1)
	}
}

// testFailuresStayAlone: one in three changes fails after it wrote. Those that
// may share a commit with it are neither lost nor mixed with it.
func testFailuresStayAlone(t *testing.T, s store.Store) {
	id := newCounter(t, s, 0)
	each(func(w, r int) {
		fails := (w+r)%3 == 0
		err := s.Update(t.Context(), by, func(tx store.Tx) error {
			if err := add(tx, id, 1); err != nil {
				return err
			}
			if fails {
				return errGiveUp
			}
			return nil
		})
		if fails != errors.Is(err, errGiveUp) || !fails && err != nil {
			t.Errorf("Update (shall fail: %v) = %v", fails, err)
		}
	})
	view(t, s, func(tx store.Tx) error {
		r, err := tx.Get("counter", "w", id)
		if err != nil {
			return err
		}
		want := writers * rounds * 2 / 3
		if c, err := readCounter(r); err != nil || c.N != want {
			t.Errorf("counted %d (%v), want %d", c.N, err, want)
		}
		return nil
	})
}

// testViewsSeeOneState moves amounts between two counters whose sum never changes.
func testViewsSeeOneState(t *testing.T, s store.Store) {
	one, two := newCounter(t, s, 100), newCounter(t, s, 100)
	sum := func(tx store.Tx) error {
		total := 0
		for _, id := range []string{one, two} {
			r, err := tx.Get("counter", "w", id)
			if err != nil {
				return err
			}
			c, err := readCounter(r)
			if err != nil {
				return err
			}
			total += c.N
		}
		if total != 200 {
			return fmt.Errorf("the sum is %d, want 200", total)
		}
		return nil
	}
	each(func(w, r int) {
		var err error
		if w%3 == 0 {
			err = s.Update(t.Context(), by, func(tx store.Tx) error {
				return errors.Join(add(tx, one, -1), add(tx, two, 1))
			})
		} else {
			err = s.View(t.Context(), sum)
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// testEventsInCommitOrder: who has read all events up to one never sees an earlier
// one come later. Watches that resume after a sequence rest on it.
func testEventsInCommitOrder(t *testing.T, s store.Store) {
	done := make(chan struct{})
	var reader sync.WaitGroup
	seen := 0
	reader.Go(func() {
		last := int64(0)
		for stopping := false; ; {
			n := 0
			err := s.View(t.Context(), func(tx store.Tx) error {
				events, err := tx.Events(store.EventQuery{AnyWorkspace: true, After: last, Limit: 1000})
				if err != nil {
					return err
				}
				n = len(events)
				for _, e := range events {
					last = e.Sequence
				}
				return nil
			})
			if err != nil {
				t.Error(err)
				return
			}
			seen += n
			if stopping && n == 0 {
				return
			}
			select {
			case <-done:
				stopping = true
			default:
			}
		}
	})
	each(func(w, r int) {
		insert(t, s, store.Resource{Kind: "thing", Workspace: fmt.Sprint(w)})
	})
	close(done)
	reader.Wait()
	if seen != writers*rounds {
		t.Errorf("a reader that follows saw %d of %d events", seen, writers*rounds)
	}
}

// RunShared tests two stores over one database, as two processes would have
// them, for engines that allow it. It closes both.
func RunShared(t *testing.T, stores ...store.Store) {
	t.Cleanup(func() {
		for _, s := range stores {
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	})
	id := newCounter(t, stores[0], 0)
	each(func(w, r int) {
		s := stores[w%len(stores)]
		if err := s.Update(t.Context(), by, func(tx store.Tx) error { return add(tx, id, 1) }); err != nil {
			t.Errorf("Update: %v", err)
		}
	})
	events := allEvents(t, stores[0])
	if len(events) != writers*rounds+1 {
		t.Fatalf("%d events, want %d", len(events), writers*rounds+1)
	}
	for i, e := range events {
		if e.Revision != int64(i+1) {
			t.Errorf("event %d tells of revision %d: the order of events is not that of changes", i, e.Revision)
		}
	}
}
