package atelier

import "time"

// The ways in which content of a plan comes to a device.
const (
	WayNone       = "none"       // there is nothing to do: the device has it and runs it
	WayThere      = "there"      // it is on the device already
	WayWhole      = "whole"      // as it is
	WayDifference = "difference" // made of a difference to other content of the device
	WayCompressed = "compressed" // whole, and compressed
)

// Where the rate of a DevicePlan is from.
const (
	RateMeasured = "measured" // by the device, when content came last
	RateAssumed  = "assumed"  // nothing came since its agent started, or it does not say
	RateBudget   = "budget"   // of the device or its workspace, which is less
)

// DeploymentPlan says what a deploy would bring to devices. Bytes are sums over all
// devices that take it.
type DeploymentPlan struct {
	Deployment string `json:"deployment"` // name
	New        bool   `json:"new"`        // the deployment would be made
	Model      string `json:"model"`
	Version    int    `json:"version"`
	// Wire is bytes of frames of the content protocol, headers and lists of chunks
	// included, those of MQTT, TLS and TCP not: what a device counts as received.
	Wire int64 `json:"wire_bytes"`
	Disk int64 `json:"disk_bytes"` // that content takes more than before
	// Seconds is when the last device has its content, all of them at once and each at
	// its own rate.
	Seconds float64 `json:"seconds"`
	// Pending is how many differences are being made that may change the plan.
	Pending  int          `json:"pending"`
	Estimate bool         `json:"estimate"` // for one device at least
	Refused  int          `json:"refused"`  // devices that would not take it
	Devices  []DevicePlan `json:"devices"`
}

// DevicePlan says what would come to one device.
type DevicePlan struct {
	Device     string `json:"device"` // id
	DeviceName string `json:"device_name"`
	Connected  bool   `json:"connected"`
	// Way is that of the largest part of what comes; WayNone and WayThere where nothing
	// does; "" where Refusal says why not.
	Way  string `json:"way"`
	Why  string `json:"why,omitempty"` // that way and no other, a sentence without a full stop
	Wire int64  `json:"wire_bytes"`
	Disk int64  `json:"disk_bytes"`
	// Rate is the bytes a second with which Seconds is worked out, RateFrom one of
	// RateMeasured, RateAssumed and RateBudget.
	Rate     int64   `json:"rate_bytes,omitempty"`
	RateFrom string  `json:"rate_from,omitempty"`
	Seconds  float64 `json:"seconds"` // the transfer and the making of content of differences
	// Opens is when content may be transferred, where that is not now.
	Opens *time.Time `json:"opens,omitempty"`
	// Refusal says why the device would not take it: no room, or nothing that it can run.
	Refusal *Why `json:"refusal,omitempty"`
	// Estimate tells that what comes may be another amount, and Unknown why.
	Estimate bool       `json:"estimate"`
	Unknown  []string   `json:"unknown,omitempty"`
	Files    []FilePlan `json:"files"`
}

// FilePlan says how a file would come.
type FilePlan struct {
	File
	Way  string `json:"way"`
	Base string `json:"base,omitempty"` // of a difference: "version 2"
	Why  string `json:"why,omitempty"`
	Wire int64  `json:"wire_bytes"`
}
