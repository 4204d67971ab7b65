package storetest

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

func testLifecycle(t *testing.T, s store.Store) {
	before := time.Now().Add(-time.Millisecond)
	made := insert(t, s, store.Resource{
		Kind: "thing", Workspace: "w", Parent: "p", Name: "one",
		Doc: json.RawMessage(`{"text":"ä \u0000 <>&","n":12345678901234567}`),
	})
	if made.Revision != 1 || made.Created.Before(before) || !made.Updated.Equal(made.Created) {
		t.Errorf("Insert returned %+v; want revision 1 and the present time", made)
	}
	get := func() (r store.Resource) {
		t.Helper()
		view(t, s, func(tx store.Tx) (err error) {
			r, err = tx.Get("thing", "w", made.ID)
			return err
		})
		return r
	}
	if got := get(); !reflect.DeepEqual(got, made) {
		t.Errorf("Get = %+v\nwant what Insert returned: %+v", got, made)
	}

	changed := made
	changed.Name, changed.Doc = "two", json.RawMessage(`{"text":"b"}`)
	changed.Parent, changed.Created = "elsewhere", time.Unix(0, 0) // never change
	update(t, s, func(tx store.Tx) (err error) {
		changed, err = tx.Update(changed)
		return err
	})
	if changed.Revision != 2 || changed.Parent != "p" || !changed.Created.Equal(made.Created) || changed.Updated.Before(made.Updated) {
		t.Errorf("Update returned %+v; want revision 2, the old parent and creation", changed)
	}
	if got := get(); !reflect.DeepEqual(got, changed) {
		t.Errorf("Get = %+v\nwant what Update returned: %+v", got, changed)
	}
	view(t, s, func(tx store.Tx) error {
		_, err := tx.Find("thing", "w", "p", "one")
		wantCode(t, "Find by the old name", err, atelier.NotFound)
		_, err = tx.Find("thing", "w", "p", "two")
		return err
	})

	update(t, s, func(tx store.Tx) error { return tx.Delete("thing", "w", made.ID, 2) })
	view(t, s, func(tx store.Tx) error {
		_, err := tx.Get("thing", "w", made.ID)
		wantCode(t, "Get after Delete", err, atelier.NotFound)
		_, err = tx.Find("thing", "w", "p", "two")
		wantCode(t, "Find after Delete", err, atelier.NotFound)
		return nil
	})
	update(t, s, func(tx store.Tx) error {
		wantCode(t, "Delete again", tx.Delete("thing", "w", made.ID, 0), atelier.NotFound)
		_, err := tx.Update(changed)
		wantCode(t, "Update after Delete", err, atelier.NotFound)
		wantCode(t, "Record after Delete", tx.Record(changed), atelier.NotFound)
		return nil
	})
}

func testIdentity(t *testing.T, s store.Store) {
	made := insert(t, s, store.Resource{Kind: "thing", Workspace: "w"})
	if !atelier.IsID(made.ID) {
		t.Errorf("Insert without an id made %q", made.ID)
	}
	insert(t, s, store.Resource{Kind: "other", Workspace: "w", ID: made.ID}) // ids are per kind
	update(t, s, func(tx store.Tx) error {
		for _, workspace := range []string{"w", "x"} {
			_, err := tx.Insert(store.Resource{Kind: "thing", Workspace: workspace, ID: made.ID, Doc: json.RawMessage(`{}`)})
			wantCode(t, "Insert with a used id in workspace "+workspace, err, atelier.Exists)
		}
		for _, doc := range []string{"", "null", "[]", `"x"`, "{", "{}{}"} {
			_, err := tx.Insert(store.Resource{Kind: "thing", Workspace: "w", Doc: json.RawMessage(doc)})
			wantCode(t, "Insert the document "+doc, err, atelier.Invalid)
		}
		_, err := tx.Insert(store.Resource{Workspace: "w", Doc: json.RawMessage(`{}`)})
		wantCode(t, "Insert without a kind", err, atelier.Invalid)
		return nil
	})
}

