package authority

import (
	"context"
	"encoding/json"
	"path/filepath"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// rootFile holds the root's key and every root that there was: one file, so that
// a rotation happens with one rename.
const rootFile = "root.json"

type rootKeys struct {
	signer  trust.Signer
	current trust.Root
	chain   []wire.Raw // envelopes of versions 1 to the current one
}

type rootJSON struct {
	Key   string     `json:"key"` // PEM
	Chain []wire.Raw `json:"chain"`
}

func (a *Authority) openRoot() error {
	path := filepath.Join(a.dir, rootFile)
	b, ok, err := a.read(path)
	if err != nil {
		return err
	}
	if !ok {
		return a.nextRoot()
	}
	if a.root, err = parseRoot(b); err != nil {
		return damaged(path, err)
	}
	if a.root.current.Expires.Sub(a.now()) < rootReissue {
		return a.nextRoot()
	}
	return nil
}

func parseRoot(b []byte) (rootKeys, error) {
	var j rootJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return rootKeys{}, err
	}
	if len(j.Chain) == 0 {
		return rootKeys{}, atelier.Errorf(atelier.Invalid, "it holds no root")
	}
	signer, err := parseSigner(j.Key)
	if err != nil {
		return rootKeys{}, err
	}
	current, err := trust.OpenRoot(j.Chain[len(j.Chain)-1])
	if err != nil {
		return rootKeys{}, err
	}
	if current.Version != len(j.Chain) {
		return rootKeys{}, atelier.Errorf(atelier.Invalid, "it holds %d roots, of which the last has version %d", len(j.Chain), current.Version)
	}
	if keys := current.Roles[trust.RoleRoot].Keys; len(keys) != 1 || !keys[0].Equal(signer.Public()) {
		return rootKeys{}, atelier.Errorf(atelier.Invalid, "its key is not that of its newest root")
	}
	return rootKeys{signer, current, j.Chain}, nil
}

// nextRoot makes a new root key and the root that names it, signed by the key
// before, and saves both.
func (a *Authority) nextRoot() error {
	signer, keyPEM, err := newSigner()
	if err != nil {
		return err
	}
	now := a.now().UTC()
	next := trust.Root{
		Version: a.root.current.Version + 1, Issued: now, Expires: now.Add(rootLife),
		Roles: map[string]trust.Role{
			trust.RoleRoot: {Threshold: 1, Keys: []trust.PublicKey{signer.Public()}},
		},
	}
	signers := []trust.Signer{signer}
	if a.root.current.Version > 0 {
		signers = append(signers, a.root.signer)
	}
	raw, err := trust.SignRoot(next, signers...)
	if err != nil {
		return err
	}
	chain := append(a.root.chain[:len(a.root.chain):len(a.root.chain)], raw)
	b, err := json.Marshal(rootJSON{Key: string(keyPEM), Chain: chain})
	if err != nil {
		return atelier.Errorf(atelier.Internal, "encode the root: %w", err)
	}
	if err := a.write(filepath.Join(a.dir, rootFile), b); err != nil {
		return err
	}
	a.root = rootKeys{signer, next, chain}
	return nil
}

// RotateRoot replaces the root's key, and signs every workspace's delegation
// anew with it. Devices follow when they receive TrustChain. The old key is gone
// afterwards.
func (a *Authority) RotateRoot(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.nextRoot(); err != nil {
		return err
	}
	return a.openStates()
}

func newSigner() (trust.Signer, []byte, error) {
	key, err := trust.NewHubKey()
	if err != nil {
		return trust.Signer{}, nil, err
	}
	keyPEM, err := trust.EncodeKey(key)
	if err != nil {
		return trust.Signer{}, nil, err
	}
	signer, err := trust.NewSigner(key)
	return signer, keyPEM, err
}

func parseSigner(keyPEM string) (trust.Signer, error) {
	key, err := trust.ParseKey([]byte(keyPEM))
	if err != nil {
		return trust.Signer{}, err
	}
	return trust.NewSigner(key)
}
