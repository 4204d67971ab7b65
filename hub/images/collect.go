package images

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

const collectEvery = time.Hour

// Run lets go of layers that no image needs, once an hour or as often as Config.Keep
// asks for, until ctx ends.
func (r *Registry) Run(ctx context.Context) {
	ctx = access.WithPrincipal(ctx, access.Principal{Kind: access.System})
	tick := time.NewTicker(min(collectEvery, max(time.Second, r.keep/2)))
	defer tick.Stop()
	for {
		if err := r.Collect(ctx); err != nil && ctx.Err() == nil {
			r.log.Error("letting go of layers failed; it is tried again", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Collect lets repositories go of layers that no image of theirs names, and that
// nobody has sent, mounted or asked for within Config.Keep; and workspaces of
// repositories in which nothing is left. Bytes that nobody holds then are deleted by
// whoever collects the content store.
func (r *Registry) Collect(ctx context.Context) error {
	var workspaces []string
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
		repos, err := all(ctx, r, catalog.Repositories, w, "")
		if err != nil {
			return err
		}
		for _, repo := range repos {
			if err := r.tidy(ctx, w, repo); err != nil {
				return err
			}
		}
	}
	return nil
}

// all returns all resources of a kind that have the parent.
func all[T any](ctx context.Context, r *Registry, c store.Collection[T], workspace, parent string) (list []T, err error) {
	err = r.store.View(ctx, func(tx store.Tx) error {
		list = nil
		return c.Each(tx, store.Query{Workspace: workspace, Parent: parent}, func(v T) error {
			list = append(list, v)
			return nil
		})
	})
	return list, err
}

// tidy makes a pass over a repository.
func (r *Registry) tidy(ctx context.Context, workspace string, repo atelier.Repository) error {
	before := r.now().Add(-r.keep)
	var old []catalog.Layer
	left := false
	err := r.store.View(ctx, func(tx store.Tx) error {
		return catalog.Layers.Each(tx, store.Query{Workspace: workspace, Parent: repo.ID}, func(l catalog.Layer) error {
			users, err := namedBy(tx, workspace, repo.ID, l)
			if len(users) == 0 && l.Updated.Before(before) {
				old = append(old, l)
			} else {
				left = true
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	for _, l := range old {
		if err := r.letGo(ctx, workspace, repo.ID, l); err != nil {
			return err
		}
	}
	if left || !repo.Updated.Before(before) {
		return nil
	}
	return r.update(ctx, func(tx store.Tx) error {
		one := store.Query{Workspace: workspace, Parent: repo.ID, Limit: 1}
		images, err := catalog.Images.List(tx, one)
		if err != nil {
			return err
		}
		layers, err := catalog.Layers.List(tx, one)
		if err != nil || len(images)+len(layers) > 0 {
			return err
		}
		return Remove(tx, workspace, repo)
	})
}

// letGo takes a layer out of a repository, unless it has been named, sent or asked for.
func (r *Registry) letGo(ctx context.Context, workspace, repository string, l catalog.Layer) error {
	return r.update(ctx, func(tx store.Tx) error {
		users, err := namedBy(tx, workspace, repository, l)
		if err != nil || len(users) > 0 {
			return err
		}
		err = catalog.Layers.Delete(tx, workspace, l.ID, l.Revision)
		if code := atelier.CodeOf(err); code == atelier.Stale || code == atelier.NotFound {
			return nil
		}
		return err
	})
}

// figures counts what the registry moves.
type figures struct{ received, sent, pushed atomic.Uint64 }

// Stats is what the registry has done since the hub started.
type Stats struct {
	Received uint64 // bytes of layers that came in
	Sent     uint64 // bytes of layers that went out
	Pushed   uint64 // manifests that were pushed
}

// Stats returns what the registry has done.
func (r *Registry) Stats() Stats {
	return Stats{Received: r.figures.received.Load(), Sent: r.figures.sent.Load(), Pushed: r.figures.pushed.Load()}
}

// Uploads returns how many uploads are open, -1 where that cannot be found out.
func (r *Registry) Uploads() int {
	open, err := r.content.Uploads(uploadPrefix)
	if err != nil {
		return -1
	}
	return len(open)
}

// Sent counts bytes of layers that went out.
func (r *Registry) Sent(n int64) { r.figures.sent.Add(uint64(max(n, 0))) }

// repositoryOf splits "a/b:tag" and "a/b@digest"; ref is "" for a repository alone.
func repositoryOf(name string) (repository string, ref Reference) {
	if repository, digest, ok := strings.Cut(name, "@"); ok {
		return repository, Reference(digest)
	}
	repository, tag, _ := strings.Cut(name, ":")
	return repository, Reference(tag)
}

// ParseName reads the name of an image within its workspace, as people write it:
// REPOSITORY:TAG, REPOSITORY@DIGEST, or REPOSITORY alone, for which the reference is "".
func ParseName(name string) (repository string, ref Reference, err error) {
	repository, ref = repositoryOf(name)
	if err := CheckName(repository); err != nil {
		return "", "", err
	}
	if ref != "" || repository != name {
		err = ref.Check()
	}
	return repository, ref, err
}
