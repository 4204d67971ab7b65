package packages

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/registry"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/packaging/image"
)

// maxConfig bounds an image's configuration in bytes, as registries bound manifests.
const maxConfig = 4 << 20

// maxBaseLayers bounds the layers of a base: overlay file systems take some hundred,
// and a package adds its own.
const maxBaseLayers = 80

// NewBase describes a base whose configurations and layers were uploaded to the
// workspace before.
type NewBase struct {
	Name        string
	Description string
	Source      string
	Images      []atelier.BaseImage
}

// layerTypes are the media types of layers that are taken: OCI's and Docker's.
var layerTypes = map[string]string{
	image.MediaTypeLayer:                                image.MediaTypeLayer,
	image.MediaTypeLayer + "+gzip":                      image.MediaTypeLayer + "+gzip",
	image.MediaTypeLayer + "+zstd":                      image.MediaTypeLayer + "+zstd",
	"application/vnd.docker.image.rootfs.diff.tar":      image.MediaTypeLayer,
	"application/vnd.docker.image.rootfs.diff.tar.gzip": image.MediaTypeLayer + "+gzip",
}

// AddBase registers a base. Invalid where it is no image for Linux, or where its layers
// are not those of its configuration. The same base under the same name is no error.
func (p *Packages) AddBase(ctx context.Context, workspace string, n NewBase) (atelier.Base, error) {
	b := atelier.Base{Meta: atelier.Meta{Name: n.Name}, Description: n.Description, Source: n.Source, Images: slices.Clone(n.Images)}
	if err := atelier.CheckName("base", n.Name); err != nil {
		return b, err
	}
	if len(n.Description) > 4096 || len(n.Source) > 1024 {
		return b, atelier.Errorf(atelier.TooLarge, "the description has more than 4096 bytes, or the source more than 1024")
	}
	if len(b.Images) == 0 || len(b.Images) > len(architectures) {
		return b, atelier.Errorf(atelier.Invalid, "the base has %d images, 1 to %d were expected: one for each architecture", len(b.Images), len(architectures)).WithField("images")
	}
	err := p.store.View(ctx, func(tx store.Tx) error { return checkHeld(tx, workspace, b.Images) })
	if err != nil {
		return b, err
	}
	for i := range b.Images {
		if err := p.checkBase(&b.Images[i], b.Images[:i]); err != nil {
			return b, err
		}
	}
	slices.SortFunc(b.Images, func(a, b atelier.BaseImage) int { return strings.Compare(a.Arch, b.Arch) })
	var made atelier.Base
	err = p.update(ctx, func(tx store.Tx) error {
		if err := checkHeld(tx, workspace, b.Images); err != nil {
			return err
		}
		there, err := catalog.Bases.Find(tx, workspace, "", b.Name)
		switch {
		case err == nil && sameBase(&there, &b):
			made = there
			return nil
		case err == nil:
			return atelier.Errorf(atelier.Exists, "there is another base %q already", b.Name).WithField("name").
				WithRemedy("Give it another name: what packages stand on never changes.")
		case !isAbsent(err):
			return err
		}
		made, err = catalog.Bases.Insert(tx, workspace, "", b)
		return err
	})
	return made, err
}

// checkHeld checks that the workspace holds what bases are made of.
func checkHeld(tx store.Tx, workspace string, bases []atelier.BaseImage) error {
	for _, b := range bases {
		files := []atelier.File{b.Config}
		for _, l := range b.Layers {
			files = append(files, atelier.File{Path: "layer", Digest: l.Digest, Size: l.Size})
		}
		if err := registry.CheckFiles(tx, workspace, files); err != nil {
			return err
		}
	}
	return nil
}

