package sqlstore

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

const resourceColumns = "kind, workspace, parent, id, name, revision, created, updated, doc"

// Get implements store.Tx.
func (t *tx) Get(kind, workspace, id string) (store.Resource, error) {
	if !storable(kind, workspace, id) {
		return store.Resource{}, notFound(kind, id)
	}
	return t.one(kind, id, "SELECT "+resourceColumns+" FROM resource WHERE kind = $1 AND workspace = $2 AND id = $3",
		kind, workspace, id)
}

// Find implements store.Tx.
func (t *tx) Find(kind, workspace, parent, name string) (store.Resource, error) {
	if name == "" || !storable(kind, workspace, parent, name) {
		return store.Resource{}, notFound(kind, name)
	}
	// name <> '' lets the engine use the index on names, which leaves out the empty one.
	return t.one(kind, name, "SELECT "+resourceColumns+
		" FROM resource WHERE kind = $1 AND workspace = $2 AND parent = $3 AND name = $4 AND name <> ''",
		kind, workspace, parent, name)
}

func (t *tx) one(kind, ref, query string, args ...any) (store.Resource, error) {
	rs, err := t.many("read "+kind, query, args...)
	if err != nil {
		return store.Resource{}, err
	}
	if len(rs) == 0 {
		return store.Resource{}, notFound(kind, ref)
	}
	return rs[0], nil
}

func (t *tx) many(doing, query string, args ...any) ([]store.Resource, error) {
	var rs []store.Resource
	err := t.query(doing, func(scan func(...any) error) error {
		var r store.Resource
		var created, updated int64
		var doc string
		if err := scan(&r.Kind, &r.Workspace, &r.Parent, &r.ID, &r.Name, &r.Revision, &created, &updated, &doc); err != nil {
			return err
		}
		r.Created, r.Updated, r.Doc = fromMicros(created), fromMicros(updated), json.RawMessage(doc)
		rs = append(rs, r)
		return nil
	}, query, args...)
	return rs, err
}

// List implements store.Tx.
func (t *tx) List(q store.Query) ([]store.Resource, error) {
	if err := checkLimit(q.Limit); err != nil {
		return nil, err
	}
	if !storable(q.Kind, q.Workspace, q.Parent, q.After, q.Rel, q.To) {
		return nil, nil
	}
	where := conditions{text: "kind = $1 AND workspace = $2", args: []any{q.Kind, q.Workspace}}
	if q.Parent != "" {
		where.and("parent = %s", q.Parent)
	}
	if q.After != "" {
		where.and("id > %s", q.After)
	}
	if q.Rel != "" || q.To != "" {
		where.and("id IN (SELECT id FROM ref WHERE rel = %s AND target = %s AND kind = $1)", q.Rel, q.To)
	}
	where.limit("id", q.Limit)
	return t.many("list "+q.Kind, "SELECT "+resourceColumns+" FROM resource WHERE "+where.text, where.args...)
}

