package atelier

import (
	"slices"
	"time"
)

// DesiredState is all that one device shall run. The hub signs it; the device
// saves it before it acts. (Epoch, Generation) grows with every change, so that
// an old state cannot be replayed; a hub restored from a backup begins a new epoch.
type DesiredState struct {
	// Requires lists features that the agent must understand; one that it does
	// not know makes it refuse the state with ReasonUnsupportedFeature.
	Requires   []string  `json:"requires,omitempty"`
	Workspace  string    `json:"workspace"` // id
	Device     string    `json:"device"`    // id; a state for another device is refused
	Epoch      uint64    `json:"epoch"`
	Generation uint64    `json:"generation"`
	Issued     time.Time `json:"issued"`
	Modules    []Module  `json:"modules"`
	// Staged are modules whose content the device shall hold and that it shall not
	// run yet; for each there may be one of the same deployment in Modules. It is sent
	// to agents that have FeatureStage; others would ignore it.
	Staged []Module `json:"staged,omitempty"`
	// Trials are modules that run beside one of the same deployment in Modules, for a share
	// of its requests or for copies. They are sent to agents that have FeatureTrial.
	Trials []TrialModule `json:"trials,omitempty"`
}

// Running returns the modules that the device shall run: those of Modules, then those of
// Trials.
func (d *DesiredState) Running() []Module { return running(d.Modules, d.Trials) }

func running(modules []Module, trials []TrialModule) []Module {
	all := slices.Clone(modules)
	for i := range trials {
		all = append(all, trials[i].Module)
	}
	return all
}

// FeatureStage is what agents list in Facts.Features that act on DesiredState.Staged.
const FeatureStage = "stage"

// FeatureGolden is what agents list in Facts.Features that let a model prove itself
// on its golden inputs before it takes traffic; others would skip that.
const FeatureGolden = "golden"

// FeaturePacked is what agents list in Facts.Features that read packed control messages
// (internal/wire); others get them as they are.
const FeaturePacked = "packed"

// FeaturePython is what agents list in Facts.Features that run variants of the kind
// VariantPython.
const FeaturePython = "python"

// FeatureGoldenScripts is the same for scoring scripts.
const FeatureGoldenScripts = "golden-scripts"

// FeatureServer is what agents list in Facts.Features that run models of several
// deployments in one process where ServingSettings.Server says so.
const FeatureServer = "server"

// FeaturePredictors is what agents list in Facts.Features that run variants of the kinds
// VariantMLflow and VariantPickle.
const FeaturePredictors = "predictors"

// Position is a point in the order of a device's desired states.
type Position struct {
	Epoch      uint64 `json:"epoch"`
	Generation uint64 `json:"generation"`
}

// After reports whether p comes after q.
func (p Position) After(q Position) bool {
	return p.Epoch > q.Epoch || p.Epoch == q.Epoch && p.Generation > q.Generation
}

// Position returns where d stands in the order of the device's desired states.
func (d *DesiredState) Position() Position { return Position{d.Epoch, d.Generation} }

// Module is one deployment resolved for one device: everything that the agent
// needs to know to fetch it, run it and route to it.
type Module struct {
	// Deployment is the deployment's id, and the module's identity on the device.
	Deployment string `json:"deployment"`
	Name       string `json:"name"`    // the deployment's name
	Rollout    string `json:"rollout"` // see Deployment.Rollout; a new one is a new candidate
	Target     string `json:"target"`  // kind of target
	// Package is the digest of the package that is run: the version's digest
	// until packages carry code and environment too.
	Package Digest         `json:"package"`
	Model   ModuleModel    `json:"model"`
	Runtime *ModuleRuntime `json:"runtime,omitempty"`
	Limits  Limits         `json:"limits"`
	// Serving is sent to agents that have FeatureServing.
	Serving  ServingSettings `json:"serving,omitzero"`
	Endpoint ModuleEndpoint  `json:"endpoint"`
	// Collect says which requests are recorded. It may change without a new rollout. Sent
	// to agents that have FeatureCollect.
	Collect *Collection `json:"collect,omitempty"`
	// Routes lead messages of this or of other modules; Twin are the module's desired
	// properties. Both may change without a new rollout. Sent to agents that have
	// FeatureMessages.
	Routes []MessageRoute `json:"routes,omitempty"`
	Twin   *DesiredTwin   `json:"twin,omitempty"`
	// Image is the container image that is run in place of a model. Model then names the
	// image, with no variant and the version 0.
	Image *ModuleImage `json:"image,omitempty"`
}

