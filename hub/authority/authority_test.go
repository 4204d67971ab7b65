package authority

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
	"github.com/atelier-edge/atelier/internal/trust"
)

const (
	workspace = "01j00000000000000000000001"
	another   = "01j00000000000000000000002"
	device    = "01j0000000000000000000000d"
)

// clock is a clock that the test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func open(t testing.TB, o Options) *Authority {
	t.Helper()
	a, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestOpenMakesKeysOnceAndKeepsThem(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "authority")
	a := open(t, Options{Dir: dir})
	if _, err := a.StateSigner(workspace); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s can be read by others: %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, Options{Dir: dir})
	if a.Fingerprint() != b.Fingerprint() {
		t.Fatal("a restart made another authority")
	}
	before, err := a.StateSigner(workspace)
	if err != nil {
		t.Fatal(err)
	}
	after, err := b.StateSigner(workspace)
	if err != nil || !before.Public().Equal(after.Public()) {
		t.Fatalf("a restart made another state key: %v", err)
	}
	if life := a.CA().NotAfter.Sub(a.CA().NotBefore); life < 10*365*24*time.Hour {
		t.Fatalf("the authority lasts %s, want 10 years at least", life)
	}
}

func TestFirstStartSurvivesAPowerCutAtEveryStep(t *testing.T) {
	t.Parallel()
	start := func(disk *durabletest.Disk) (*Authority, error) {
		a, err := Open(Options{Dir: "/hub/authority", FS: disk})
		if err == nil {
			_, err = a.StateSigner(workspace)
		}
		return a, err
	}
	for n := 1; ; n++ {
		disk := durabletest.NewDisk()
		disk.CutAt(n)
		first, err := start(disk)
		disk.Restart(nil)
		second, again := start(disk)
		if again != nil {
			t.Fatalf("after a cut at step %d: %v", n, again)
		}
		if err == nil {
			if first.Fingerprint() != second.Fingerprint() {
				t.Fatal("what was there before the cut is gone")
			}
			return
		}
	}
}

