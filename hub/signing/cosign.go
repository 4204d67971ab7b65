package signing

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/images"
)

// The forms in which cosign and others that verify look for signatures and statements.
// From version 2.6 on cosign reads Sigstore bundles that refer to the image
// (https://github.com/sigstore/cosign/blob/main/specs/BUNDLE_SPEC.md); older ones, and
// containers/image (podman, skopeo, CRI-O), look for tags made of the image's digest
// (https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md).
const (
	typeBundle = "application/vnd.dev.sigstore.bundle.v0.3+json"
	typeEmpty  = "application/vnd.oci.empty.v1+json"

	typeSimple    = "application/vnd.dev.cosign.simplesigning.v1+json"
	typeSignature = "application/vnd.dev.cosign.artifact.sig.v1+json"
	typeEnvelope  = "application/vnd.dsse.envelope.v1+json"
	typeAttested  = "application/vnd.dev.cosign.artifact.att.v1+json"
	typeConfig    = "application/vnd.oci.image.config.v1+json"

	noteSignature = "dev.cosignproject.cosign/signature"
	notePredicate = "predicateType"
	noteKey       = "dev.atelier.key" // that signed this layer
	noteTitle     = "org.opencontainers.image.title"
	noteCreated   = "org.opencontainers.image.created"
)

// maxSignatures bounds the layers of a tag that cosign looks at.
const maxSignatures = 32

// attachBundle puts an envelope beside an image as a Sigstore bundle.
func (j *job) attachBundle(ctx context.Context, img catalog.Image, envelope []byte, predicateType string) error {
	bundle, err := bundleOf(envelope, j.keys.signer.Public().ID())
	if err != nil {
		return err
	}
	layer, err := j.c.Images.Put(ctx, j.workspace, j.order.Repository, typeBundle, bundle)
	if err != nil {
		return err
	}
	return j.attach(ctx, img, typeBundle, layer, map[string]string{
		"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": predicateType,
	})
}

// attach adds an artifact of one layer about an image.
func (j *job) attach(ctx context.Context, img catalog.Image, artifactType string, layer images.Descriptor, notes map[string]string) error {
	config, err := j.c.Images.Put(ctx, j.workspace, j.order.Repository, typeEmpty, []byte("{}"))
	if err != nil {
		return err
	}
	notes[noteCreated] = j.now().UTC().Format(time.RFC3339)
	_, err = j.c.Images.Attach(ctx, j.workspace, j.order.Repository, images.Manifest{
		ArtifactType: artifactType, Config: config, Layers: []images.Descriptor{layer}, Subject: descriptorOf(img), Annotations: notes,
	})
	return err
}

// bundleOf returns a Sigstore bundle with an envelope that the key with the id signed. The
// signatures are the same; the ids of keys, which are not signed, are left out, since
// Sigstore makes them otherwise and passes over a signature with one that it does not know.
func bundleOf(envelope []byte, key string) ([]byte, error) {
	type publicKey struct {
		Hint string `json:"hint"`
	}
	type material struct {
		PublicKey publicKey `json:"publicKey"`
	}
	type signature struct {
		Sig string `json:"sig"`
	}
	b := struct {
		MediaType            string   `json:"mediaType"`
		VerificationMaterial material `json:"verificationMaterial"`
		Envelope             struct {
			Payload     string      `json:"payload"`
			PayloadType string      `json:"payloadType"`
			Signatures  []signature `json:"signatures"`
		} `json:"dsseEnvelope"`
	}{MediaType: typeBundle, VerificationMaterial: material{publicKey{key}}}
	if err := json.Unmarshal(envelope, &b.Envelope); err != nil {
		return nil, atelier.Errorf(atelier.Internal, "read an envelope back: %w", err)
	}
	raw, err := json.Marshal(b)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode a bundle: %w", err)
	}
	return raw, nil
}

