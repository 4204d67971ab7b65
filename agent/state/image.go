package state

import "github.com/atelier-edge/atelier/internal/trust"

// VerifyImage checks that a key which is pinned for images of the workspace signed the
// image whose manifest is the given bytes; envelope is the signature that the desired
// state carries for it. Nothing of an image may be started before. The error is a
// *trust.Error, whose reason and remedy trust.WhyOf tells. It needs no network.
//
// An image that was verified and started stays verified, as desired states do: whoever
// starts it again, after a reboot for example, need not ask, since its key may have been
// replaced meanwhile.
func (s *Store) VerifyImage(manifest, envelope []byte) error {
	s.mu.Lock()
	keys := s.pinned.ImageKeys()
	s.mu.Unlock()
	return trust.VerifyImage(manifest, envelope, keys)
}
