package fleet

import (
	"context"
	"encoding/json"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/trust"
)

// Device returns the device that ref, a name or an id, names.
func (f *Fleet) Device(ctx context.Context, workspace, ref string) (d atelier.Device, err error) {
	err = f.store.View(ctx, func(tx store.Tx) (err error) {
		d, err = catalog.Devices.Resolve(tx, workspace, "", ref)
		return err
	})
	return d, err
}

// Devices returns a page of the workspace's devices that carry every label of
// selector, all of them where it is empty, and the id after which the next page
// begins, "" after the last.
func (f *Fleet) Devices(ctx context.Context, workspace string, selector atelier.Labels, after string, limit int) (page []atelier.Device, next string, err error) {
	err = f.store.View(ctx, func(tx store.Tx) error {
		page, next, err = devicesWhere(tx, workspace, after, limit, func(d *atelier.Device) bool {
			return len(selector) == 0 || d.Labels.Match(selector)
		})
		return err
	})
	return page, next, err
}

// devicesWhere returns up to limit devices that match, reading on until there are
// so many.
func devicesWhere(tx store.Tx, workspace, after string, limit int, match func(*atelier.Device) bool) ([]atelier.Device, string, error) {
	var found []atelier.Device
	for {
		page, err := catalog.Devices.List(tx, store.Query{Workspace: workspace, After: after, Limit: max(limit, resolvePage)})
		if err != nil {
			return nil, "", err
		}
		for i := range page {
			after = page[i].ID
			if !match(&page[i]) {
				continue
			}
			if found = append(found, page[i]); len(found) == limit {
				return found, after, nil
			}
		}
		if len(page) < max(limit, resolvePage) {
			return found, "", nil
		}
	}
}

// DeviceChange says what to change of a device; nil leaves a field as it is.
type DeviceChange struct {
	Labels   *atelier.Labels // replaces all of them
	Transfer *atelier.TransferChange
}

// UpdateDevice changes a device; a revision of 0 whatever is there.
func (f *Fleet) UpdateDevice(ctx context.Context, workspace, ref string, revision int64, c DeviceChange) (d atelier.Device, err error) {
	if c.Labels != nil {
		if err := c.Labels.Check(); err != nil {
			return d, err
		}
	}
	err = f.store.Update(ctx, access.By(ctx), func(tx store.Tx) (err error) {
		if d, err = catalog.Devices.Resolve(tx, workspace, "", ref); err != nil {
			return err
		}
		if revision != 0 && d.Revision != revision {
			return atelier.Errorf(atelier.Stale, "device %q has changed: it is at revision %d, not %d", d.Name, d.Revision, revision).
				WithRemedy("Read it again, and repeat the change on what it is now.")
		}
		set(&d.Labels, c.Labels)
		if c.Transfer != nil {
			if d.Transfer, err = c.Transfer.Apply(d.Transfer); err != nil {
				return err
			}
		}
		d, err = catalog.Devices.Update(tx, workspace, d)
		return err
	})
	return d, err
}

// Desired returns the newest desired state of a device; NotFound before the first.
func (f *Fleet) Desired(ctx context.Context, workspace, ref string) (s atelier.DesiredState, err error) {
	var record catalog.DesiredState
	err = f.store.View(ctx, func(tx store.Tx) error {
		d, err := catalog.Devices.Resolve(tx, workspace, "", ref)
		if err != nil {
			return err
		}
		record, err = catalog.DesiredStates.Get(tx, workspace, d.ID)
		if isNotFound(err) {
			return atelier.Errorf(atelier.NotFound, "device %q has no desired state yet", d.Name).WithRemedy("It gets its first within a moment of joining.")
		}
		return err
	})
	if err != nil {
		return s, err
	}
	// What is shown is what is sent: the envelope's own content.
	_, payload, err := trust.Peek(record.Envelope)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(payload, &s); err != nil {
		return s, atelier.Errorf(atelier.Corrupt, "the stored desired state of device %s cannot be read: %w", ref, err)
	}
	return s, nil
}

// Reported returns the last report of a device; NotFound before the first.
func (f *Fleet) Reported(ctx context.Context, workspace, ref string) (s atelier.ReportedState, err error) {
	err = f.store.View(ctx, func(tx store.Tx) error {
		d, err := catalog.Devices.Resolve(tx, workspace, "", ref)
		if err != nil {
			return err
		}
		r, err := catalog.ReportedStates.Get(tx, workspace, d.ID)
		if isNotFound(err) || err == nil && r.State == nil {
			why := connectionWhy(&d, f.clock.Now())
			return atelier.Errorf(atelier.NotFound, "device %q has not reported yet", d.Name).WithRemedy("%s", why.Remedy())
		}
		if err == nil {
			s = *r.State
		}
		return err
	})
	return s, err
}
