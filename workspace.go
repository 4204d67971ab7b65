package atelier

import "time"

// Meta is what every stored resource carries. Revision counts the resource's
// changes from 1 and is its ETag.
type Meta struct {
	ID       string    `json:"id"`
	Name     string    `json:"name,omitempty"`
	Revision int64     `json:"revision"`
	Created  time.Time `json:"created"`
	Updated  time.Time `json:"updated"`
}

// Workspace is the top-level resource: every model, device and deployment
// belongs to exactly one, and nothing is visible across them.
type Workspace struct {
	Meta
	Description string               `json:"description,omitempty"`
	Tags        map[string]string    `json:"tags,omitempty"`
	Resources   []AssociatedResource `json:"resources"`
	// Transfer bounds the transfer of content to all devices of the workspace
	// together; they share its bandwidth evenly.
	Transfer *TransferPolicy `json:"transfer,omitempty"`
}

// The kinds of associated resources that a workspace has.
const (
	ResourceBlobStorage = "blob_storage"
	ResourceInsights    = "insights"
	ResourceVault       = "vault"
	ResourceRegistry    = "registry"
)

// ProviderBuiltin is the provider of what the hub itself keeps.
const ProviderBuiltin = "builtin"

// ProviderUser is the provider of what the user has brought.
const ProviderUser = "user"

// AssociatedResource is a resource made with the workspace or brought by its
// user: where its blobs, telemetry, secrets and container images live.
type AssociatedResource struct {
	Kind string `json:"kind"` // one of the Resource… constants
	// Provider names who keeps it: ProviderBuiltin or ProviderUser.
	Provider string `json:"provider"`
	// Address says where it is, as far as its users need to know.
	Address string `json:"address,omitempty"`
	// Made is false for a resource that comes into being with its first use, as
	// the registry does with the first image.
	Made bool `json:"made"`
}
