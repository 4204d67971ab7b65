package fleet

import (
	"context"
	"fmt"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// DeviceStatuses returns a page of the state of a deployment, a name or an id, on
// the devices that it selects: those after the id of a device, at most limit. next
// is the id after which the next page begins, "" after the last.
func (f *Fleet) DeviceStatuses(ctx context.Context, workspace, ref, after string, limit int) (page []atelier.DeviceStatus, next string, err error) {
	now := f.clock.Now()
	err = f.store.View(ctx, func(tx store.Tx) error {
		d, err := catalog.Deployments.Resolve(tx, workspace, "", ref)
		if err != nil {
			return err
		}
		page, next, err = statusesIn(tx, workspace, d, after, limit, now)
		return err
	})
	return page, next, err
}

func statusesIn(tx store.Tx, workspace string, dep atelier.Deployment, after string, limit int, now time.Time) ([]atelier.DeviceStatus, string, error) {
	devices, next, err := devicesWhere(tx, workspace, after, limit, dep.Selector.Match)
	if err != nil {
		return nil, "", err
	}
	page := make([]atelier.DeviceStatus, 0, len(devices))
	for _, d := range devices {
		p, err := pictureOf(tx, workspace, d, now)
		if err != nil {
			return nil, "", err
		}
		page = append(page, p.deployment(&dep))
	}
	return page, next, nil
}

// deployment returns the state of a deployment on the device.
func (p *picture) deployment(dep *atelier.Deployment) atelier.DeviceStatus {
	s := p.running(dep)
	s.Staged, s.Trial = p.staged(dep), p.trial(dep)
	return s
}

// running returns how far the device is with what it shall run.
func (p *picture) running(dep *atelier.Deployment) atelier.DeviceStatus {
	if standing, unmet := p.unmet(dep.ID, catalog.Served); unmet {
		s := p.bare(dep.Version)
		s.Standing = standing
		return s
	}
	for i := range p.desired.Modules {
		if m := &p.desired.Modules[i]; m.Deployment == dep.ID && m.Rollout == dep.Rollout {
			return p.status(m)
		}
	}
	s := p.bare(dep.Version)
	switch {
	case p.device.Revoked != nil:
	case !active(dep):
		s.Standing = atelier.Stand(atelier.Pending, atelier.Because(atelier.ReasonWaiting, "Nothing is to run yet; the staged version will when the deployment is switched."))
	default:
		s.Standing = atelier.Stand(atelier.Pending, workingOut)
	}
	return s
}

var workingOut = atelier.Because(atelier.ReasonWaiting, "The hub is working out what the device shall run.")

// unmet returns the standing of a part of a deployment that the device cannot do.
func (p *picture) unmet(deployment string, part catalog.Part) (_ atelier.Standing, unmet bool) {
	for _, u := range p.desired.Unmet {
		if u.Deployment != deployment || u.Part() != part {
			continue
		}
		if u.Why.Reason() == atelier.ReasonNeverConnected {
			return atelier.Stand(atelier.Pending, u.Why), true
		}
		return atelier.Stand(atelier.Refused, u.Why), true
	}
	return atelier.Standing{}, false
}

// staged returns how far the device is with what it shall hold, nil where that is
// nothing.
func (p *picture) staged(dep *atelier.Deployment) *atelier.SlotStatus {
	if dep.Staged == nil {
		return nil
	}
	s := &atelier.SlotStatus{Rollout: dep.Staged.Rollout, Model: dep.Staged.Model, Version: dep.Staged.Version, Since: dep.Staged.Since}
	if standing, unmet := p.unmet(dep.ID, catalog.Held); unmet {
		s.Standing = standing
		return s
	}
	for i := range p.desired.Staged {
		if m := &p.desired.Staged[i]; m.Rollout == dep.Staged.Rollout {
			return p.held(m)
		}
	}
	if s.Standing = atelier.Stand(atelier.Pending, workingOut); p.device.Revoked != nil {
		s.Standing = p.expected()
	}
	return s
}

// held returns how far the device is with a module that it shall hold.
func (p *picture) held(m *atelier.Module) *atelier.SlotStatus {
	return p.told(m, func(s *atelier.ModuleStatus) *atelier.SlotStatus { return s.Staged })
}

// told returns how far the device is with a module, by a slot of what it reports.
func (p *picture) told(m *atelier.Module, slot func(*atelier.ModuleStatus) *atelier.SlotStatus) *atelier.SlotStatus {
	s := &atelier.SlotStatus{Rollout: m.Rollout, Model: m.Model.Name, Version: m.Model.Version, Digest: m.Model.Digest}
	for _, file := range m.Content() {
		s.Size += file.Size
	}
	if s.Standing = p.expected(); p.device.Revoked != nil || p.reported.State == nil {
		return s
	}
	for _, reported := range p.reported.State.Modules {
		if is := slot(&reported); is != nil && is.Rollout == m.Rollout {
			told := *is
			told.Standing = p.withWindow(told.Standing)
			return &told
		}
	}
	return s
}

// expected is the standing of a module of which the device has not told yet.
func (p *picture) expected() atelier.Standing {
	if p.device.Revoked != nil {
		return atelier.Stand(atelier.Refused, atelier.Because(atelier.ReasonRevoked, ""))
	}
	if r := p.reported.Refused; r != nil && r.Position == p.desired.Position {
		return atelier.Stand(atelier.Refused, r.Why)
	}
	return atelier.Stand(atelier.Pending, p.waiting())
}

// bare is a status of which only the device is known.
func (p *picture) bare(wanted int) atelier.DeviceStatus {
	d := &p.device
	s := atelier.DeviceStatus{Device: d.ID, DeviceName: d.Name, Connected: d.Connected, Wanted: wanted}
	if d.Revoked != nil {
		s.Standing = p.expected()
	}
	return s
}

// status returns the state of a module that the device shall run.
func (p *picture) status(m *atelier.Module) atelier.DeviceStatus {
	s := p.bare(m.Model.Version)
	for _, file := range m.Content() {
		s.Size += file.Size
	}
	if s.Standing = p.expected(); p.device.Revoked != nil || p.reported.State == nil {
		return s
	}
	for _, reported := range p.reported.State.Modules {
		if reported.Deployment != m.Deployment {
			continue
		}
		if c := reported.Current; c != nil {
			s.Restarts = c.Restarts
			if c.State() == atelier.Serving {
				s.Version = c.Version
				if gateway := p.reported.State.Facts.Gateway; gateway != "" && m.HasEndpoint() {
					s.Address = "http://" + gateway + "/" + m.Endpoint.Name
				}
			}
		}
		for _, slot := range []*atelier.SlotStatus{reported.Candidate, reported.Current} {
			if slot != nil && slot.Rollout == m.Rollout {
				s.Received, s.Way, s.Provider, s.Memory = slot.Received, slot.Way, slot.Provider, slot.Memory
				s.Standing, s.Fetched, s.Restarts = p.withWindow(slot.Standing), slot.Fetched, slot.Restarts
				if slot.Size > 0 {
					s.Size = slot.Size
				}
				break
			}
		}
	}
	return s
}

// withWindow tells of a module that is being fetched that its transfer has to wait,
// which the device does not know.
func (p *picture) withWindow(s atelier.Standing) atelier.Standing {
	if p.closed != nil && s.State() == atelier.Fetching {
		return atelier.Stand(s.State(), *p.closed)
	}
	return s
}

// waiting says why a device has nothing to tell of a module yet.
func (p *picture) waiting() atelier.Why {
	switch d := &p.device; {
	case d.LastSeen == nil:
		return atelier.Because(atelier.ReasonNeverConnected, "")
	case !d.Connected:
		return atelier.Because(atelier.ReasonUnreachable, fmt.Sprintf("Device %s is not connected; it gets its desired state when it connects.", d.Name))
	case p.desired.Position.After(p.reported.Acked):
		return p.behindWhy()
	}
	return atelier.Because(atelier.ReasonInProgress, "The device has saved its desired state and begins to act on it.")
}
