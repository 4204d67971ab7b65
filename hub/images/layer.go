package images

import (
	"context"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/content"
)

// hold makes content that was just committed a layer of a repository. One that it is
// already begins to age anew.
func (r *Registry) hold(ctx context.Context, workspace, repository, digest string, info content.Info) error {
	return r.update(ctx, func(tx store.Tx) error {
		w, err := catalog.Workspaces.Get(tx, "", workspace)
		if err != nil {
			return err
		}
		if err := Elsewhere(w); err != nil {
			return err
		}
		repo, err := ensureRepository(tx, workspace, repository)
		if err != nil {
			return err
		}
		l, err := catalog.Layers.Find(tx, workspace, repo.ID, digest)
		switch {
		case err == nil:
			_, err = catalog.Layers.Update(tx, workspace, l)
		case atelier.CodeOf(err) == atelier.NotFound:
			if r.quota > 0 {
				n, err := used(tx, workspace, info.Digest)
				if err == nil {
					err = r.within(n, info.Size)
				}
				if err != nil {
					return err
				}
			}
			_, err = catalog.Layers.Insert(tx, workspace, repo.ID, catalog.Layer{
				Meta: atelier.Meta{Name: digest}, Size: info.Size, Content: info.Digest,
			})
		}
		return err
	})
}

// Layer returns a layer of a repository; NotFound where it is none, whatever other
// repositories hold. Whoever asks may push an image of it without sending it: it
// stays for a good while.
func (r *Registry) Layer(ctx context.Context, workspace, repository, digest string) (l catalog.Layer, err error) {
	if err := CheckDigest(digest); err != nil {
		return l, err
	}
	find := func(tx store.Tx) error {
		l, err = findLayer(tx, workspace, repository, digest)
		return err
	}
	if err := r.store.View(ctx, find); err != nil || r.now().Sub(l.Updated) < r.keep/2 {
		return l, err
	}
	err = r.update(ctx, func(tx store.Tx) error {
		if err := find(tx); err != nil {
			return err
		}
		l, err = catalog.Layers.Update(tx, workspace, l)
		return err
	})
	return l, err
}

func findLayer(tx store.Tx, workspace, repository, digest string) (catalog.Layer, error) {
	repo, err := findRepository(tx, workspace, repository)
	if err != nil {
		return catalog.Layer{}, err
	}
	l, err := catalog.Layers.Find(tx, workspace, repo.ID, digest)
	if atelier.CodeOf(err) == atelier.NotFound {
		err = atelier.Errorf(atelier.NotFound, "the repository %s holds no content %s", repository, digest).WithField(FieldBlob).
			WithRemedy("Push it first.")
	}
	return l, err
}

// OpenLayer opens a layer of a repository. The caller closes it; it stays readable
// when it is deleted meanwhile.
func (r *Registry) OpenLayer(ctx context.Context, workspace, repository, digest string) (*content.Blob, error) {
	l, err := r.Layer(ctx, workspace, repository, digest)
	if err != nil {
		return nil, err
	}
	return r.open(l.Content)
}

// open opens content that a row speaks of: it must be there.
func (r *Registry) open(d atelier.Digest) (*content.Blob, error) {
	b, err := r.content.Open(d)
	if atelier.CodeOf(err) == atelier.NotFound {
		return nil, atelier.Errorf(atelier.Corrupt, "the hub's storage has lost the content %s", d).
			WithRemedy("Restore the hub's content from its backup, or push the image again.")
	}
	return b, err
}

// Source is a repository that a layer may be mounted from.
type Source struct{ Workspace, Repository string }

// Mount makes a layer of another repository one of this, without copying it, and
// reports whether it could: the source must hold it. Without a source any repository
// of the workspace will do. The caller has been asked whether it may read the source.
func (r *Registry) Mount(ctx context.Context, workspace, repository, digest string, from *Source) (bool, error) {
	if err := CheckDigest(digest); err != nil {
		return false, err
	}
	var l catalog.Layer
	err := r.store.View(ctx, func(tx store.Tx) (err error) {
		if from != nil {
			l, err = findLayer(tx, from.Workspace, from.Repository, digest)
			return err
		}
		found, err := catalog.Layers.List(tx, store.Query{Workspace: workspace, Rel: catalog.RelLayer, To: digest, Limit: 1})
		if err == nil && len(found) == 0 {
			err = atelier.Errorf(atelier.NotFound, "no repository of the workspace holds %s", digest)
		}
		if err == nil {
			l = found[0]
		}
		return err
	})
	if err == nil {
		err = r.content.Keep(l.Content) // it may be condemned by now
	}
	if atelier.CodeOf(err) == atelier.NotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, r.hold(ctx, workspace, repository, digest, content.Info{Digest: l.Content, Size: l.Size})
}

// DeleteLayer takes a layer out of a repository. InUse where an image of the
// repository names it.
func (r *Registry) DeleteLayer(ctx context.Context, workspace, repository, digest string) error {
	if err := CheckDigest(digest); err != nil {
		return err
	}
	return r.update(ctx, func(tx store.Tx) error {
		l, err := findLayer(tx, workspace, repository, digest)
		if err != nil {
			return err
		}
		repo, err := findRepository(tx, workspace, repository)
		if err != nil {
			return err
		}
		users, err := namedBy(tx, workspace, repo.ID, l)
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return atelier.Errorf(atelier.InUse, "the image %s is made of %s", users[0].Digest, digest).WithField(FieldBlob).
				WithRemedy("Delete the image first; its layers go with it.")
		}
		return catalog.Layers.Delete(tx, workspace, l.ID, 0)
	})
}

// namedBy returns an image of the repository that names a layer, none where there is none.
func namedBy(tx store.Tx, workspace, repository string, l catalog.Layer) ([]catalog.Image, error) {
	return catalog.Images.List(tx, store.Query{Workspace: workspace, Parent: repository, Rel: catalog.RelBlob, To: string(l.Content), Limit: 1})
}
