// Package image makes container images and CNCF ModelPack artifacts of models.
//
// It promises that the same parts give the same bytes: entries of layers are sorted, all
// have one time, owner and a mode of two, and nothing of the machine or the moment goes
// into a manifest. Layers are tar files, not compressed, so that two versions of a file
// have most of their bytes in common wherever they are sent. What stands on equal parts
// shares their layers: base, environment, model server, each large file of a model, its
// small files, and code are layers of their own, the seldom changed first.
//
// Each layer's descriptor says what the layer is (AnnotationLayer), and those of models
// and code which files they hold, under which digests (AnnotationFiles): whoever has the
// files already needs no such layer to run the image.
//
// The package knows no hub, no registry and no network: what it reads and writes are
// streams, and who keeps them is not its business.
package image

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	atelier "github.com/atelier-edge/atelier"
)

// Media types that package images has.
const (
	MediaTypeManifest = ocispec.MediaTypeImageManifest
	MediaTypeIndex    = ocispec.MediaTypeImageIndex
	MediaTypeConfig   = ocispec.MediaTypeImageConfig
	MediaTypeLayer    = ocispec.MediaTypeImageLayer
)

// The annotations of layers' descriptors.
const (
	// AnnotationLayer says what a layer is: an atelier.LayerKind.
	AnnotationLayer = "dev.atelier.layer"
	// AnnotationPath is the directory that the layer's files lie in, such as "/models".
	AnnotationPath = "dev.atelier.path"
	// AnnotationFiles lists the files of a model's or of code's layer as a JSON array of
	// atelier.File, with paths below AnnotationPath.
	AnnotationFiles = "dev.atelier.files"
)

// The labels of images' configurations, and annotations of manifests.
const (
	LabelModel        = "dev.atelier.model"
	LabelVersion      = "dev.atelier.version"
	LabelModelDigest  = "dev.atelier.model.digest"
	LabelEnvironment  = "dev.atelier.environment"
	LabelPackage      = "dev.atelier.package"
	LabelInputs       = "dev.atelier.inputs"
	LabelServingRoute = "dev.atelier.health" // where the image answers 200 when it is ready
)

// Port is where images answer, over HTTP and gRPC.
const Port = "8080/tcp"

// User is who an image runs as, and its group.
const User = "65532:65532"

// listen is the command's last part, which whoever runs the image may replace.
var listen = []string{"--listen", "0.0.0.0:8080"}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ParseConfig reads the configuration of an image for Linux, such as a base's. Invalid
// where it is none; its architecture is returned as it says.
func ParseConfig(b []byte) (ocispec.Image, error) {
	var c ocispec.Image
	if err := json.Unmarshal(b, &c); err != nil {
		return c, atelier.Errorf(atelier.Invalid, "the image's configuration is no JSON of that form: %w", err).WithField("config")
	}
	if c.OS != "linux" || c.Architecture == "" {
		return c, atelier.Errorf(atelier.Invalid, "the image is for %.40q on %.40q; expected was linux", c.OS, c.Architecture).WithField("config").
			WithRemedy("Name an image for Linux, on amd64 or arm64.")
	}
	for _, d := range c.RootFS.DiffIDs {
		if _, err := atelier.ParseDigest(string(d)); err != nil {
			return c, atelier.Errorf(atelier.Invalid, "the image's configuration names %.80q, which is no SHA-256", d).WithField("config")
		}
	}
	return c, nil
}

// Config returns the configuration of a package's image: that of its base with the
// command, and the layers above. All layers must be made.
func Config(p *atelier.Package, img *atelier.PackageImage, base []byte) ([]byte, error) {
	from, err := ParseConfig(base)
	if err != nil {
		return nil, err
	}
	c := ocispec.Image{Created: &epoch, RootFS: ocispec.RootFS{Type: "layers"}}
	c.Architecture, c.OS, c.Variant = from.Architecture, from.OS, from.Variant
	c.Config = ocispec.ImageConfig{
		User: User, ExposedPorts: map[string]struct{}{Port: {}}, WorkingDir: "/",
		Entrypoint: img.Command, Cmd: listen, StopSignal: "SIGTERM",
		Env:    environmentOf(from.Config.Env),
		Labels: Labels(p),
	}
	for _, l := range img.Layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.Digest(l.DiffID))
		c.History = append(c.History, ocispec.History{Created: &epoch, CreatedBy: "atelier package: " + string(l.Kind)})
	}
	return json.Marshal(c)
}

// environmentOf returns the variables of an image on a base.
func environmentOf(base []string) []string {
	ours := []string{"HOME=/tmp", "LANG=C.UTF-8", "AZUREML_MODEL_DIR=" + ModelDir}
	out := []string{defaultPath}
	for _, v := range base {
		name, _, _ := strings.Cut(v, "=")
		if name == "PATH" {
			out[0] = v
		} else if !slices.ContainsFunc(ours, func(o string) bool { return strings.HasPrefix(o, name+"=") }) {
			out = append(out, v)
		}
	}
	return append(out, ours...)
}

// Labels returns what an image says of itself.
func Labels(p *atelier.Package) map[string]string {
	labels := map[string]string{
		ocispec.AnnotationTitle: p.Package, ocispec.AnnotationVersion: p.Tag,
		LabelPackage: p.Package + ":" + p.Tag, LabelModel: p.Model, LabelVersion: number(p.Version),
		LabelModelDigest: string(p.VersionDigest), LabelInputs: string(p.Inputs), LabelServingRoute: "/v2/health/ready",
	}
	if p.Environment != "" {
		labels[LabelEnvironment] = p.Environment
	}
	return labels
}

// Manifest returns the manifest of a package's image, of its configuration and its layers.
func Manifest(p *atelier.Package, img *atelier.PackageImage) ([]byte, error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: MediaTypeManifest,
		Config: Descriptor(*img.Config), Annotations: Labels(p),
	}
	for i := range img.Layers {
		d, err := layerDescriptor(&img.Layers[i])
		if err != nil {
			return nil, err
		}
		m.Layers = append(m.Layers, d)
	}
	return json.Marshal(m)
}

// layerDescriptor names a layer in a manifest.
func layerDescriptor(l *atelier.Layer) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{
		MediaType: l.MediaType, Digest: digest.Digest(l.Digest), Size: l.Size,
		Annotations: map[string]string{AnnotationLayer: string(l.Kind)},
	}
	if l.Path != "" {
		d.Annotations[AnnotationPath] = l.Path
	}
	if l.Kind == atelier.LayerModel || l.Kind == atelier.LayerCode {
		files, err := json.Marshal(l.Files)
		if err != nil {
			return d, atelier.Errorf(atelier.Internal, "write the files of a layer: %w", err)
		}
		d.Annotations[AnnotationFiles] = string(files)
	}
	return d, nil
}

// Index returns the index of a package's images, one for each architecture.
func Index(p *atelier.Package) ([]byte, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: MediaTypeIndex, Annotations: Labels(p)}
	for _, img := range p.Images {
		d := Descriptor(*img.Manifest)
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: img.Arch}
		index.Manifests = append(index.Manifests, d)
	}
	return json.Marshal(index)
}

// Descriptor returns d as OCI has it.
func Descriptor(d atelier.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: digest.Digest(d.Digest), Size: d.Size}
}