func testNames(t *testing.T, s store.Store) {
	doc := json.RawMessage(`{}`)
	first := insert(t, s, store.Resource{Kind: "thing", Workspace: "w", Name: "a"})
	update(t, s, func(tx store.Tx) error {
		_, err := tx.Insert(store.Resource{Kind: "thing", Workspace: "w", Name: "a", Doc: doc})
		wantCode(t, "Insert a taken name", err, atelier.Exists)
		// After Exists the transaction goes on.
		for _, r := range []store.Resource{
			{Kind: "thing", Workspace: "w", Parent: "p", Name: "a"},
			{Kind: "thing", Workspace: "x", Name: "a"},
			{Kind: "other", Workspace: "w", Name: "a"},
			{Kind: "thing", Workspace: "w", Name: "A"},
			{Kind: "thing", Workspace: "w"},
			{Kind: "thing", Workspace: "w"},
		} {
			r.Doc = doc
			if _, err := tx.Insert(r); err != nil {
				t.Errorf("Insert %+v: %v", r, err)
			}
		}
		second, err := tx.Insert(store.Resource{Kind: "thing", Workspace: "w", Name: "b", Doc: doc})
		if err != nil {
			return err
		}
		renamed := second
		renamed.Name = "a"
		_, err = tx.Update(renamed)
		wantCode(t, "Update to a taken name", err, atelier.Exists)
		if _, err = tx.Update(second); err != nil { // keeping one's own name is fine
			return err
		}
		return tx.Delete("thing", "w", first.ID, 0)
	})
	if again := insert(t, s, store.Resource{Kind: "thing", Workspace: "w", Name: "a"}); again.ID == first.ID {
		t.Error("a name that became free again brought back the old resource")
	}
	view(t, s, func(tx store.Tx) error {
		_, err := tx.Find("thing", "w", "", "")
		wantCode(t, "Find the empty name", err, atelier.NotFound)
		return nil
	})
}

func testStale(t *testing.T, s store.Store) {
	made := insert(t, s, store.Resource{Kind: "thing", Workspace: "w"})
	update(t, s, func(tx store.Tx) error { _, err := tx.Update(made); return err })
	update(t, s, func(tx store.Tx) error {
		_, err := tx.Update(made)
		wantCode(t, "Update with an old revision", err, atelier.Stale)
		wantCode(t, "Record with an old revision", tx.Record(made), atelier.Stale)
		wantCode(t, "Delete with an old revision", tx.Delete("thing", "w", made.ID, 1), atelier.Stale)
		ahead := made
		ahead.Revision = 3
		_, err = tx.Update(ahead)
		wantCode(t, "Update with a revision to come", err, atelier.Stale)
		return nil
	})
	if n := len(allEvents(t, s)); n != 2 {
		t.Errorf("%d events, want 2: what was stale must leave none", n)
	}
	update(t, s, func(tx store.Tx) error { return tx.Delete("thing", "w", made.ID, 0) })
}

func testRecord(t *testing.T, s store.Store) {
	made := insert(t, s, store.Resource{Kind: "thing", Workspace: "w", Name: "a", Refs: []store.Ref{{Rel: "r", To: "1"}}})
	seen := made
	seen.Name, seen.Doc, seen.Refs = "ignored", json.RawMessage(`{"seen":true}`), []store.Ref{{Rel: "r", To: "2"}}
	update(t, s, func(tx store.Tx) error { return tx.Record(seen) })
	view(t, s, func(tx store.Tx) error {
		got, err := tx.Get("thing", "w", made.ID)
		if err != nil {
			return err
		}
		want := made
		want.Doc, want.Refs = seen.Doc, nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("after Record: %+v\nwant %+v", got, want)
		}
		for to, n := range map[string]int{"1": 0, "2": 1} {
			if rs, err := tx.Referrers("r", to, 10); err != nil || len(rs) != n {
				t.Errorf("Referrers of %s: %d, %v; want %d", to, len(rs), err, n)
			}
		}
		return nil
	})
	if n := len(allEvents(t, s)); n != 1 {
		t.Errorf("%d events, want that of Insert alone", n)
	}
}

