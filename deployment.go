package atelier

import (
	"fmt"
	"time"
)

// Deployment says that a model version shall serve on the devices that its
// selector names.
type Deployment struct {
	Meta
	Description string `json:"description,omitempty"`
	Model       string `json:"model"`      // the model's name
	Version     int    `json:"version"`    // the version's number; always resolved, never "latest"
	VersionID   string `json:"version_id"` // the version's id
	// Endpoint is the name under which the devices' gateways serve the module.
	Endpoint string          `json:"endpoint"`
	Selector Selector        `json:"selector"`
	Target   string          `json:"target,omitempty"` // the kind of target; "" is the device's own default
	Limits   Limits          `json:"limits"`
	Serving  ServingSettings `json:"serving,omitzero"`
	// Rollout is the id of the deployment's present content: a new one with each
	// change of version, selector, limits or settings. Request ids carry it.
	Rollout string `json:"rollout"`
	// Collect says which requests are recorded; nil where none ever were.
	Collect *Collection `json:"collect,omitempty"`
	// Routes lead messages between the modules of a device and into the workspace. They may
	// name modules of other deployments.
	Routes []MessageRoute `json:"routes,omitempty"`
	// Staged is the version that devices prefetch, nil where they shall prefetch
	// none. Where nothing was ever to run beside it, Version is 0, and VersionID and
	// Rollout are empty.
	Staged *Staged `json:"staged,omitempty"`
	// Trial is the version that devices run beside this one, nil where there is none.
	Trial *Trial `json:"trial,omitempty"`
	// Image is the container image that devices run; Model is then empty, and Version 0.
	Image *DeploymentImage `json:"image,omitempty"`
}

// Runs names what the deployment runs: MODEL:VERSION, or an image.
func (d *Deployment) Runs() string {
	if d.Image != nil {
		return d.Image.Reference
	}
	return fmt.Sprintf("%s:%d", d.Model, d.Version)
}

// Staged is a version that devices shall hold and not run yet: they fetch it while
// the present one serves, and change to it when the deployment is switched.
type Staged struct {
	Model     string    `json:"model"`
	Version   int       `json:"version"`
	VersionID string    `json:"version_id"`
	Rollout   string    `json:"rollout"` // the id that the rollout gets with the switch
	Since     time.Time `json:"since"`
}

// Selector names devices, by labels or one by one. A device is selected when
// it is listed in Devices, or carries every pair of Labels, or All is set.
type Selector struct {
	All     bool     `json:"all,omitempty"`
	Labels  Labels   `json:"labels,omitempty"`
	Devices []string `json:"devices,omitempty"` // ids
}

// Match reports whether d is selected.
func (s Selector) Match(d *Device) bool {
	if s.All || d.Labels.Match(s.Labels) {
		return true
	}
	for _, id := range s.Devices {
		if id == d.ID {
			return true
		}
	}
	return false
}

// Limits bound what a module may use. Zero is no limit.
type Limits struct {
	Memory int64   `json:"memory_bytes,omitempty"`
	CPUs   float64 `json:"cpus,omitempty"`
}

// Endpoint is a named REST endpoint of a workspace, answered by the gateways of
// the devices that its deployment selects. Two keys give access to it, so that
// one can be changed while the other is in use.
type Endpoint struct {
	Meta
	Deployment string `json:"deployment"` // the deployment's id
	// Keys hold the SHA-256 of the primary and the secondary key, in hex. The
	// keys themselves are in the workspace's vault.
	Keys EndpointKeys `json:"keys"`
}

// EndpointKeys are the hashes (SHA-256, hex) of an endpoint's two keys.
type EndpointKeys struct {
	Primary   string `json:"primary"`
	Secondary string `json:"secondary"`
}

// DeviceStatus is a deployment's state on one device, as the hub sees it.
type DeviceStatus struct {
	Device     string     `json:"device"` // id
	DeviceName string     `json:"device_name"`
	Connected  bool       `json:"connected"`
	Standing   `json:"-"` // "state" and "why" in JSON
	Version    int        `json:"version,omitempty"` // the version that serves now, 0 for none
	Wanted     int        `json:"wanted"`            // the version that shall serve
	Fetched    int64      `json:"fetched_bytes"`
	Size       int64      `json:"size_bytes"`
	Received   int64      `json:"received_bytes,omitempty"` // see SlotStatus
	Way        string     `json:"way,omitempty"`
	Restarts   int        `json:"restarts"`
	Provider   string     `json:"provider,omitempty"` // see ModuleHealth
	Memory     int64      `json:"memory_bytes,omitempty"`
	Address    string     `json:"address,omitempty"` // URL of the endpoint on the device
	// Staged is how far the device is with the version that the deployment has
	// staged: in the state Staged it is ready to switch.
	Staged *SlotStatus `json:"staged,omitempty"`
	// Trial tells of the version that runs beside the one that serves: in the state Serving
	// it gets its share.
	Trial *SlotStatus `json:"trial,omitempty"`
}

// ReadyToSwitch reports whether the device holds the version that the deployment
// has staged.
func (s *DeviceStatus) ReadyToSwitch() bool {
	return s.Staged != nil && s.Staged.State() == StagedState
}

// Rollout is the immutable record of what a deployment asked for at one time.
// A module's request ids begin with its rollout's id, so that every answer can be
// traced to deployment, package and model long after the deployment has moved on.
type Rollout struct {
	Meta
	Deployment     string `json:"deployment"` // id
	DeploymentName string `json:"deployment_name"`
	Endpoint       string `json:"endpoint"` // name
	Model          string `json:"model"`    // name
	Version        int    `json:"version"`
	VersionID      string `json:"version_id"`
	Digest         Digest `json:"digest"`  // the version's
	Package        Digest `json:"package"` // see Module.Package
	By             string `json:"by"`      // the actor who asked for it
}
