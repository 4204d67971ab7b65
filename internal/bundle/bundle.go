// Package bundle is the form in which a deployment travels without a network: an
// OCI image layout (https://github.com/opencontainers/image-spec/blob/main/image-layout.md),
// as a directory or as a tar file, whose one artifact holds the signed desired
// states of devices and the content that they need.
//
//	oci-layout
//	index.json                  names the two manifests
//	blobs/sha256/…              the artifact: its manifest (TypeBundle), its config
//	                            (Config), and a layer for each state and each content
//	blobs/sha256/…              the signature: a manifest (TypeSignature) that refers
//	                            to the artifact's, and a DSSE envelope (Statement)
//
// What a reader promises: everything in a bundle is hostile. No name in it becomes
// a path; memory is bounded, whatever the bundle's size; a bundle of which a part
// is still missing says so (ReasonBundleIncomplete) and is not taken for a broken
// one. Open and Read verify digests, Verify the signature; content is read by its
// layer's size and is for its reader to verify.
//
// Hub and agent share the package. It knows neither network nor store.
package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// The media and artifact types. The number is the version of the form.
const (
	TypeBundle    = "application/vnd.atelier.bundle.v1+json"           // artifact type of the bundle's manifest
	TypeConfig    = "application/vnd.atelier.bundle.config.v1+json"    // Config
	TypeSignature = "application/vnd.atelier.bundle.signature.v1+json" // artifact type of the signature's manifest
	TypeStatement = "application/vnd.atelier.bundle.statement.v1+json" // payload type of the signature, a Statement
	TypeEnvelope  = "application/vnd.dsse.envelope.v1+json"            // media type of signature and states
	TypeContent   = "application/octet-stream"                         // media type of content
	// TypeDifference is the media type of what brings content to who holds others; see
	// internal/content/delta.
	TypeDifference = "application/vnd.atelier.difference.v1"
)

// RefName is the name under which the index lists the bundle, for OCI's tools: skopeo
// reads oci:DIRECTORY:bundle.
const RefName = "bundle"

// OCI's own.
const (
	typeManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeIndex       = "application/vnd.oci.image.index.v1+json"
	typeEmpty       = "application/vnd.oci.empty.v1+json"
	layoutVersion   = "1.0.0"
	annotationTitle = "org.opencontainers.image.title"
	annotationName  = "org.opencontainers.image.ref.name"
	annotationTime  = "org.opencontainers.image.created"
	layoutFile      = "oci-layout"
	indexFile       = "index.json"
	blobsDir        = "blobs/sha256/"
)

// Bounds, so that an agent with little memory can read what a stranger wrote.
const (
	maxJSON      = 1 << 20 // bytes of a manifest, a config or the index
	maxManifests = 16      // in the index
	maxEntries   = 20_000  // files of a layout
)

