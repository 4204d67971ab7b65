package atelier

import "time"

// Repository is a set of images under one name in a workspace's container registry.
// Its Name is what follows the workspace in an image's reference: "press/cell" in
// "hub.example:8443/plant-7/press/cell:1.4".
type Repository struct {
	Meta
}

// Image is a manifest in a repository: a container image, an index of images for
// several platforms, or another artifact. Its Name is its digest. It never changes, but
// for its signature; tags move from one to another.
type Image struct {
	Meta
	Repository string `json:"repository"`
	// Digest is the manifest's: "sha256:" or "sha512:" and hexadecimal digits.
	Digest    string `json:"digest"`
	MediaType string `json:"media_type"`
	// ArtifactType says what it is where it is more than an image: the manifest's own
	// word, or else the media type of its configuration.
	ArtifactType string `json:"artifact_type,omitempty"`
	Size         int64  `json:"size"`  // bytes of the manifest
	Total        int64  `json:"total"` // bytes of what it names: configuration and layers, or manifests
	// Subject is the digest of the image that this one is about, as a signature is.
	Subject string   `json:"subject,omitempty"`
	Tags    []string `json:"tags,omitempty"` // in the order of their names
	// Signature says that the hub has signed the image; nil where it has not.
	Signature *ImageSignature `json:"signature,omitempty"`
}

// ImageSignature says by which key the hub signed an image, and when.
type ImageSignature struct {
	Key  string    `json:"key"` // the SigningKey's id
	Time time.Time `json:"time"`
	// Trusted reports whether devices take the key's signatures: it was not revoked.
	Trusted bool `json:"trusted"`
}

// SigningKey is the public half of a key that signs a workspace's images.
type SigningKey struct {
	// ID is the SHA-256 of the key's SubjectPublicKeyInfo, in hexadecimal digits.
	ID string `json:"id"`
	// Signs reports whether it signs what is signed now. Each other one was replaced, and
	// what it signed is still trusted.
	Signs bool      `json:"signs"`
	Made  time.Time `json:"made"`
	PEM   string    `json:"pem"` // as 'cosign verify --key' takes it
}
