package fleet

import (
	"context"
	"sync"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/trust"
)

// peer is what must be known of a device to judge its messages.
type peer struct {
	device    string
	name      string
	workspace string
	keys      trust.KeySet
	revoked   bool
	transfer  *atelier.TransferPolicy
}

// as returns a context in which the device is the caller.
func (p *peer) as(ctx context.Context) context.Context {
	return access.WithPrincipal(ctx, access.Principal{Kind: access.Device, ID: p.device, Name: p.name, Workspace: p.workspace})
}

// object is the device as the object of its own verbs.
func (p *peer) object() access.Object {
	return access.Object{Workspace: p.workspace, Kind: catalog.Devices.Kind, ID: p.device}
}

// peers remembers devices between their messages. A device is forgotten when it
// changes; what was read before it was forgotten is not remembered afterwards.
type peers struct {
	mu      sync.Mutex
	known   map[string]*peer
	changes uint64
}

func (ps *peers) get(device string) (*peer, uint64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.known[device], ps.changes
}

func (ps *peers) remember(p *peer, since uint64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.changes != since {
		return
	}
	if ps.known == nil {
		ps.known = map[string]*peer{}
	}
	ps.known[p.device] = p
}

func (ps *peers) forget(device string) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.known, device)
	ps.changes++
}

// peer returns the device with the id; NotFound where there is none.
func (f *Fleet) peer(ctx context.Context, device string) (*peer, error) {
	p, since := f.peers.get(device)
	if p != nil {
		return p, nil
	}
	var d atelier.Device
	var workspace string
	err := f.store.View(ctx, func(tx store.Tx) error {
		workspace = ""
		return catalog.Workspaces.Each(tx, store.Query{}, func(w atelier.Workspace) error {
			if workspace != "" {
				return nil
			}
			found, err := catalog.Devices.Get(tx, w.ID, device)
			switch {
			case err == nil:
				d, workspace = found, w.ID
			case !isNotFound(err):
				return err
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	if workspace == "" {
		return nil, atelier.Errorf(atelier.NotFound, "there is no device %s", device)
	}
	key, err := trust.ParsePublicKey(d.PublicKey)
	if err != nil {
		return nil, err
	}
	p = &peer{device: d.ID, name: d.Name, workspace: workspace, keys: trust.NewKeySet(key), revoked: d.Revoked != nil, transfer: d.Transfer}
	f.peers.remember(p, since)
	return p, nil
}
