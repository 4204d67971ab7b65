// Package catalog lists the kinds of resources that the hub stores, each as a
// typed collection. It is the one place that says which nouns there are, where
// they belong and what they refer to; it holds no rules.
package catalog

import (
	"encoding/json"
	"slices"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

// The relations that resources refer to each other by.
const (
	RelBlob       = "blob"        // to a digest: this resource needs that content
	RelHeld       = "held"        // to a digest: its workspace may see that content
	RelVersion    = "version"     // to a version's id
	RelDeployment = "deployment"  // to a deployment's id
	RelDevice     = "device"      // to a device's id
	RelKey        = "key"         // to the fingerprint of a device's public key
	RelSecret     = "join-secret" // to the hash of a join token's secret
	RelRevoked    = "revoked"     // to RevokedYes, from certificates that were revoked
	RelUnbuilt    = "unbuilt"     // to an architecture: a build of this environment for it is not over
	RelBuilt      = "built"       // to the hash of a build of this environment that is ready
	RelIn         = "environment" // to the id of the environment that a version runs in
	RelLayer      = "layer"       // to a digest as images give it: this is that layer, in one repository
	RelTagged     = "tagged"      // from a tag to its image's id
	RelSubject    = "subject"     // from an image to SubjectOf the one that it is about
	RelQueued     = "queued"      // to QueuedYes, from packages that are not built yet
	RelMade       = "made"        // to the recipe of a layer that this package has
	RelOn         = "on"          // to the id of the base that a package stands on
)

// RevokedYes is what RelRevoked points at.
const RevokedYes = "yes"

// QueuedYes is what RelQueued points at.
const QueuedYes = "yes"

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
				refs = append(refs, blobRefs(variant.Content())...)
				if e := variant.Environment; e != nil {
					refs = append(refs, store.Ref{Rel: RelIn, To: e.ID})
				}
			}
			return refs
		},
	}
	// Environments have their name as parent, and their number, in decimal, as name.
	Environments = store.Collection[atelier.Environment]{
		Kind: "environment", Missing: "See 'atelier environment list' for those that there are.",
		Meta: func(v *atelier.Environment) *atelier.Meta { return &v.Meta },
		Refs: func(v *atelier.Environment) []store.Ref {
			var refs []store.Ref
			for i := range v.Builds {
				b := &v.Builds[i]
				for _, f := range []*atelier.File{b.Artifact, b.Log} {
					if f != nil {
						refs = append(refs, store.Ref{Rel: RelBlob, To: string(f.Digest)})
					}
				}
				switch {
				case !b.State.Over():
					refs = append(refs, store.Ref{Rel: RelUnbuilt, To: b.Arch})
				case b.State == atelier.BuildReady:
					refs = append(refs, store.Ref{Rel: RelBuilt, To: string(b.Hash)})
				}
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
		Refs: func(v *Blob) []store.Ref {
			return []store.Ref{{Rel: RelHeld, To: v.Name}}
		},
	}
	// Repositories of the container registry; the name is the path below the workspace.
	Repositories = store.Collection[atelier.Repository]{
		Kind: "repository", Missing: "See 'atelier image list' for those that there are.",
		Meta: func(v *atelier.Repository) *atelier.Meta { return &v.Meta },
	}
	// Images have their repository as parent and their digest as name.
	Images = store.Collection[Image]{
		Kind: "image", Missing: "See 'atelier image list' for those that there are.",
		Meta: func(v *Image) *atelier.Meta { return &v.Meta }, Quiet: true,
		Refs: func(v *Image) []store.Ref {
			refs := []store.Ref{{Rel: RelBlob, To: string(v.Content)}}
			seen := map[atelier.Digest]bool{v.Content: true}
			for _, part := range v.Parts {
				if !seen[part] {
					seen[part] = true
					refs = append(refs, store.Ref{Rel: RelBlob, To: string(part)})
				}
			}
			if v.Subject != "" {
				refs = append(refs, store.Ref{Rel: RelSubject, To: SubjectOf(v.RepositoryID, v.Subject)})
			}
			return refs
		},
	}
	// ImageTags have their repository as parent, and the id that TagID makes: they are
	// listed in the order of their names.
	ImageTags = store.Collection[ImageTag]{
		Kind: "image-tag", Meta: func(v *ImageTag) *atelier.Meta { return &v.Meta },
		Refs: func(v *ImageTag) []store.Ref { return []store.Ref{{Rel: RelTagged, To: v.Image}} },
	}
	// Layers say which content a repository may show, whether or not an image names it.
	// They have their repository as parent and their digest, as images give it, as name.
	Layers = store.Collection[Layer]{
		Kind: "layer", Meta: func(v *Layer) *atelier.Meta { return &v.Meta }, Quiet: true,
		Refs: func(v *Layer) []store.Ref {
			return []store.Ref{{Rel: RelHeld, To: string(v.Content)}, {Rel: RelLayer, To: v.Name}}
		},
	}
	// Bases are what packages stand on.
	Bases = store.Collection[atelier.Base]{
		Kind: "base", Missing: "See 'atelier base list' for those that there are.",
		Meta: func(v *atelier.Base) *atelier.Meta { return &v.Meta },
		Refs: func(v *atelier.Base) []store.Ref {
			var refs []store.Ref
			for _, img := range v.Images {
				refs = append(refs, store.Ref{Rel: RelBlob, To: string(img.Config.Digest)})
				for _, l := range img.Layers {
					refs = append(refs, store.Ref{Rel: RelBlob, To: string(l.Digest)})
				}
			}
			return distinct(refs)
		},
	}
	// Packages have their name as parent and their tag as name.
	Packages = store.Collection[atelier.Package]{
		Kind: "package", Missing: "See 'atelier package list' for those that there are.",
		Meta: func(v *atelier.Package) *atelier.Meta { return &v.Meta }, Quiet: true,
		Refs: func(v *atelier.Package) []store.Ref {
			refs := []store.Ref{{Rel: RelOn, To: v.BaseID}}
			for _, d := range v.Content() {
				refs = append(refs, store.Ref{Rel: RelBlob, To: string(d)})
			}
			for _, img := range v.Images {
				for _, l := range img.Layers {
					if l.Recipe != "" && l.Digest != "" {
						refs = append(refs, store.Ref{Rel: RelMade, To: string(l.Recipe)})
					}
				}
			}
			if !v.State.Over() {
				refs = append(refs, store.Ref{Rel: RelQueued, To: QueuedYes})
			}
			return distinct(refs)
		},
	}
	JoinTokens = store.Collection[atelier.JoinToken]{
		Kind: "join-token", Missing: "See 'atelier device token list' for those that there are.",
		Meta: func(v *atelier.JoinToken) *atelier.Meta { return &v.Meta }, Quiet: true,
		Refs: func(v *atelier.JoinToken) []store.Ref {
			return []store.Ref{{Rel: RelSecret, To: v.Hash}}
		},
	}
	Devices = store.Collection[atelier.Device]{
		Kind: "device", Missing: "See 'atelier device list' for those that there are.",
		Meta: func(v *atelier.Device) *atelier.Meta { return &v.Meta },
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
		Kind: "deployment", Missing: "See 'atelier deployment list' for those that there are.",
		Meta: func(v *atelier.Deployment) *atelier.Meta { return &v.Meta },
		Refs: func(v *atelier.Deployment) []store.Ref {
			var refs []store.Ref
			if v.VersionID != "" {
				refs = append(refs, store.Ref{Rel: RelVersion, To: v.VersionID})
			}
			if v.Image != nil { // its content stays, whatever becomes of its tag
				refs = append(refs, blobRefs(v.Image.Files())...)
			}
			if v.Staged != nil && v.Staged.VersionID != v.VersionID {
				refs = append(refs, store.Ref{Rel: RelVersion, To: v.Staged.VersionID})
			}
			if t := v.Trial; t != nil && t.VersionID != v.VersionID && (v.Staged == nil || t.VersionID != v.Staged.VersionID) {
				refs = append(refs, store.Ref{Rel: RelVersion, To: t.VersionID})
			}
			return refs
		},
	}
	Endpoints = store.Collection[atelier.Endpoint]{
		Kind: "endpoint", Missing: "See 'atelier endpoint list' for those that there are.",
		Meta: func(v *atelier.Endpoint) *atelier.Meta { return &v.Meta }, Quiet: true,
		Refs: func(v *atelier.Endpoint) []store.Ref {
			return []store.Ref{{Rel: RelDeployment, To: v.Deployment}}
		},
	}
	// Rollouts are never changed or deleted with their deployment: they are history.
	Rollouts = store.Collection[atelier.Rollout]{
		Kind: "rollout", Meta: func(v *atelier.Rollout) *atelier.Meta { return &v.Meta },
	}
	// DesiredStates have the id of their device.
	DesiredStates = store.Collection[DesiredState]{
		Kind: "desired", Meta: func(v *DesiredState) *atelier.Meta { return &v.Meta }, Quiet: true,
		Refs: func(v *DesiredState) []store.Ref {
			var refs []store.Ref
			for _, m := range v.All() {
				refs = append(refs, blobRefs(m.Content())...)
			}
			return refs
		},
	}
	// ReportedStates have the id of their device.
	ReportedStates = store.Collection[ReportedState]{
		Kind: "reported", Meta: func(v *ReportedState) *atelier.Meta { return &v.Meta },
	}
	// DataFiles have the name of their endpoint as parent, and their path as name.
	DataFiles = store.Collection[atelier.DataFile]{
		Kind: "data", Missing: "See 'atelier data list' for those that there are.",
		Meta: func(v *atelier.DataFile) *atelier.Meta { return &v.Meta }, Quiet: true,
		Refs: func(v *atelier.DataFile) []store.Ref {
			return []store.Ref{{Rel: RelBlob, To: string(v.Digest)}}
		},
	}
	// DataStreams have the id of their device.
	DataStreams = store.Collection[DataStream]{
		Kind: "data-stream", Meta: func(v *DataStream) *atelier.Meta { return &v.Meta }, Quiet: true,
	}
	// Twins have their deployment as parent, and "all" or the id of a device as name.
	Twins = store.Collection[Twin]{
		Kind: "twin", Meta: func(v *Twin) *atelier.Meta { return &v.Meta },
	}
	// ReportedTwins have their deployment as parent, and the id of a device as name.
	ReportedTwins = store.Collection[ReportedTwin]{
		Kind: "reported-twin", Meta: func(v *ReportedTwin) *atelier.Meta { return &v.Meta }, Quiet: true,
	}
	// Fleets belong to the hub. There is one, with the name "fleet".
	Fleets = store.Collection[Fleet]{
		Kind: "fleet", Meta: func(v *Fleet) *atelier.Meta { return &v.Meta },
	}
)

// Twin are desired properties of a deployment's modules: of all of them, or of one device's.
type Twin struct {
	atelier.Meta
	Deployment string          `json:"deployment"` // id
	Properties json.RawMessage `json:"properties"`
}

// ReportedTwin is what the module of a deployment on a device reports.
type ReportedTwin struct {
	atelier.Meta
	Reported atelier.ReportedTwin `json:"reported"`
}

// Blob is content that a workspace holds.
type Blob struct {
	atelier.Meta
	Size int64 `json:"size"`
}

// Image is an image as it is stored.
type Image struct {
	atelier.Image
	RepositoryID string           `json:"repository_id"`
	Content      atelier.Digest   `json:"content"`         // of the manifest, in the content store
	Parts        []atelier.Digest `json:"parts,omitempty"` // of what the manifest names and the repository holds
	// Envelope is what devices verify the image with: trust.SignImage's, by the key that
	// Signature names.
	Envelope []byte `json:"envelope,omitempty"`
	// Attached reports that the hub made it about its subject, and that it goes with that.
	Attached bool `json:"attached,omitempty"`
}

// ImageTag gives an image a name in its repository.
type ImageTag struct {
	atelier.Meta
	Image  string `json:"image"`  // id
	Digest string `json:"digest"` // the image's
}

// TagID is the id of a tag of a repository.
func TagID(repository, tag string) string { return repository + "/" + tag }

// SubjectOf names what images of a repository may be about: a digest, whether or not
// it is there.
func SubjectOf(repository, digest string) string { return repository + "@" + digest }

// Layer is content that a repository may show.
type Layer struct {
	atelier.Meta
	Size    int64          `json:"size"`
	Content atelier.Digest `json:"content"` // in the content store, which knows SHA-256 only
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

// DataStream says how far the streams of a device's recorded requests are in data files.
type DataStream struct {
	atelier.Meta
	Streams []StreamPosition `json:"streams"` // the newest last
}

// StreamPosition is the last sequence of a stream that is stored.
type StreamPosition struct {
	ID      string `json:"id"`
	Through uint64 `json:"through"`
}

// Fleet is what all devices of the hub have in common.
type Fleet struct {
	atelier.Meta
	// Epoch is the present epoch of desired states; see atelier.DesiredState.
	Epoch uint64 `json:"epoch"`
}

// DesiredState is the newest desired state of a device, as it is sent.
type DesiredState struct {
	atelier.Meta
	Position atelier.Position `json:"position"`
	// Content is the digest of the modules: the same modules are the same state.
	Content atelier.Digest   `json:"content"`
	Modules []atelier.Module `json:"modules"`
	// Earlier are digests of content that the device was to have before, the newest
	// first: what it may name as the base of a difference.
	Earlier []atelier.Digest `json:"earlier,omitempty"`
	// Staged are the modules that the device shall hold and not run yet.
	Staged []atelier.Module `json:"staged,omitempty"`
	// Trials are the modules that the device shall run beside others of Modules.
	Trials   []atelier.TrialModule `json:"trials,omitempty"`
	Key      string                `json:"key"`      // id of the key that signed Envelope
	Envelope []byte                `json:"envelope"` // DSSE; exactly these bytes are sent each time
	// Unmet lists deployments that select the device and that it cannot run.
	Unmet []Unmet `json:"unmet,omitempty"`
}

// All returns the modules that the device shall run, then those that it shall hold.
func (s *DesiredState) All() []atelier.Module {
	return append(s.Running(), s.Staged...)
}

// Running returns the modules that the device shall run, those beside others last.
func (s *DesiredState) Running() []atelier.Module {
	all := slices.Clone(s.Modules)
	for i := range s.Trials {
		all = append(all, s.Trials[i].Module)
	}
	return all
}

// Part is a part of what a deployment wants of a device.
type Part string

// The parts.
const (
	Served Part = ""       // the version that serves
	Held   Part = "staged" // the one that is prefetched
	Tried  Part = "trial"  // the one that runs beside the first
	// Collected are the requests that shall be recorded.
	Collected Part = "data"
)

// Unmet is a deployment of which a device cannot do a part, and why.
type Unmet struct {
	Deployment string      `json:"deployment"` // id
	Name       string      `json:"name"`
	Staged     bool        `json:"staged,omitempty"` // the part is Held
	Trial      bool        `json:"trial,omitempty"`  // the part is Tried
	Data       bool        `json:"data,omitempty"`   // the part is Collected
	Why        atelier.Why `json:"why"`
}

// NewUnmet says that a device cannot do a part of a deployment.
func NewUnmet(deployment, name string, part Part, why atelier.Why) Unmet {
	return Unmet{Deployment: deployment, Name: name, Staged: part == Held, Trial: part == Tried, Data: part == Collected, Why: why}
}

// Part returns the part that the device cannot do.
func (u *Unmet) Part() Part {
	switch {
	case u.Staged:
		return Held
	case u.Trial:
		return Tried
	case u.Data:
		return Collected
	}
	return Served
}

// ReportedState is what a device said last.
type ReportedState struct {
	atelier.Meta
	// Session is the device's newest session; Earlier are some before it, the
	// newest last, none of which may be opened again.
	Session string   `json:"session"`
	Earlier []string `json:"earlier,omitempty"`
	// Acked is the newest desired state that the device has saved.
	Acked atelier.Position `json:"acked"`
	// Refused is set while the device refuses its newest desired state.
	Refused *Refusal `json:"refused,omitempty"`
	// State is the device's last report; nil before the first.
	State    *atelier.ReportedState `json:"state,omitempty"`
	Received *time.Time             `json:"received,omitempty"` // when State came, by the hub's clock
	// Holds are the modules whose content the device has on its disk, as far as its
	// reports tell. Records of earlier hubs have none until the device reports a change.
	Holds []atelier.Module `json:"holds,omitempty"`
}

// Refusal is a device's no to a desired state.
type Refusal struct {
	Position atelier.Position `json:"position"`
	Why      atelier.Why      `json:"why"`
}

func blobRefs(files []atelier.File) []store.Ref {
	refs := make([]store.Ref, 0, len(files))
	for _, f := range files {
		refs = append(refs, store.Ref{Rel: RelBlob, To: string(f.Digest)})
	}
	return refs
}

// distinct returns refs without those that are there already.
func distinct(refs []store.Ref) []store.Ref {
	seen := map[store.Ref]bool{}
	return slices.DeleteFunc(refs, func(r store.Ref) bool {
		defer func() { seen[r] = true }()
		return seen[r]
	})
}
