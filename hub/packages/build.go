package packages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/packaging/image"
)

// lookEvery is how often Run looks for packages that wait, though nobody woke it.
const lookEvery = time.Minute

// Run builds packages that wait, the oldest first, until ctx ends. One that it was in
// the middle of goes on with the layer that it was at when somebody calls Run again.
func (p *Packages) Run(ctx context.Context) {
	ctx = access.WithPrincipal(ctx, access.Principal{Kind: access.System})
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		did, err := p.next(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			p.log.Error("a package could not be built; it is tried again", slog.Any("error", err))
		} else if did {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-tick.C:
		}
	}
}

// next builds the package that waits longest, where there is one.
func (p *Packages) next(ctx context.Context) (did bool, err error) {
	var waiting []store.Resource
	err = p.store.View(ctx, func(tx store.Tx) error {
		waiting, err = tx.Referrers(catalog.RelQueued, catalog.QueuedYes, 100)
		return err
	})
	if err != nil || len(waiting) == 0 {
		return false, err
	}
	oldest := waiting[0]
	for _, r := range waiting {
		if r.Kind == catalog.Packages.Kind && r.ID < oldest.ID {
			oldest = r
		}
	}
	b := build{p: p, workspace: oldest.Workspace}
	began := p.now().UTC()
	err = b.edit(ctx, oldest.ID, func(pkg *atelier.Package) {
		pkg.State, pkg.Started = atelier.BuildRunning, &began
		pkg.Why = atelier.Because(atelier.ReasonInProgress, "its layers are being written")
	})
	if isAbsent(err) {
		return true, nil // deleted meanwhile
	}
	if err != nil {
		return false, err
	}
	failure := b.all(ctx)
	if ctx.Err() != nil {
		return false, nil // it goes on at the next start
	}
	ended := p.now().UTC()
	err = b.edit(ctx, oldest.ID, func(pkg *atelier.Package) {
		pkg.Finished = &ended
		if failure != nil {
			pkg.State, pkg.Why = atelier.BuildFailed, whyOf(failure)
			return
		}
		pkg.State, pkg.Why, pkg.Done = atelier.BuildReady, atelier.Because(atelier.ReasonAsDesired, ""), pkg.Total
	})
	if isAbsent(err) {
		return true, nil
	}
	p.log.Info("a package is built", "package", b.pkg.Package+":"+b.pkg.Tag, "failure", failure, "took", ended.Sub(began).Round(time.Millisecond))
	return err == nil, err
}

func whyOf(failure error) atelier.Why {
	why := atelier.Because(atelier.ReasonPackageFailed, failure.Error())
	var e *atelier.Error
	if errors.As(failure, &e) && e.Remedy != "" {
		why = why.WithRemedy(e.Remedy)
	}
	return why
}

// build is one package as it is built. Each step that is done is recorded, so that its
// content is held from then on and is not made again.
type build struct {
	p         *Packages
	workspace string
	pkg       atelier.Package // as it is recorded
	recorded  time.Time
}

// edit changes the package, for people to see.
func (b *build) edit(ctx context.Context, id string, change func(*atelier.Package)) error {
	return b.p.update(ctx, func(tx store.Tx) error {
		pkg, err := catalog.Packages.Get(tx, b.workspace, id)
		if err != nil {
			return err
		}
		if b.pkg.ID != "" { // what was made since
			made := b.pkg
			made.Meta, made.State, made.Why = pkg.Meta, pkg.State, pkg.Why
			pkg = made
		}
		change(&pkg)
		b.pkg, err = catalog.Packages.Update(tx, b.workspace, pkg)
		return err
	})
}

// record keeps what was made. NotFound where the package was deleted, which ends the build.
func (b *build) record(ctx context.Context) error {
	b.recorded = b.p.now()
	return b.p.update(ctx, func(tx store.Tx) error { return catalog.Packages.Record(tx, b.workspace, b.pkg) })
}

