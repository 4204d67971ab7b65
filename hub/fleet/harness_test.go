package fleet_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/authority"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/enrol"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/sqlite"
	"github.com/atelier-edge/atelier/hub/vault"
	"github.com/atelier-edge/atelier/internal/broker"
	"github.com/atelier-edge/atelier/internal/broker/brokertest"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

const patience = time.Minute

// hub is a hub's fleet with all its real parts.
type hub struct {
	t         testing.TB
	ctx       context.Context // an administrator's
	store     store.Store
	authority *authority.Authority
	enrol     *enrol.Service
	vault     *vault.Vault
	content   *content.Store
	access    *access.Authority
	sink      *sink
	fleet     *fleet.Fleet
	bus       broker.Bus
	url       string
	wrap      func(broker.Bus) broker.Bus
	stop      func()
	log       *slog.Logger
	uploads   string
	// differences is nil for a hub that makes none.
	differences fleet.Differences
}

// hurried is a clock that goes ten times as fast.
type hurried struct{ start time.Time }

func (h hurried) Now() time.Time                         { return h.start.Add(10 * time.Since(h.start)) }
func (h hurried) After(d time.Duration) <-chan time.Time { return time.After(d / 10) }

// sink is a telemetry store that keeps frames in memory.
type sink struct {
	mu     sync.Mutex
	frames map[string][]string // by device's id
	fail   error
}

func (s *sink) Ingest(_ context.Context, _ string, d atelier.Device, frame []byte) (wire.Ack, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return wire.Ack{}, s.fail
	}
	s.frames[d.ID] = append(s.frames[d.ID], string(frame))
	return wire.Ack{Stream: "s", Through: uint64(len(s.frames[d.ID]))}, nil
}

func (s *sink) Acked(device string) map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return map[string]uint64{"s": uint64(len(s.frames[device]))}
}

func (s *sink) Forget(string) {}

// newHub makes a hub whose fleet does not run yet.
func newHub(t testing.TB) *hub {
	t.Helper()
	dir := t.TempDir()
	h := &hub{
		t: t, sink: &sink{frames: map[string][]string{}}, wrap: func(b broker.Bus) broker.Bus { return b },
		ctx:     access.WithPrincipal(t.Context(), access.Principal{Kind: access.User, Name: "admin", Role: access.Admin}),
		log:     slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
		uploads: filepath.Join(dir, "uploads"),
	}
	var err error
	must := func() {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	h.store, err = sqlite.Open(t.Context(), filepath.Join(dir, "hub.db"))
	must()
	t.Cleanup(func() {
		if err := h.store.Close(); err != nil {
			t.Error(err)
		}
	})
	h.access = access.New(h.store, nil)
	h.authority, err = authority.Open(authority.Options{Dir: filepath.Join(dir, "authority")})
	must()
	h.vault, err = vault.Open(durable.OS{}, filepath.Join(dir, "vault.key"))
	must()
	h.content, err = content.Open(durable.OS{}, filepath.Join(dir, "content"))
	must()
	h.enrol, err = enrol.New(enrol.Config{Store: h.store, Access: h.access, Authority: h.authority, MQTT: []string{"tls://localhost:1"}, Shard: wire.DefaultShard})
	must()
	h.enrol.OnRevoke(func(device string) { h.fleet.Revoked(device) })
	h.enrol.OnRotate(func(workspace string) { h.fleet.Rotated(workspace) })
	return h
}

// testLog writes to the test's log until the test ends.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// start runs the fleet on the embedded broker.
func (h *hub) start() {
	h.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.startAt(l)
}

func (h *hub) startAt(l net.Listener) {
	h.t.Helper()
	config := h.authority.MQTT(func(string, *x509.Certificate) error { return nil })
	bus, err := broker.NewEmbedded(broker.EmbeddedConfig{Listener: l, TLS: config})
	if err != nil {
		h.t.Fatal(err)
	}
	h.url = "ssl://" + l.Addr().String()
	h.run(bus)
}

// startOn runs the fleet on another project's broker.
func (h *hub) startOn(s *brokertest.Server) {
	h.t.Helper()
	cert, err := h.authority.HubClient()
	if err != nil {
		h.t.Fatal(err)
	}
	bus, err := broker.NewExternal(broker.ExternalConfig{URL: s.URL, TLS: h.tls(*cert)})
	if err != nil {
		h.t.Fatal(err)
	}
	h.url = s.URL
	h.run(bus)
}

func (h *hub) run(bus broker.Bus) {
	h.t.Helper()
	h.bus = h.wrap(bus)
	h.fleet = fleet.New(fleet.Config{
		Store: h.store, Access: h.access, Authority: h.authority, Vault: h.vault, Content: h.content, Bus: h.bus,
		Admit: h.enrol.Admit, Telemetry: h.sink, Uploads: h.uploads, Log: h.log, Clock: hurried{time.Now()},
		Differences: h.differences,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.fleet.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				h.t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			h.t.Error("Run does not end")
		}
	})
	h.t.Cleanup(h.stop)
}

func (h *hub) tls(cert tls.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(h.authority.CA())
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, RootCAs: pool, ServerName: "localhost"}
}