func testReferences(t *testing.T, s store.Store) {
	blob := func(to ...string) (refs []store.Ref) {
		for _, d := range to {
			refs = append(refs, store.Ref{Rel: "blob", To: d})
		}
		return refs
	}
	a := insert(t, s, store.Resource{Kind: "version", Workspace: "w", Refs: blob("x", "y", "x")})
	b := insert(t, s, store.Resource{Kind: "version", Workspace: "v", Refs: blob("x")})
	c := insert(t, s, store.Resource{Kind: "runtime", Refs: append(blob("x"), store.Ref{Rel: "other", To: "x"})})
	referrers := func(rel, to string, want ...string) {
		t.Helper()
		view(t, s, func(tx store.Tx) error {
			rs, err := tx.Referrers(rel, to, 10)
			if got := ids(rs); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
				t.Errorf("Referrers(%s, %s) = %v, want %v", rel, to, got, want)
			}
			return err
		})
	}
	referrers("blob", "x", a.ID, b.ID, c.ID)
	referrers("blob", "y", a.ID)
	referrers("other", "x", c.ID)
	referrers("blob", "z")
	view(t, s, func(tx store.Tx) error {
		rs, err := tx.Referrers("blob", "x", 2)
		if len(rs) != 2 {
			t.Errorf("%d referrers with limit 2", len(rs))
		}
		return err
	})

	a.Refs = blob("z")
	update(t, s, func(tx store.Tx) error { _, err := tx.Update(a); return err })
	referrers("blob", "x", b.ID, c.ID)
	referrers("blob", "y")
	referrers("blob", "z", a.ID)
	update(t, s, func(tx store.Tx) error { return tx.Delete("version", "v", b.ID, 0) })
	referrers("blob", "x", c.ID)
}

func testWorkspacesApart(t *testing.T, s store.Store) {
	refs := []store.Ref{{Rel: "r", To: "target"}}
	hub := insert(t, s, store.Resource{Kind: "thing", Name: "same", Refs: refs})
	one := insert(t, s, store.Resource{Kind: "thing", Workspace: "1", Name: "same", Refs: refs})
	two := insert(t, s, store.Resource{Kind: "thing", Workspace: "2", Name: "same", Refs: refs})
	all := map[string]store.Resource{"": hub, "1": one, "2": two}
	for workspace, own := range all {
		view(t, s, func(tx store.Tx) error {
			if r, err := tx.Find("thing", workspace, "", "same"); err != nil || r.ID != own.ID {
				t.Errorf("Find in %q: %s, %v", workspace, r.ID, err)
			}
			for _, q := range []store.Query{{}, {Rel: "r", To: "target"}} {
				q.Kind, q.Workspace, q.Limit = "thing", workspace, 10
				if rs, err := tx.List(q); err != nil || !slices.Equal(ids(rs), []string{own.ID}) {
					t.Errorf("List %+v: %v, %v; want %s", q, ids(rs), err, own.ID)
				}
			}
			es, err := tx.Events(store.EventQuery{Workspace: workspace, Limit: 10})
			if err != nil || len(es) != 1 || es[0].ID != own.ID {
				t.Errorf("Events of %q: %v, %v", workspace, es, err)
			}
			return nil
		})
		for other, foreign := range all {
			if other == workspace {
				continue
			}
			update(t, s, func(tx store.Tx) error {
				_, err := tx.Get("thing", workspace, foreign.ID)
				wantCode(t, "Get what another workspace has", err, atelier.NotFound)
				foreign.Workspace = workspace
				_, err = tx.Update(foreign)
				wantCode(t, "Update what another workspace has", err, atelier.NotFound)
				wantCode(t, "Record what another workspace has", tx.Record(foreign), atelier.NotFound)
				wantCode(t, "Delete what another workspace has", tx.Delete("thing", workspace, foreign.ID, 0), atelier.NotFound)
				if es, err := tx.Events(store.EventQuery{Workspace: workspace, ID: foreign.ID, Limit: 10}); err != nil || len(es) != 0 {
					t.Errorf("workspace %q sees %d events of another (%v)", workspace, len(es), err)
				}
				return nil
			})
		}
	}
}

