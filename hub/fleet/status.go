package fleet

import (
	"context"
	"fmt"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// DeviceStatuses returns a page of the state of a deployment, a name or an id, on
// the devices that it selects: those after the id of a device, at most limit. next
// is the id after which the next page begins, "" after the last.
func (f *Fleet) DeviceStatuses(ctx context.Context, workspace, ref, after string, limit int) (page []atelier.DeviceStatus, next string, err error) {
	err = f.store.View(ctx, func(tx store.Tx) error {
		d, err := catalog.Deployments.Resolve(tx, workspace, "", ref)
		if err != nil {
			return err
		}
		page, next, err = statusesIn(tx, workspace, d, after, limit)
		return err
	})
	return page, next, err
}

func statusesIn(tx store.Tx, workspace string, dep atelier.Deployment, after string, limit int) ([]atelier.DeviceStatus, string, error) {
	devices, next, err := devicesWhere(tx, workspace, after, limit, dep.Selector.Match)
	if err != nil {
		return nil, "", err
	}
	page := make([]atelier.DeviceStatus, 0, len(devices))
	for _, d := range devices {
		p, err := pictureOf(tx, workspace, d)
		if err != nil {
			return nil, "", err
		}
		page = append(page, p.deployment(&dep))
	}
	return page, next, nil
}

// deployment returns the state of a deployment on the device.
func (p *picture) deployment(dep *atelier.Deployment) atelier.DeviceStatus {
	for _, u := range p.desired.Unmet {
		if u.Deployment == dep.ID {
			s := p.bare(dep.Version)
			s.Standing = atelier.Stand(atelier.Refused, u.Why)
			if u.Why.Reason() == atelier.ReasonNeverConnected {
				s.Standing = atelier.Stand(atelier.Pending, u.Why)
			}
			return s
		}
	}
	for i := range p.desired.Modules {
		if m := &p.desired.Modules[i]; m.Deployment == dep.ID && m.Rollout == dep.Rollout {
			return p.status(m)
		}
	}
	s := p.bare(dep.Version)
	if p.device.Revoked == nil {
		s.Standing = atelier.Stand(atelier.Pending, atelier.Because(atelier.ReasonWaiting, "The hub is working out what the device shall run."))
	}
	return s
}

// bare is a status of which only the device is known.
func (p *picture) bare(wanted int) atelier.DeviceStatus {
	d := &p.device
	s := atelier.DeviceStatus{Device: d.ID, DeviceName: d.Name, Connected: d.Connected, Wanted: wanted}
	if d.Revoked != nil {
		s.Standing = atelier.Stand(atelier.Refused, atelier.Because(atelier.ReasonRevoked, ""))
	}
	return s
}

// status returns the state of a module that the device shall run.
func (p *picture) status(m *atelier.Module) atelier.DeviceStatus {
	s := p.bare(m.Model.Version)
	for _, file := range m.Content() {
		s.Size += file.Size
	}
	if p.device.Revoked != nil {
		return s
	}
	if r := p.reported.Refused; r != nil && r.Position == p.desired.Position {
		s.Standing = atelier.Stand(atelier.Refused, r.Why)
	} else {
		s.Standing = atelier.Stand(atelier.Pending, p.waiting())
	}
	if p.reported.State == nil {
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
				if gateway := p.reported.State.Facts.Gateway; gateway != "" {
					s.Address = "http://" + gateway + "/" + m.Endpoint.Name
				}
			}
		}
		for _, slot := range []*atelier.SlotStatus{reported.Candidate, reported.Current} {
			if slot != nil && slot.Rollout == m.Rollout {
				s.Standing, s.Fetched, s.Restarts = slot.Standing, slot.Fetched, slot.Restarts
				s.Received, s.Way = slot.Received, slot.Way
				if slot.Size > 0 {
					s.Size = slot.Size
				}
				break
			}
		}
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