// all makes the package.
func (b *build) all(ctx context.Context) error {
	for i := range b.pkg.Images {
		if err := b.image(ctx, &b.pkg.Images[i]); err != nil {
			return fmt.Errorf("for %s: %w", b.pkg.Images[i].Arch, err)
		}
	}
	if err := b.modelPack(); err != nil {
		return err
	}
	b.pkg.Manifest = b.pkg.Images[0].Manifest
	if len(b.pkg.Images) > 1 {
		index, err := image.Index(&b.pkg)
		if err != nil {
			return err
		}
		if b.pkg.Manifest, err = b.put(image.MediaTypeIndex, index); err != nil {
			return err
		}
	}
	if err := b.record(ctx); err != nil {
		return err
	}
	if err := b.push(ctx); err != nil {
		return err
	}
	if b.p.built != nil {
		return b.p.built(ctx, b.workspace, b.pkg)
	}
	return nil
}

// image makes the image for one architecture.
func (b *build) image(ctx context.Context, img *atelier.PackageImage) error {
	for i := range img.Layers {
		l := &img.Layers[i]
		if l.Digest != "" {
			if err := b.p.content.Keep(l.Digest); err == nil {
				continue
			} else if !isAbsent(err) || len(l.Files) == 0 {
				return err
			}
		}
		if err := b.layer(ctx, l); err != nil {
			return err
		}
		if err := b.record(ctx); err != nil {
			return err
		}
	}
	base, err := b.p.read(img.BaseConfig.Digest)
	if err != nil {
		return err
	}
	config, err := image.Config(&b.pkg, img, base)
	if err != nil {
		return err
	}
	if img.Config, err = b.put(image.MediaTypeConfig, config); err != nil {
		return err
	}
	manifest, err := image.Manifest(&b.pkg, img)
	if err != nil {
		return err
	}
	img.Manifest, err = b.put(image.MediaTypeManifest, manifest)
	return err
}

// layer makes a layer, or takes it from another package of the workspace that has it.
func (b *build) layer(ctx context.Context, l *atelier.Layer) error {
	made, err := b.made(ctx, l.Recipe)
	if err != nil {
		return err
	}
	if made != nil {
		l.Digest, l.DiffID, l.Size = made.Digest, made.DiffID, made.Size
		b.pkg.Done += sizeOf(l.Files)
		return nil
	}
	w, err := b.p.content.Writer("")
	if err != nil {
		return err
	}
	err = func() error {
		if err := b.checkRoom(l); err != nil {
			return err
		}
		open := func(f atelier.File) (io.ReadCloser, error) {
			blob, err := b.p.open(f.Digest)
			if err != nil {
				return nil, err
			}
			return &reading{io.NewSectionReader(blob, 0, blob.Size()), blob}, nil
		}
		if err := image.WriteLayer(ctx, &counted{w: w, b: b, ctx: ctx, before: b.pkg.Done, most: sizeOf(l.Files)}, l, open); err != nil {
			return err
		}
		info, err := w.Commit("", -1)
		l.Digest, l.DiffID, l.Size = info.Digest, info.Digest, info.Size
		return err
	}()
	return errors.Join(err, w.Close())
}

// reading is a blob that is read from its beginning.
type reading struct {
	io.Reader
	io.Closer
}

// spareDisk are bytes that builds leave free, for the database.
const spareDisk = 64 << 20

func (b *build) checkRoom(l *atelier.Layer) error {
	free, err := b.p.content.Free()
	if err != nil {
		return err
	}
	if need := sizeOf(l.Files); free-need < spareDisk {
		return atelier.Errorf(atelier.NoSpace, "the hub's disk has %s free, a layer takes %s, and %s stay in reserve",
			atelier.FormatBytes(free), atelier.FormatBytes(need), atelier.FormatBytes(spareDisk)).
			WithRemedy("Delete packages or models that nobody needs, or give the hub a larger disk; then build it again.")
	}
	return nil
}

