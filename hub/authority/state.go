package authority

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// stateDir holds one file for each workspace, with its state key and the
// delegation that names it: one file, so that a rotation happens with one rename.
const (
	stateDir = "state"
	stateExt = ".json"

	stateFormat = 1
)

type stateKey struct {
	signer     trust.Signer
	keyPEM     string
	delegation trust.Delegation
	raw        wire.Raw
}

type stateJSON struct {
	Key        string   `json:"key"` // PEM
	Delegation wire.Raw `json:"delegation"`
}

// openStates reads every workspace's state key, and signs those delegations anew
// that an older root signed.
func (a *Authority) openStates() error {
	dir := filepath.Join(a.dir, stateDir)
	entries, err := a.fs.ReadDir(dir)
	if err != nil {
		return durable.Explain(err, "read directory "+dir)
	}
	for _, entry := range entries {
		workspace, ok := strings.CutSuffix(entry.Name(), stateExt)
		if !ok || !atelier.IsID(workspace) {
			continue
		}
		if err := a.openState(workspace); err != nil {
			return err
		}
	}
	return nil
}

func (a *Authority) openState(workspace string) error {
	path := a.statePath(workspace)
	b, err := durable.ReadFile(a.fs, path)
	if err != nil {
		return err
	}
	s, current, err := parseState(b, a.root, workspace)
	if err != nil {
		return damaged(path, err)
	}
	if current {
		a.states[workspace] = s
		return nil
	}
	return a.delegate(workspace, s.signer, s.keyPEM, s.delegation.Version+1, s.delegation.Images)
}

// parseState reads a state file. current is false where an older root of the
// chain signed the delegation.
func parseState(b []byte, root rootKeys, workspace string) (s stateKey, current bool, err error) {
	var j stateJSON
	if err := durable.Decode(b, workspace+stateExt, stateFormat, &j); err != nil {
		return s, false, err
	}
	s = stateKey{keyPEM: j.Key, raw: j.Delegation}
	if s.signer, err = parseSigner(j.Key); err != nil {
		return s, false, err
	}
	s.delegation, err = trust.OpenDelegation(s.raw, root.current)
	current = err == nil
	for i := len(root.chain) - 2; err != nil && i >= 0; i-- {
		older, rootErr := trust.OpenRoot(root.chain[i])
		if rootErr != nil {
			return s, false, rootErr
		}
		s.delegation, err = trust.OpenDelegation(s.raw, older)
	}
	if err != nil {
		return s, false, err
	}
	if keys := s.delegation.Keys; s.delegation.Workspace != workspace || len(keys) != 1 || !keys[0].Equal(s.signer.Public()) {
		return s, false, atelier.Errorf(atelier.Invalid, "its delegation is not for its key and workspace %s", workspace)
	}
	return s, current, nil
}

// delegate saves a state key with a delegation of the given version, which names the keys
// of images too, and uses it from then on.
func (a *Authority) delegate(workspace string, signer trust.Signer, keyPEM string, version int, images []trust.PublicKey) error {
	d := trust.Delegation{
		Role: trust.RoleState, Workspace: workspace, Version: version,
		Issued: a.now().UTC(), Keys: []trust.PublicKey{signer.Public()}, Images: images,
	}
	raw, err := trust.SignDelegation(d, a.root.signer)
	if err != nil {
		return err
	}
	b, err := durable.Encode(stateFormat, stateJSON{Key: keyPEM, Delegation: raw})
	if err != nil {
		return err
	}
	if err := a.write(a.statePath(workspace), b); err != nil {
		return err
	}
	a.states[workspace] = stateKey{signer, keyPEM, d, raw}
	return nil
}

// state returns the state key of a workspace; its first use makes it.
func (a *Authority) state(workspace string) (stateKey, error) {
	if s, ok := a.states[workspace]; ok {
		return s, nil
	}
	return a.rotate(workspace)
}

func (a *Authority) rotate(workspace string) (stateKey, error) {
	if !atelier.IsID(workspace) {
		return stateKey{}, atelier.Errorf(atelier.Internal, "a state key was asked for of %q, which is no workspace's id", workspace)
	}
	signer, keyPEM, err := newSigner()
	if err != nil {
		return stateKey{}, err
	}
	held := a.states[workspace].delegation
	err = a.delegate(workspace, signer, string(keyPEM), held.Version+1, held.Images)
	return a.states[workspace], err
}

// StateSigner returns what signs desired states of the workspace with the id.
// Ask for it anew with each use: a rotation replaces it.
func (a *Authority) StateSigner(workspace string) (trust.Signer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, err := a.state(workspace)
	return s.signer, err
}

// RotateStateKey replaces the state key of the workspace with the id. The old
// one is gone afterwards, and a device that has received TrustChain accepts
// nothing more that it signs: sign and send what is still to be received.
func (a *Authority) RotateStateKey(ctx context.Context, workspace string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.state(workspace); err != nil {
		return err
	}
	_, err := a.rotate(workspace)
	return err
}

// ImageKeys returns the keys that the workspace's delegation names for container images.
func (a *Authority) ImageKeys(workspace string) []trust.PublicKey {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.states[workspace].delegation.Images)
}

// DelegateImages lets the workspace's delegation name these keys, at most trust.MaxKeys,
// for container images, in place of those that it named. changed tells whether that made
// a new delegation, which devices receive with TrustChain. The private halves are the
// caller's to keep.
func (a *Authority) DelegateImages(workspace string, keys []trust.PublicKey) (changed bool, err error) {
	if len(keys) > trust.MaxKeys {
		return false, atelier.Errorf(atelier.Internal, "%d keys were to be trusted for images, at most %d can be", len(keys), trust.MaxKeys)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s, err := a.state(workspace)
	if err != nil || slices.EqualFunc(s.delegation.Images, keys, trust.PublicKey.Equal) {
		return false, err
	}
	return true, a.delegate(workspace, s.signer, s.keyPEM, s.delegation.Version+1, slices.Clone(keys))
}

// Pin returns the current root and the delegation for the workspace, for a
// device that joins.
func (a *Authority) Pin(workspace string) (root, delegation wire.Raw, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, err := a.state(workspace)
	return a.root.chain[len(a.root.chain)-1], s.raw, err
}

// TrustChain returns the envelopes that a device of the workspace lacks, in the
// order in which it applies them, for wire.Trust: the roots after version
// haveRoot, and the delegation where it is not of version haveDelegation. It is
// empty for a device that has everything.
func (a *Authority) TrustChain(workspace string, haveRoot, haveDelegation int) ([]wire.Raw, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, err := a.state(workspace)
	if err != nil {
		return nil, err
	}
	var chain []wire.Raw
	if haveRoot < len(a.root.chain) {
		chain = append(chain, a.root.chain[max(haveRoot, 0):]...)
	}
	if haveDelegation != s.delegation.Version {
		chain = append(chain, s.raw)
	}
	return chain, nil
}

func (a *Authority) statePath(workspace string) string {
	return filepath.Join(a.dir, stateDir, workspace+stateExt)
}
