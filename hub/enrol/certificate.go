package enrol

import (
	"context"
	"errors"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/authority"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

type issued = authority.Certificate

// maxValid bounds how many certificates of one device are valid at a time: a
// renewal that loops must not fill the database and the revocation list.
const maxValid = 64

// issue issues a certificate to a device and records it. Records of the device's
// certificates that have expired are removed on the way.
func (s *Service) issue(tx store.Tx, workspace, device string, csr []byte) (issued, error) {
	now := s.now()
	valid := 0
	err := ofDevice(tx, device, func(c catalog.Certificate) error {
		if now.After(c.NotAfter) {
			return catalog.Certificates.Delete(tx, "", c.ID, 0)
		}
		valid++
		return nil
	})
	if err != nil {
		return issued{}, err
	}
	if valid >= maxValid {
		return issued{}, atelier.Errorf(atelier.Exhausted, "the device has %d valid certificates already", valid).
			WithRemedy("Wait until some expire; look at why the device asks so often.")
	}
	cert, err := s.authority.IssueDevice(device, csr)
	if err != nil {
		return cert, err
	}
	_, err = catalog.Certificates.Insert(tx, "", "", catalog.Certificate{
		Meta: atelier.Meta{ID: atelier.NewID(), Name: cert.Info.Serial}, Device: device, Workspace: workspace,
		NotBefore: cert.Info.NotBefore, NotAfter: cert.Info.NotAfter,
	})
	return cert, err
}

// ofDevice calls fn for every recorded certificate of a device.
func ofDevice(tx store.Tx, device string, fn func(catalog.Certificate) error) error {
	var all []catalog.Certificate // read whole before fn changes any
	err := catalog.Certificates.Each(tx, store.Query{Rel: catalog.RelDevice, To: device}, func(c catalog.Certificate) error {
		all = append(all, c)
		return nil
	})
	if err != nil {
		return err
	}
	for _, c := range all {
		if err := fn(c); err != nil {
			return err
		}
	}
	return nil
}

// revokeAll marks every certificate of a device as revoked.
func revokeAll(tx store.Tx, device string, now time.Time) error {
	return ofDevice(tx, device, func(c catalog.Certificate) error {
		if c.Revoked != nil {
			return nil
		}
		c.Revoked = &now
		_, err := catalog.Certificates.Update(tx, "", c)
		return err
	})
}

// sweep removes the records of revoked certificates that have expired, whose
// devices may be long gone.
func (s *Service) sweep(tx store.Tx) error {
	var expired []string
	q := store.Query{Rel: catalog.RelRevoked, To: catalog.RevokedYes}
	err := catalog.Certificates.Each(tx, q, func(c catalog.Certificate) error {
		if s.now().After(c.NotAfter) {
			expired = append(expired, c.ID)
		}
		return nil
	})
	for _, id := range expired {
		err = errors.Join(err, catalog.Certificates.Delete(tx, "", id, 0))
	}
	return err
}

// RevocationList returns the list of all revoked certificates that have not
// expired, as PEM, for external brokers.
func (s *Service) RevocationList(ctx context.Context) ([]byte, error) {
	var revoked []authority.Revoked
	err := s.store.View(ctx, func(tx store.Tx) error {
		revoked = nil
		q := store.Query{Rel: catalog.RelRevoked, To: catalog.RevokedYes}
		return catalog.Certificates.Each(tx, q, func(c catalog.Certificate) error {
			if s.now().Before(c.NotAfter) {
				revoked = append(revoked, authority.Revoked{Serial: c.Name, Time: *c.Revoked})
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return s.authority.RevocationList(revoked)
}