// made returns a layer of the workspace that was made by a recipe and is still there,
// nil for none. Earlier layers of the same package are among them.
func (b *build) made(ctx context.Context, recipe atelier.Digest) (*atelier.Layer, error) {
	var found []atelier.Package
	err := b.p.store.View(ctx, func(tx store.Tx) (err error) {
		found, err = catalog.Packages.List(tx, store.Query{Workspace: b.workspace, Rel: catalog.RelMade, To: string(recipe), Limit: 1})
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, pkg := range found {
		for _, img := range pkg.Images {
			for _, l := range img.Layers {
				if l.Recipe != recipe || l.Digest == "" {
					continue
				}
				if err := b.p.content.Keep(l.Digest); err == nil {
					return &l, nil
				} else if !isAbsent(err) {
					return nil, err
				}
			}
		}
	}
	return nil, nil
}

// counted tells how far a layer is, once a second.
type counted struct {
	w            io.Writer
	b            *build
	ctx          context.Context
	before, most int64
	n            int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.b.pkg.Done = c.before + min(c.n, c.most)
	if err == nil && c.b.p.now().Sub(c.b.recorded) >= time.Second {
		err = c.b.record(c.ctx)
	}
	return n, err
}

// modelPack makes the ModelPack artifact: its layers are the model's files as they are.
func (b *build) modelPack() error {
	var files []atelier.File
	for _, l := range b.pkg.Images[0].Layers {
		if l.Path == image.ModelDir {
			files = append(files, l.Files...)
		}
	}
	config, manifest, err := image.ModelPack(b.pkg.Model, b.pkg.Version, b.pkg.VersionDigest, b.pkg.Kind, files)
	if err != nil {
		return err
	}
	if b.pkg.ModelPack.Config, err = b.put(image.MediaTypeModelPackConfig, config); err != nil {
		return err
	}
	b.pkg.ModelPack.Manifest, err = b.put(image.MediaTypeManifest, manifest)
	return err
}

// put keeps a manifest or a configuration.
func (b *build) put(mediaType string, body []byte) (*atelier.Descriptor, error) {
	w, err := b.p.content.Writer("")
	if err != nil {
		return nil, err
	}
	_, err = w.Write(body)
	d := atelier.Descriptor{MediaType: mediaType}
	if err == nil {
		var errCommit error
		info, errCommit := w.Commit("", -1)
		d.Digest, d.Size, err = info.Digest, info.Size, errCommit
	}
	return &d, errors.Join(err, w.Close())
}

// push puts the package into the workspace's registry, unless the user has one of
// their own: the hub does not speak to that.
func (b *build) push(ctx context.Context) error {
	w, err := b.p.images.Workspace(ctx, b.workspace)
	if err != nil {
		return err
	}
	if images.Elsewhere(w) != nil {
		return nil
	}
	type pushed struct {
		manifest *atelier.Descriptor
		parts    []atelier.Digest
		tag      string
	}
	var all []pushed
	for _, img := range b.pkg.Images {
		one := pushed{manifest: img.Manifest, parts: []atelier.Digest{img.Config.Digest}}
		for _, l := range img.Layers {
			one.parts = append(one.parts, l.Digest)
		}
		all = append(all, one)
	}
	artifact := pushed{manifest: b.pkg.ModelPack.Manifest, parts: []atelier.Digest{b.pkg.ModelPack.Config.Digest}, tag: b.pkg.Tag + atelier.ModelPackTag}
	for _, l := range b.pkg.Images[0].Layers {
		if l.Path == image.ModelDir {
			for _, f := range l.Files {
				artifact.parts = append(artifact.parts, f.Digest)
			}
		}
	}
	all = append(all, artifact, pushed{manifest: b.pkg.Manifest, tag: b.pkg.Tag})
	for _, one := range all {
		for _, d := range one.parts {
			if err := b.p.images.Adopt(ctx, b.workspace, b.pkg.Repository, d); err != nil {
				return err
			}
		}
		body, err := b.p.read(one.manifest.Digest)
		if err != nil {
			return err
		}
		ref := images.Reference(one.manifest.Digest)
		var tags []string
		if one.tag != "" {
			tags = []string{one.tag}
		}
		if _, err := b.p.images.Push(ctx, b.workspace, b.pkg.Repository, ref, tags, one.manifest.MediaType, body); err != nil {
			return err
		}
	}
	return nil
}
