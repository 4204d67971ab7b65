package enrol

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// nonceLife is how long a challenge can be answered.
const nonceLife = 2 * time.Minute

// A nonce is the time when it ends, chance, and a MAC over both and the device:
// the hub keeps nothing of the challenges that it hands out.
const (
	nonceTime   = 8
	nonceChance = 16
	nonceLen    = nonceTime + nonceChance + sha256.Size
)

// Challenge returns what the device must sign to renew its certificate. It
// answers for any id alike.
func (s *Service) Challenge(device string) (wire.Challenge, error) {
	if !atelier.IsID(device) {
		return wire.Challenge{}, atelier.Errorf(atelier.Invalid, "%q is no device's id", device[:min(len(device), 80)]).WithField("device")
	}
	expires := s.now().Add(nonceLife)
	nonce := make([]byte, nonceTime+nonceChance, nonceLen)
	binary.BigEndian.PutUint64(nonce, uint64(expires.UnixMilli()))
	if _, err := rand.Read(nonce[nonceTime:]); err != nil {
		return wire.Challenge{}, atelier.Errorf(atelier.Internal, "make a challenge: %w", err)
	}
	nonce = append(nonce, s.nonceMAC(device, nonce)...)
	return wire.Challenge{Nonce: base64.RawURLEncoding.EncodeToString(nonce), Expires: expires.UTC()}, nil
}

func (s *Service) nonceMAC(device string, head []byte) []byte {
	mac := hmac.New(sha256.New, s.nonceKey[:])
	mac.Write(head) // of fixed length, so that the two parts cannot run into each other
	mac.Write([]byte(device))
	return mac.Sum(nil)
}

// nonceOK reports whether the hub gave the nonce to the device, not too long ago.
func (s *Service) nonceOK(device, nonce string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(nonce)
	if err != nil || len(b) != nonceLen {
		return false
	}
	head, mac := b[:nonceTime+nonceChance], b[nonceTime+nonceChance:]
	return hmac.Equal(mac, s.nonceMAC(device, head)) &&
		s.now().UnixMilli() < int64(binary.BigEndian.Uint64(head))
}

// Renew issues a new certificate to a device that proves that it has the key it
// joined with; whether its present certificate is still valid does not matter.
// Unauthenticated without that proof, whatever is wrong; Forbidden where the proof is
// good and the device was revoked.
func (s *Service) Renew(ctx context.Context, req wire.RenewRequest) (wire.Renewal, error) {
	refused := atelier.Errorf(atelier.Unauthenticated, "the certificate was not renewed: the hub knows no such device, or the proof of its key is not good").
		WithRemedy("Ask for a new challenge and try again; if that does not help, join the device again with a new token.")
	_, key, err := trust.ParseCSR(req.CSR)
	if err != nil {
		return wire.Renewal{}, err
	}
	if !s.proves(req, key) {
		return wire.Renewal{}, refused
	}
	var device atelier.Device
	var workspace string
	err = s.store.View(ctx, func(tx store.Tx) (err error) {
		device, workspace, err = deviceByKey(tx, req.Device, key)
		return err
	})
	if atelier.CodeOf(err) == atelier.NotFound {
		return wire.Renewal{}, refused
	}
	if err != nil {
		return wire.Renewal{}, err
	}
	if err := s.authorize(ctx, access.DeviceRenew, device, workspace); err != nil {
		return wire.Renewal{}, err
	}
	var cert issued
	err = s.store.Update(ctx, access.By(asDevice(ctx, device, workspace)), func(tx store.Tx) error {
		d, err := catalog.Devices.Get(tx, workspace, device.ID)
		if err != nil {
			return err
		}
		if d.Revoked != nil {
			return errRevoked()
		}
		if cert, err = s.issue(tx, workspace, d.ID, req.CSR); err != nil {
			return err
		}
		d.Certificate = cert.Info
		_, err = catalog.Devices.Update(tx, workspace, d)
		return err
	})
	if atelier.CodeOf(err) == atelier.NotFound { // deleted in between
		return wire.Renewal{}, refused
	}
	if err != nil {
		return wire.Renewal{}, err
	}
	return wire.Renewal{Certificate: string(cert.PEM), CA: string(s.authority.CAPEM()), MQTT: s.mqtt}, nil
}

// proves reports whether the proof in req was made with key, for this request
// and a challenge of ours. The key is the request's own: the device keeps the one
// that it joined with, and whether it is registered is for the caller to find out.
func (s *Service) proves(req wire.RenewRequest, key trust.PublicKey) bool {
	payloadType, payload, err := trust.Open(req.Proof, trust.NewKeySet(key))
	if err != nil || payloadType != wire.TypeRenewProof {
		return false
	}
	var proof wire.RenewProof
	if json.Unmarshal(payload, &proof) != nil {
		return false
	}
	return proof.Device == req.Device && proof.CSR == atelier.DigestOf(req.CSR) && s.nonceOK(req.Device, proof.Nonce)
}