// attachSimple puts a signature beside an image as cosign did before there were bundles:
// of a payload of its own, the signature in an annotation.
func (j *job) attachSimple(ctx context.Context, img catalog.Image) error {
	payload, err := simplePayload(j.c.Host+"/"+j.name+"/"+j.order.Repository, img.Digest)
	if err != nil {
		return err
	}
	sig, err := j.keys.signer.SignRaw(payload)
	if err != nil {
		return err
	}
	layer, err := j.c.Images.Put(ctx, j.workspace, j.order.Repository, typeSimple, payload)
	if err != nil {
		return err
	}
	layer.Annotations = map[string]string{noteSignature: base64.StdEncoding.EncodeToString(sig)}
	return j.tag(ctx, img, ".sig", typeSignature, layer)
}

// simplePayload is what a signature of the older form is of. Its form is that of Red
// Hat's simple signing.
func simplePayload(reference, digest string) ([]byte, error) {
	type identity struct {
		Reference string `json:"docker-reference"`
	}
	type image struct {
		Digest string `json:"docker-manifest-digest"`
	}
	type critical struct {
		Identity identity `json:"identity"`
		Image    image    `json:"image"`
		Type     string   `json:"type"`
	}
	b, err := json.Marshal(struct {
		Critical critical       `json:"critical"`
		Optional map[string]any `json:"optional"`
	}{Critical: critical{identity{reference}, image{digest}, "cosign container image signature"}})
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode what is signed: %w", err)
	}
	return b, nil
}

// tag adds a layer to the manifest under the tag that cosign makes of an image's digest,
// beside what is there: others may have signed the image too. A layer of this key about
// the same takes the place of the one before.
func (j *job) tag(ctx context.Context, img catalog.Image, suffix, artifactType string, layer images.Descriptor) error {
	name := strings.Replace(img.Digest, ":", "-", 1) + suffix
	layer.Annotations[noteKey] = j.keys.signer.Public().ID()
	m := images.Manifest{ArtifactType: artifactType, Subject: descriptorOf(img), Annotations: map[string]string{}}
	before, body, err := j.c.Images.Manifest(ctx, j.workspace, j.order.Repository, images.Reference(name))
	switch code := atelier.CodeOf(err); {
	case code == atelier.NotFound:
	case err != nil:
		return err
	default:
		var old parts
		if err := json.Unmarshal(body, &old); err != nil {
			return atelier.Errorf(atelier.Corrupt, "the manifest %s cannot be read: %w", before.Digest, err)
		}
		for _, l := range old.Layers {
			if l.Annotations[noteKey] != layer.Annotations[noteKey] || l.Annotations[notePredicate] != layer.Annotations[notePredicate] {
				m.Layers = append(m.Layers, l)
			}
		}
	}
	m.Layers = append(m.Layers, layer)
	if n := len(m.Layers); n > maxSignatures {
		return atelier.Errorf(atelier.Conflict, "the image has %d signatures under the tag %s", n-1, name).
			WithRemedy("Delete them: 'atelier image delete %s:%s', and sign again.", j.order.Repository, name)
	}
	if m.Config, err = j.configOf(ctx, m.Layers); err != nil {
		return err
	}
	now, err := j.c.Images.Attach(ctx, j.workspace, j.order.Repository, m, name)
	if err != nil || !before.Attached || before.Digest == now.Digest {
		return err
	}
	return j.c.Images.Delete(ctx, j.workspace, j.order.Repository, before.Digest)
}

// configOf stores the configuration of an image of the layers, as tools expect one that
// take it for an image.
func (j *job) configOf(ctx context.Context, layers []images.Descriptor) (images.Descriptor, error) {
	type rootfs struct {
		Type  string   `json:"type"`
		Diffs []string `json:"diff_ids"`
	}
	c := struct {
		Architecture string   `json:"architecture"`
		OS           string   `json:"os"`
		Config       struct{} `json:"config"`
		RootFS       rootfs   `json:"rootfs"`
	}{RootFS: rootfs{Type: "layers", Diffs: []string{}}}
	for _, l := range layers {
		c.RootFS.Diffs = append(c.RootFS.Diffs, l.Digest)
	}
	b, err := json.Marshal(c)
	if err != nil {
		return images.Descriptor{}, atelier.Errorf(atelier.Internal, "encode a configuration: %w", err)
	}
	return j.c.Images.Put(ctx, j.workspace, j.order.Repository, typeConfig, b)
}
