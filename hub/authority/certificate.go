package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/trust"
)

const (
	caKeyFile  = "ca.key"
	caCertFile = "ca.crt"
)

type signer = crypto.Signer

// openCA reads the authority's key and certificate, or makes them. The key is
// written first: a certificate without its key never exists.
func (a *Authority) openCA() error {
	keyPath, certPath := filepath.Join(a.dir, caKeyFile), filepath.Join(a.dir, caCertFile)
	keyPEM, haveKey, err := a.read(keyPath)
	if err != nil {
		return err
	}
	certPEM, haveCert, err := a.read(certPath)
	if err != nil {
		return err
	}
	if !haveKey {
		if haveCert {
			return damaged(keyPath, atelier.Errorf(atelier.NotFound, "it is missing, while %s is there", certPath))
		}
		if keyPEM, err = a.newKey(keyPath); err != nil {
			return err
		}
	}
	if a.caKey, err = trust.ParseKey(keyPEM); err != nil {
		return damaged(keyPath, err)
	}
	if !haveCert {
		return a.newCA(certPath)
	}
	if a.ca, err = trust.ParseCertificate(certPEM); err != nil {
		return damaged(certPath, err)
	}
	public, ok := a.caKey.Public().(*ecdsa.PublicKey)
	if !ok || !public.Equal(a.ca.PublicKey) {
		return damaged(certPath, atelier.Errorf(atelier.Invalid, "it is not for the key in %s", keyPath))
	}
	return nil
}

func (a *Authority) newKey(path string) ([]byte, error) {
	key, err := trust.NewDeviceKey() // P-256 too: every TLS library takes it
	if err != nil {
		return nil, err
	}
	b, err := trust.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	return b, a.write(path, b)
}

func (a *Authority) newCA(path string) error {
	serial, err := newSerial()
	if err != nil {
		return err
	}
	now := a.now()
	template := &x509.Certificate{
		SerialNumber: serial,
		// A part of the serial number keeps the authorities of two hubs apart
		// where both are trusted.
		Subject:               pkix.Name{CommonName: "Atelier hub " + hex.EncodeToString(serial.Bytes()[:4])},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.caKey.Public(), a.caKey)
	if err != nil {
		return atelier.Errorf(atelier.Internal, "make the authority's certificate: %w", err)
	}
	if a.ca, err = x509.ParseCertificate(der); err != nil {
		return atelier.Errorf(atelier.Internal, "read the authority's new certificate: %w", err)
	}
	return a.write(path, a.CAPEM())
}

// Certificate is a certificate that was issued.
type Certificate struct {
	PEM  []byte
	Info atelier.CertInfo
}

// IssueDevice issues a certificate to the device with the id, for the key in
// csr, a PKCS #10 request in DER. Of the request only the key is taken. The
// caller has decided that the device may have it, and records the serial number.
func (a *Authority) IssueDevice(device string, csr []byte) (Certificate, error) {
	if !atelier.IsID(device) {
		return Certificate{}, atelier.Errorf(atelier.Internal, "a certificate was to be issued to %q, which is no device's id", device)
	}
	request, _, err := trust.ParseCSR(csr)
	if err != nil {
		return Certificate{}, err
	}
	cert, err := a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: device},
		// Where it lives shortly, two thirds of its life must not be over as it begins.
		NotBefore:   a.now().Add(-min(skew, a.deviceLife/10)),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.deviceLife, request.PublicKey)
	if err != nil {
		return Certificate{}, err
	}
	return Certificate{
		PEM: trust.EncodeCertificate(cert.Raw),
		Info: atelier.CertInfo{
			Serial: Serial(cert), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
		},
	}, nil
}

// issue completes and signs template, which says from when it is valid, for the
// public key.
func (a *Authority) issue(template *x509.Certificate, life time.Duration, public crypto.PublicKey) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotAfter = a.now().Add(life)
	if template.NotAfter.After(a.ca.NotAfter) {
		template.NotAfter = a.ca.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, a.ca, public, a.caKey)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "issue a certificate to %s: %w", template.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "read the certificate that was issued to %s: %w", template.Subject.CommonName, err)
	}
	return cert, nil
}

// Serial returns a certificate's serial number as it is recorded: in hex.
func Serial(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

// newSerial returns a random serial number of 16 bytes whose first is neither 0
// nor over 0x7f, so that it is positive and always as long.
func newSerial() (*big.Int, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, atelier.Errorf(atelier.Internal, "make a serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:]), nil
}

// crlLife is how long a revocation list may be used: a broker that gets no newer
// one refuses everybody afterwards.
const crlLife = 30 * 24 * time.Hour

// Revoked is a certificate to be put on the revocation list.
type Revoked struct {
	Serial string // as Serial writes it
	Time   time.Time
}

// RevocationList returns the signed list of revoked certificates as PEM, for
// external brokers, which cannot ask the hub. It is valid for 30 days.
func (a *Authority) RevocationList(revoked []Revoked) ([]byte, error) {
	now := a.now()
	template := &x509.RevocationList{
		Number:     big.NewInt(now.UnixMilli()),
		ThisUpdate: now.Add(-skew),
		NextUpdate: now.Add(crlLife),
	}
	for _, r := range revoked {
		serial, ok := new(big.Int).SetString(r.Serial, 16)
		if !ok {
			return nil, atelier.Errorf(atelier.Corrupt, "the serial number %q of a revoked certificate is not hexadecimal", r.Serial)
		}
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serial, RevocationTime: r.Time})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.ca, a.caKey)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "sign the revocation list: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), nil
}
