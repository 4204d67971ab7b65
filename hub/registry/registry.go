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
	"github.com/atelier-edge/atelier/internal/content"
)

// Registry is the model registry. Its methods are safe for concurrent use.
// Workspaces are given by id ("" for the hub itself), models and versions by name
// or id. Errors are *atelier.Error.
type Registry struct {
	store   store.Store
	content *content.Store
	log     *slog.Logger
	now     func() time.Time
	maxBlob int64
	keep    time.Duration
}

// Config says what a registry works with. Fields are required unless they say otherwise.
type Config struct {
	Store   store.Store
	Content *content.Store
	Log     *slog.Logger
	Now     func() time.Time // nil for time.Now; the store's clock should be the same
	MaxBlob int64            // bytes of one upload; 0 for 1 TiB
	// Keep is how long content stays that no version and no runtime names, so that
	// an upload may wait to be named; DefaultKeep where it is 0.
	Keep time.Duration
}

// DefaultKeep is a day.
const DefaultKeep = 24 * time.Hour

// New returns a registry. Somebody should call its Run.
func New(c Config) *Registry {
	r := &Registry{store: c.Store, content: c.Content, log: c.Log, now: c.Now, maxBlob: c.MaxBlob, keep: c.Keep}
	if r.now == nil {
		r.now = time.Now
	}
	if r.maxBlob == 0 {
		r.maxBlob = 1 << 40
	}
	if r.keep == 0 {
		r.keep = DefaultKeep
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
		if err := checkRevision(c, &v, revision); err != nil {
			return err
		}
		if err := edit(tx, &v); err != nil {
			return err
		}
		out, err = c.Update(tx, workspace, v)
		return err
	})
	return out, err
}

func checkRevision[T any](c store.Collection[T], v *T, revision int64) error {
	m := c.Meta(v)
	if revision == 0 || m.Revision == revision {
		return nil
	}
	return atelier.Errorf(atelier.Stale, "%s %q has changed: it is at revision %d, not %d", c.Kind, m.Name, m.Revision, revision).
		WithRemedy("Read it again, and repeat the change on what it is now.")
}
