// Package packages makes versions of models into container images and ModelPack
// artifacts, and keeps them: see packaging/image for what they look like.
//
// It promises that a package never changes once it is there, that equal inputs are built
// once however many ask for it at a time, that each content lies in the content store
// once, and that a build goes on where it stood when the hub ends under it. A package's
// images are in the workspace's container registry before the package says that it is
// ready; where the workspace has a registry of its own, whoever asked for the package
// brings them there (see OpenContent).
//
// Builds run one after another, in Run: they copy bytes from disk to disk, and several
// at a time would take as long. Nothing of what is packed is run.
package packages

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/content"
)

// Packages makes and keeps the packages and bases of all workspaces. Its methods are
// safe for concurrent use. Workspaces are given by id, packages by NAME:TAG or id,
// bases by name or id. Errors are *atelier.Error. It trusts its callers to have asked
// access.Authorize.
type Packages struct {
	store   store.Store
	content *content.Store
	images  *images.Registry
	log     *slog.Logger
	now     func() time.Time
	built   func(context.Context, string, atelier.Package) error
	wake    chan struct{} // holds a value when a package may wait
}

// Config says what Packages works with. Fields are required unless they say otherwise.
type Config struct {
	Store   store.Store
	Content *content.Store
	Images  *images.Registry
	Log     *slog.Logger
	Now     func() time.Time // nil for time.Now
	// Built is called when the images of a package of the workspace are made, and in the
	// workspace's registry where the hub keeps that, before the package is ready. An error
	// fails the package. It may be called again for one that it was called for, after the
	// hub ended in between. nil for nothing to do.
	Built func(ctx context.Context, workspace string, p atelier.Package) error
}

// New returns Packages. Somebody must call its Run.
func New(c Config) *Packages {
	p := &Packages{store: c.Store, content: c.Content, images: c.Images, log: c.Log, now: c.Now, built: c.Built, wake: make(chan struct{}, 1)}
	if p.now == nil {
		p.now = time.Now
	}
	return p
}

// update runs fn in a transaction on behalf of the caller of ctx.
func (p *Packages) update(ctx context.Context, fn func(store.Tx) error) error {
	return p.store.Update(ctx, access.By(ctx), fn)
}

// Package returns a package.
func (p *Packages) Package(ctx context.Context, workspace, ref string) (pkg atelier.Package, err error) {
	err = p.store.View(ctx, func(tx store.Tx) error {
		pkg, err = find(tx, workspace, ref)
		return err
	})
	return pkg, err
}

func find(tx store.Tx, workspace, ref string) (pkg atelier.Package, err error) {
	if atelier.IsID(ref) {
		return catalog.Packages.Resolve(tx, workspace, "", ref)
	}
	name, tag, _ := strings.Cut(ref, ":")
	if pkg, err = catalog.Packages.Find(tx, workspace, name, tag); atelier.CodeOf(err) == atelier.NotFound {
		err = atelier.Errorf(atelier.NotFound, "there is no package %.120q", ref).
			WithRemedy("Packages are named NAME:TAG; see 'atelier package list' for those that there are.")
	}
	return pkg, err
}

// OpenContent opens content that a ready package is made of: a manifest, a
// configuration, a layer, or a file of its ModelPack artifact. The caller closes it.
// NotFound for any other digest, whatever the hub has.
func (p *Packages) OpenContent(ctx context.Context, workspace, ref string, d atelier.Digest) (*content.Blob, error) {
	pkg, err := p.Package(ctx, workspace, ref)
	if err != nil {
		return nil, err
	}
	if pkg.State != atelier.BuildReady || !slices.Contains(pkg.Content(), d) {
		return nil, atelier.Errorf(atelier.NotFound, "the package %s:%s, which is %s, holds no content %.80s", pkg.Package, pkg.Tag, pkg.State, d)
	}
	return p.open(d)
}

// open opens content that a row speaks of: it must be there.
func (p *Packages) open(d atelier.Digest) (*content.Blob, error) {
	b, err := p.content.Open(d)
	if atelier.CodeOf(err) == atelier.NotFound {
		return nil, atelier.Errorf(atelier.Corrupt, "the hub's storage has lost the content %s", d).
			WithRemedy("Restore the hub's content from its backup, or register what it belongs to again.")
	}
	return b, err
}

// Delete removes a package, with the images that it has in the workspace's registry
// where no other tag names them. Devices keep what they have.
func (p *Packages) Delete(ctx context.Context, workspace, ref string, revision int64) error {
	var pkg atelier.Package
	err := p.update(ctx, func(tx store.Tx) (err error) {
		if pkg, err = find(tx, workspace, ref); err != nil {
			return err
		}
		return catalog.Packages.Delete(tx, workspace, pkg.ID, revision)
	})
	if err != nil {
		return err
	}
	for _, tag := range []string{pkg.Tag, pkg.Tag + atelier.ModelPackTag} {
		if err := p.deleteImages(ctx, workspace, &pkg, tag); err != nil {
			return err
		}
	}
	return nil
}

// deleteImages removes what a tag names, if the tag still names what the package made
// and nothing else does.
func (p *Packages) deleteImages(ctx context.Context, workspace string, pkg *atelier.Package, tag string) error {
	made := pkg.Manifest
	if tag != pkg.Tag {
		made = pkg.ModelPack.Manifest
	}
	if made == nil {
		return nil
	}
	img, err := p.images.Image(ctx, workspace, pkg.Repository, images.Reference(tag))
	if atelier.CodeOf(err) == atelier.NotFound || err == nil && img.Digest != string(made.Digest) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(img.Tags) > 1 {
		return p.images.Untag(ctx, workspace, pkg.Repository, tag)
	}
	all := []atelier.Digest{made.Digest}
	if tag == pkg.Tag && len(pkg.Images) > 1 { // the images of the index
		for i := range pkg.Images {
			all = append(all, pkg.Images[i].Manifest.Digest)
		}
	}
	for _, d := range all {
		err := p.images.Delete(ctx, workspace, pkg.Repository, string(d))
		if code := atelier.CodeOf(err); err != nil && code != atelier.NotFound && code != atelier.InUse {
			return err
		}
	}
	return nil
}

// isAbsent reports whether err says that something is not there.
func isAbsent(err error) bool {
	var e *atelier.Error
	return errors.As(err, &e) && e.Code == atelier.NotFound
}
