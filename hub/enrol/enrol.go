// Package enrol lets devices into a workspace and puts them out again: join
// tokens, the exchange of a token and a request for a certificate for an
// identity, the renewal of certificates by proof of the device's key, and
// revocation.
//
// A device is its key. Asking twice with the same key and token gives the same
// device, so that an answer that was lost costs no second use of the token; a
// certificate that ran out is renewed by whoever still has the key; and nobody
// who cannot prove a key learns whether the hub knows it.
//
// Join, Renew and Admit authenticate their callers themselves and ask
// access.Authorize; for everything else the caller has asked it. The package knows neither HTTP
// nor MQTT: who serves MQTT asks Admit at each handshake, and cuts connections
// when OnRevoke tells it to.
package enrol

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/authority"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/trust"
)

// Access is what this package needs of access.Authority.
type Access interface {
	Authorize(ctx context.Context, verb access.Verb, object access.Object) error
}

// Config says what a Service works with. Every field is required unless it says
// otherwise.
type Config struct {
	Store     store.Store
	Access    Access
	Authority *authority.Authority
	// MQTT lists the addresses that devices are given; see wire.Enrolment.
	MQTT []string
	// Shard is the topic shard that new devices publish under.
	Shard string
	Now   func() time.Time // nil for time.Now
}

// Service enrols devices. Its methods are safe for concurrent use.
type Service struct {
	store     store.Store
	access    Access
	authority *authority.Authority
	mqtt      []string
	shard     string
	now       func() time.Time
	nonceKey  [32]byte

	mu       sync.Mutex
	onRevoke []func(device string)
	onRotate []func(workspace string)
}

// New returns a Service. Challenges of another Service do not count with it.
func New(c Config) (*Service, error) {
	s := &Service{store: c.Store, access: c.Access, authority: c.Authority, mqtt: c.MQTT, shard: c.Shard, now: c.Now}
	if s.now == nil {
		s.now = time.Now
	}
	if _, err := rand.Read(s.nonceKey[:]); err != nil {
		return nil, atelier.Errorf(atelier.Internal, "make the key of challenges: %w", err)
	}
	return s, nil
}

// OnRevoke has fn called with the id of each device that is revoked or deleted,
// after that is on disk and before the call that did it returns: the place to cut
// its connections. fn must not block for long.
func (s *Service) OnRevoke(fn func(device string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onRevoke = append(s.onRevoke, fn)
}

// OnRotate has fn called with the id of each workspace whose state key or whose
// delegation was replaced: the place to send authority.TrustChain, and desired
// states signed anew. fn must not block for long.
func (s *Service) OnRotate(fn func(workspace string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onRotate = append(s.onRotate, fn)
}

func (s *Service) tell(hooks *[]func(string), id string) {
	s.mu.Lock()
	fns := (*hooks)[:len(*hooks):len(*hooks)]
	s.mu.Unlock()
	for _, fn := range fns {
		fn(id)
	}
}

// Admit decides whether the device with the id may connect with cert, which the
// caller has verified against the authority: it must be known, hold the key that
// it joined with, and not be revoked. Forbidden otherwise.
func (s *Service) Admit(ctx context.Context, device string, cert *x509.Certificate) error {
	refused := atelier.Errorf(atelier.Forbidden, "device %s is not, or no longer, a device of this hub", device)
	key, err := trust.NewPublicKey(cert.PublicKey)
	if err != nil {
		return refused
	}
	var d atelier.Device
	var workspace string
	err = s.store.View(ctx, func(tx store.Tx) (err error) {
		d, workspace, err = deviceByKey(tx, device, key)
		return err
	})
	switch {
	case atelier.CodeOf(err) == atelier.NotFound:
		return refused
	case err != nil:
		return err
	case d.Revoked != nil:
		return refused
	}
	return s.authorize(ctx, access.DeviceConnect, d, workspace)
}

// authorize asks whether the device, which has proved its key, may do verb.
func (s *Service) authorize(ctx context.Context, verb access.Verb, d atelier.Device, workspace string) error {
	return s.access.Authorize(asDevice(ctx, d, workspace), verb,
		access.Object{Workspace: workspace, Kind: catalog.Devices.Kind, ID: d.ID})
}

func asDevice(ctx context.Context, d atelier.Device, workspace string) context.Context {
	return access.WithPrincipal(ctx, access.Principal{Kind: access.Device, ID: d.ID, Name: d.Name, Workspace: workspace})
}

// deviceByKey returns the device with the id and the key, and its workspace.
func deviceByKey(tx store.Tx, id string, key trust.PublicKey) (atelier.Device, string, error) {
	holders, err := tx.Referrers(catalog.RelKey, key.ID(), maxHolders)
	if err != nil {
		return atelier.Device{}, "", err
	}
	for _, r := range holders {
		if r.ID == id {
			d, err := catalog.Devices.Get(tx, r.Workspace, id)
			return d, r.Workspace, err
		}
	}
	return atelier.Device{}, "", atelier.Errorf(atelier.NotFound, "there is no device %s with this key", id)
}

// maxHolders bounds how many devices may be registered with one key: a machine
// may have left one workspace and joined another.
const maxHolders = 100

// RotateStateKey replaces the key that signs desired states of the workspace
// with the id.
func (s *Service) RotateStateKey(ctx context.Context, workspace string) error {
	if err := s.authority.RotateStateKey(ctx, workspace); err != nil {
		return err
	}
	s.tell(&s.onRotate, workspace)
	return nil
}

// RotateRoot replaces the root's key; every workspace's delegation is signed
// anew with it.
func (s *Service) RotateRoot(ctx context.Context) error {
	if err := s.authority.RotateRoot(ctx); err != nil {
		return err
	}
	var workspaces []string
	err := s.store.View(ctx, func(tx store.Tx) error {
		workspaces = nil
		return catalog.Workspaces.Each(tx, store.Query{}, func(w atelier.Workspace) error {
			workspaces = append(workspaces, w.ID)
			return nil
		})
	})
	for _, w := range workspaces {
		s.tell(&s.onRotate, w)
	}
	return err
}
