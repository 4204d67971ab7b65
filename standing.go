package atelier

import "encoding/json"

// ModuleState is a step in a module's life.
type ModuleState string

// The states of a module, in the order in which a healthy one passes them, and
// the three in which it does not go on.
const (
	Pending   ModuleState = "Pending"   // known, nothing done yet
	Fetching  ModuleState = "Fetching"  // content is being pulled
	Preparing ModuleState = "Preparing" // files are being laid out
	Starting  ModuleState = "Starting"  // the process starts and loads the model
	Proving   ModuleState = "Proving"   // warm-up and golden inputs
	Standby   ModuleState = "Standby"   // ready, without traffic
	Serving   ModuleState = "Serving"   // takes traffic
	Draining  ModuleState = "Draining"  // finishes what it has, takes nothing new
	Stopped   ModuleState = "Stopped"   // ended on purpose

	BackOff     ModuleState = "BackOff"     // failed; will be tried again by itself
	Refused     ModuleState = "Refused"     // cannot be run here as it is asked for
	Quarantined ModuleState = "Quarantined" // failed too often; waits for a new rollout

	// StagedState is where a module is that shall not run yet: all of its content is
	// on the device.
	StagedState ModuleState = "Staged"
)

// Standing is a module's state and why it is in it. The two go together: Stand
// is the only way to make one. The zero Standing is Pending, because it is
// InProgress.
type Standing struct {
	state ModuleState
	why   Why
}

// Stand makes the standing of a module that is in a state, and why.
func Stand(state ModuleState, why Why) Standing { return Standing{state, why} }

// State returns the module's state.
func (s Standing) State() ModuleState {
	if s.state == "" {
		return Pending
	}
	return s.state
}

// Why says why the module is in its state.
func (s Standing) Why() Why { return s.why }

// standingJSON is the form of a Standing within its owner's JSON.
type standingJSON struct {
	State ModuleState `json:"state"`
	Why   Why         `json:"why"`
}

func (s Standing) form() standingJSON { return standingJSON{s.State(), s.why} }

// slotStatus and deviceStatus are their types without methods of their own, so
// that encoding/json looks at the fields.
type (
	slotStatus   SlotStatus
	deviceStatus DeviceStatus
)

// MarshalJSON writes the fields of s with "state" and "why" among them.
func (s SlotStatus) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		*slotStatus
		standingJSON
	}{(*slotStatus)(&s), s.form()})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *SlotStatus) UnmarshalJSON(b []byte) error {
	j := struct {
		*slotStatus
		standingJSON
	}{slotStatus: (*slotStatus)(s)}
	err := json.Unmarshal(b, &j)
	s.Standing = Stand(j.State, j.Why)
	return err
}

// MarshalJSON writes the fields of s with "state" and "why" among them.
func (s DeviceStatus) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		*deviceStatus
		standingJSON
	}{(*deviceStatus)(&s), s.form()})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *DeviceStatus) UnmarshalJSON(b []byte) error {
	j := struct {
		*deviceStatus
		standingJSON
	}{deviceStatus: (*deviceStatus)(s)}
	err := json.Unmarshal(b, &j)
	s.Standing = Stand(j.State, j.Why)
	return err
}
