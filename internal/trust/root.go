package trust

import (
	"encoding/json"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// The payload types of trust metadata. The number is the version of the form.
const (
	TypeRoot       = "application/vnd.atelier.root.v1+json"
	TypeDelegation = "application/vnd.atelier.delegation.v1+json"
)

// The roles that keys are trusted for.
const (
	// RoleRoot signs the next root and the delegations.
	RoleRoot = "root"
	// RoleState signs desired states; it is delegated to each workspace.
	RoleState = "state"
)

// MaxKeys bounds the keys of a role.
const MaxKeys = 8

// Root says which keys are trusted for what, in the manner of The Update
// Framework's root role. Roles that a program does not know are ignored.
type Root struct {
	Version int       `json:"version"` // from 1, without gaps
	Issued  time.Time `json:"issued"`
	// Expires is when the hub must have issued the next root. Devices do not
	// check it: a wrong clock would cut them off from what could mend it.
	Expires time.Time       `json:"expires"`
	Roles   map[string]Role `json:"roles"`
}

// Role is a set of keys, of which Threshold must sign.
type Role struct {
	Threshold int         `json:"threshold"`
	Keys      []PublicKey `json:"keys"`
}

// Delegation names the keys that the root trusts for a role in one workspace. A
// newer one replaces an older one as a whole.
type Delegation struct {
	Role      string      `json:"role"` // RoleState
	Workspace string      `json:"workspace"`
	Version   int         `json:"version"` // from 1, growing with each change of keys or of the root
	Issued    time.Time   `json:"issued"`
	Keys      []PublicKey `json:"keys"`
	// Images are the keys that sign container images; see VerifyImage. They stand in the
	// delegation of the state keys, since devices of before take no other one, and pass
	// over what they do not know.
	Images []PublicKey `json:"images,omitempty"`
}

// SignRoot signs r. For the first version these are the signers of its own root
// role; for a later one those of its predecessor too.
func SignRoot(r Root, signers ...Signer) ([]byte, error) {
	return signJSON(TypeRoot, r, signers)
}

// SignDelegation signs d with the keys of the root role.
func SignDelegation(d Delegation, signers ...Signer) ([]byte, error) {
	return signJSON(TypeDelegation, d, signers)
}

func signJSON(payloadType string, v any, signers []Signer) ([]byte, error) {
	payload, err := json.Marshal(v)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode %s: %w", payloadType, err)
	}
	return Sign(payloadType, payload, signers...)
}

// OpenRoot returns the root in raw where its own keys signed it. That proves no
// more than that it is whole; whether it may be trusted is for the caller to
// know (see Pin) or for Pinned.Apply to check.
func OpenRoot(raw []byte) (Root, error) {
	s, err := parse(raw)
	if err != nil {
		return Root{}, err
	}
	return s.root()
}

// OpenDelegation returns the delegation in raw where root's keys signed it.
func OpenDelegation(raw []byte, root Root) (Delegation, error) {
	s, err := parse(raw)
	if err != nil {
		return Delegation{}, err
	}
	return s.delegation(root)
}

// root reads s as a root that its own keys signed.
func (s *signed) root() (Root, error) {
	if s.payloadType != TypeRoot {
		return Root{}, malformed("the envelope holds %s, expected %s", clip(s.payloadType), TypeRoot)
	}
	var r Root
	if err := json.Unmarshal(s.payload, &r); err != nil {
		return Root{}, malformed("the root metadata cannot be read: %w", err)
	}
	role := r.Roles[RoleRoot]
	if r.Version < 1 || role.Threshold < 1 || role.Threshold > len(role.Keys) || len(role.Keys) > MaxKeys {
		return Root{}, malformed("the root metadata has version %d and wants %d of %d keys, expected a version from 1 and 1 to %d keys",
			r.Version, role.Threshold, len(role.Keys), MaxKeys)
	}
	return r, s.verify(NewKeySet(role.Keys...), role.Threshold)
}

// delegation returns the delegation in s where root signed it.
func (s *signed) delegation(root Root) (Delegation, error) {
	if s.payloadType != TypeDelegation {
		return Delegation{}, malformed("the envelope holds %s, expected %s", clip(s.payloadType), TypeDelegation)
	}
	role := root.Roles[RoleRoot]
	if err := s.verify(NewKeySet(role.Keys...), role.Threshold); err != nil {
		return Delegation{}, err
	}
	var d Delegation
	if err := json.Unmarshal(s.payload, &d); err != nil {
		return Delegation{}, malformed("the delegation cannot be read: %w", err)
	}
	if len(d.Images) > MaxKeys {
		return Delegation{}, malformed("the delegation has %d keys for images, expected at most %d", len(d.Images), MaxKeys)
	}
	if d.Version < 1 || d.Role != RoleState || len(d.Keys) == 0 || len(d.Keys) > MaxKeys {
		return Delegation{}, malformed("the delegation has version %d and %d keys for role %q, expected a version from 1 and 1 to %d keys for role %q",
			d.Version, len(d.Keys), clip(d.Role), MaxKeys, RoleState)
	}
	return d, nil
}

// clip shortens what came from outside, for messages.
func clip(s string) string { return s[:min(len(s), 80)] }
