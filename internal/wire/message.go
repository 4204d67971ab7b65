package wire

import (
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Control messages are JSON in DSSE envelopes (internal/trust): what the hub
// says is signed by the workspace's state key, what a device says by the
// device's key. The DSSE payload type tells which message it is. Unknown fields
// are ignored; an unknown payload type is answered by nothing and counted.
//
// Delivery rests on nothing that the broker promises. Down: the device says
// hello with its position until it is welcomed, and the hub sends the desired
// state until the device has acknowledged it. Up: a report is repeated until its
// sequence is acknowledged, and telemetry likewise (see TelemetryFrame).

// The payload types of control messages. The number is the version of the form.
const (
	TypeHello      = "application/vnd.atelier.hello.v1+json"
	TypeWelcome    = "application/vnd.atelier.welcome.v1+json"
	TypeDesired    = "application/vnd.atelier.desired.v1+json" // atelier.DesiredState
	TypeDesiredAck = "application/vnd.atelier.desired-ack.v1+json"
	TypeReported   = "application/vnd.atelier.reported.v1+json" // atelier.ReportedState
	TypeAck        = "application/vnd.atelier.ack.v1+json"
	TypeTrust      = "application/vnd.atelier.trust.v1+json"
	TypeRevoked    = "application/vnd.atelier.revoked.v1+json"
	TypeBye        = "application/vnd.atelier.bye.v1+json"
	TypeCollect    = "application/vnd.atelier.collect.v1+json"
	TypeCollected  = "application/vnd.atelier.collected.v1+json"
)

// Hello opens a session (up). The device repeats it, with back-off, until it is
// welcomed.
type Hello struct {
	Requires []string         `json:"requires,omitempty"`
	Session  string           `json:"session"` // a fresh id for each MQTT connection
	BootID   string           `json:"boot_id,omitempty"`
	Position atelier.Position `json:"position"` // of the saved desired state; zero when there is none
	Agent    string           `json:"agent"`
	Facts    atelier.Facts    `json:"facts"`
	Wall     time.Time        `json:"wall"`      // the device's clock
	Monotone int64            `json:"monotonic"` // nanoseconds since boot
	// RootVersion and DelegationVersion say which trust the device holds, so
	// that the hub sends what is newer.
	RootVersion       int `json:"root_version"`
	DelegationVersion int `json:"delegation_version"`
}

// Welcome answers Hello (down). Where the device's position is older than the
// hub's, a Desired follows at once.
type Welcome struct {
	Session  string           `json:"session"`
	Position atelier.Position `json:"position"` // of the newest desired state
	Time     time.Time        `json:"time"`     // the hub's clock
	// Telemetry is the last telemetry sequence that the hub has stored of each
	// stream of the device.
	Telemetry map[string]uint64 `json:"telemetry,omitempty"`
	// Data is the same for the streams of collected records; null from a hub that takes none.
	Data map[string]uint64 `json:"data"`
	// Messages is the same for streams of modules' messages.
	Messages map[string]uint64 `json:"messages"`
}

// DesiredAck tells that a desired state was saved or refused (up).
type DesiredAck struct {
	Position atelier.Position `json:"position"`
	Saved    bool             `json:"saved"`
	Why      atelier.Why      `json:"why"` // the reason where Saved is false
}

// StreamReport is the stream that Ack knows besides those of telemetry.
const StreamReport = "report"

// Ack acknowledges everything of a stream up to and including a sequence (down).
// The hub sends it after it has stored it.
type Ack struct {
	Session string `json:"session,omitempty"` // set for StreamReport
	Stream  string `json:"stream"`
	Through uint64 `json:"through"`
}

// Trust carries newer root metadata and delegations (down). Each element is a
// DSSE envelope in the order in which it must be applied; they verify against
// what the device has pinned, so the message itself needs no valid signature.
type Trust struct {
	Envelopes []Raw `json:"envelopes"`
}

// Raw is an envelope's bytes, untouched.
type Raw []byte

// MarshalJSON writes the bytes as they are; they must be JSON. No bytes are null.
func (r Raw) MarshalJSON() ([]byte, error) {
	if len(r) == 0 {
		return []byte("null"), nil
	}
	return r, nil
}

// UnmarshalJSON keeps a copy of b as it is.
func (r *Raw) UnmarshalJSON(b []byte) error {
	*r = append((*r)[:0], b...)
	return nil
}

// Revoked tells a device that it was revoked (down). It keeps its modules, says
// so locally and stops connecting until it is joined again.
type Revoked struct {
	Time   time.Time `json:"time"`
	Reason string    `json:"reason,omitempty"`
}

// Bye ends a session (up). It is prepared at connect as the last will and
// counts only for the session that it names.
type Bye struct {
	Session string `json:"session"`
}

// What a device can be asked to collect.
const (
	CollectModuleLog = "module-log"
	CollectAgentLog  = "agent-log"
)

// Collect asks the device to upload something (down); repeated until Collected
// comes. The device offers it over the content channel.
type Collect struct {
	ID         string `json:"id"` // of the request
	What       string `json:"what"`
	Deployment string `json:"deployment,omitempty"` // for CollectModuleLog
	MaxBytes   int64  `json:"max_bytes"`            // the end of it, where it is longer
}

// Collected tells that the content is ready to be fetched from the device, or
// why there is none (up).
type Collected struct {
	ID     string         `json:"id"`
	OK     bool           `json:"ok"`
	Digest atelier.Digest `json:"digest,omitempty"`
	Size   int64          `json:"size"`
	Why    atelier.Why    `json:"why"`
}
