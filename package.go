package atelier

import (
	"strconv"
	"time"
)

// Base is the root file system that packages stand on: an image of a registry, or a tar
// file of one. It never changes.
type Base struct {
	Meta
	Description string `json:"description,omitempty"`
	// Source says where it came from, for people: a reference with its digest, a file.
	Source string      `json:"source,omitempty"`
	Images []BaseImage `json:"images"` // one for each architecture
}

// BaseImage is a base for one architecture.
type BaseImage struct {
	Arch string `json:"arch"` // in Go's words: "amd64", "arm64"
	// Config is the image's configuration, as OCI has it.
	Config File    `json:"config"`
	Layers []Layer `json:"layers"` // the lowest first
}

// Size returns the bytes of the image's layers.
func (b *BaseImage) Size() (size int64) {
	for _, l := range b.Layers {
		size += l.Size
	}
	return size
}

// Image returns the base for an architecture, nil where it has none.
func (b *Base) Image(arch string) *BaseImage {
	for i := range b.Images {
		if b.Images[i].Arch == arch {
			return &b.Images[i]
		}
	}
	return nil
}

// LayerKind says what a layer of a package is.
type LayerKind string

// The kinds of layers, the lowest first.
const (
	LayerBase        LayerKind = "base"        // of the base
	LayerEnvironment LayerKind = "environment" // a built Python environment
	LayerServer      LayerKind = "server"      // the model server, and what it loads
	LayerModel       LayerKind = "model"       // files of the model
	LayerCode        LayerKind = "code"        // a scoring script and what it imports
)

// Layer is one layer of an image.
type Layer struct {
	Kind      LayerKind `json:"kind"`
	MediaType string    `json:"media_type"`
	// Digest and Size are those of the layer as it is stored and sent; "" and 0 until it is made.
	Digest Digest `json:"digest,omitempty"`
	Size   int64  `json:"size,omitempty"`
	// DiffID is the digest of the layer's tar file; Digest where that is not compressed.
	DiffID Digest `json:"diff_id,omitempty"`
	// Files are what the layer is made of, with their paths below Path, which is absolute;
	// none for a layer of a base. That of an environment is its tar file, unpacked at Path.
	Files []File `json:"files,omitempty"`
	Path  string `json:"path,omitempty"`
	// Recipe names how the layer is made of Files: layers of equal recipes are equal.
	Recipe Digest `json:"recipe,omitempty"`
}

// Package is a version of a model made into images, with all that it needs to answer
// requests: a container image for each architecture, and a CNCF ModelPack artifact of
// the model's own files beside them. What it is made of never changes.
type Package struct {
	Meta               // Name is the tag
	Package     string `json:"package"` // the name, which its tags have in common
	Tag         string `json:"tag"`
	Description string `json:"description,omitempty"`

	Model     string `json:"model"`
	Version   int    `json:"version"`
	VersionID string `json:"version_id"`
	// VersionDigest is the version's, Kind that of its variants.
	VersionDigest Digest          `json:"version_digest"`
	Kind          string          `json:"kind"`
	Base          string          `json:"base"` // the base's name
	BaseID        string          `json:"base_id"`
	Environment   string          `json:"environment,omitempty"` // NAME:VERSION
	EnvironmentID string          `json:"environment_id,omitempty"`
	Script        string          `json:"script,omitempty"` // the scoring script, where one was given beside the model
	Serving       ServingSettings `json:"serving,omitzero"`

	// Inputs names all that the package is made of: equal inputs give equal images.
	Inputs Digest     `json:"inputs"`
	State  BuildState `json:"state"`
	Why    Why        `json:"why"`
	Done   int64      `json:"done"`  // bytes of layers that are there
	Total  int64      `json:"total"` // bytes of files that the layers are made of, about

	Images    []PackageImage `json:"images"` // one for each architecture
	ModelPack Artifact       `json:"modelpack"`
	// Manifest is what the tag names: the only image, or the index of several.
	Manifest *Descriptor `json:"manifest,omitempty"`
	// Repository is where the workspace's registry has the package: images as
	// Repository:Tag, the artifact as Repository:Tag-modelpack.
	Repository string     `json:"repository"`
	Started    *time.Time `json:"started,omitempty"`
	Finished   *time.Time `json:"finished,omitempty"`
}

