package enrol

import (
	"context"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// Revoke cuts the device that ref, a name or an id, names off: it cannot
// connect, renew or join again with its key, and its connections end. To revoke
// a revoked device changes nothing, and cuts its connections once more.
func (s *Service) Revoke(ctx context.Context, workspace, ref string) (atelier.Device, error) {
	var d atelier.Device
	err := s.store.Update(ctx, access.By(ctx), func(tx store.Tx) (err error) {
		if d, err = catalog.Devices.Resolve(tx, workspace, "", ref); err != nil || d.Revoked != nil {
			return err
		}
		now := s.now().UTC()
		if err := revokeAll(tx, d.ID, now); err != nil {
			return err
		}
		d.Revoked = &now
		d, err = catalog.Devices.Update(tx, workspace, d)
		return err
	})
	if err != nil {
		return d, err
	}
	s.tell(&s.onRevoke, d.ID)
	return d, nil
}

// Delete revokes the device that ref names and forgets it. A revision of 0
// deletes whatever is there. Its certificates stay on the revocation list until
// they expire.
func (s *Service) Delete(ctx context.Context, workspace, ref string, revision int64) error {
	var id string
	err := s.store.Update(ctx, access.By(ctx), func(tx store.Tx) error {
		d, err := catalog.Devices.Resolve(tx, workspace, "", ref)
		if err != nil {
			return err
		}
		id = d.ID
		if err := revokeAll(tx, id, s.now().UTC()); err != nil {
			return err
		}
		if err := s.sweep(tx); err != nil {
			return err
		}
		return catalog.Devices.Delete(tx, workspace, id, revision)
	})
	if err != nil {
		return err
	}
	s.tell(&s.onRevoke, id)
	return nil
}
