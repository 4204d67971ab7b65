package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// The types of PEM blocks.
const (
	pemKey  = "PRIVATE KEY" // PKCS #8
	pemCert = "CERTIFICATE"
)

// maxCSR bounds a certificate signing request in bytes.
const maxCSR = 16 << 10

// NewDeviceKey makes a device's key: ECDSA P-256, so that one made in a TPM can
// take its place.
func NewDeviceKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "make a device key: %w", err)
	}
	return key, nil
}

// NewHubKey makes a key of the hub's: Ed25519.
func NewHubKey() (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "make a signing key: %w", err)
	}
	return key, nil
}

// EncodeKey returns a private key as PEM (PKCS #8).
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// ParseKey reads what EncodeKey wrote. The error never holds a part of the key.
func ParseKey(b []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != pemKey {
		return nil, atelier.Errorf(atelier.Invalid, "the private key is not PEM with a block %q", pemKey)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "the private key is not of PKCS #8")
	}
	key, ok := k.(crypto.Signer)
	if !ok {
		return nil, atelier.Errorf(atelier.Invalid, "the private key is of kind %T, which cannot sign", k)
	}
	if _, err := NewPublicKey(key.Public()); err != nil {
		return nil, err
	}
	return key, nil
}

// EncodeCertificate returns a certificate as PEM.
func EncodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: der})
}

// ParseCertificate reads the one certificate in a PEM file.
func ParseCertificate(b []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemCert {
		return nil, atelier.Errorf(atelier.Invalid, "the certificate is not PEM with a block %q", pemCert)
	}
	if len(strings.TrimSpace(string(rest))) > 0 {
		return nil, atelier.Errorf(atelier.Invalid, "the certificate is followed by %d more bytes, expected one certificate", len(rest))
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "the certificate cannot be read: %w", err)
	}
	return cert, nil
}

// NewCSR returns a certificate signing request in DER for key. Its common name
// is what the device calls itself; the hub puts the device's id in its place.
func NewCSR(key crypto.Signer, name string) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "make a certificate signing request: %w", err)
	}
	return der, nil
}

// ParseCSR reads a certificate signing request, and checks that it was signed by
// the key that it names and that the key is ECDSA P-256.
func ParseCSR(der []byte) (*x509.CertificateRequest, PublicKey, error) {
	bad := func(err error) (*x509.CertificateRequest, PublicKey, error) {
		return nil, PublicKey{}, atelier.Errorf(atelier.Invalid, "the certificate signing request is not acceptable: %w", err).
			WithField("csr").WithRemedy("Send a PKCS #10 request for an ECDSA P-256 key, in DER, signed by that key.")
	}
	if len(der) > maxCSR {
		return bad(atelier.Errorf(atelier.Invalid, "it has %d bytes, expected at most %d", len(der), maxCSR))
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return bad(err)
	}
	if err := csr.CheckSignature(); err != nil {
		return bad(err)
	}
	if _, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok {
		return bad(atelier.Errorf(atelier.Invalid, "its key is of kind %T, expected ECDSA P-256", csr.PublicKey))
	}
	public, err := NewPublicKey(csr.PublicKey)
	if err != nil {
		return bad(err)
	}
	return csr, public, nil
}

// Fingerprint is the SHA-256 of a certificate's DER: what people compare when
// they pin an authority. It is printed as "sha256:" and 64 hexadecimal digits.
func Fingerprint(cert *x509.Certificate) atelier.Digest { return atelier.DigestOf(cert.Raw) }

// ParseFingerprint reads a fingerprint as people have it at hand: with or
// without "sha256:" before it, with or without colons between the bytes, in
// either case.
func ParseFingerprint(s string) (atelier.Digest, error) {
	hexa := strings.ToLower(strings.TrimSpace(s))
	for _, prefix := range []string{"sha256:", "sha256 fingerprint="} { // the latter is openssl's
		hexa = strings.TrimPrefix(hexa, prefix)
	}
	d, err := atelier.ParseDigest("sha256:" + strings.ReplaceAll(hexa, ":", ""))
	if err != nil {
		return "", atelier.Errorf(atelier.Invalid, "fingerprint %q is not the SHA-256 of a certificate", clip(s)).
			WithField("fingerprint").WithRemedy("Copy it from 'atelier device token' or from the hub's log: 64 hexadecimal digits.")
	}
	return d, nil
}
