package registry

import (
	"context"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// ModelChange says what to change of a model; nil leaves a field as it is.
type ModelChange struct {
	Description *string
	Framework   *string
	Tags        *map[string]string
}

// CreateModel adds a model without versions, with the name, description,
// framework and tags of m. Exists where the name is taken.
func (r *Registry) CreateModel(ctx context.Context, workspace string, m atelier.Model) (atelier.Model, error) {
	m.Meta = atelier.Meta{Name: m.Name}
	m.Latest, m.Next = 0, 1
	if err := checkModel(&m); err != nil {
		return m, err
	}
	made := m
	err := r.update(ctx, func(tx store.Tx) (err error) {
		made, err = catalog.Models.Insert(tx, workspace, "", m)
		return err
	})
	return made, err
}

// Model returns a model.
func (r *Registry) Model(ctx context.Context, workspace, ref string) (m atelier.Model, err error) {
	err = r.store.View(ctx, func(tx store.Tx) error {
		m, err = findModel(tx, workspace, ref)
		return err
	})
	return m, err
}

func findModel(tx store.Tx, workspace, ref string) (atelier.Model, error) {
	m, err := catalog.Models.Resolve(tx, workspace, "", ref)
	if atelier.CodeOf(err) == atelier.NotFound {
		err = atelier.Errorf(atelier.NotFound, "there is no model %.80q", ref).WithRemedy("See 'atelier model list' for those that there are.")
	}
	return m, err
}

// UpdateModel changes a model whose revision is the given one, 0 for any.
func (r *Registry) UpdateModel(ctx context.Context, workspace, ref string, revision int64, c ModelChange) (atelier.Model, error) {
	return change(ctx, r, catalog.Models, workspace, revision,
		func(tx store.Tx) (atelier.Model, error) { return findModel(tx, workspace, ref) },
		func(_ store.Tx, m *atelier.Model) error {
			set(&m.Description, c.Description)
			set(&m.Framework, c.Framework)
			set(&m.Tags, c.Tags)
			return checkModel(m)
		})
}

// DeleteModel removes a model with all its versions. InUse where one of them is
// deployed, telling by what; then nothing is removed.
func (r *Registry) DeleteModel(ctx context.Context, workspace, ref string, revision int64) error {
	return r.update(ctx, func(tx store.Tx) error {
		m, err := findModel(tx, workspace, ref)
		if err != nil {
			return err
		}
		if err := checkRevision(catalog.Models, &m, revision); err != nil {
			return err
		}
		err = catalog.Versions.Each(tx, store.Query{Workspace: workspace, Parent: m.ID}, func(v atelier.Version) error {
			if err := checkUnused(tx, v); err != nil {
				return err
			}
			return deleteVersion(tx, workspace, v)
		})
		if err != nil {
			return err
		}
		return catalog.Models.Delete(tx, workspace, m.ID, m.Revision)
	})
}

func checkModel(m *atelier.Model) error {
	if err := atelier.CheckName("model", m.Name); err != nil {
		return err
	}
	if len(m.Framework) > maxTag {
		return atelier.Errorf(atelier.Invalid, "the framework's name has %d bytes, at most %d are taken", len(m.Framework), maxTag).WithField("framework")
	}
	return checkTexts(m.Description, m.Tags)
}
