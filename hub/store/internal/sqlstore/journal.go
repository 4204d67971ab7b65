package sqlstore

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

// event writes the outbox row of a change. Since writers run one after another,
// the next sequence is the newest plus one, and sequences come in the order of
// commits: a reader that saw n has seen all before n.
func (t *tx) event(r store.Resource, change atelier.Change) error {
	var doc []byte
	if change != atelier.Deleted && !r.Quiet {
		var err error
		if doc, err = whole(r); err != nil {
			return err
		}
	}
	_, err := t.exec("write an event", `INSERT INTO event
		(sequence, time, workspace, kind, id, name, change, revision, actor, request, resource)
		VALUES ((SELECT coalesce(max(sequence), 0) + 1 FROM event), $1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		t.now().UnixMicro(), r.Workspace, r.Kind, r.ID, r.Name, string(change), r.Revision,
		clean(t.by.Actor), clean(t.by.Request), string(doc))
	t.changed = err == nil
	return err
}

// whole returns the resource as its readers know it: the document with the
// fields that are kept in columns (atelier.Meta).
func whole(r store.Resource) ([]byte, error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(r.Doc, &fields); err != nil {
		return nil, atelier.Errorf(atelier.Internal, "read the document of %s %s: %w", r.Kind, r.ID, err)
	}
	meta, err := json.Marshal(atelier.Meta{ID: r.ID, Name: r.Name, Revision: r.Revision, Created: r.Created, Updated: r.Updated})
	if err == nil {
		err = json.Unmarshal(meta, &fields)
	}
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "complete the document of %s %s: %w", r.Kind, r.ID, err)
	}
	doc, err := json.Marshal(fields)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "write the document of %s %s: %w", r.Kind, r.ID, err)
	}
	return doc, nil
}

// Events implements store.Tx.
func (t *tx) Events(q store.EventQuery) ([]atelier.Event, error) {
	if err := checkLimit(q.Limit); err != nil {
		return nil, err
	}
	if !storable(q.Workspace, q.Kind, q.ID) {
		return nil, nil
	}
	where := conditions{text: "sequence > $1", args: []any{q.After}}
	if !q.AnyWorkspace {
		where.and("workspace = %s", q.Workspace)
	}
	if q.Kind != "" {
		where.and("kind = %s", q.Kind)
	}
	if q.ID != "" {
		where.and("id = %s", q.ID)
	}
	where.limit("sequence", q.Limit)
	var events []atelier.Event
	err := t.query("read events", func(scan func(...any) error) error {
		var e atelier.Event
		var at int64
		var change, doc string
		if err := scan(&e.Sequence, &at, &e.Workspace, &e.Kind, &e.ID, &e.Name, &change, &e.Revision, &e.Actor, &e.Request, &doc); err != nil {
			return err
		}
		e.Time, e.Change = fromMicros(at), atelier.Change(change)
		if doc != "" {
			e.Resource = json.RawMessage(doc)
		}
		events = append(events, e)
		return nil
	}, `SELECT sequence, time, workspace, kind, id, name, change, revision, actor, request, resource
		FROM event WHERE `+where.text, where.args...)
	return events, err
}

// LastEvent implements store.Tx.
func (t *tx) LastEvent() (int64, error) {
	var last int64
	err := t.query("read the newest event", func(scan func(...any) error) error { return scan(&last) },
		"SELECT coalesce(max(sequence), 0) FROM event")
	return last, err
}

// Audit implements store.Tx.
func (t *tx) Audit(a store.AuditEntry) error {
	if a.Time.IsZero() {
		a.Time = t.now()
	}
	if a.Actor == "" {
		a.Actor = t.by.Actor
	}
	if a.Request == "" {
		a.Request = t.by.Request
	}
	_, err := t.exec("write the audit trail", `INSERT INTO audit
		(sequence, time, workspace, actor, verb, kind, object, allowed, why, request)
		VALUES ((SELECT coalesce(max(sequence), 0) + 1 FROM audit), $1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		a.Time.UnixMicro(), clean(a.Workspace), clean(a.Actor), clean(a.Verb), clean(a.Kind), clean(a.Object),
		a.Allowed, clean(a.Why), clean(a.Request))
	return err
}

// AuditTrail implements store.Tx.
func (t *tx) AuditTrail(workspace string, after int64, limit int) ([]store.AuditEntry, error) {
	if err := checkLimit(limit); err != nil {
		return nil, err
	}
	if !storable(workspace) {
		return nil, nil
	}
	var entries []store.AuditEntry
	err := t.query("read the audit trail", func(scan func(...any) error) error {
		var a store.AuditEntry
		var at int64
		if err := scan(&a.Sequence, &at, &a.Workspace, &a.Actor, &a.Verb, &a.Kind, &a.Object, &a.Allowed, &a.Why, &a.Request); err != nil {
			return err
		}
		a.Time = fromMicros(at)
		entries = append(entries, a)
		return nil
	}, `SELECT sequence, time, workspace, actor, verb, kind, object, allowed, why, request
		FROM audit WHERE workspace = $1 AND sequence > $2 ORDER BY sequence LIMIT $3`, workspace, after, limit)
	return entries, err
}

// Trim implements store.Tx. It looks at the oldest rows by sequence, which needs
// no index of times and holds the writer for a moment only.
func (t *tx) Trim(events, audit time.Time, limit int) (int64, error) {
	if err := checkLimit(limit); err != nil {
		return 0, err
	}
	var removed int64
	for _, trim := range []struct {
		table  string
		before time.Time
	}{{"event", events}, {"audit", audit}} {
		n, err := t.exec("trim the table "+trim.table, fmt.Sprintf(`DELETE FROM %[1]s WHERE time < $1
			AND sequence IN (SELECT sequence FROM %[1]s ORDER BY sequence LIMIT %[2]d)
			AND sequence < (SELECT max(sequence) FROM %[1]s)`, trim.table, limit), trim.before.UnixMicro())
		if err != nil {
			return removed, err
		}
		removed += n
	}
	return removed, nil
}

// clean makes what a caller sent fit to be stored. The audit trail and the
// outbox never refuse a row for what stands in it: they record it as far as it goes.
func clean(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) > maxKey {
		s = strings.ToValidUTF8(s[:maxKey], "")
	}
	return s
}