// Descriptor names a blob, as OCI does.
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       atelier.Digest    `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        Descriptor        `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Subject       *Descriptor       `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []Descriptor `json:"manifests"`
}

type ociLayout struct {
	Version string `json:"imageLayoutVersion"`
}

// Config says what a bundle is for and what is in it. States are layers of their
// own, so that a device reads its own one only.
type Config struct {
	// Requires lists features that a reader must understand; see Features.
	Requires      []string  `json:"requires,omitempty"`
	Workspace     string    `json:"workspace"` // id
	WorkspaceName string    `json:"workspace_name"`
	Created       time.Time `json:"created"`
	// Trust are the root metadata and the delegation that a device may lack, in the
	// order in which they are applied; each proves itself.
	Trust   []wire.Raw `json:"trust,omitempty"`
	Devices []Device   `json:"devices"`
	Files   []File     `json:"files"`
}

// Device is a device that the bundle is for.
type Device struct {
	ID       string           `json:"id"`
	Name     string           `json:"name"`
	Position atelier.Position `json:"position"`
	// State is the digest of the envelope of its desired state, byte by byte what
	// the hub sends over MQTT.
	State atelier.Digest `json:"state"`
}

// File is a content that one of the states needs.
type File struct {
	atelier.File
	MediaType string `json:"media_type"`
	// Held is set for content that was left out, since the devices have it.
	Held bool `json:"held,omitempty"`
	// Difference, where there is one, is in the bundle in place of the content.
	Difference *Difference `json:"difference,omitempty"`
}

// Difference brings content to a device that holds others, its bases.
type Difference struct {
	Digest atelier.Digest   `json:"digest"` // of its layer
	Bases  []atelier.Digest `json:"bases"`
}

// Statement is what the workspace's state key signs of a bundle: the descriptor
// of its manifest, which in turn names everything else by digest.
type Statement struct {
	Manifest Descriptor `json:"manifest"`
}

// FeatureDifferences is what a bundle requires that holds differences.
const FeatureDifferences = "differences"

// Features are what this program understands of Config.Requires.
var Features = []string{FeatureDifferences}

// maxBases bounds the bases of a difference.
const maxBases = 16

// Error says why a bundle is not taken. An *atelier.Error with the code and the
// remedy stands behind it (errors.As finds both).
type Error struct {
	Reason atelier.Reason
	Err    *atelier.Error
}

func (e *Error) Error() string { return e.Err.Message }

// Unwrap returns the *atelier.Error.
func (e *Error) Unwrap() error { return e.Err }

// Refuse makes an Error.
func Refuse(r atelier.Reason, code atelier.Code, format string, args ...any) *Error {
	return &Error{r, atelier.Errorf(code, format, args...)}
}

// WhyOf returns the reason for an error of a bundle's reader: that of the first
// *Error or *trust.Error in its chain, or what its code says.
func WhyOf(err error) atelier.Why {
	var refused *Error
	var untrusted *trust.Error
	switch {
	case errors.As(err, &refused):
		return atelier.BecauseOf(refused.Reason, err)
	case errors.As(err, &untrusted):
		return atelier.BecauseOf(untrusted.Reason, err)
	}
	switch atelier.CodeOf(err) {
	case atelier.NoSpace:
		return atelier.BecauseOf(atelier.ReasonNoSpace, err)
	case atelier.Corrupt:
		return atelier.BecauseOf(atelier.ReasonDigestMismatch, err)
	}
	return atelier.BecauseOf(atelier.ReasonBundleUnreadable, err)
}

func invalid(format string, args ...any) error {
	return Refuse(atelier.ReasonBundleInvalid, atelier.Invalid, format, args...)
}

func incomplete(format string, args ...any) error {
	return Refuse(atelier.ReasonBundleIncomplete, atelier.Unavailable, format, args...)
}

// decode reads a JSON document of a bundle.
func decode(what string, b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(v); err != nil {
		return invalid("%s cannot be read: %w", what, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return invalid("%s is followed by something else", what)
	}
	return nil
}

// check looks at all that a reader goes by.
func (d *Descriptor) check(what string) error {
	if _, err := atelier.ParseDigest(string(d.Digest)); err != nil || d.Size < 0 {
		return invalid("%s has the digest %.80q and %d bytes, expected sha256: and 64 hexadecimal digits, and a size", what, d.Digest, d.Size)
	}
	return nil
}

func (m *manifest) check() error {
	if m.SchemaVersion != 2 || m.MediaType != typeManifest {
		return invalid("a manifest has version %d and media type %.80q, expected 2 and %s", m.SchemaVersion, m.MediaType, typeManifest)
	}
	if err := m.Config.check("the config"); err != nil {
		return err
	}
	for i := range m.Layers {
		if err := m.Layers[i].check("a layer"); err != nil {
			return err
		}
	}
	if m.Subject != nil {
		return m.Subject.check("the subject")
	}
	return nil
}

func (c *Config) check() error {
	if !atelier.IsID(c.Workspace) {
		return invalid("the bundle names workspace %.80q, expected an id", c.Workspace)
	}
	for i := range c.Devices {
		d := &c.Devices[i]
		if _, err := atelier.ParseDigest(string(d.State)); err != nil || !atelier.IsID(d.ID) {
			return invalid("the bundle names device %.80q with state %.80q, expected an id and a digest", d.ID, d.State)
		}
	}
	for i := range c.Files {
		f := &c.Files[i]
		digests := []atelier.Digest{f.Digest}
		if d := f.Difference; d != nil {
			digests = append(append(digests, d.Digest), d.Bases...)
		}
		if len(digests) > 2+maxBases || f.Size < 0 {
			return invalid("the bundle lists a file with %d bytes and a difference to %d others", f.Size, len(digests)-2)
		}
		for _, d := range digests {
			if _, err := atelier.ParseDigest(string(d)); err != nil {
				return invalid("the bundle lists a file of digest %.80q, expected sha256: and 64 hexadecimal digits", d)
			}
		}
	}
	return nil
}
