// Package enrol is the device's side of enrolment: it joins a hub, keeps the
// identity that it was given, and renews its certificate.
//
// The identity is one file, readable by the agent's user only, that is written
// whole or not at all. A join that a crash interrupts leaves a key and no
// identity; the next attempt goes on with that key, so that the hub knows the
// device again and the join token is not used twice. Nothing is believed of a
// hub whose authority does not have the fingerprint that the operator gave. The
// package knows no MQTT.
package enrol

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// What lies in a state directory.
const (
	dirName      = "identity"
	identityFile = "identity.json" // the whole identity, with its key
	joiningFile  = "joining.pem"   // the key of a join that has not finished
)

// Identity is who a device is and which hub it belongs to. Its methods are safe
// for concurrent use; the fields do not change.
type Identity struct {
	Hub           string // the hub's HTTPS address
	Device        string // id
	Name          string // when it joined
	Workspace     string // id
	WorkspaceName string // when it joined
	Shard         string // the topic shard to publish under
	// Root and Delegation are the trust envelopes that came at joining. Newer ones
	// are kept by agent/state.
	Root, Delegation wire.Raw

	fs    durable.FS
	path  string
	clock clock
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey

	mu    sync.Mutex // guards what renewal changes
	saved saved
	cert  *x509.Certificate
}

const identityFormat = 1

// saved is the form of identityFile.
type saved struct {
	Hub           string   `json:"hub"`
	Device        string   `json:"device"`
	Name          string   `json:"name"`
	Workspace     string   `json:"workspace"`
	WorkspaceName string   `json:"workspace_name"`
	Shard         string   `json:"shard"`
	MQTT          []string `json:"mqtt"`
	CA            string   `json:"ca"`          // PEM
	Certificate   string   `json:"certificate"` // PEM
	Key           string   `json:"key"`         // PEM
	Root          wire.Raw `json:"root"`
	Delegation    wire.Raw `json:"delegation"`
}

// Options say where an identity lies. FS, Now and Uptime may be nil for the real ones.
type Options struct {
	StateDir string
	FS       durable.FS
	Now      func() time.Time
	// Uptime is the time since some moment of the past, whatever becomes of the
	// clock; best one that goes on while the machine is suspended.
	Uptime func() time.Duration
}

func (o Options) complete() Options {
	if o.FS == nil {
		o.FS = durable.OS{}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Uptime == nil {
		began := time.Now()
		o.Uptime = func() time.Duration { return time.Since(began) }
	}
	return o
}

func (o Options) path(file string) string { return filepath.Join(o.StateDir, dirName, file) }

// Load reads the identity in the state directory. NotFound where the device has
// not joined, Corrupt where the file is damaged.
func Load(o Options) (*Identity, error) {
	o = o.complete()
	path := o.path(identityFile)
	b, err := durable.ReadFile(o.FS, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, atelier.Errorf(atelier.NotFound, "this device has not joined a hub: there is no %s", path).
			WithRemedy("Run the 'atelier-agent join …' that 'atelier device token' prints.")
	}
	if err != nil {
		return nil, err
	}
	id, err := o.parse(b)
	if atelier.CodeOf(err) == atelier.Unsupported {
		return nil, err
	}
	if err != nil {
		return nil, atelier.Errorf(atelier.Corrupt, "the device's identity in %s cannot be used: %w", path, err).
			WithRemedy("Join again with --replace and a new join token.")
	}
	return id, nil
}

// parse reads and checks what is saved. It does not look at the clock: an
// expired certificate is for the Renewer.
func (o Options) parse(b []byte) (*Identity, error) {
	var s saved
	if err := durable.Decode(b, o.path(identityFile), identityFormat, &s); err != nil {
		return nil, err
	}
	if !atelier.IsID(s.Device) || !atelier.IsID(s.Workspace) {
		return nil, atelier.Errorf(atelier.Invalid, "it names no device or no workspace")
	}
	if _, err := hubURL(s.Hub); err != nil {
		return nil, err
	}
	ca, err := trust.ParseCertificate([]byte(s.CA))
	if err != nil {
		return nil, err
	}
	key, err := parseKey([]byte(s.Key))
	if err != nil {
		return nil, err
	}
	cert, err := checkCertificate(s.Certificate, s.Device, ca, key)
	if err != nil {
		return nil, err
	}
	pinned, err := trust.Pin(s.Workspace, s.Root)
	if err != nil {
		return nil, err
	}
	if _, err := pinned.Apply(s.Delegation); err != nil {
		return nil, err
	}
	return &Identity{
		Hub: s.Hub, Device: s.Device, Name: s.Name, Workspace: s.Workspace, WorkspaceName: s.WorkspaceName,
		Shard: s.Shard, Root: s.Root, Delegation: s.Delegation,
		fs: o.FS, path: o.path(identityFile), clock: clock{now: o.Now, uptime: o.Uptime},
		ca: ca, key: key, saved: s, cert: cert,
	}, nil
}

func parseKey(b []byte) (*ecdsa.PrivateKey, error) {
	key, err := trust.ParseKey(b)
	if err != nil {
		return nil, err
	}
	device, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, atelier.Errorf(atelier.Invalid, "the device's key is of kind %T, expected ECDSA P-256", key)
	}
	return device, nil
}

