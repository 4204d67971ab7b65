package fleet

import (
	"context"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// The resolver is level-triggered: whatever happened, it compares what a device
// shall run with what its stored desired state says, and writes the difference.
// At the start it does so for every device, so that no position in the outbox
// needs to be kept; events only tell where to look.

// resolver is what follow works off, besides the outbox.
type resolver struct {
	wake chan struct{}

	mu         sync.Mutex
	workspaces map[string]bool             // to be resolved as a whole
	overtake   map[string]atelier.Position // by device: its next state must come after
	devices    map[string]string           // workspace by device: to be resolved
}

const (
	resolvePage = 200 // devices in one transaction
	eventPage   = 1000
)

// follow keeps desired states up to date until ctx ends.
func (f *Fleet) follow(ctx context.Context) error {
	changes := f.store.Changes(ctx)
	var after int64
	err := f.store.View(ctx, func(tx store.Tx) (err error) {
		after, err = tx.LastEvent()
		return err
	})
	read := plans{}
	if err == nil {
		err = f.resolveWork(ctx, &work{all: true, plans: read})
	}
	for ; err == nil; err = f.catchUp(ctx, &after, read) {
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
		case <-f.resolver.wake:
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// work is what is to be resolved: whole workspaces, or single devices.
type work struct {
	all        bool
	workspaces map[string]bool
	devices    map[string]map[string]bool // by workspace
	plans      plans
}

func newWork(read plans) *work {
	return &work{workspaces: map[string]bool{}, devices: map[string]map[string]bool{}, plans: read}
}

func (w *work) device(workspace, id string) {
	if w.devices[workspace] == nil {
		w.devices[workspace] = map[string]bool{}
	}
	w.devices[workspace][id] = true
}

// catchUp reads the events after *after and resolves what they concern.
func (f *Fleet) catchUp(ctx context.Context, after *int64, read plans) error {
	for {
		var events []atelier.Event
		err := f.store.View(ctx, func(tx store.Tx) (err error) {
			events, err = tx.Events(store.EventQuery{AnyWorkspace: true, After: *after, Limit: eventPage})
			return err
		})
		if err != nil {
			return err
		}
		w := newWork(read)
		for _, e := range events {
			*after = e.Sequence
			if err := f.concern(ctx, w, e); err != nil {
				return err
			}
		}
		f.takeRequests(w)
		if err := f.resolveWork(ctx, w); err != nil {
			return err
		}
		if len(events) < eventPage {
			return nil
		}
	}
}

// concern notes what an event asks to be resolved.
func (f *Fleet) concern(ctx context.Context, w *work, e atelier.Event) error {
	w.plans.concern(e)
	switch e.Kind {
	case catalog.Devices.Kind:
		f.peers.forget(e.ID)
		if e.Change == atelier.Deleted {
			f.peers.lose(e.ID)
			return f.forget(ctx, e.Workspace, e.ID)
		}
		w.device(e.Workspace, e.ID)
	case catalog.Versions.Kind:
		if e.Change == atelier.Created {
			return f.prepare(ctx, e.Workspace, e.ID)
		}
	case catalog.Deployments.Kind, catalog.Endpoints.Kind, catalog.Twins.Kind:
		w.workspaces[e.Workspace] = true
	case catalog.Workspaces.Kind:
		f.pacer.forget(e.ID)
	case catalog.Runtimes.Kind, catalog.Fleets.Kind:
		w.all = true
	}
	return nil
}

// forget removes what is kept of a device that was deleted.
func (f *Fleet) forget(ctx context.Context, workspace, device string) error {
	f.conduct.forget(device)
	if f.telemetry != nil {
		f.telemetry.Forget(device)
	}
	if f.data != nil {
		f.data.Forget(device)
	}
	if f.messages != nil {
		f.messages.Forget(device)
	}
	return f.store.Update(ctx, asHub, func(tx store.Tx) error {
		for _, kind := range []string{catalog.DesiredStates.Kind, catalog.ReportedStates.Kind} {
			if err := tx.Delete(kind, workspace, device, 0); err != nil && !isNotFound(err) {
				return err
			}
		}
		var deployments []string
		err := catalog.Deployments.Each(tx, store.Query{Workspace: workspace}, func(d atelier.Deployment) error {
			deployments = append(deployments, d.ID)
			return nil
		})
		for _, deployment := range deployments {
			if err == nil {
				err = dropTwins(tx, workspace, deployment, device)
			}
		}
		return err
	})
}

// takeRequests adds what was asked for besides events.
func (f *Fleet) takeRequests(w *work) {
	r := &f.resolver
	r.mu.Lock()
	defer r.mu.Unlock()
	for ws := range r.workspaces {
		w.workspaces[ws] = true
	}
	for device, ws := range r.devices {
		w.device(ws, device)
	}
	clear(r.workspaces)
	clear(r.devices)
}

func (r *resolver) request(edit func()) {
	r.mu.Lock()
	edit()
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Rotated makes every desired state of a workspace be signed with its present
// key: after the key was replaced. Devices that have the new delegation accept
// nothing that the old key signed.
func (f *Fleet) Rotated(workspace string) {
	r := &f.resolver
	r.request(func() {
		if r.workspaces == nil {
			r.workspaces = map[string]bool{}
		}
		r.workspaces[workspace] = true
	})
}

// overtake makes the device's next desired state come after p.
func (f *Fleet) overtake(workspace, device string, p atelier.Position) {
	const most = 1 << 53 // what JSON's readers take exactly
	if p.Epoch >= most || p.Generation >= most {
		f.ignore(device, "it claims to hold a desired state that cannot be", "epoch", p.Epoch, "generation", p.Generation)
		return
	}
	r := &f.resolver
	r.request(func() {
		if r.overtake == nil {
			r.overtake, r.devices = map[string]atelier.Position{}, map[string]string{}
		}
		r.overtake[device], r.devices[device] = p, workspace
	})
}

// NewEpoch begins a new epoch of desired states and returns it, so that devices
// take what comes now for newer than all they ever got: for a hub that was
// restored from a backup, and may have sent states that the backup does not know of.
func NewEpoch(ctx context.Context, s store.Store) (uint64, error) {
	var state catalog.Fleet
	err := s.Update(ctx, asHub, func(tx store.Tx) (err error) {
		now := time.Now()
		if state, err = fleetState(tx, now); err != nil {
			return err
		}
		state.Epoch = max(state.Epoch+1, epochAt(now))
		state, err = catalog.Fleets.Update(tx, "", state)
		return err
	})
	return state.Epoch, err
}

// epochAt is the time in milliseconds: a hub that is set up anew begins after
// everything that the one before it sent.
func epochAt(now time.Time) uint64 { return uint64(now.UnixMilli()) }

const fleetName = "fleet"

// fleetState returns what all devices have in common, made with the first use.
func fleetState(tx store.Tx, now time.Time) (catalog.Fleet, error) {
	state, err := catalog.Fleets.Find(tx, "", "", fleetName)
	if isNotFound(err) {
		return catalog.Fleets.Insert(tx, "", "", catalog.Fleet{Meta: atelier.Meta{Name: fleetName}, Epoch: epochAt(now)})
	}
	return state, err
}

func (f *Fleet) resolveWork(ctx context.Context, w *work) error {
	if w.all {
		all := newWork(w.plans)
		err := f.store.View(ctx, func(tx store.Tx) error {
			return catalog.Workspaces.Each(tx, store.Query{}, func(ws atelier.Workspace) error {
				all.workspaces[ws.ID] = true
				return nil
			})
		})
		if err != nil {
			return err
		}
		w = all
	}
	for ws := range w.workspaces {
		delete(w.devices, ws)
		if err := f.resolveWorkspace(ctx, ws, w.plans); err != nil {
			return err
		}
	}
	for ws, ids := range w.devices {
		var page []string
		for id := range ids {
			page = append(page, id)
			if len(page) == resolvePage {
				if err := f.resolveDevices(ctx, ws, page, w.plans); err != nil {
					return err
				}
				page = nil
			}
		}
		if err := f.resolveDevices(ctx, ws, page, w.plans); err != nil {
			return err
		}
	}
	return nil
}

// resolveWorkspace resolves every device of a workspace, a page at a time.
func (f *Fleet) resolveWorkspace(ctx context.Context, workspace string, read plans) error {
	after := ""
	for {
		var page []atelier.Device
		err := f.store.View(ctx, func(tx store.Tx) (err error) {
			page, err = catalog.Devices.List(tx, store.Query{Workspace: workspace, After: after, Limit: resolvePage})
			return err
		})
		if err != nil {
			return err
		}
		ids := make([]string, len(page))
		for i, d := range page {
			ids[i], after = d.ID, d.ID
		}
		if err := f.resolveDevices(ctx, workspace, ids, read); err != nil {
			return err
		}
		if len(page) < resolvePage {
			return nil
		}
	}
}

// resolveDevices resolves some devices of a workspace in one transaction, and
// lets their sessions know. Where nothing has changed it only reads. read may be nil.
func (f *Fleet) resolveDevices(ctx context.Context, workspace string, ids []string, read plans) error {
	if len(ids) == 0 {
		return nil
	}
	signer, err := f.authority.StateSigner(workspace) // not within a transaction: it may write
	if err != nil {
		return err
	}
	var changed map[string]atelier.Position
	pass := func(write bool) func(store.Tx) error {
		return func(tx store.Tx) (err error) {
			changed, err = f.resolveIn(tx, workspace, ids, signer, read, write)
			return err
		}
	}
	if err := f.store.View(ctx, pass(false)); err != nil || len(changed) == 0 {
		return err
	}
	if err := f.store.Update(ctx, asHub, pass(true)); err != nil {
		return err
	}
	for device, p := range changed {
		f.resolver.mu.Lock()
		if floor, ok := f.resolver.overtake[device]; ok && p.After(floor) {
			delete(f.resolver.overtake, device)
		}
		f.resolver.mu.Unlock()
		f.changed(device, p)
	}
	return nil
}