// checkBase checks a base for one architecture against its configuration, and puts it
// in normal form.
func (p *Packages) checkBase(b *atelier.BaseImage, before []atelier.BaseImage) error {
	body, err := p.read(b.Config.Digest)
	if err != nil {
		return err
	}
	c, err := image.ParseConfig(body)
	if err != nil {
		return err
	}
	if b.Arch != "" && b.Arch != c.Architecture || !slices.Contains(architectures, c.Architecture) {
		return atelier.Errorf(atelier.Invalid, "the image is for the architecture %.40q, %q was expected", c.Architecture, b.Arch).WithField("arch").
			WithRemedy("Bases may be for %s.", strings.Join(architectures, " and "))
	}
	b.Arch, b.Config.Path = c.Architecture, "config.json"
	if slices.ContainsFunc(before, func(o atelier.BaseImage) bool { return o.Arch == b.Arch }) {
		return atelier.Errorf(atelier.Invalid, "two images are for %s", b.Arch).WithField("images")
	}
	if len(b.Layers) == 0 || len(b.Layers) > maxBaseLayers || len(b.Layers) != len(c.RootFS.DiffIDs) {
		return atelier.Errorf(atelier.Invalid, "the image has %d layers, its configuration tells of %d; 1 to %d are taken", len(b.Layers), len(c.RootFS.DiffIDs), maxBaseLayers).
			WithField("layers")
	}
	b.Layers = slices.Clone(b.Layers)
	for i := range b.Layers {
		l := b.Layers[i]
		mediaType, ok := layerTypes[l.MediaType]
		if !ok {
			return atelier.Errorf(atelier.Unsupported, "a layer has the media type %.120q, which is not taken", l.MediaType).WithField("layers").
				WithRemedy("Take an image whose layers are tar files, plain or compressed by gzip or zstd.")
		}
		diff := atelier.Digest(c.RootFS.DiffIDs[i])
		if mediaType == image.MediaTypeLayer && diff != l.Digest {
			return atelier.Errorf(atelier.Invalid, "layer %d is %s, the configuration says %s", i+1, l.Digest, diff).WithField("layers")
		}
		b.Layers[i] = atelier.Layer{Kind: atelier.LayerBase, MediaType: mediaType, Digest: l.Digest, Size: l.Size, DiffID: diff}
	}
	return nil
}

func sameBase(a, b *atelier.Base) bool {
	return slices.EqualFunc(a.Images, b.Images, func(a, b atelier.BaseImage) bool {
		return a.Arch == b.Arch && a.Config == b.Config && slices.EqualFunc(a.Layers, b.Layers, func(a, b atelier.Layer) bool { return a.Digest == b.Digest })
	})
}

// read reads small content whole.
func (p *Packages) read(d atelier.Digest) (body []byte, err error) {
	b, err := p.open(d)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if b.Size() > maxConfig {
		return nil, atelier.Errorf(atelier.TooLarge, "the image's configuration has %d bytes; at most %d are taken", b.Size(), maxConfig).WithField("config")
	}
	return io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
}

// Base returns a base.
func (p *Packages) Base(ctx context.Context, workspace, ref string) (b atelier.Base, err error) {
	err = p.store.View(ctx, func(tx store.Tx) error {
		b, err = catalog.Bases.Resolve(tx, workspace, "", ref)
		return err
	})
	return b, err
}

// DeleteBase removes a base that no package stands on; InUse where one does.
func (p *Packages) DeleteBase(ctx context.Context, workspace, ref string, revision int64) error {
	return p.update(ctx, func(tx store.Tx) error {
		b, err := catalog.Bases.Resolve(tx, workspace, "", ref)
		if err != nil {
			return err
		}
		users, err := catalog.Packages.List(tx, store.Query{Workspace: workspace, Rel: catalog.RelOn, To: b.ID, Limit: 1})
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return atelier.Errorf(atelier.InUse, "the package %s:%s stands on the base %q", users[0].Package, users[0].Tag, b.Name).
				WithRemedy("Delete the package first.")
		}
		return catalog.Bases.Delete(tx, workspace, b.ID, revision)
	})
}

// chooseBase returns the base that ref names; the only one of the workspace for "".
func chooseBase(tx store.Tx, workspace, ref string) (atelier.Base, error) {
	if ref != "" {
		b, err := catalog.Bases.Resolve(tx, workspace, "", ref)
		return b, inField(err, "base")
	}
	all, err := catalog.Bases.List(tx, store.Query{Workspace: workspace, Limit: 5})
	if err != nil {
		return atelier.Base{}, err
	}
	if len(all) == 1 {
		return all[0], nil
	}
	if len(all) == 0 {
		return atelier.Base{}, atelier.Errorf(atelier.Invalid, "the workspace has no base that images could stand on").WithField("base").
			WithRemedy("Add one: 'atelier base add debian REFERENCE' takes an image of a registry, and 'make base' builds one.")
	}
	var names []string
	for _, b := range all {
		names = append(names, b.Name)
	}
	return atelier.Base{}, atelier.Errorf(atelier.Invalid, "the workspace has several bases, such as %s, and none is named", strings.Join(names, ", ")).WithField("base").
		WithRemedy("Name one with --base.")
}

// inField names the field of an error that has none.
func inField(err error, field string) error {
	var e *atelier.Error
	if errors.As(err, &e) && e.Field == "" {
		return e.WithField(field)
	}
	return err
}