// checkCertificate reads a certificate that the hub sent, and checks that it is
// what was asked for: the device's, for its key, by the pinned authority.
func checkCertificate(pemText, device string, ca *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	cert, err := trust.ParseCertificate([]byte(pemText))
	if err != nil {
		return nil, err
	}
	if cert.Subject.CommonName != device || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, atelier.Errorf(atelier.Invalid, "the certificate is not for device %s and its key", device)
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "the certificate is not by the pinned authority: %w", err)
	}
	return cert, nil
}

// MQTT returns the addresses of the hub's broker in the order in which to try them.
func (id *Identity) MQTT() []string {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.saved.MQTT
}

// Certificate returns the device's present certificate.
func (id *Identity) Certificate() *x509.Certificate {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.cert
}

// Signer signs what the device says.
func (id *Identity) Signer() (trust.Signer, error) { return trust.NewSigner(id.key) }

// TLSConfig returns the configuration for a connection to the hub, at host, with
// the present certificate. Ask for it with each connection, since renewal replaces it.
func (id *Identity) TLSConfig(host string) (*tls.Config, error) {
	cert := id.Certificate()
	cfg := id.toHub(host)
	cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: id.key, Leaf: cert}}
	return cfg, nil
}

// toHub trusts the pinned authority and nobody else. Everything is verified that
// crypto/tls would verify; it is done here because the time to verify at depends
// on the certificate (see judge), and that is what crypto/tls cannot be told.
func (id *Identity) toHub(host string) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(id.ca)
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: host, InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			leaf, more := s.PeerCertificates[0], x509.NewCertPool()
			for _, c := range s.PeerCertificates[1:] {
				more.AddCert(c)
			}
			_, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: more, CurrentTime: id.judge(leaf)})
			if err == nil {
				err = leaf.VerifyHostname(host) // also where host is empty, which Verify passes over
			}
			if err != nil {
				return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
			}
			id.clock.admitted(leaf.NotAfter)
			return nil
		},
	}
}

// verifying is the TLS configuration that trusts ca and nobody else, and judges
// certificates by the time now, but not by one before ca was made.
func verifying(ca *x509.Certificate, now func() time.Time) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: pool,
		Time: func() time.Time {
			if t := now(); t.After(ca.NotBefore) {
				return t
			}
			return ca.NotBefore
		},
	}
}

// renewed saves a new certificate, and uses it from then on.
func (id *Identity) renewed(r wire.Renewal) (*x509.Certificate, error) {
	cert, err := checkCertificate(r.Certificate, id.Device, id.ca, id.key)
	if err != nil {
		return nil, err
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	next := id.saved
	next.Certificate = r.Certificate
	if len(r.MQTT) > 0 {
		next.MQTT = r.MQTT
	}
	b, err := encode(next)
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(id.fs, id.path, b, 0o600); err != nil {
		return nil, err
	}
	id.saved, id.cert = next, cert
	id.clock.issued(cert.NotBefore, cert.NotAfter)
	return cert, nil
}

func encode(s saved) ([]byte, error) {
	b, err := durable.Encode(identityFormat, s)
	if err != nil {
		return nil, err
	}
	var lines bytes.Buffer
	if err := json.Indent(&lines, b, "", "  "); err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode the device's identity: %w", err)
	}
	lines.WriteByte('\n')
	return lines.Bytes(), nil
}
