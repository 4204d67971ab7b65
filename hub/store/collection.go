package store

import (
	"encoding/json"
	"errors"

	atelier "github.com/atelier-edge/atelier"
)

// Collection is the typed view of one kind of resource. T is a noun of package
// atelier that embeds atelier.Meta; Meta is kept in columns, the rest in Doc.
type Collection[T any] struct {
	Kind string
	// Meta returns the address of the noun's Meta.
	Meta func(*T) *atelier.Meta
	// Refs returns what the noun points at; nil for nothing.
	Refs func(*T) []Ref
	// Quiet leaves the document out of events.
	Quiet bool
	// Missing tells people where to look when Resolve does not find what they named.
	Missing string
}

// Get returns the resource with the id.
func (c Collection[T]) Get(tx Tx, workspace, id string) (T, error) {
	r, err := tx.Get(c.Kind, workspace, id)
	return c.decode(r, err)
}

// Find returns the resource with the name.
func (c Collection[T]) Find(tx Tx, workspace, parent, name string) (T, error) {
	r, err := tx.Find(c.Kind, workspace, parent, name)
	return c.decode(r, err)
}

// Resolve returns the resource that ref names: an id where it has the form of
// one, a name otherwise.
func (c Collection[T]) Resolve(tx Tx, workspace, parent, ref string) (T, error) {
	find := func() (T, error) { return c.Find(tx, workspace, parent, ref) }
	if atelier.IsID(ref) {
		find = func() (T, error) { return c.Get(tx, workspace, ref) }
	}
	v, err := find()
	var missing *atelier.Error
	if errors.As(err, &missing) && missing.Code == atelier.NotFound && c.Missing != "" {
		err = missing.WithRemedy("%s", c.Missing)
	}
	return v, err
}

// List returns a page; q.Kind is set by the collection.
func (c Collection[T]) List(tx Tx, q Query) ([]T, error) {
	q.Kind = c.Kind
	rs, err := tx.List(q)
	return c.decodeAll(rs, err)
}

// Each calls fn for every resource that q selects, page by page, until fn
// returns an error.
func (c Collection[T]) Each(tx Tx, q Query, fn func(T) error) error {
	q.Limit = 1000
	for {
		page, err := c.List(tx, q)
		if err != nil {
			return err
		}
		for _, v := range page {
			if err := fn(v); err != nil {
				return err
			}
		}
		if len(page) < q.Limit {
			return nil
		}
		q.After = c.Meta(&page[len(page)-1]).ID
	}
}

// Insert adds v, and returns it with its id, revision and times.
func (c Collection[T]) Insert(tx Tx, workspace, parent string, v T) (T, error) {
	r, err := c.encode(workspace, parent, &v)
	if err != nil {
		return v, err
	}
	r, err = tx.Insert(r)
	return c.decode(r, err)
}

// Update stores v where its revision is still the stored one, and returns it
// with its new revision.
func (c Collection[T]) Update(tx Tx, workspace string, v T) (T, error) {
	r, err := c.encode(workspace, "", &v)
	if err != nil {
		return v, err
	}
	r, err = tx.Update(r)
	return c.decode(r, err)
}

// Record stores v without an event; see Tx.Record.
func (c Collection[T]) Record(tx Tx, workspace string, v T) error {
	r, err := c.encode(workspace, "", &v)
	if err != nil {
		return err
	}
	return tx.Record(r)
}

// Delete removes the resource; a revision of 0 whatever is there.
func (c Collection[T]) Delete(tx Tx, workspace, id string, revision int64) error {
	return tx.Delete(c.Kind, workspace, id, revision)
}

func (c Collection[T]) encode(workspace, parent string, v *T) (Resource, error) {
	m := *c.Meta(v)
	bare := *v
	*c.Meta(&bare) = atelier.Meta{}
	doc, err := json.Marshal(bare)
	if err != nil {
		return Resource{}, atelier.Errorf(atelier.Internal, "encode %s: %w", c.Kind, err)
	}
	r := Resource{
		Kind: c.Kind, Workspace: workspace, Parent: parent,
		ID: m.ID, Name: m.Name, Revision: m.Revision, Created: m.Created, Updated: m.Updated,
		Doc: doc, Quiet: c.Quiet,
	}
	if c.Refs != nil {
		r.Refs = c.Refs(v)
	}
	return r, nil
}

func (c Collection[T]) decode(r Resource, err error) (T, error) {
	var v T
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(r.Doc, &v); err != nil {
		return v, atelier.Errorf(atelier.Corrupt, "decode %s %s: %w", c.Kind, r.ID, err)
	}
	*c.Meta(&v) = atelier.Meta{ID: r.ID, Name: r.Name, Revision: r.Revision, Created: r.Created, Updated: r.Updated}
	return v, nil
}

func (c Collection[T]) decodeAll(rs []Resource, err error) ([]T, error) {
	if err != nil {
		return nil, err
	}
	vs := make([]T, 0, len(rs))
	for _, r := range rs {
		v, err := c.decode(r, nil)
		if err != nil {
			return nil, err
		}
		vs = append(vs, v)
	}
	return vs, nil
}
