// Package images is the container registry of each workspace: repositories with the
// manifests, tags and layers that container tools push to them.
//
// It promises that an image is there only when all that it names is in its
// repository and on disk under its digest, that it never changes, and that what was
// acknowledged survives a power cut: also the bytes of an upload that is not
// finished. A repository shows only what was pushed or mounted to it: to know a
// digest gives nothing, whoever else has that content. Bytes lie in the content
// store that models lie in, each content once.
//
// The registry of a workspace comes into being with its first image, unless the
// workspace keeps its images elsewhere. The package trusts its callers to have asked
// access.Authorize; it knows no HTTP.
package images

import (
	"context"
	"log/slog"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/content"
)

// Registry holds the images of all workspaces. Its methods are safe for concurrent
// use. Workspaces are given by id, repositories by name, layers and images by the
// digests that container tools know them by. Errors are *atelier.Error whose Field
// is one of the Field… constants where something in particular is wrong or missing.
type Registry struct {
	store      store.Store
	content    *content.Store
	log        *slog.Logger
	now        func() time.Time
	keep       time.Duration
	maxBlob    int64
	maxUploads int
	quota      int64

	mu     sync.Mutex
	active map[string]*session // uploads that a request writes now, by their names in the content store

	figures figures
}

// Config says what a registry works with. Fields are required unless they say otherwise.
type Config struct {
	Store   store.Store
	Content *content.Store
	Log     *slog.Logger
	Now     func() time.Time // nil for time.Now; the store's clock should be the same
	// Keep is how long layers stay that no image names, so that a push may take that
	// long; a day where it is 0. Uploads that nothing came for in that time are
	// dropped by whoever collects Content.
	Keep       time.Duration
	MaxBlob    int64 // bytes of one layer; 0 for 1 TiB
	MaxUploads int   // that a workspace may have open at once; 0 for 256
	// Quota is how many bytes of layers a workspace may hold, each content once; 0 for no bound.
	Quota int64
}

// What is wrong, or missing, as errors tell it in their Field.
const (
	FieldName     = "name"     // of a repository
	FieldTag      = "tag"      // of an image
	FieldDigest   = "digest"   // malformed, or not that of what came
	FieldBlob     = "blob"     // a layer
	FieldUpload   = "upload"   // of a layer
	FieldRange    = "range"    // of a piece of a layer
	FieldSize     = "size"     // of what came
	FieldManifest = "manifest" // of an image
	FieldQuota    = "quota"    // of the workspace
	FieldParts    = "parts"    // what a manifest names is not in its repository
)

// New returns a registry. Somebody should call its Run.
func New(c Config) *Registry {
	r := &Registry{
		store: c.Store, content: c.Content, log: c.Log, now: c.Now, keep: c.Keep, maxBlob: c.MaxBlob, maxUploads: c.MaxUploads, quota: c.Quota,
		active: map[string]*session{},
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.keep == 0 {
		r.keep = 24 * time.Hour
	}
	if r.maxBlob == 0 {
		r.maxBlob = 1 << 40
	}
	if r.maxUploads == 0 {
		r.maxUploads = 256
	}
	return r
}

// update runs fn in a transaction on behalf of the caller of ctx.
func (r *Registry) update(ctx context.Context, fn func(store.Tx) error) error {
	return r.store.Update(ctx, access.By(ctx), fn)
}

// Workspace returns the workspace that ref, a name or an id, names; NotFound where
// there is none.
func (r *Registry) Workspace(ctx context.Context, ref string) (w atelier.Workspace, err error) {
	err = r.store.View(ctx, func(tx store.Tx) error {
		w, err = catalog.Workspaces.Resolve(tx, "", "", ref)
		return err
	})
	if atelier.CodeOf(err) == atelier.NotFound {
		err = ErrNoRepository(ref)
	}
	return w, err
}

// ErrNoRepository is the NotFound error for a repository that is not there, or not
// there for the caller, or whose workspace is not.
func ErrNoRepository(name string) error {
	return atelier.Errorf(atelier.NotFound, "there is no repository %.300q", name).WithField(FieldName).
		WithRemedy("Repositories are named WORKSPACE/NAME; see 'atelier image list' for those that there are.")
}

// Elsewhere returns why a workspace's images are not kept here, nil where they are.
func Elsewhere(w atelier.Workspace) error {
	for _, res := range w.Resources {
		if res.Kind == atelier.ResourceRegistry && res.Provider != atelier.ProviderBuiltin {
			return atelier.Errorf(atelier.Conflict, "workspace %s keeps its images in a registry of its own, %s", w.Name, res.Address).
				WithRemedy("Push and pull there; 'atelier workspace set --registry builtin' makes the hub keep them.")
		}
	}
	return nil
}

// findRepository returns a repository; NotFound where nothing was pushed to it.
func findRepository(tx store.Tx, workspace, name string) (atelier.Repository, error) {
	repo, err := catalog.Repositories.Find(tx, workspace, "", name)
	if atelier.CodeOf(err) == atelier.NotFound {
		err = ErrNoRepository(name)
	}
	return repo, err
}

// ensureRepository returns a repository, and makes it where there is none.
func ensureRepository(tx store.Tx, workspace, name string) (atelier.Repository, error) {
	repo, err := catalog.Repositories.Find(tx, workspace, "", name)
	if atelier.CodeOf(err) != atelier.NotFound {
		return repo, err
	}
	return catalog.Repositories.Insert(tx, workspace, "", atelier.Repository{Meta: atelier.Meta{Name: name}})
}

// makeRegistry notes that a workspace has a registry, with its first image. Conflict
// where it has chosen another one meanwhile.
func makeRegistry(tx store.Tx, workspace string) error {
	w, err := catalog.Workspaces.Get(tx, "", workspace)
	if err != nil {
		return err
	}
	if err := Elsewhere(w); err != nil {
		return err
	}
	for i, res := range w.Resources {
		if res.Kind == atelier.ResourceRegistry && res.Made {
			return nil
		}
		if res.Kind == atelier.ResourceRegistry {
			w.Resources[i].Made, w.Resources[i].Address = true, "/v2/"+w.ID
		}
	}
	_, err = catalog.Workspaces.Update(tx, "", w)
	return err
}
