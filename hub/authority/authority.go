// Package authority holds the hub's keys and says what they vouch for: the
// certificate authority, with the certificates of the hub and of its devices;
// the root that devices pin; and a state key for each workspace, delegated by the
// root, that signs desired states. The delegation also names the keys that sign the
// workspace's container images, whose private halves hub/signing keeps.
//
// Everything lies in one directory, private keys readable by the hub's user
// only, and each file is written whole or not at all; a rotation that a crash
// interrupts is finished by the next Open. Whoever has the directory is the hub:
// back it up, and keep it to yourself. The package decides no permission and
// keeps no record of devices: hub/enrol does.
package authority

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/trust"
)

// Defaults and fixed terms.
const (
	// DefaultDeviceLife is how long a device's certificate is valid. Devices
	// renew at two thirds of it.
	DefaultDeviceLife = 30 * 24 * time.Hour

	authorityLife = 20 * 365 * 24 * time.Hour
	rootLife      = 10 * 365 * 24 * time.Hour
	// rootReissue is how long before its end the root is replaced.
	rootReissue = 365 * 24 * time.Hour
	serverLife  = 397 * 24 * time.Hour // what browsers accept at most
	// skew is how far back a certificate's validity begins, for peers whose
	// clocks are slow.
	skew = time.Hour
)

// Options say how to open an Authority.
type Options struct {
	Dir string     // made when it is missing
	FS  durable.FS // nil is the operating system's
	// Names are the DNS names and IP addresses under which the hub is reached.
	// "localhost", the loopback addresses and the host's name are always added.
	Names      []string
	DeviceLife time.Duration    // 0 is DefaultDeviceLife
	Now        func() time.Time // nil is time.Now
}

// Authority is the hub's certificate authority and keeper of keys. Its methods
// are safe for concurrent use.
type Authority struct {
	dir        string
	fs         durable.FS
	names      []string
	deviceLife time.Duration
	now        func() time.Time
	ca         *x509.Certificate
	caKey      signer

	mu     sync.Mutex // guards what follows, and the files
	server *tls.Certificate
	root   rootKeys
	states map[string]stateKey // by workspace
}

// Open opens the authority in o.Dir, and makes its keys at the first start.
func Open(o Options) (*Authority, error) {
	a := &Authority{
		dir: o.Dir, fs: o.FS, names: o.Names, deviceLife: o.DeviceLife, now: o.Now,
		states: map[string]stateKey{},
	}
	if a.fs == nil {
		a.fs = durable.OS{}
	}
	if a.deviceLife <= 0 {
		a.deviceLife = DefaultDeviceLife
	}
	if a.now == nil {
		a.now = time.Now
	}
	if err := durable.MkdirAll(a.fs, filepath.Join(a.dir, stateDir), 0o700); err != nil {
		return nil, err
	}
	for _, step := range []func() error{a.openCA, a.openRoot, a.openStates, a.reissueServer} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// CA returns the authority's certificate.
func (a *Authority) CA() *x509.Certificate { return a.ca }

// CAPEM returns the authority's certificate as PEM.
func (a *Authority) CAPEM() []byte { return trust.EncodeCertificate(a.ca.Raw) }

// Fingerprint returns the SHA-256 of the authority's certificate, which devices
// and operators compare before they trust the hub.
func (a *Authority) Fingerprint() atelier.Digest { return trust.Fingerprint(a.ca) }

// read returns the content of a file, and false where there is none.
func (a *Authority) read(path string) ([]byte, bool, error) {
	b, err := durable.ReadFile(a.fs, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	return b, err == nil, err
}

func (a *Authority) write(path string, data []byte) error {
	return durable.WriteFile(a.fs, path, data, 0o600)
}

// damaged says that a file of the authority's cannot be used.
func damaged(path string, err error) error {
	if atelier.CodeOf(err) == atelier.Unsupported {
		return err // of a newer hub
	}
	return atelier.Errorf(atelier.Corrupt, "the hub's key file %s cannot be used: %w", path, err).
		WithRemedy("Restore the hub's data directory from a backup. Without it every device must join anew.")
}
