package images

import (
	"bytes"
	"context"
	"encoding/json"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// Manifest is an image's manifest as the hub writes one.
type Manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Config        Descriptor        `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Subject       *Descriptor       `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// Put makes content that is in memory part of a repository, and returns its descriptor.
func (r *Registry) Put(ctx context.Context, workspace, repository, mediaType string, b []byte) (Descriptor, error) {
	d := Descriptor{MediaType: mediaType, Digest: string(atelier.DigestOf(b)), Size: int64(len(b))}
	return d, r.Upload(ctx, workspace, repository, d.Digest, Piece{From: bytes.NewReader(b), Start: -1, Length: d.Size})
}

// Attach adds an image that the hub made about the one that m names as its subject, with
// the tags. It is deleted with its subject.
func (r *Registry) Attach(ctx context.Context, workspace, repository string, m Manifest, tags ...string) (atelier.Image, error) {
	m.SchemaVersion, m.MediaType = 2, TypeImage
	body, err := json.Marshal(m)
	if err != nil {
		return atelier.Image{}, atelier.Errorf(atelier.Internal, "encode a manifest: %w", err)
	}
	img := catalog.Image{Image: atelier.Image{Repository: repository}, Attached: true}
	return r.add(ctx, workspace, img, Reference(atelier.DigestOf(body)), tags, TypeImage, body)
}

// attached returns what the hub made about an image.
func attached(tx store.Tx, workspace string, img catalog.Image) (list []catalog.Image, err error) {
	q := store.Query{Workspace: workspace, Parent: img.RepositoryID, Rel: catalog.RelSubject, To: catalog.SubjectOf(img.RepositoryID, img.Digest)}
	err = catalog.Images.Each(tx, q, func(other catalog.Image) error {
		if other.Attached && other.ID != img.ID {
			list = append(list, other)
		}
		return nil
	})
	return list, err
}

// NoteSignature notes by which key an image is signed, and the envelope that devices
// verify it with, in place of what was noted before.
func (r *Registry) NoteSignature(ctx context.Context, workspace, repository, digest string, s atelier.ImageSignature, envelope []byte) error {
	return r.update(ctx, func(tx store.Tx) error {
		img, err := findImage(tx, workspace, repository, Reference(digest))
		if err != nil {
			return err
		}
		img.Signature, img.Envelope, img.Tags = &s, envelope, nil
		_, err = catalog.Images.Update(tx, workspace, img)
		return err
	})
}
