package atelier

import (
	"encoding/json"
	"time"
)

// Condition is one aspect of a device's health, in the manner of Kubernetes'
// conditions: it holds in the good state. Whether it holds and why go together:
// Holds and Fails are the only ways to make one.
type Condition struct {
	kind  string
	holds bool
	why   Why
	since time.Time
}

// Holds makes a condition of the type kind that is as it should be.
func Holds(kind string, why Why) Condition { return Condition{kind: kind, holds: true, why: why} }

// Fails makes a condition of the type kind that is not as it should be.
func Fails(kind string, why Why) Condition { return Condition{kind: kind, why: why} }

// Following returns c as it stands at now after what it was before: where that held
// or failed already, c has done so since then.
func (c Condition) Following(before Condition, now time.Time) Condition {
	c.since = now.UTC()
	if before.holds == c.holds && !before.since.IsZero() {
		c.since = before.since
	}
	return c
}

// Type returns which aspect c is about; see the constants below.
func (c Condition) Type() string { return c.kind }

// True reports whether c is as it should be.
func (c Condition) True() bool { return c.holds }

// Why says why c is as it is.
func (c Condition) Why() Why { return c.why }

// Since returns when c began to hold or to fail; zero where nobody knows.
func (c Condition) Since() time.Time { return c.since }

type conditionJSON struct {
	Type  string    `json:"type"`
	True  bool      `json:"true"`
	Why   Why       `json:"why"`
	Since time.Time `json:"since"`
}

// MarshalJSON writes {"type", "true", "why", "since"}.
func (c Condition) MarshalJSON() ([]byte, error) {
	return json.Marshal(conditionJSON{c.kind, c.holds, c.why, c.since})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (c *Condition) UnmarshalJSON(b []byte) error {
	var j conditionJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*c = Condition{j.Type, j.True, j.Why, j.Since}
	return nil
}

// The types of conditions that agents and hub report about a device.
const (
	ConditionConnected    = "Connected"    // the device has a session that the hub has welcomed
	ConditionInSync       = "InSync"       // the device runs its newest desired state
	ConditionStateDurable = "StateDurable" // the agent can save its state
	ConditionCertificate  = "Certificate"  // the device's certificate is valid and renews
	ConditionClock        = "Clock"        // the device's clock agrees with the hub's
	ConditionGateway      = "Gateway"      // the gateway answers and has its address
	ConditionTelemetry    = "Telemetry"    // what the device measures is kept until the hub has it
	ConditionMessages     = "Messages"     // messages of modules are carried as routes say, and none is given up
	ConditionConfigured   = "Configured"   // the agent's configuration file is the one in force
)