func testCollection(t *testing.T, s store.Store) {
	models := store.Collection[atelier.Model]{
		Kind: "model", Meta: func(m *atelier.Model) *atelier.Meta { return &m.Meta },
	}
	var made atelier.Model
	update(t, s, func(tx store.Tx) (err error) {
		made, err = models.Insert(tx, "w", "", atelier.Model{Meta: atelier.Meta{Name: "m"}, Description: "first"})
		return err
	})
	if made.ID == "" || made.Revision != 1 || made.Created.IsZero() || made.Description != "first" {
		t.Errorf("Insert = %+v", made)
	}
	update(t, s, func(tx store.Tx) error {
		next := made
		next.Description = "second"
		next, err := models.Update(tx, "w", next)
		if err != nil {
			return err
		}
		for _, ref := range []string{made.ID, "m"} {
			if got, err := models.Resolve(tx, "w", "", ref); err != nil || !reflect.DeepEqual(got, next) {
				t.Errorf("Resolve(%s) = %+v, %v; want %+v", ref, got, err, next)
			}
		}
		return nil
	})
	update(t, s, func(tx store.Tx) error {
		for range 1001 {
			if _, err := models.Insert(tx, "w", "", atelier.Model{}); err != nil {
				return err
			}
		}
		return nil
	})
	n := 0
	view(t, s, func(tx store.Tx) error {
		return models.Each(tx, store.Query{Workspace: "w"}, func(atelier.Model) error { n++; return nil })
	})
	if n != 1002 {
		t.Errorf("Each visited %d models, want 1002", n)
	}
}

func testHostileStrings(t *testing.T, s store.Store) {
	good := insert(t, s, store.Resource{Kind: "thing", Workspace: "w", Name: "'; DROP TABLE resource; --"})
	for _, bad := range []string{"a\x00b", "\xff\xfe", strings.Repeat("x", 4096)} {
		update(t, s, func(tx store.Tx) error {
			_, err := tx.Get("thing", "w", bad)
			wantCode(t, "Get", err, atelier.NotFound)
			_, err = tx.Get("thing", bad, good.ID)
			wantCode(t, "Get in a workspace", err, atelier.NotFound)
			_, err = tx.Find("thing", "w", "", bad)
			wantCode(t, "Find", err, atelier.NotFound)
			wantCode(t, "Delete", tx.Delete("thing", "w", bad, 0), atelier.NotFound)
			for _, q := range []store.Query{{After: bad}, {Parent: bad}, {Rel: "r", To: bad}} {
				q.Kind, q.Workspace, q.Limit = "thing", "w", 10
				if rs, err := tx.List(q); err != nil || len(rs) != 0 {
					t.Errorf("List %.40q: %d, %v", bad, len(rs), err)
				}
			}
			if rs, err := tx.Referrers("r", bad, 10); err != nil || len(rs) != 0 {
				t.Errorf("Referrers %.40q: %d, %v", bad, len(rs), err)
			}
			if es, err := tx.Events(store.EventQuery{Workspace: "w", ID: bad, Limit: 10}); err != nil || len(es) != 0 {
				t.Errorf("Events %.40q: %d, %v", bad, len(es), err)
			}
			_, err = tx.Insert(store.Resource{Kind: "thing", Workspace: "w", Name: bad, Doc: json.RawMessage(`{}`)})
			wantCode(t, "Insert", err, atelier.Invalid)
			_, err = tx.Recall("a", bad, time.Now())
			wantCode(t, "Recall", err, atelier.NotFound)
			wantCode(t, "Remember", tx.Remember(store.Answer{Actor: "a", Key: bad}), atelier.Invalid)
			// The trail takes everything, as far as it goes.
			return tx.Audit(store.AuditEntry{Workspace: "w", Actor: bad, Verb: bad, Object: bad, Why: bad})
		})
	}
	view(t, s, func(tx store.Tx) error {
		_, err := tx.Find("thing", "w", "", good.Name)
		return err
	})
}
