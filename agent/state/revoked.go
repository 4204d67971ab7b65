package state

import (
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

// revokedFile says that the hub revoked the device.
const revokedFile = "revoked.json"

// savedRevoked is its form. A device that joined anew has another id, and what
// the file says is not about it.
type savedRevoked struct {
	Device string `json:"device"`
	wire.Revoked
}

// Revoke notes that the hub revoked this device.
func (s *Store) Revoke(r wire.Revoked) error {
	b, err := durable.Encode(revokedFormat, savedRevoked{s.opts.Device, r})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write(revokedFile, b)
}

// Revoked returns when and why the hub revoked this device, nil where it did not.
func (s *Store) Revoked() (*wire.Revoked, error) {
	b, err := s.read(revokedFile)
	if err != nil || b == nil {
		return nil, err
	}
	var saved savedRevoked
	if err := durable.Decode(b, s.path(revokedFile), revokedFormat, &saved); err != nil {
		return nil, err
	}
	if saved.Device != s.opts.Device {
		return nil, nil
	}
	return &saved.Revoked, nil
}