// ModuleModel is the model version and the variant of it that the device runs.
type ModuleModel struct {
	Name    string  `json:"name"`
	Version int     `json:"version"`
	Digest  Digest  `json:"digest"` // the version's digest
	Variant Variant `json:"variant"`
}

// ModuleRuntime is the runtime that the module's variant needs.
type ModuleRuntime struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Entry   string `json:"entry"`
	Files   []File `json:"files"`
}

// ModuleEndpoint says how the gateway serves a module.
type ModuleEndpoint struct {
	Name string       `json:"name"`
	Keys EndpointKeys `json:"keys"`
}

// Content returns every file that m needs on the device: those of its variant, with
// its environment's, those of its runtime, and those of its image.
func (m *Module) Content() []File {
	files := m.Model.Variant.Content()
	if m.Image != nil {
		files = append(files, m.Image.Files()...)
	}
	if m.Runtime != nil {
		files = append(files, m.Runtime.Files...)
	}
	return files
}

// HasEndpoint reports whether m answers requests: a container without a port does not.
func (m *Module) HasEndpoint() bool { return m.Image == nil || m.Image.Container.Port != 0 }

// Has reports whether d is the digest of a file that m needs.
func (m *Module) Has(d Digest) bool {
	return slices.ContainsFunc(m.Content(), func(f File) bool { return f.Digest == d })
}

// ReportedState is all that a device says of what it runs. It is always the
// full picture: a later one replaces an earlier one.
type ReportedState struct {
	Device   string `json:"device"`
	Session  string `json:"session"` // the connection's id, from hello
	Sequence uint64 `json:"sequence"`
	BootID   string `json:"boot_id,omitempty"`
	// Position is the newest desired state that the device has saved.
	Position   Position       `json:"position"`
	Agent      string         `json:"agent"`
	Time       time.Time      `json:"time"` // the device's clock
	Facts      Facts          `json:"facts"`
	Modules    []ModuleStatus `json:"modules"`
	Conditions []Condition    `json:"conditions"`
	// Storage is nil while modules are on their way: it is then what it was. Agents of
	// before never tell.
	Storage *Storage `json:"storage,omitempty"`
}

// ModuleStatus is the state of one module on one device. While a new rollout
// comes up, Current still serves and Candidate tells how far the new one is.
type ModuleStatus struct {
	Deployment string      `json:"deployment"`
	Name       string      `json:"name"`
	Current    *SlotStatus `json:"current,omitempty"`
	Candidate  *SlotStatus `json:"candidate,omitempty"`
	// Staged tells how far the device is with what it shall hold and not run yet.
	Staged *SlotStatus `json:"staged,omitempty"`
	// Trial tells of what runs beside Current: in the state Serving it gets its share.
	Trial *SlotStatus `json:"trial,omitempty"`
}

// Moving reports whether a rollout of the module is on its way to where it shall be.
func (m *ModuleStatus) Moving() bool {
	for _, s := range []*SlotStatus{m.Current, m.Candidate, m.Staged, m.Trial} {
		if s == nil {
			continue
		}
		switch s.State() {
		case Pending, Fetching, Preparing, Starting, Proving:
			return true
		}
	}
	return false
}

// SlotStatus is the state of one rollout of a module.
type SlotStatus struct {
	Rollout  string     `json:"rollout"`
	Model    string     `json:"model"`
	Version  int        `json:"version"`
	Digest   Digest     `json:"digest"`
	Standing `json:"-"` // "state" and "why" in JSON
	Fetched  int64      `json:"fetched_bytes,omitempty"`
	Size     int64      `json:"size_bytes,omitempty"`
	// Received is how many bytes came over the wire for it since the agent started,
	// and Way how: "whole", or "difference" where one of its files was made of a
	// difference. Both are empty where everything was there.
	Received int64  `json:"received_bytes,omitempty"`
	Way      string `json:"way,omitempty"`
	Restarts int    `json:"restarts,omitempty"`
	// Provider is the execution provider that it runs on; see ModuleHealth.
	Provider string `json:"provider,omitempty"`
	// Memory is what its model took when it was loaded, in bytes; see ModuleHealth.
	Memory int64     `json:"memory_bytes,omitempty"`
	Since  time.Time `json:"since"`
	// Split is what of the requests a trial gets now; nil while it gets nothing, and for
	// everything else.
	Split *Split `json:"split,omitempty"`
	// Shadow is what was counted of a shadow's comparisons, nil for everything else.
	Shadow *ShadowReport `json:"shadow,omitempty"`
}
