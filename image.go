package atelier

// Repository is a set of images under one name in a workspace's container registry.
// Its Name is what follows the workspace in an image's reference: "press/cell" in
// "hub.example:8443/plant-7/press/cell:1.4".
type Repository struct {
	Meta
}

// Image is a manifest in a repository: a container image, an index of images for
// several platforms, or another artifact. Its Name is its digest. It never changes;
// tags move from one to another.
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
}
