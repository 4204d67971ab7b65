package trust

import (
	"bytes"
	"encoding/json"
	"sync"

	atelier "github.com/atelier-edge/atelier"
)

// Pinned is what a device trusts: the newest root that it has seen, and that
// root's delegation for its workspace. It only moves forward. Its methods are safe for
// concurrent use. Save MarshalJSON's form after each Apply that changed it, and
// before anything acts on the change.
type Pinned struct {
	mu        sync.Mutex
	workspace string
	root      Root
	rootRaw   []byte
	state     Delegation // zero while there is none that the root signed
	stateRaw  []byte
	// floor is the newest delegation's version that was ever held; it outlives a
	// delegation that a new root no longer vouches for.
	floor int
}

// Pin begins to trust root, for a device of workspace. The caller knows that the
// envelope is authentic: it came over a channel that is verified otherwise.
func Pin(workspace string, root []byte) (*Pinned, error) {
	r, err := OpenRoot(root)
	if err != nil {
		return nil, err
	}
	return &Pinned{workspace: workspace, root: r, rootRaw: compact(root)}, nil
}

// Apply takes the next root or a newer delegation. What is held already changes
// nothing and is no error. The error is an *Error; whatever it is, p is as before:
// ReasonKeyUnknown or ReasonSignatureInvalid where the envelope does not verify
// against what is pinned or is for another workspace, ReasonReplayed where
// something newer is held.
func (p *Pinned) Apply(envelope []byte) (changed bool, err error) {
	s, err := parse(envelope)
	if err != nil {
		return false, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch s.payloadType {
	case TypeRoot:
		return p.applyRoot(s, envelope)
	case TypeDelegation:
		return p.applyDelegation(s, envelope)
	}
	return false, malformed("the envelope holds %s, expected root metadata or a delegation", clip(s.payloadType))
}

func (p *Pinned) applyRoot(s signed, raw []byte) (bool, error) {
	if raw = compact(raw); bytes.Equal(raw, p.rootRaw) {
		return false, nil
	}
	next, err := s.root()
	if err != nil {
		return false, err
	}
	if next.Version <= p.root.Version {
		return false, replayed("root version %d came, version %d is held", next.Version, p.root.Version)
	}
	if next.Version != p.root.Version+1 {
		return false, unverified("root version %d came, expected %d: each must be signed by the one before", next.Version, p.root.Version+1)
	}
	role := p.root.Roles[RoleRoot]
	if err := s.verify(NewKeySet(role.Keys...), role.Threshold); err != nil {
		return false, err
	}
	p.root, p.rootRaw = next, raw
	// A delegation stands or falls with the root that vouches for it: a root key
	// that was replaced because it leaked may have signed it.
	if p.stateRaw != nil {
		if held, err := parse(p.stateRaw); err == nil {
			if _, err = held.delegation(next); err == nil {
				return true, nil
			}
		}
		p.state, p.stateRaw = Delegation{}, nil
	}
	return true, nil
}

func (p *Pinned) applyDelegation(s signed, raw []byte) (bool, error) {
	if raw = compact(raw); bytes.Equal(raw, p.stateRaw) {
		return false, nil
	}
	d, err := s.delegation(p.root)
	if err != nil {
		return false, err
	}
	if d.Workspace != p.workspace {
		return false, unverified("a delegation for workspace %q came, this device belongs to %q", clip(d.Workspace), p.workspace)
	}
	if d.Version <= p.floor {
		return false, replayed("delegation version %d came, version %d is held", d.Version, p.floor)
	}
	p.state, p.stateRaw, p.floor = d, raw, d.Version
	return true, nil
}

// Workspace returns the id of the workspace that the device belongs to.
func (p *Pinned) Workspace() string { return p.workspace }

// StateKeys returns the keys that may sign desired states of workspace; none
// for any other than the device's own.
func (p *Pinned) StateKeys(workspace string) KeySet {
	p.mu.Lock()
	defer p.mu.Unlock()
	if workspace != p.workspace {
		return nil
	}
	return NewKeySet(p.state.Keys...)
}

// ImageKeys returns the keys that may sign images of the device's workspace; none
// while the workspace has none, or the hub is of before it signed images.
func (p *Pinned) ImageKeys() KeySet {
	p.mu.Lock()
	defer p.mu.Unlock()
	return NewKeySet(p.state.Images...)
}

// Versions returns which root and delegation are held, for wire.Hello; 0 where
// there is no valid delegation.
func (p *Pinned) Versions() (root, delegation int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.root.Version, p.state.Version
}

// compact returns a copy of an envelope that was parsed before, without the
// white space that JSON does not need: the form in which it is saved.
func compact(raw []byte) []byte {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return bytes.Clone(raw)
	}
	return b.Bytes()
}

type pinnedJSON struct {
	Workspace  string          `json:"workspace"`
	Root       json.RawMessage `json:"root"`
	Delegation json.RawMessage `json:"delegation,omitempty"`
	Floor      int             `json:"floor"`
}

// MarshalJSON writes what ParsePinned reads: the envelopes as they came.
func (p *Pinned) MarshalJSON() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return json.Marshal(pinnedJSON{p.workspace, p.rootRaw, p.stateRaw, p.floor})
}

// ParsePinned reads what MarshalJSON wrote, and verifies it again.
func ParsePinned(b []byte) (*Pinned, error) {
	if len(b) > 3*MaxEnvelope {
		return nil, malformed("the pinned trust has %d bytes, expected at most %d", len(b), 3*MaxEnvelope)
	}
	var j pinnedJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return nil, malformed("the pinned trust cannot be read: %w", err)
	}
	if !atelier.IsID(j.Workspace) {
		return nil, malformed("the pinned trust names workspace %q, expected an id", clip(j.Workspace))
	}
	p, err := Pin(j.Workspace, j.Root)
	if err != nil {
		return nil, err
	}
	if len(j.Delegation) > 0 {
		if _, err := p.Apply(j.Delegation); err != nil {
			return nil, err
		}
	}
	p.floor = max(p.floor, j.Floor)
	return p, nil
}
