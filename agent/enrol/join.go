package enrol

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"io/fs"
	"os"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// JoinOptions say which hub to join, and with what.
type JoinOptions struct {
	Options
	Hub         string // such as "https://hub.example.org:8443"
	Fingerprint string // of the hub's authority; see trust.ParseFingerprint
	Token       string // the join token
	Name        string // "" lets the hub make one from the host's name
	Labels      atelier.Labels
	// Replace joins anew, with a new key, where the device has an identity
	// already, or where a join was begun that cannot be finished.
	Replace bool
}

// Join makes the device a member of the workspace that the token is for, and
// saves its identity. Until the moment that it is saved the device has the
// identity that it had before, or none. When Join fails or is interrupted it may be called
// again with the same token.
//
// Exists where the device has joined already, Forbidden where the authority has
// another fingerprint; what the hub refuses comes with the hub's code.
func Join(ctx context.Context, o JoinOptions) (*Identity, error) {
	o.Options = o.complete()
	base, err := hubURL(o.Hub)
	if err != nil {
		return nil, err
	}
	fingerprint, err := trust.ParseFingerprint(o.Fingerprint)
	if err != nil {
		return nil, err
	}
	if err := o.mayJoin(); err != nil {
		return nil, err
	}
	ca, err := authority(ctx, base, fingerprint)
	if err != nil {
		return nil, err
	}
	key, keyPEM, err := o.joiningKey()
	if err != nil {
		return nil, err
	}
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "" // the hub names the device
	}
	csr, err := trust.NewCSR(key, hostname)
	if err != nil {
		return nil, err
	}
	var e wire.Enrolment
	request := wire.EnrolRequest{Token: o.Token, CSR: csr, Name: o.Name, Labels: o.Labels}
	if err := newHub(base, verifying(ca, o.Now)).post(ctx, "/v1/enrol", request, &e); err != nil {
		return nil, err
	}
	if len(e.MQTT) == 0 {
		return nil, atelier.Errorf(atelier.Invalid, "the hub gave no address of its MQTT broker").
			WithRemedy("Start the hub with the address under which devices reach its broker.")
	}
	return o.commit(saved{
		Hub: base.String(), Device: e.Device, Name: e.Name, Workspace: e.Workspace, WorkspaceName: e.WorkspaceName,
		Shard: e.Shard, MQTT: e.MQTT, CA: string(trust.EncodeCertificate(ca.Raw)), Certificate: e.Certificate,
		Key: string(keyPEM), Root: e.Root, Delegation: e.Delegation,
	})
}

// mayJoin reports an identity that must not be lost.
func (o JoinOptions) mayJoin() error {
	if o.Replace {
		return nil
	}
	id, err := Load(o.Options)
	switch {
	case atelier.CodeOf(err) == atelier.NotFound:
		return nil
	case err != nil:
		return err
	}
	return atelier.Errorf(atelier.Exists, "this device has joined %s as %q already", id.Hub, id.Name).
		WithRemedy("Use --replace to leave that hub and join anew.")
}

// joiningKey returns the key of a join that was begun, or a new one that is
// saved before the hub hears of it: were it lost after the hub has accepted it, the
// device could not ask again.
func (o JoinOptions) joiningKey() (*ecdsa.PrivateKey, []byte, error) {
	path := o.path(joiningFile)
	if !o.Replace {
		b, err := durable.ReadFile(o.FS, path)
		if err == nil {
			key, err := parseKey(b)
			if err != nil {
				return nil, nil, atelier.Errorf(atelier.Corrupt, "the key in %s cannot be used: %w", path, err).
					WithRemedy("Join with --replace, which makes a new one.")
			}
			return key, b, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
	}
	key, err := trust.NewDeviceKey()
	if err != nil {
		return nil, nil, err
	}
	b, err := trust.EncodeKey(key)
	if err != nil {
		return nil, nil, err
	}
	if err := durable.MkdirAll(o.FS, o.path("."), 0o700); err != nil {
		return nil, nil, err
	}
	return key, b, durable.WriteFile(o.FS, path, b, 0o600)
}

// commit checks what the hub answered and makes it the device's identity.
func (o JoinOptions) commit(s saved) (*Identity, error) {
	b, err := encode(s)
	if err != nil {
		return nil, err
	}
	id, err := o.parse(b)
	if err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "the hub's answer cannot be used: %w", err).
			WithRemedy("Check that agent and hub are of fitting versions.")
	}
	if err := durable.WriteFile(o.FS, id.path, b, 0o600); err != nil {
		return nil, err
	}
	// The device has joined, whether or not this works: a key that stays behind
	// is the one in the identity, and nothing reads it any more.
	_ = durable.Remove(o.FS, o.path(joiningFile))
	return id, nil
}
