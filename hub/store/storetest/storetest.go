// Package storetest is the conformance suite of store.Store: whatever passes it
// may keep the hub's metadata. A new engine calls Run from one test.
package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

// Run runs the suite. open returns a fresh, empty store; Run closes it.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, store.Store)
	}{
		{"Lifecycle", testLifecycle},
		{"Identity", testIdentity},
		{"Names", testNames},
		{"Stale", testStale},
		{"Record", testRecord},
		{"References", testReferences},
		{"WorkspacesApart", testWorkspacesApart},
		{"Collection", testCollection},
		{"HostileStrings", testHostileStrings},
		{"Paging", testPaging},
		{"PagingUnderInserts", testPagingUnderInserts},
		{"Limits", testLimits},
		{"EventPerChange", testEventPerChange},
		{"EventQueries", testEventQueries},
		{"Changes", testChanges},
		{"Audit", testAudit},
		{"Trim", testTrim},
		{"Answers", testAnswers},
		{"Reservations", testReservations},
		{"Rollback", testRollback},
		{"Vanishing", testVanishing},
		{"ReadOnlyView", testReadOnlyView},
		{"EndedTx", testEndedTx},
		{"EndedContext", testEndedContext},
		{"NoLostUpdates", testNoLostUpdates},
		{"FailuresStayAlone", testFailuresStayAlone},
		{"ViewsSeeOneState", testViewsSeeOneState},
		{"EventsInCommitOrder", testEventsInCommitOrder},
		{"Close", testClose},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			c.test(t, s)
		})
	}
}

var by = store.By{Actor: "token:tester", Request: "request-1"}

// errGiveUp is what a test's function fails with on purpose.
var errGiveUp = errors.New("given up on purpose")

// update runs fn, which must succeed.
func update(t *testing.T, s store.Store, fn func(store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), by, fn); err != nil {
		t.Fatalf("Update: %v", err)
	}
}

// view runs fn, which must succeed.
func view(t *testing.T, s store.Store, fn func(store.Tx) error) {
	t.Helper()
	if err := s.View(t.Context(), fn); err != nil {
		t.Fatalf("View: %v", err)
	}
}

// insert adds r in a transaction of its own.
func insert(t *testing.T, s store.Store, r store.Resource) (got store.Resource) {
	t.Helper()
	if r.Doc == nil {
		r.Doc = json.RawMessage(`{}`)
	}
	update(t, s, func(tx store.Tx) (err error) {
		got, err = tx.Insert(r)
		return err
	})
	return got
}

// wantCode checks the code of err.
func wantCode(t *testing.T, doing string, err error, want atelier.Code) {
	t.Helper()
	if got := atelier.CodeOf(err); got != want {
		t.Errorf("%s: got %q (%v), want code %q", doing, got, err, want)
	}
}

func ids(rs []store.Resource) []string {
	out := make([]string, len(rs))
	for i, r := range rs {
		out[i] = r.ID
	}
	return out
}

// allEvents returns every event of the hub.
func allEvents(t *testing.T, s store.Store) (events []atelier.Event) {
	t.Helper()
	view(t, s, func(tx store.Tx) (err error) {
		events, err = tx.Events(store.EventQuery{AnyWorkspace: true, Limit: 1000})
		return err
	})
	return events
}

// counter is a document that counts.
type counter struct {
	N int `json:"n"`
}

func readCounter(r store.Resource) (c counter, err error) {
	err = json.Unmarshal(r.Doc, &c)
	return c, err
}

// add adds n to the counter with the id.
func add(tx store.Tx, id string, n int) error {
	r, err := tx.Get("counter", "w", id)
	if err != nil {
		return err
	}
	c, err := readCounter(r)
	if err != nil {
		return err
	}
	r.Doc = json.RawMessage(fmt.Sprintf(`{"n":%d}`, c.N+n))
	_, err = tx.Update(r)
	return err
}

func newCounter(t *testing.T, s store.Store, n int) string {
	t.Helper()
	return insert(t, s, store.Resource{Kind: "counter", Workspace: "w", Doc: json.RawMessage(fmt.Sprintf(`{"n":%d}`, n))}).ID
}

func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
