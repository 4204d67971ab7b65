package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"

	atelier "github.com/atelier-edge/atelier"
)

// maxSPKI bounds a public key's encoding in bytes; P-256 takes 91.
const maxSPKI = 256

// PublicKey is a public key of a kind that Atelier verifies with: Ed25519 or
// ECDSA P-256. The zero value is no key. Its JSON form is the base64 of its
// SubjectPublicKeyInfo.
type PublicKey struct {
	spki string
	key  crypto.PublicKey
}

// NewPublicKey returns k as a PublicKey; an *atelier.Error with code Invalid
// where it is of another kind.
func NewPublicKey(k crypto.PublicKey) (PublicKey, error) {
	switch k := k.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return PublicKey{}, atelier.Errorf(atelier.Invalid, "the key is on curve %s, expected P-256", k.Curve.Params().Name)
		}
	default:
		return PublicKey{}, atelier.Errorf(atelier.Invalid, "the key is of kind %T, expected Ed25519 or ECDSA P-256", k)
	}
	spki, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return PublicKey{}, atelier.Errorf(atelier.Invalid, "encode a public key: %w", err)
	}
	return PublicKey{string(spki), k}, nil
}

// ParsePublicKey reads a SubjectPublicKeyInfo in DER.
func ParsePublicKey(spki []byte) (PublicKey, error) {
	if len(spki) > maxSPKI {
		return PublicKey{}, atelier.Errorf(atelier.Invalid, "the public key has %d bytes, expected at most %d", len(spki), maxSPKI)
	}
	k, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return PublicKey{}, atelier.Errorf(atelier.Invalid, "the public key is no SubjectPublicKeyInfo: %w", err)
	}
	// Encoded anew, so that one key has one encoding and with it one id.
	return NewPublicKey(k)
}

// ID is the SHA-256 of the key's SubjectPublicKeyInfo in hex: the keyid of
// envelopes and the fingerprint of devices.
func (k PublicKey) ID() string {
	sum := sha256.Sum256([]byte(k.spki))
	return hex.EncodeToString(sum[:])
}

// SPKI returns the key's SubjectPublicKeyInfo in DER.
func (k PublicKey) SPKI() []byte { return []byte(k.spki) }

// PEM returns the key as PEM, in the form that OpenSSL and cosign read.
func (k PublicKey) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.SPKI()})
}

// Equal reports whether both are the same key.
func (k PublicKey) Equal(other PublicKey) bool { return k.spki == other.spki }

// MarshalJSON writes the base64 of the SubjectPublicKeyInfo.
func (k PublicKey) MarshalJSON() ([]byte, error) { return json.Marshal([]byte(k.spki)) }

// UnmarshalJSON reads what MarshalJSON writes.
func (k *PublicKey) UnmarshalJSON(b []byte) error {
	var spki []byte
	if err := json.Unmarshal(b, &spki); err != nil {
		return err
	}
	parsed, err := ParsePublicKey(spki)
	if err != nil {
		return err
	}
	*k = parsed
	return nil
}

func (k PublicKey) verify(message, sig []byte) bool {
	switch key := k.key.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(key, message, sig)
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(message)
		return ecdsa.VerifyASN1(key, sum[:], sig)
	}
	return false
}

// KeySet holds public keys by their ids.
type KeySet map[string]PublicKey

// NewKeySet returns the set of keys.
func NewKeySet(keys ...PublicKey) KeySet {
	set := make(KeySet, len(keys))
	for _, k := range keys {
		set[k.ID()] = k
	}
	return set
}

// Signer signs with one private key, which may be in a TPM.
type Signer struct {
	private crypto.Signer
	public  PublicKey
}

// NewSigner returns a Signer with private, an Ed25519 or ECDSA P-256 key.
func NewSigner(private crypto.Signer) (Signer, error) {
	public, err := NewPublicKey(private.Public())
	return Signer{private, public}, err
}

// Public returns the key that verifies what s signs.
func (s Signer) Public() PublicKey { return s.public }

// SignRaw signs message alone, in no envelope: ASN.1 of ECDSA over its SHA-256, or
// Ed25519. It is for forms of others in which a signature stands by itself; what Atelier
// reads is signed with Sign.
func (s Signer) SignRaw(message []byte) ([]byte, error) { return s.sign(message) }

func (s Signer) sign(message []byte) ([]byte, error) {
	if s.private == nil {
		return nil, atelier.Errorf(atelier.Internal, "a signer without a key was asked to sign")
	}
	if _, ok := s.public.key.(ed25519.PublicKey); ok {
		return s.private.Sign(rand.Reader, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	return s.private.Sign(rand.Reader, sum[:], crypto.SHA256)
}
