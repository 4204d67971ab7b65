package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"sync"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

func testRollback(t *testing.T, s store.Store) {
	id := newCounter(t, s, 1)
	err := s.Update(t.Context(), by, func(tx store.Tx) error {
		if err := add(tx, id, 1); err != nil {
			return err
		}
		if err := tx.Audit(store.AuditEntry{}); err != nil {
			return err
		}
		return errGiveUp
	})
	if !errors.Is(err, errGiveUp) {
		t.Errorf("Update = %v, want the function's own error", err)
	}
	view(t, s, func(tx store.Tx) error {
		r, err := tx.Get("counter", "w", id)
		if err == nil && r.Revision != 1 {
			t.Errorf("a failed Update left revision %d", r.Revision)
		}
		if es, err := tx.AuditTrail("", 0, 10); err != nil || len(es) != 0 {
			t.Errorf("a failed Update left %d audit entries (%v)", len(es), err)
		}
		return err
	})
	if n := len(allEvents(t, s)); n != 1 {
		t.Errorf("a failed Update left events: %d, want 1", n)
	}
}

// testVanishing: a function that panics, or ends its goroutine as t.FailNow does,
// takes back what it did and hinders nobody.
func testVanishing(t *testing.T, s store.Store) {
	id := newCounter(t, s, 1)
	for name, vanish := range map[string]func(){
		"panic":  func() { panic(errGiveUp) },
		"Goexit": runtime.Goexit,
	} {
		var wg sync.WaitGroup
		wg.Go(func() {
			defer func() { _ = recover() }() // the panic is this test's own
			err := s.Update(t.Context(), by, func(tx store.Tx) error {
				if err := add(tx, id, 1); err != nil {
					return err
				}
				vanish()
				return nil
			})
			t.Errorf("%s: Update returned (%v)", name, err)
		})
		wg.Wait()
		view(t, s, func(tx store.Tx) error {
			r, err := tx.Get("counter", "w", id)
			if err == nil && r.Revision != 1 {
				t.Errorf("%s: it left revision %d", name, r.Revision)
			}
			return err
		})
	}
	update(t, s, func(tx store.Tx) error { return add(tx, id, 1) })
}

func testReadOnlyView(t *testing.T, s store.Store) {
	view(t, s, func(tx store.Tx) error {
		if _, err := tx.Insert(store.Resource{Kind: "thing", Doc: json.RawMessage(`{}`)}); err == nil {
			t.Error("a view wrote")
		}
		if err := tx.Audit(store.AuditEntry{}); err == nil {
			t.Error("a view wrote to the audit trail")
		}
		return nil
	})
	if n := len(allEvents(t, s)); n != 0 {
		t.Errorf("a view left %d events", n)
	}
}

func testEndedTx(t *testing.T, s store.Store) {
	var kept []store.Tx
	keep := func(tx store.Tx) error { kept = append(kept, tx); return nil }
	update(t, s, keep)
	view(t, s, keep)
	for _, tx := range kept {
		_, err := tx.Insert(store.Resource{Kind: "thing", Doc: json.RawMessage(`{}`)})
		wantCode(t, "Insert after the end", err, atelier.Internal)
		_, err = tx.LastEvent()
		wantCode(t, "LastEvent after the end", err, atelier.Internal)
	}
}

func testEndedContext(t *testing.T, s store.Store) {
	for range 20 { // which way it is noticed may depend on chance
		err := s.Update(ended(), by, func(tx store.Tx) error {
			_, err := tx.Insert(store.Resource{Kind: "thing", Doc: json.RawMessage(`{}`)})
			return err
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("Update with an ended context = %v", err)
		}
	}
	if n := len(allEvents(t, s)); n != 0 {
		t.Errorf("it left %d events", n)
	}
	if err := s.View(ended(), func(store.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("View with an ended context = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// Once the function runs, the context's end undoes nothing: an error would have
	// to mean that nothing was written.
	if err := s.Update(ctx, by, func(tx store.Tx) error {
		cancel()
		_, err := tx.Insert(store.Resource{Kind: "thing", Doc: json.RawMessage(`{}`)})
		return err
	}); err != nil {
		t.Errorf("Update whose context ends within = %v", err)
	}
	if n := len(allEvents(t, s)); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

func testClose(t *testing.T, s store.Store) {
	entered, leave := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		err := s.View(t.Context(), func(tx store.Tx) error {
			close(entered)
			<-leave
			_, err := tx.LastEvent()
			return err
		})
		if err != nil {
			t.Errorf("a view that began before Close: %v", err)
		}
	})
	<-entered
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	close(leave)
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
	wg.Wait()
	nothing := func(store.Tx) error { return nil }
	wantCode(t, "View after Close", s.View(t.Context(), nothing), atelier.Unavailable)
	wantCode(t, "Update after Close", s.Update(t.Context(), by, nothing), atelier.Unavailable)
}
