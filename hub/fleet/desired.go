package fleet

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// resolveIn returns the new positions of those devices whose desired state has to
// change, and changes it where write is set.
func (f *Fleet) resolveIn(tx store.Tx, workspace string, ids []string, signer trust.Signer, read plans, write bool) (map[string]atelier.Position, error) {
	changed := map[string]atelier.Position{}
	if write {
		delete(read, workspace) // what is written comes of the plan as it is now
	}
	p, err := read.of(tx, workspace)
	if err != nil {
		return nil, err
	}
	var epoch uint64
	if write {
		state, err := fleetState(tx, f.clock.Now())
		if err != nil {
			return nil, err
		}
		epoch = state.Epoch
	} else if state, err := catalog.Fleets.Find(tx, "", "", fleetName); err == nil {
		epoch = state.Epoch
	} else if !isNotFound(err) {
		return nil, err
	}
	for _, id := range ids {
		d, err := catalog.Devices.Get(tx, workspace, id)
		if isNotFound(err) || err == nil && d.Revoked != nil {
			continue // nothing is left to say to it
		}
		if err != nil {
			return nil, err
		}
		old, err := catalog.DesiredStates.Get(tx, workspace, id)
		if err != nil && !isNotFound(err) {
			return nil, err
		}
		next, err := f.next(p, &d, workspace, old, epoch, signer)
		if err != nil {
			return nil, err
		}
		if next == nil {
			continue
		}
		changed[id] = next.Position
		if !write {
			continue
		}
		if old.ID == "" {
			next.ID = id
			_, err = catalog.DesiredStates.Insert(tx, workspace, "", *next)
		} else {
			_, err = catalog.DesiredStates.Update(tx, workspace, *next)
		}
		if err != nil {
			return nil, err
		}
	}
	return changed, nil
}

// next returns the device's next desired state, nil where the present one is right.
func (f *Fleet) next(p *plan, d *atelier.Device, workspace string, old catalog.DesiredState, epoch uint64, signer trust.Signer) (*catalog.DesiredState, error) {
	state := func(w wanted) (*catalog.DesiredState, error) { return f.state(d, workspace, old, epoch, signer, w) }
	all := p.resolve(d, old.All())
	next, err := state(all)
	if atelier.CodeOf(err) != atelier.TooLarge {
		return next, err
	}
	// Each that does not fit beside those that were there before it gives way;
	// the others run.
	kept := wanted{unmet: all.unmet}
	take := func(part catalog.Part, m *atelier.Module, with wanted) error {
		_, err := state(with)
		switch atelier.CodeOf(err) {
		case "":
			kept = with
			return nil
		case atelier.TooLarge:
			kept.unmet = append(kept.unmet, catalog.NewUnmet(m.Deployment, m.Name, part, atelier.Because(atelier.ReasonStateTooLarge,
				fmt.Sprintf("Deployment %s brings %d files; with it, %v.", m.Name, len(m.Content()), err))))
			return nil
		}
		return err
	}
	for i := range all.modules {
		with := kept
		with.modules = append(with.modules, all.modules[i])
		if err := take(catalog.Served, &all.modules[i], with); err != nil {
			return nil, err
		}
	}
	for i := range all.trials {
		t := &all.trials[i]
		if !slices.ContainsFunc(kept.modules, func(m atelier.Module) bool { return m.Deployment == t.Deployment }) {
			continue // what it would run beside gave way itself
		}
		with := kept
		with.trials = append(with.trials, *t)
		if err := take(catalog.Tried, &t.Module, with); err != nil {
			return nil, err
		}
	}
	for i := range all.staged {
		with := kept
		with.staged = append(with.staged, all.staged[i])
		if err := take(catalog.Held, &all.staged[i], with); err != nil {
			return nil, err
		}
	}
	return state(kept)
}

// state returns the device's desired state for what is wanted, nil where the present
// one is the same; TooLarge where it would not fit a message.
func (f *Fleet) state(d *atelier.Device, workspace string, old catalog.DesiredState, epoch uint64, signer trust.Signer, w wanted) (*catalog.DesiredState, error) {
	digest, err := digestOf(w)
	if err != nil {
		return nil, err
	}
	next := old
	next.Content, next.Modules, next.Staged, next.Trials, next.Unmet, next.Key = digest, w.modules, w.staged, w.trials, w.unmet, signer.Public().ID()
	next.Earlier = earlier(old, next.All())
	f.resolver.mu.Lock()
	floor := f.resolver.overtake[d.ID]
	f.resolver.mu.Unlock()
	same := old.ID != "" && old.Content == next.Content && old.Key == next.Key && old.Position.Epoch >= epoch && !floor.After(old.Position)
	if same {
		if slices.Equal(old.Unmet, w.unmet) {
			return nil, nil
		}
		return &next, nil // the same bytes, with another list of what cannot run
	}
	next.Position = atelier.Position{
		Epoch:      max(epoch, old.Position.Epoch, floor.Epoch),
		Generation: max(old.Position.Generation, floor.Generation) + 1,
	}
	payload, err := json.Marshal(atelier.DesiredState{
		Workspace: workspace, Device: d.ID, Epoch: next.Position.Epoch, Generation: next.Position.Generation,
		Issued: f.clock.Now().UTC().Truncate(time.Millisecond), Modules: w.modules, Staged: w.staged, Trials: w.trials,
	})
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode a desired state: %w", err)
	}
	next.Envelope, err = trust.Sign(wire.TypeDesired, payload, signer)
	if err == nil && len(next.Envelope) > wire.MaxPacket {
		err = atelier.Errorf(atelier.TooLarge, "the desired state of %s would have %s, and one message holds %s",
			d.Name, atelier.FormatBytes(int64(len(next.Envelope))), atelier.FormatBytes(wire.MaxPacket))
	}
	return &next, err
}

// digestOf returns the digest of what a device is told: that of the modules alone
// where nothing is staged and nothing runs beside them, as it always was.
func digestOf(w wanted) (atelier.Digest, error) {
	body, err := json.Marshal(w.modules)
	if err == nil && len(w.staged) > 0 {
		var staged []byte
		staged, err = json.Marshal(w.staged)
		body = append(body, staged...)
	}
	if err == nil && len(w.trials) > 0 {
		var trials []byte
		trials, err = json.Marshal(w.trials)
		body = append(append(body, "trials"...), trials...)
	}
	if err != nil {
		return "", atelier.Errorf(atelier.Internal, "encode modules: %w", err)
	}
	return atelier.DigestOf(body), nil
}
