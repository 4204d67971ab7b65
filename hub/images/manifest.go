package images

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// The media types of manifests that are taken: OCI's and Docker's own, of an image
// and of an index of images.
const (
	TypeImage       = "application/vnd.oci.image.manifest.v1+json"
	TypeIndex       = "application/vnd.oci.image.index.v1+json"
	typeDockerImage = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerIndex = "application/vnd.docker.distribution.manifest.list.v2+json"
)

const (
	// MaxManifest is the most bytes that a manifest may have; clients refuse larger ones.
	MaxManifest = 4 << 20
	// maxParts bounds what a manifest may name: each is looked for when it is pushed.
	maxParts = 4096
)

// Descriptor names content, as OCI has it.
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	URLs         []string          `json:"urls,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
}

// manifest is what is read of a manifest. Members that are not known are kept in its
// bytes and not looked at.
type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *Descriptor       `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Manifests     []Descriptor      `json:"manifests"`
	Subject       *Descriptor       `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
	// FSLayers are in manifests of Docker's first schema, and in no other.
	FSLayers json.RawMessage `json:"fsLayers"`
}

// parseManifest reads the manifest in b, which was sent as mediaType.
func parseManifest(mediaType string, b []byte) (*manifest, error) {
	bad := func(format string, args ...any) (*manifest, error) {
		return nil, atelier.Errorf(atelier.Invalid, "the manifest "+format, args...).WithField(FieldManifest).
			WithRemedy("Push an image, or an index of images, of OCI or of Docker's schema 2.")
	}
	var m manifest
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&m); err != nil {
		return bad("is no JSON of that form")
	}
	if _, err := dec.Token(); err != io.EOF {
		return bad("is followed by something else")
	}
	mediaType, _, _ = strings.Cut(mediaType, ";")
	mediaType = strings.TrimSpace(mediaType)
	switch {
	case mediaType == "":
		mediaType = m.MediaType
	case m.MediaType != "" && m.MediaType != mediaType:
		return bad("says that it is %.120q, and was sent as %.120q", m.MediaType, mediaType)
	}
	m.MediaType = mediaType
	if m.SchemaVersion != 2 {
		return bad("has schemaVersion %d, expected was 2", m.SchemaVersion)
	}
	switch m.MediaType {
	case TypeImage, typeDockerImage:
		if m.Config == nil || m.Manifests != nil || m.FSLayers != nil {
			return bad("of an image has no config, or what only an index has")
		}
	case TypeIndex, typeDockerIndex:
		if m.Config != nil || m.Layers != nil || m.FSLayers != nil {
			return bad("of an index has what only an image has")
		}
	default:
		return bad("has the media type %.120q, which is not known here", m.MediaType)
	}
	return &m, m.check()
}

// index reports whether m names images rather than layers.
func (m *manifest) index() bool { return m.MediaType == TypeIndex || m.MediaType == typeDockerIndex }

// parts returns what m names and a repository must hold for it.
func (m *manifest) parts() []Descriptor {
	if m.index() {
		return m.Manifests
	}
	parts := []Descriptor{*m.Config}
	for _, l := range m.Layers {
		if !l.foreign() {
			parts = append(parts, l)
		}
	}
	return parts
}

// foreign reports whether d is of the layers that registries need not hold.
func (d Descriptor) foreign() bool {
	return strings.HasPrefix(d.MediaType, "application/vnd.oci.image.layer.nondistributable.") ||
		d.MediaType == "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
}

// check checks the descriptors.
func (m *manifest) check() error {
	all := append(append([]Descriptor{}, m.Layers...), m.Manifests...)
	if m.Config != nil {
		all = append(all, *m.Config)
	}
	if m.Subject != nil {
		all = append(all, *m.Subject)
	}
	if len(all) > maxParts {
		return atelier.Errorf(atelier.TooLarge, "the manifest names %d parts; at most %d are taken", len(all), maxParts).WithField(FieldManifest)
	}
	for _, d := range all {
		if err := CheckDigest(d.Digest); err != nil {
			return atelier.Errorf(atelier.Invalid, "the manifest names %.160q, which is no digest", d.Digest).WithField(FieldManifest)
		}
		if d.Size < 0 {
			return atelier.Errorf(atelier.Invalid, "the manifest says that %s has %d bytes", d.Digest, d.Size).WithField(FieldManifest)
		}
	}
	return nil
}

// artifactType says what m is where it is more than an image; see atelier.Image.
func (m *manifest) artifactType() string {
	if m.ArtifactType == "" && m.Config != nil {
		return m.Config.MediaType
	}
	return m.ArtifactType
}
