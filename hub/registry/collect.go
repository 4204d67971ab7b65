package registry

import (
	"context"
	"log/slog"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

const (
	collectEvery = time.Hour
	condemnedAge = 30 * time.Minute // how long content stays that nobody holds; longer than any transaction
)

// Run collects content that nothing needs, once an hour or as often as Config.Keep
// asks for, until ctx ends.
func (r *Registry) Run(ctx context.Context) {
	ctx = access.WithPrincipal(ctx, access.Principal{Kind: access.System})
	tick := time.NewTicker(min(collectEvery, max(time.Second, r.keep/2)))
	defer tick.Stop()
	for {
		if err := r.Collect(ctx); err != nil && ctx.Err() == nil {
			r.log.Error("collecting content failed; it is tried again", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Collect makes one pass. First, workspaces let go of content that no version or
// runtime of theirs has named for that long. Then content that nobody holds is
// condemned, and deleted by a later pass if that is still so after half an hour (Config.Keep where that is shorter);
// an upload of the same content takes the condemnation back.
func (r *Registry) Collect(ctx context.Context) error {
	workspaces := []string{""}
	err := r.store.View(ctx, func(tx store.Tx) error {
		return catalog.Workspaces.Each(tx, store.Query{}, func(w atelier.Workspace) error {
			workspaces = append(workspaces, w.ID)
			return nil
		})
	})
	if err != nil {
		return err
	}
	for _, w := range workspaces {
		if err := r.letGo(ctx, w); err != nil {
			return err
		}
	}
	if err := r.content.AbortStale(r.keep); err != nil {
		return err
	}
	done, err := r.content.Collect(ctx, min(condemnedAge, r.keep), func(d atelier.Digest) (bool, error) { return r.needed(ctx, d) })
	if done.Blobs > 0 {
		r.log.Info("content that nothing needs was deleted", slog.Int("blobs", done.Blobs), slog.Int64("bytes", done.Bytes))
	}
	return err
}

// letGo ends a workspace's claims on content that it has not named.
func (r *Registry) letGo(ctx context.Context, workspace string) error {
	before := r.now().Add(-r.keep)
	q := store.Query{Workspace: workspace, Limit: 1000}
	for {
		var page, old []catalog.Blob
		err := r.store.View(ctx, func(tx store.Tx) (err error) {
			page, err = catalog.Blobs.List(tx, q)
			for _, b := range page {
				if named, err := namedBy(tx, workspace, b); err != nil {
					return err
				} else if !named && b.Updated.Before(before) {
					old = append(old, b)
				}
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, b := range old {
			if err := r.letGoOf(ctx, workspace, b); err != nil {
				return err
			}
		}
		if len(page) < q.Limit {
			return nil
		}
		q.After = page[len(page)-1].ID
	}
}

// letGoOf ends one claim, unless the content has been named or uploaded again.
func (r *Registry) letGoOf(ctx context.Context, workspace string, b catalog.Blob) error {
	return r.update(ctx, func(tx store.Tx) error {
		named, err := namedBy(tx, workspace, b)
		if err != nil || named {
			return err
		}
		err = catalog.Blobs.Delete(tx, workspace, b.ID, b.Revision)
		if code := atelier.CodeOf(err); code == atelier.Stale || code == atelier.NotFound {
			return nil
		}
		return err
	})
}

// namedBy reports whether something of the workspace is made of b.
func namedBy(tx store.Tx, workspace string, b catalog.Blob) (bool, error) {
	for _, kind := range []string{catalog.Versions.Kind, catalog.Environments.Kind, catalog.Runtimes.Kind, catalog.Bases.Kind, catalog.Packages.Kind} {
		found, err := tx.List(store.Query{Kind: kind, Workspace: workspace, Rel: catalog.RelBlob, To: b.Name, Limit: 1})
		if err != nil || len(found) > 0 {
			return len(found) > 0, err
		}
	}
	return false, nil
}

// needed reports whether any workspace holds or names content.
func (r *Registry) needed(ctx context.Context, d atelier.Digest) (needed bool, err error) {
	err = r.store.View(ctx, func(tx store.Tx) error {
		for _, rel := range []string{catalog.RelHeld, catalog.RelBlob} {
			found, err := tx.Referrers(rel, string(d), 1)
			if err != nil || len(found) > 0 {
				needed = needed || len(found) > 0
				return err
			}
		}
		return nil
	})
	return needed, err
}
