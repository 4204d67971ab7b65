package storetest

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

// walk reads all pages of a kind, each in a transaction of its own.
func walk(t *testing.T, s store.Store, q store.Query) (all []string) {
	t.Helper()
	for {
		var page []store.Resource
		view(t, s, func(tx store.Tx) (err error) {
			page, err = tx.List(q)
			return err
		})
		if len(page) > q.Limit {
			t.Fatalf("a page of %d with limit %d", len(page), q.Limit)
		}
		all = append(all, ids(page)...)
		if len(page) < q.Limit {
			return all
		}
		q.After = page[len(page)-1].ID
	}
}

func testPaging(t *testing.T, s store.Store) {
	// A language's collation would order these otherwise.
	want := []string{"-a", "0", "1", "A", "B", "Z", "_", "a", "a-b", "a0", "aB", "ab", "b", "z", "ä", "日"}
	if !slices.IsSorted(want) {
		t.Fatal("the test's own list is out of order")
	}
	update(t, s, func(tx store.Tx) error {
		for i := range want {
			for j, parent := range []string{"p", "q"} {
				id := want[(i*5+j)%len(want)]
				r := store.Resource{Kind: "thing " + parent, Workspace: "w", Parent: parent, ID: id, Doc: json.RawMessage(`{}`)}
				if id >= "a" {
					r.Refs = []store.Ref{{Rel: "r", To: "x"}}
				}
				if _, err := tx.Insert(r); err != nil {
					return err
				}
			}
		}
		return nil
	})
	for limit := 1; limit <= len(want)+1; limit++ {
		q := store.Query{Kind: "thing p", Workspace: "w", Limit: limit}
		if got := walk(t, s, q); !slices.Equal(got, want) {
			t.Errorf("pages of %d: %v\nwant %v", limit, got, want)
		}
	}
	q := store.Query{Kind: "thing p", Workspace: "w", Parent: "p", Rel: "r", To: "x", Limit: 2}
	if got := walk(t, s, q); !slices.Equal(got, want[7:]) {
		t.Errorf("pages with a parent and a reference: %v\nwant %v", got, want[7:])
	}
	q = store.Query{Kind: "thing p", Workspace: "w", Parent: "q", Limit: 2}
	if got := walk(t, s, q); len(got) != 0 {
		t.Errorf("pages of another parent: %v", got)
	}
}

func testPagingUnderInserts(t *testing.T, s store.Store) {
	var before []string
	for range 40 {
		before = append(before, insert(t, s, store.Resource{Kind: "thing", Workspace: "w"}).ID)
	}
	stop := make(chan struct{})
	var inserters sync.WaitGroup
	for i := range 2 {
		inserters.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				err := s.Update(t.Context(), by, func(tx store.Tx) error {
					// One ahead of all, one behind: neither may disturb a page.
					for _, id := range []string{fmt.Sprintf("0-%d-%06d", i, n), ""} {
						if _, err := tx.Insert(store.Resource{Kind: "thing", Workspace: "w", ID: id, Doc: json.RawMessage(`{}`)}); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					t.Errorf("Update: %v", err)
					return
				}
			}
		})
	}
	for range 3 {
		got := walk(t, s, store.Query{Kind: "thing", Workspace: "w", Limit: 7})
		if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
			t.Errorf("ids come twice or out of order: %v", got)
		}
		for _, id := range before {
			if !slices.Contains(got, id) {
				t.Errorf("%s, there all the time, is on no page", id)
			}
		}
	}
	close(stop)
	inserters.Wait()
}

func testLimits(t *testing.T, s store.Store) {
	view(t, s, func(tx store.Tx) error {
		for _, limit := range []int{-1, 0, 1001} {
			_, err := tx.List(store.Query{Kind: "thing", Limit: limit})
			wantCode(t, fmt.Sprintf("List with limit %d", limit), err, atelier.Invalid)
			_, err = tx.Referrers("r", "x", limit)
			wantCode(t, fmt.Sprintf("Referrers with limit %d", limit), err, atelier.Invalid)
			_, err = tx.Events(store.EventQuery{Limit: limit})
			wantCode(t, fmt.Sprintf("Events with limit %d", limit), err, atelier.Invalid)
			_, err = tx.AuditTrail("", 0, limit)
			wantCode(t, fmt.Sprintf("AuditTrail with limit %d", limit), err, atelier.Invalid)
		}
		return nil
	})
}
