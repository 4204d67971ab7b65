package image

import (
	"encoding/json"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	atelier "github.com/atelier-edge/atelier"
)

// The media types and annotations of ModelPack artifacts, as CNCF's specification has
// them (https://github.com/modelpack/model-spec, version 0.0.7).
const (
	MediaTypeModelPack       = "application/vnd.cncf.model.manifest.v1+json"
	MediaTypeModelPackConfig = "application/vnd.cncf.model.config.v1+json"

	typeWeight = "application/vnd.cncf.model.weight.v1.raw"
	typeConfig = "application/vnd.cncf.model.weight.config.v1.raw"
	typeDoc    = "application/vnd.cncf.model.doc.v1.raw"
	typeCode   = "application/vnd.cncf.model.code.v1.raw"

	annotationFilePath = "org.cncf.model.filepath"
	annotationMetadata = "org.cncf.model.file.metadata+json"
)

// modelPackConfig is the configuration of a ModelPack artifact.
type modelPackConfig struct {
	Descriptor struct {
		Name     string `json:"name"`
		Version  string `json:"version"`
		Revision string `json:"revision,omitempty"`
	} `json:"descriptor"`
	Config struct {
		Format string `json:"format,omitempty"`
	} `json:"config"`
	ModelFS struct {
		Type    string           `json:"type"`
		DiffIDs []atelier.Digest `json:"diffIds"`
	} `json:"modelfs"`
}

// fileMetadata is what ModelPack says of a file.
type fileMetadata struct {
	Name     string `json:"name"`
	Mode     uint32 `json:"mode"`
	UID      uint32 `json:"uid"`
	GID      uint32 `json:"gid"`
	Size     int64  `json:"size"`
	ModTime  string `json:"mtime"`
	Typeflag byte   `json:"typeflag"`
}

// ModelPack returns configuration and manifest of the ModelPack artifact of a model's
// files, each of which is a layer as it is: its digest is the file's.
func ModelPack(model string, version int, digestOfVersion atelier.Digest, kind string, files []atelier.File) (config, manifest []byte, err error) {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b atelier.File) int { return strings.Compare(a.Path, b.Path) })
	var c modelPackConfig
	c.Descriptor.Name, c.Descriptor.Version, c.Descriptor.Revision = model, number(version), string(digestOfVersion)
	c.Config.Format, c.ModelFS.Type = kind, "layers"
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: MediaTypeManifest, ArtifactType: MediaTypeModelPack}
	for _, f := range files {
		c.ModelFS.DiffIDs = append(c.ModelFS.DiffIDs, f.Digest)
		metadata, err := json.Marshal(fileMetadata{Name: f.Path, Mode: 0o644, Size: f.Size, ModTime: epoch.Format("2006-01-02T15:04:05Z07:00"), Typeflag: '0'})
		if err != nil {
			return nil, nil, atelier.Errorf(atelier.Internal, "describe a file: %w", err)
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{
			MediaType: modelPackType(f.Path), Digest: digest.Digest(f.Digest), Size: f.Size,
			Annotations: map[string]string{annotationFilePath: f.Path, annotationMetadata: string(metadata), ocispec.AnnotationTitle: f.Path},
		})
	}
	if config, err = json.Marshal(c); err != nil {
		return nil, nil, atelier.Errorf(atelier.Internal, "write the model's configuration: %w", err)
	}
	m.Config = ocispec.Descriptor{MediaType: MediaTypeModelPackConfig, Digest: digest.Digest(atelier.DigestOf(config)), Size: int64(len(config))}
	m.Annotations = map[string]string{ocispec.AnnotationTitle: model, ocispec.AnnotationVersion: number(version), LabelModel: model, LabelVersion: number(version), LabelModelDigest: string(digestOfVersion)}
	manifest, err = json.Marshal(m)
	return config, manifest, err
}

// modelPackType says what a file is to ModelPack.
func modelPackType(file string) string {
	base := path.Base(file)
	switch strings.ToLower(path.Ext(base)) {
	case ".py", ".sh", ".ipynb":
		return typeCode
	case ".md", ".rst", ".pdf", ".html":
		return typeDoc
	case ".json", ".yaml", ".yml", ".toml", ".txt", ".ini", ".cfg":
		return typeConfig
	}
	switch {
	case strings.HasPrefix(base, "LICENSE"), strings.HasPrefix(base, "README"), strings.HasPrefix(base, "NOTICE"):
		return typeDoc
	case base == "MLmodel":
		return typeConfig
	}
	return typeWeight
}