// Files implements brokertest.Files.
func (h *hub) Files(dir string) {
	h.t.Helper()
	cert, key, err := h.authority.ServerPEM("localhost")
	if err != nil {
		h.t.Fatal(err)
	}
	for name, b := range map[string][]byte{"ca.pem": h.authority.CAPEM(), "server.pem": cert, "server.key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
}

// update changes the store as the hub.
func (h *hub) update(fn func(store.Tx) error) {
	h.t.Helper()
	if err := h.store.Update(h.ctx, access.By(h.ctx), fn); err != nil {
		h.t.Fatal(err)
	}
}

// workspace makes a workspace and returns its id.
func (h *hub) workspace(name string) string {
	h.t.Helper()
	var w atelier.Workspace
	h.update(func(tx store.Tx) (err error) {
		w, err = catalog.Workspaces.Insert(tx, "", "", atelier.Workspace{Meta: atelier.Meta{Name: name}})
		return err
	})
	return w.ID
}

// blob puts content into the hub's store.
func (h *hub) blob(b []byte) atelier.File {
	h.t.Helper()
	f := atelier.File{Path: "model.onnx", Digest: atelier.DigestOf(b), Size: int64(len(b))}
	in, err := h.content.Ingest(f.Digest, f.Size)
	if atelier.CodeOf(err) == atelier.Exists {
		return f
	}
	if err == nil {
		_, err = in.WriteAt(b, 0)
	}
	if err == nil {
		err = in.Accept(content.Range{Start: 0, End: f.Size}, mustSum(f.Digest))
	}
	if err == nil {
		_, err = in.Commit(h.ctx)
	}
	if err == nil {
		err = in.Close()
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return f
}

func mustSum(d atelier.Digest) [32]byte {
	sum, err := d.Sum()
	if err != nil {
		panic(err) // made by DigestOf
	}
	return sum
}

// model registers the next version of a model that consists of b.
func (h *hub) model(workspace, name string, b []byte) atelier.Version {
	h.t.Helper()
	f := h.blob(b)
	var v atelier.Version
	h.update(func(tx store.Tx) error {
		m, err := catalog.Models.Find(tx, workspace, "", name)
		if atelier.CodeOf(err) == atelier.NotFound {
			m, err = catalog.Models.Insert(tx, workspace, "", atelier.Model{Meta: atelier.Meta{Name: name}, Next: 1})
		}
		if err != nil {
			return err
		}
		number := m.Next
		m.Latest, m.Next = number, number+1
		if _, err := catalog.Models.Update(tx, workspace, m); err != nil {
			return err
		}
		v, err = catalog.Versions.Insert(tx, workspace, m.ID, atelier.Version{
			Meta: atelier.Meta{Name: itoa(number)}, Model: name, ModelID: m.ID, Number: number,
			Digest: atelier.DigestOf([]byte(name + itoa(number) + string(f.Digest))), Size: f.Size,
			Variants: []atelier.Variant{{
				Kind: atelier.VariantONNX, Entry: f.Path, Files: []atelier.File{f},
				Requires: atelier.Requirements{Runtime: atelier.RuntimeONNX},
			}},
		})
		return err
	})
	return v
}

// runtime registers ONNX Runtime for linux/amd64.
func (h *hub) runtime(version string) atelier.File {
	h.t.Helper()
	f := h.blob([]byte("the runtime " + version))
	f.Path = "libonnxruntime.so"
	h.update(func(tx store.Tx) error {
		_, err := catalog.Runtimes.Insert(tx, "", version, atelier.Runtime{
			Meta: atelier.Meta{Name: atelier.RuntimeONNX}, Version: version, OS: "linux", Arch: "amd64",
			Files: []atelier.File{f}, Entry: f.Path,
		})
		return err
	})
	return f
}

// join enrols a device that has not connected yet.
func (h *hub) join(workspace, name string, labels atelier.Labels) *device {
	h.t.Helper()
	key, err := trust.NewDeviceKey()
	if err != nil {
		h.t.Fatal(err)
	}
	return h.joinKey(workspace, name, labels, key)
}

func (h *hub) joinKey(workspace, name string, labels atelier.Labels, key *ecdsa.PrivateKey) *device {
	h.t.Helper()
	_, secret, err := h.enrol.CreateToken(h.ctx, workspace, enrol.NewToken{Labels: labels})
	if err != nil {
		h.t.Fatal(err)
	}
	csr, err := trust.NewCSR(key, name)
	if err != nil {
		h.t.Fatal(err)
	}
	e, err := h.enrol.Join(h.t.Context(), wire.EnrolRequest{Token: secret, CSR: csr, Name: name})
	if err != nil {
		h.t.Fatal(err)
	}
	return newDevice(h, e, key)
}

// deploy deploys the newest version of a model to devices with the label.
func (h *hub) deploy(workspace, name, model string, labels atelier.Labels) atelier.Deployment {
	h.t.Helper()
	d, err := h.fleet.CreateDeployment(h.ctx, workspace, fleet.DeploymentSpec{
		Name: &name, Model: &model, Selector: &atelier.Selector{Labels: labels},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return d
}

// eventually waits until check returns "".
func eventually(t testing.TB, check func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		wrong := check()
		if wrong == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(wrong)
		}
		time.Sleep(5 * time.Millisecond) // between two looks at a condition
	}
}