func TestDamagedFilesAreNamed(t *testing.T) {
	t.Parallel()
	for _, file := range []string{caKeyFile, caCertFile, rootFile, filepath.Join(stateDir, workspace+stateExt)} {
		dir := t.TempDir()
		a := open(t, Options{Dir: dir})
		if _, err := a.StateSigner(workspace); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(Options{Dir: dir})
		var e *atelier.Error
		if !errors.As(err, &e) || e.Code != atelier.Corrupt || !strings.Contains(e.Message, file) || e.Remedy == "" {
			t.Fatalf("%s: got %v, want a Corrupt that names it and says what to do", file, err)
		}
	}
	dir := t.TempDir()
	open(t, Options{Dir: dir})
	if err := os.Remove(filepath.Join(dir, caKeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); atelier.CodeOf(err) != atelier.Corrupt {
		t.Fatalf("the authority's key is gone and Open returned %v", err)
	}
	other := t.TempDir()
	open(t, Options{Dir: other})
	if err := os.Rename(filepath.Join(other, caKeyFile), filepath.Join(dir, caKeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); atelier.CodeOf(err) != atelier.Corrupt {
		t.Fatalf("the key is another authority's and Open returned %v", err)
	}
}

func TestRevocationList(t *testing.T) {
	t.Parallel()
	a := open(t, Options{Dir: t.TempDir()})
	cert := issue(t, a, device)
	b, err := a.RevocationList([]Revoked{{Serial: Serial(cert.Leaf), Time: time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := list.CheckSignatureFrom(a.CA()); err != nil {
		t.Fatal(err)
	}
	if len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(cert.Leaf.SerialNumber) != 0 {
		t.Fatalf("the list holds %v", list.RevokedCertificateEntries)
	}
	if _, err := a.RevocationList([]Revoked{{Serial: "not hex"}}); err == nil {
		t.Fatal("a serial number that is none was listed")
	}
}

func TestIssueDeviceTakesOnlyTheKey(t *testing.T) {
	t.Parallel()
	c := newClock()
	a := open(t, Options{Dir: t.TempDir(), Now: c.Now, DeviceLife: 48 * time.Hour})
	key, err := trust.NewDeviceKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := trust.NewCSR(key, "hub")
	if err != nil {
		t.Fatal(err)
	}
	got, err := a.IssueDevice(device, csr)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := trust.ParseCertificate(got.PEM)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := DeviceID(cert); err != nil || id != device {
		t.Fatalf("issued to %q, %v", id, err)
	}
	if cert.IsCA || len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || len(cert.DNSNames) != 0 {
		t.Fatalf("the certificate allows more than to be a client: %+v", cert)
	}
	if !cert.NotBefore.Equal(c.Now().Add(-time.Hour)) || !cert.NotAfter.Equal(c.Now().Add(48*time.Hour)) {
		t.Fatalf("valid from %s to %s", cert.NotBefore, cert.NotAfter)
	}
	if want := (atelier.CertInfo{Serial: Serial(cert), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}); got.Info != want {
		t.Fatalf("recorded %+v, want %+v", got.Info, want)
	}
	if _, err := a.IssueDevice("../../etc", csr); err == nil {
		t.Fatal("issued to what is no id")
	}
	c.Add(20*365*24*time.Hour - 24*time.Hour)
	if got, err = a.IssueDevice(device, csr); err != nil || !got.Info.NotAfter.Equal(a.CA().NotAfter) {
		t.Fatalf("valid until %s after the authority's end %s, %v", got.Info.NotAfter, a.CA().NotAfter, err)
	}
}

// A device renews at two thirds of what its certificate says: however shortly it
// lives, that must lie ahead when it is issued.
func TestShortCertificatesAreNotDueAtOnce(t *testing.T) {
	t.Parallel()
	c := newClock()
	key, err := trust.NewDeviceKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := trust.NewCSR(key, device)
	if err != nil {
		t.Fatal(err)
	}
	for _, life := range []time.Duration{time.Minute, 30 * time.Minute, 2 * time.Hour, DefaultDeviceLife} {
		a := open(t, Options{Dir: t.TempDir(), Now: c.Now, DeviceLife: life})
		got, err := a.IssueDevice(device, csr)
		if err != nil {
			t.Fatal(err)
		}
		from, until := got.Info.NotBefore, got.Info.NotAfter
		if due := from.Add(until.Sub(from) / 3 * 2); due.Sub(c.Now()) < life/2 {
			t.Errorf("a life of %s: due %s after it was issued", life, due.Sub(c.Now()))
		}
		if !from.Before(c.Now()) {
			t.Errorf("a life of %s: it begins at %s, not before now", life, from)
		}
	}
}

// issue gives device a certificate with its key.
func issue(t testing.TB, a *Authority, device string) tls.Certificate {
	t.Helper()
	key, err := trust.NewDeviceKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := trust.NewCSR(key, "host")
	if err != nil {
		t.Fatal(err)
	}
	got, err := a.IssueDevice(device, csr)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := trust.ParseCertificate(got.PEM)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// follower is a device that holds what it was given at joining.
type follower struct{ *trust.Pinned }

func join(t testing.TB, a *Authority) follower {
	t.Helper()
	root, delegation, err := a.Pin(workspace)
	if err != nil {
		t.Fatal(err)
	}
	p, err := trust.Pin(workspace, root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Apply(delegation); err != nil {
		t.Fatal(err)
	}
	return follower{p}
}

// catchUp applies what the hub sends after hello.
func (f follower) catchUp(t testing.TB, a *Authority) {
	t.Helper()
	root, delegation := f.Versions()
	chain, err := a.TrustChain(workspace, root, delegation)
	if err != nil {
		t.Fatal(err)
	}
	for _, envelope := range chain {
		if _, err := f.Apply(envelope); err != nil {
			t.Fatal(err)
		}
	}
}

// accepts fails unless f opens what the workspace's state key signs now.
func (f follower) accepts(t testing.TB, a *Authority) {
	t.Helper()
	s, err := a.StateSigner(workspace)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := trust.Sign("state", []byte("{}"), s)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := trust.Open(raw, f.StateKeys(workspace)); err != nil {
		t.Fatal(err)
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), context.Background()
	a := open(t, Options{Dir: dir})
	old := join(t, a) // and away through all that follows
	f := join(t, a)
	f.accepts(t, a)
	leaked, err := a.StateSigner(workspace)
	if err != nil {
		t.Fatal(err)
	}
	if chain, err := a.TrustChain(workspace, 1, 1); err != nil || len(chain) != 0 {
		t.Fatalf("a device that has everything gets %d envelopes, %v", len(chain), err)
	}
	if err := a.RotateStateKey(ctx, workspace); err != nil {
		t.Fatal(err)
	}
	f.catchUp(t, a)
	f.accepts(t, a)
	if raw, err := trust.Sign("state", []byte("{}"), leaked); err != nil {
		t.Fatal(err)
	} else if _, _, err := trust.Open(raw, f.StateKeys(workspace)); err == nil {
		t.Fatal("the old state key is still accepted")
	}
	for range 2 {
		if err := a.RotateRoot(ctx); err != nil {
			t.Fatal(err)
		}
		f.catchUp(t, a)
		f.accepts(t, a)
	}
	a = open(t, Options{Dir: dir})
	f.catchUp(t, a)
	f.accepts(t, a)
	old.catchUp(t, a)
	old.accepts(t, a)
	if root, delegation := old.Versions(); root != 3 || delegation != 4 {
		t.Fatalf("root %d, delegation %d; want 3 and 4", root, delegation)
	}
	if _, err := a.StateSigner("../" + workspace); err == nil {
		t.Fatal("a path passed for a workspace")
	}
}

func TestWorkspacesHaveKeysOfTheirOwn(t *testing.T) {
	t.Parallel()
	a := open(t, Options{Dir: t.TempDir()})
	one, err := a.StateSigner(workspace)
	if err != nil {
		t.Fatal(err)
	}
	two, err := a.StateSigner(another)
	if err != nil || one.Public().Equal(two.Public()) {
		t.Fatalf("two workspaces share a key: %v", err)
	}
	if err := a.RotateStateKey(context.Background(), another); err != nil {
		t.Fatal(err)
	}
	if again, err := a.StateSigner(workspace); err != nil || !again.Public().Equal(one.Public()) {
		t.Fatalf("a rotation reached another workspace: %v", err)
	}
}

// Whatever step a rotation is cut at, the next start has keys that every device
// can follow to.
func TestRotationSurvivesAPowerCutAtEveryStep(t *testing.T) {
	t.Parallel()
	const dir = "/authority"
	for name, rotate := range map[string]func(*Authority) error{
		"root":  func(a *Authority) error { return a.RotateRoot(context.Background()) },
		"state": func(a *Authority) error { return a.RotateStateKey(context.Background(), workspace) },
	} {
		for n := 1; ; n++ {
			disk := durabletest.NewDisk()
			a := open(t, Options{Dir: dir, FS: disk})
			f := join(t, a)
			if _, err := a.StateSigner(another); err != nil {
				t.Fatal(err)
			}
			disk.CutAt(n)
			err := rotate(a)
			disk.Restart(nil)
			a, again := Open(Options{Dir: dir, FS: disk})
			if again != nil {
				t.Fatalf("%s, cut at step %d: %v", name, n, again)
			}
			f.catchUp(t, a)
			f.accepts(t, a)
			if err == nil {
				break
			}
		}
	}
}

func TestTheRootIsReplacedBeforeItsEnd(t *testing.T) {
	t.Parallel()
	dir, c := t.TempDir(), newClock()
	f := join(t, open(t, Options{Dir: dir, Now: c.Now}))
	c.Add(rootLife - rootReissue + time.Hour)
	a := open(t, Options{Dir: dir, Now: c.Now})
	f.catchUp(t, a)
	f.accepts(t, a)
	if root, _ := f.Versions(); root != 2 {
		t.Fatalf("root version %d, want 2", root)
	}
}

func FuzzParseKeyFiles(f *testing.F) {
	a := open(f, Options{Dir: f.TempDir()})
	s, err := a.StateSigner(workspace)
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range []string{rootFile, filepath.Join(stateDir, workspace+stateExt)} {
		b, err := os.ReadFile(filepath.Join(a.dir, file))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"key":"","chain":[null]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseRoot(b); err == nil {
			if _, err := json.Marshal(rootJSON{Chain: r.chain}); err != nil {
				t.Fatalf("a root was read that cannot be written: %v", err)
			}
		}
		if got, _, err := parseState(b, a.root, workspace); err == nil && !got.signer.Public().Equal(s.Public()) {
			t.Fatal("another key was read for the workspace")
		}
	})
}
