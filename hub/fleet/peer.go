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
// changes; what was being read of it when it was forgotten is not remembered.
type peers struct {
	mu     sync.Mutex
	known  map[string]*peer
	places map[string]string   // workspaces by device: a device stays where it joined
	reads  map[string]*reading // by device, while it is read
}

// reading is one device being read, by so many callers at once.
type reading struct {
	callers int
	stale   bool // the device changed meanwhile
}

// get returns a device that is known; otherwise where it was when it was, "" if it
// never was, and a reading that the caller ends with remember.
func (ps *peers) get(device string) (p *peer, workspace string, r *reading) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.known[device]; p != nil {
		return p, "", nil
	}
	if ps.reads == nil {
		ps.known, ps.places, ps.reads = map[string]*peer{}, map[string]string{}, map[string]*reading{}
	}
	if r = ps.reads[device]; r == nil || r.stale {
		r = &reading{} // whoever reads what has changed since goes on with its own
		ps.reads[device] = r
	}
	r.callers++
	return nil, ps.places[device], r
}

// remember ends a reading of device; p is nil where it was not found.
func (ps *peers) remember(device string, p *peer, r *reading) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if r.callers--; r.callers == 0 && ps.reads[device] == r {
		delete(ps.reads, device)
	}
	if p != nil && !r.stale {
		ps.known[device], ps.places[device] = p, p.workspace
	}
}

// forget makes a device be read anew.
func (ps *peers) forget(device string) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.known, device)
	if r := ps.reads[device]; r != nil {
		r.stale = true
	}
}

// lose forgets also where a device was, after it was deleted.
func (ps *peers) lose(device string) {
	ps.forget(device)
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.places, device)
}

// peer returns the device with the id; NotFound where there is none.
func (f *Fleet) peer(ctx context.Context, device string) (*peer, error) {
	p, place, r := f.peers.get(device)
	if p != nil {
		return p, nil
	}
	p, err := f.readPeer(ctx, device, place)
	f.peers.remember(device, p, r)
	return p, err
}

// readPeer reads a device, which is in workspace; "" where that is not known.
func (f *Fleet) readPeer(ctx context.Context, device, workspace string) (*peer, error) {
	var d atelier.Device
	err := f.store.View(ctx, func(tx store.Tx) (err error) {
		if workspace != "" {
			d, err = catalog.Devices.Get(tx, workspace, device)
			return err
		}
		d, workspace, err = findDevice(tx, device)
		return err
	})
	if err != nil {
		return nil, err
	}
	key, err := trust.ParsePublicKey(d.PublicKey)
	if err != nil {
		return nil, err
	}
	return &peer{device: d.ID, name: d.Name, workspace: workspace, keys: trust.NewKeySet(key), revoked: d.Revoked != nil, transfer: d.Transfer}, nil
}

// findDevice looks for a device in all workspaces.
func findDevice(tx store.Tx, device string) (found atelier.Device, workspace string, err error) {
	err = catalog.Workspaces.Each(tx, store.Query{}, func(w atelier.Workspace) error {
		if workspace != "" {
			return nil
		}
		d, err := catalog.Devices.Get(tx, w.ID, device)
		if isNotFound(err) {
			return nil
		}
		found, workspace = d, w.ID
		return err
	})
	if err == nil && workspace == "" {
		err = atelier.Errorf(atelier.NotFound, "there is no device %s", device)
	}
	return found, workspace, err
}
