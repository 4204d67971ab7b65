// Package catalog lists the kinds of resources that the hub stores, each as a
// typed collection. It is the one place that says which nouns there are, where
// they belong and what they refer to; it holds no rules.
package catalog

import (
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

// The relations that resources refer to each other by.
const (
	RelBlob       = "blob"        // to a digest: this resource needs that content
	RelVersion    = "version"     // to a version's id
	RelDeployment = "deployment"  // to a deployment's id
	RelDevice     = "device"      // to a device's id
	RelKey        = "key"         // to the fingerprint of a device's public key
	RelSecret     = "join-secret" // to the hash of a join token's secret
	RelRevoked    = "revoked"     // to RevokedYes, from certificates that were revoked
)

// RevokedYes is what RelRevoked points at.
const RevokedYes = "yes"

// The kinds. Unless stated otherwise a kind lives in a workspace and has no parent.
var (
	// Workspaces belong to the hub: their own Workspace column is "".
	Workspaces = store.Collection[atelier.Workspace]{
		Kind: "workspace", Meta: func(v *atelier.Workspace) *atelier.Meta { return &v.Meta },
	}
	Models = store.Collection[atelier.Model]{
		Kind: "model", Meta: func(v *atelier.Model) *atelier.Meta { return &v.Meta },
	}
	// Versions have their model as parent and their number, in decimal, as name.
	Versions = store.Collection[atelier.Version]{
		Kind: "version", Meta: func(v *atelier.Version) *atelier.Meta { return &v.Meta },
		Refs: func(v *atelier.Version) []store.Ref {
			var refs []store.Ref
			for _, variant := range v.Variants {
				refs = append(refs, blobRefs(variant.Files)...)
			}
			return refs
		},
	}
	// Runtimes belong to the hub.
	Runtimes = store.Collection[atelier.Runtime]{
		Kind: "runtime", Meta: func(v *atelier.Runtime) *atelier.Meta { return &v.Meta },
		Refs: func(v *atelier.Runtime) []store.Ref { return blobRefs(v.Files) },
	}
	// Blobs say which content a workspace may see; the digest is the name. The
	// content store itself is shared by all.
	Blobs = store.Collection[Blob]{
		Kind: "blob", Meta: func(v *Blob) *atelier.Meta { return &v.Meta },
	}
	JoinTokens = store.Collection[atelier.JoinToken]{
		Kind: "join-token", Meta: func(v *atelier.JoinToken) *atelier.Meta { return &v.Meta }, Quiet: true,
		Refs: func(v *atelier.JoinToken) []store.Ref {
			return []store.Ref{{Rel: RelSecret, To: v.Hash}}
		},
	}
	Devices = store.Collection[atelier.Device]{
		Kind: "device", Meta: func(v *atelier.Device) *atelier.Meta { return &v.Meta },
		Refs: func(v *atelier.Device) []store.Ref {
			return []store.Ref{{Rel: RelKey, To: v.Fingerprint}}
		},
	}
	// Certificates belong to the hub and outlive their device: the list of those
	// that were revoked is made from them. The name is the serial number.
	Certificates = store.Collection[Certificate]{
		Kind: "certificate", Meta: func(v *Certificate) *atelier.Meta { return &v.Meta },
		Refs: func(v *Certificate) []store.Ref {
			refs := []store.Ref{{Rel: RelDevice, To: v.Device}}
			if v.Revoked != nil {
				refs = append(refs, store.Ref{Rel: RelRevoked, To: RevokedYes})
			}
			return refs
		},
	}
	Deployments = store.Collection[atelier.Deployment]{
		Kind: "deployment", Meta: func(v *atelier.Deployment) *atelier.Meta { return &v.Meta },
		Refs: func(v *atelier.Deployment) []store.Ref {
			return []store.Ref{{Rel: RelVersion, To: v.VersionID}}
		},
	}
	Endpoints = store.Collection[atelier.Endpoint]{
		Kind: "endpoint", Meta: func(v *atelier.Endpoint) *atelier.Meta { return &v.Meta }, Quiet: true,
		Refs: func(v *atelier.Endpoint) []store.Ref {
			return []store.Ref{{Rel: RelDeployment, To: v.Deployment}}
		},
	}
	// Rollouts are never changed or deleted with their deployment: they are history.
	Rollouts = store.Collection[atelier.Rollout]{
		Kind: "rollout", Meta: func(v *atelier.Rollout) *atelier.Meta { return &v.Meta },
	}
)

// Blob is content that a workspace holds.
type Blob struct {
	atelier.Meta
	Size int64 `json:"size"`
}

// Certificate records a certificate that was issued to a device.
type Certificate struct {
	atelier.Meta
	Device    string     `json:"device"`    // id
	Workspace string     `json:"workspace"` // id, the device's
	NotBefore time.Time  `json:"not_before"`
	NotAfter  time.Time  `json:"not_after"`
	Revoked   *time.Time `json:"revoked,omitempty"`
}

func blobRefs(files []atelier.File) []store.Ref {
	refs := make([]store.Ref, 0, len(files))
	for _, f := range files {
		refs = append(refs, store.Ref{Rel: RelBlob, To: string(f.Digest)})
	}
	return refs
}
