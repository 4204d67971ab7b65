// Package registry keeps workspaces, their models and versions, the content
// that these are made of, and the hub's runtimes.
//
// It promises that a version never changes once it has its number, that a
// version exists only when all of its content is on disk under its digest, and
// that a workspace reaches only content that was uploaded to it: to know a
// digest gives nothing. Content is written first and named by a row after, so
// that a crash leaves only what Run collects. The package trusts its callers to have
// asked access.Authorize; it knows neither HTTP nor devices.
package registry

import (
	"context"
	"log/slog"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/store"
)

// Registry is the model registry. Its methods are safe for concurrent use.
type Registry struct {
	store store.Store
	log   *slog.Logger
	now   func() time.Time
}

// Config says what a registry works with.
type Config struct {
	Store store.Store
	Log   *slog.Logger
	Now   func() time.Time // nil for time.Now
}

// New returns a registry.
func New(c Config) *Registry {
	r := &Registry{store: c.Store, log: c.Log, now: c.Now}
	if r.now == nil {
		r.now = time.Now
	}
	return r
}

// update runs fn in a transaction on behalf of the caller of ctx.
func (r *Registry) update(ctx context.Context, fn func(store.Tx) error) error {
	return r.store.Update(ctx, access.By(ctx), fn)
}

// change applies edit to the resource that get reads, where its revision is
// the given one; 0 stands for whatever is there.
func change[T any](ctx context.Context, r *Registry, c store.Collection[T], workspace string, revision int64,
	get func(store.Tx) (T, error), edit func(store.Tx, *T) error) (T, error) {
	var out T
	err := r.update(ctx, func(tx store.Tx) error {
		v, err := get(tx)
		if err != nil {
			return err
		}
		if m := c.Meta(&v); revision != 0 && m.Revision != revision {
			return errStale(c.Kind, m, revision)
		}
		if err := edit(tx, &v); err != nil {
			return err
		}
		out, err = c.Update(tx, workspace, v)
		return err
	})
	return out, err
}

func errStale(kind string, m *atelier.Meta, revision int64) error {
	return atelier.Errorf(atelier.Stale, "%s %q has changed: it is at revision %d, not %d", kind, m.Name, m.Revision, revision).
		WithRemedy("Read it again, and repeat the change on what it is now.")
}