// Insert implements store.Tx.
func (t *tx) Insert(r store.Resource) (store.Resource, error) {
	if r.ID == "" {
		r.ID = atelier.NewID()
	}
	r.Revision, r.Created = 1, t.now()
	r.Updated = r.Created
	if err := checkResource(r); err != nil {
		return r, err
	}
	n, err := t.exec("insert "+r.Kind, "INSERT INTO resource ("+resourceColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING`,
		r.Kind, r.Workspace, r.Parent, r.ID, r.Name, r.Revision, r.Created.UnixMicro(), r.Updated.UnixMicro(), string(r.Doc))
	if err != nil {
		return r, err
	}
	if n == 0 {
		return r, taken(r)
	}
	if err := t.insertRefs(r); err != nil {
		return r, err
	}
	return r, t.event(r, atelier.Created)
}

// Update implements store.Tx.
func (t *tx) Update(r store.Resource) (store.Resource, error) {
	old, err := t.current(r.Kind, r.Workspace, r.ID, r.Revision)
	if err != nil {
		return r, err
	}
	r.Parent, r.Created = old.Parent, old.Created
	r.Revision, r.Updated = old.Revision+1, t.now()
	if err := checkResource(r); err != nil {
		return r, err
	}
	if r.Name != "" && r.Name != old.Name {
		_, err := t.Find(r.Kind, r.Workspace, r.Parent, r.Name)
		if err == nil {
			return r, taken(r)
		}
		if atelier.CodeOf(err) != atelier.NotFound {
			return r, err
		}
	}
	_, err = t.exec("update "+r.Kind, "UPDATE resource SET name = $1, revision = $2, updated = $3, doc = $4 WHERE kind = $5 AND id = $6",
		r.Name, r.Revision, r.Updated.UnixMicro(), string(r.Doc), r.Kind, r.ID)
	if err != nil {
		return r, err
	}
	if err := t.replaceRefs(r); err != nil {
		return r, err
	}
	return r, t.event(r, atelier.Updated)
}

// Record implements store.Tx.
func (t *tx) Record(r store.Resource) error {
	if _, err := t.current(r.Kind, r.Workspace, r.ID, r.Revision); err != nil {
		return err
	}
	if err := checkResource(r); err != nil {
		return err
	}
	if _, err := t.exec("record "+r.Kind, "UPDATE resource SET doc = $1 WHERE kind = $2 AND id = $3",
		string(r.Doc), r.Kind, r.ID); err != nil {
		return err
	}
	return t.replaceRefs(r)
}

// Delete implements store.Tx.
func (t *tx) Delete(kind, workspace, id string, revision int64) error {
	old, err := t.Get(kind, workspace, id)
	if err != nil {
		return err
	}
	if revision != 0 && revision != old.Revision {
		return stale(old, revision)
	}
	if err := t.deleteRefs(kind, id); err != nil {
		return err
	}
	if _, err := t.exec("delete "+kind, "DELETE FROM resource WHERE kind = $1 AND id = $2", kind, id); err != nil {
		return err
	}
	return t.event(old, atelier.Deleted)
}

// Referrers implements store.Tx.
func (t *tx) Referrers(rel, to string, limit int) ([]store.Resource, error) {
	if err := checkLimit(limit); err != nil {
		return nil, err
	}
	if !storable(rel, to) {
		return nil, nil
	}
	return t.many("find referrers", "SELECT r."+strings.ReplaceAll(resourceColumns, ", ", ", r.")+
		" FROM ref JOIN resource r ON r.kind = ref.kind AND r.id = ref.id WHERE ref.rel = $1 AND ref.target = $2"+
		" ORDER BY ref.kind, ref.id LIMIT $3", rel, to, limit)
}

// current returns the stored resource where its revision is the given one.
func (t *tx) current(kind, workspace, id string, revision int64) (store.Resource, error) {
	r, err := t.Get(kind, workspace, id)
	if err == nil && r.Revision != revision {
		err = stale(r, revision)
	}
	return r, err
}

func (t *tx) insertRefs(r store.Resource) error {
	for _, ref := range r.Refs {
		if _, err := t.exec("insert a reference", "INSERT INTO ref (kind, id, rel, target) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
			r.Kind, r.ID, ref.Rel, ref.To); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) deleteRefs(kind, id string) error {
	_, err := t.exec("delete references", "DELETE FROM ref WHERE kind = $1 AND id = $2", kind, id)
	return err
}

func (t *tx) replaceRefs(r store.Resource) error {
	if err := t.deleteRefs(r.Kind, r.ID); err != nil {
		return err
	}
	return t.insertRefs(r)
}

// conditions builds the part of a query after WHERE.
type conditions struct {
	text string
	args []any
}

// and adds a condition; each %s in it takes the place of one value. Placeholders
// stand in the order of their numbers: SQLite counts names, not numbers.
func (c *conditions) and(format string, values ...any) {
	marks := make([]any, len(values))
	for i, v := range values {
		c.args = append(c.args, v)
		marks[i] = fmt.Sprintf("$%d", len(c.args))
	}
	c.text += " AND " + fmt.Sprintf(format, marks...)
}

// limit ends the query with an order and a limit. The limit is a value like the
// others: engines keep a statement that they have seen before, whatever its values.
func (c *conditions) limit(order string, n int) {
	c.args = append(c.args, n)
	c.text += fmt.Sprintf(" ORDER BY %s LIMIT $%d", order, len(c.args))
}

// storable reports whether every engine can keep the strings in its indexes:
// bounded, in UTF-8, without the NUL that PostgreSQL refuses.
func storable(keys ...string) bool {
	for _, k := range keys {
		if len(k) > maxKey || !utf8.ValidString(k) || strings.ContainsRune(k, 0) {
			return false
		}
	}
	return true
}

func checkResource(r store.Resource) error {
	if r.Kind == "" || !storable(r.Kind, r.Workspace, r.Parent, r.ID) {
		return atelier.Errorf(atelier.Invalid, "a %.80q cannot be stored: its kind, workspace, parent or id is malformed or longer than %d bytes", r.Kind, maxKey)
	}
	if !storable(r.Name) {
		return atelier.Errorf(atelier.Invalid, "the name %.80q is no UTF-8 or longer than %d bytes", r.Name, maxKey).WithField("name")
	}
	for _, ref := range r.Refs {
		if !storable(ref.Rel, ref.To) {
			return atelier.Errorf(atelier.Invalid, "%s %s refers to %.80q, which is no UTF-8 or longer than %d bytes", r.Kind, r.ID, ref.To, maxKey)
		}
	}
	if !json.Valid(r.Doc) || !utf8.Valid(r.Doc) || !strings.HasPrefix(strings.TrimLeft(string(r.Doc), " \t\r\n"), "{") {
		return atelier.Errorf(atelier.Invalid, "the document of %s %s is no JSON object", r.Kind, r.ID)
	}
	return nil
}

func notFound(kind, ref string) error {
	return atelier.Errorf(atelier.NotFound, "there is no %s %.80q", kind, ref)
}

func taken(r store.Resource) error {
	if r.Name == "" {
		return atelier.Errorf(atelier.Exists, "the id %s is taken by another %s", r.ID, r.Kind)
	}
	return atelier.Errorf(atelier.Exists, "the name %.80q is taken by another %s", r.Name, r.Kind).
		WithField("name").WithRemedy("Choose another name, or change the one that is there.")
}

func stale(r store.Resource, revision int64) error {
	return atelier.Errorf(atelier.Stale, "%s %s is at revision %d, not %d: it was changed meanwhile", r.Kind, r.ID, r.Revision, revision).
		WithRemedy("Read it again and repeat the change.")
}
