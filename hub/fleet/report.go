package fleet

import (
	"context"
	"slices"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/wire"
)

// reported stores a device's report and acknowledges it after that.
func (f *Fleet) reported(ctx context.Context, p *peer, r atelier.ReportedState) error {
	if r.Device != p.device {
		f.ignore(p.device, "it is another device's report")
		return nil
	}
	if current := f.heard(p.device); current != r.Session || r.Session == "" {
		f.ignore(p.device, "it is a report of another session", "session", r.Session)
		return nil
	}
	if err := f.access.Authorize(p.as(ctx), access.StateReport, p.object()); err != nil {
		f.ignore(p.device, "the report is not authorised", "error", err)
		return nil
	}
	through := r.Sequence
	now := f.clock.Now().UTC()
	err := f.store.Update(ctx, asHub, func(tx store.Tx) error {
		through = r.Sequence
		stored, err := f.reportedOf(tx, p)
		if err != nil {
			return err
		}
		if s := stored.State; s != nil && s.Session == r.Session && s.Sequence >= r.Sequence {
			through = s.Sequence // it came twice, or late: the newer one is stored
			return nil
		}
		return f.storeReport(tx, p, stored, r, now)
	})
	if err != nil {
		return err
	}
	f.noteSaved(p.device, r.Position)
	return f.say(ctx, p.workspace, p.device, wire.TypeAck, wire.Ack{Session: r.Session, Stream: wire.StreamReport, Through: through})
}

// storeReport writes the report and what of it belongs to the device. Only what
// somebody would want to be told of makes an event.
func (f *Fleet) storeReport(tx store.Tx, p *peer, stored catalog.ReportedState, r atelier.ReportedState, now time.Time) error {
	before := stored.State
	if r.Storage == nil && before != nil && before.Agent == r.Agent {
		r.Storage = before.Storage
	}
	stored.State, stored.Received = &r, &now
	if r.Position.After(stored.Acked) {
		stored.Acked = r.Position
	}
	if before != nil && sameModules(before.Modules, r.Modules) && sameConditions(before.Conditions, r.Conditions) {
		if err := catalog.ReportedStates.Record(tx, p.workspace, stored); err != nil {
			return err
		}
	} else {
		desired, err := catalog.DesiredStates.Get(tx, p.workspace, p.device)
		if err != nil && !isNotFound(err) {
			return err
		}
		stored.Holds = holds(stored.Holds, desired.Running(), r.Modules)
		if _, err := catalog.ReportedStates.Update(tx, p.workspace, stored); err != nil {
			return err
		}
	}
	return f.observe(tx, p, func(d *atelier.Device) {
		d.Connected, d.LastSeen, d.Agent, d.Facts, d.Conditions = true, &now, r.Agent, r.Facts, r.Conditions
	})
}

// sameModules compares the states of modules, not their progress.
func sameModules(a, b []atelier.ModuleStatus) bool {
	slot := func(x, y *atelier.SlotStatus) bool {
		if x == nil || y == nil {
			return x == y
		}
		return x.Rollout == y.Rollout && x.State() == y.State() && x.Why().Reason() == y.Why().Reason() && x.Restarts == y.Restarts
	}
	return slices.EqualFunc(a, b, func(x, y atelier.ModuleStatus) bool {
		return x.Deployment == y.Deployment && slot(x.Current, y.Current) && slot(x.Candidate, y.Candidate) && slot(x.Staged, y.Staged) && slot(x.Trial, y.Trial)
	})
}

// reportedOf returns what is stored of the device's words, an empty record where
// there is none yet.
func (f *Fleet) reportedOf(tx store.Tx, p *peer) (catalog.ReportedState, error) {
	r, err := catalog.ReportedStates.Get(tx, p.workspace, p.device)
	if isNotFound(err) {
		return catalog.ReportedStates.Insert(tx, p.workspace, "", catalog.ReportedState{Meta: atelier.Meta{ID: p.device}})
	}
	return r, err
}

// noteSaved takes a report's position for the acknowledgement that may have
// been lost.
func (f *Fleet) noteSaved(device string, p atelier.Position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.sessions[device]; s != nil && p.After(s.acked) && !p.After(s.newest) {
		s.acked = p
	}
}