// PackageImage is a package's container image for one architecture.
type PackageImage struct {
	Arch   string  `json:"arch"`
	Layers []Layer `json:"layers"` // the lowest first
	// BaseConfig is the configuration of the base, which the image's begins with.
	BaseConfig File `json:"base_config"`
	// Command is what the image runs: the model server with its options.
	Command []string `json:"command"`
	Artifact
}

// Artifact is the manifest and the configuration of an image or another artifact; nil
// until they are made.
type Artifact struct {
	Manifest *Descriptor `json:"manifest,omitempty"`
	Config   *Descriptor `json:"config,omitempty"`
}

// Descriptor names content of a registry.
type Descriptor struct {
	MediaType string `json:"media_type"`
	Digest    Digest `json:"digest"`
	Size      int64  `json:"size"`
}

// ModelPackTag is added to a package's tag for its ModelPack artifact.
const ModelPackTag = "-modelpack"

// Content returns every content that p needs: what its layers are, the files of the
// model, of which the artifact is, and what else is still to be made into layers.
func (p *Package) Content() []Digest {
	var all []Digest
	seen := map[Digest]bool{"": true}
	add := func(d Digest) {
		if !seen[d] {
			seen[d] = true
			all = append(all, d)
		}
	}
	artifact := func(a *Artifact) {
		for _, d := range []*Descriptor{a.Manifest, a.Config} {
			if d != nil {
				add(d.Digest)
			}
		}
	}
	for i := range p.Images {
		artifact(&p.Images[i].Artifact)
		add(p.Images[i].BaseConfig.Digest)
		for _, l := range p.Images[i].Layers {
			add(l.Digest)
			if l.Digest != "" && (l.Kind == LayerEnvironment || l.Kind == LayerServer) {
				continue
			}
			for _, f := range l.Files {
				add(f.Digest)
			}
		}
	}
	artifact(&p.ModelPack)
	if p.Manifest != nil {
		add(p.Manifest.Digest)
	}
	return all
}

// Image returns the package's image for an architecture, nil where it has none.
func (p *Package) Image(arch string) *PackageImage {
	for i := range p.Images {
		if p.Images[i].Arch == arch {
			return &p.Images[i]
		}
	}
	return nil
}

// Lineage says what the package is made of. Who built it is the builder's to say.
func (p *Package) Lineage() *Lineage {
	l := &Lineage{Kind: "package", Parameters: map[string]string{"package": p.Package, "tag": p.Tag, "inputs": string(p.Inputs)}, Invocation: p.ID}
	if p.Started != nil {
		l.Started = *p.Started
	}
	if p.Finished != nil {
		l.Finished = *p.Finished
	}
	l.Materials = []Material{{Kind: MaterialVersion, Name: p.Model, Version: strconv.Itoa(p.Version), Digest: p.VersionDigest}}
	kinds := map[LayerKind]string{LayerEnvironment: MaterialEnvironment, LayerServer: MaterialRuntime, LayerModel: MaterialModel, LayerCode: MaterialCode}
	seen := map[Digest]bool{}
	for _, img := range p.Images {
		for _, layer := range img.Layers {
			if layer.Kind == LayerBase && !seen[layer.Digest] {
				seen[layer.Digest] = true
				l.Materials = append(l.Materials, Material{Kind: MaterialBase, Name: p.Base, Digest: layer.Digest})
			}
			for _, f := range layer.Files {
				if kind := kinds[layer.Kind]; kind != "" && !seen[f.Digest] && len(l.Materials) < maxMaterials {
					seen[f.Digest] = true
					l.Materials = append(l.Materials, Material{Kind: kind, Name: f.Path, Digest: f.Digest})
				}
			}
		}
	}
	return l
}
