package fleet_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/broker"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// FuzzReceive lets an enrolled device say anything, with its own signature. The
// hub takes or ignores it, never fails on it, and nothing changes beyond what is
// the device's to say: no other device, deployment or desired state.
func FuzzReceive(f *testing.F) {
	h := newHub(f)
	ws := h.workspace("plant")
	h.model(ws, "digits", []byte("a model"))
	h.runtime("1")
	d, other := h.join(ws, "hostile", atelier.Labels{"site": "a"}), h.join(ws, "neighbour", atelier.Labels{"site": "b"})
	complaints := &lines{}
	bus, err := broker.NewEmbedded(broker.EmbeddedConfig{TLS: &tls.Config{ClientCAs: x509.NewCertPool()}})
	if err != nil {
		f.Fatal(err)
	}
	h.bus = bus // it does not run: what is said to the device is lost
	h.fleet = fleet.New(fleet.Config{
		Store: h.store, Access: h.access, Authority: h.authority, Vault: h.vault, Content: h.content, Bus: bus,
		Admit: h.enrol.Admit, Telemetry: h.sink, Uploads: f.TempDir(), Log: slog.New(slog.NewTextHandler(complaints, nil)), Clock: hurried{time.Now()},
	})
	h.deploy(ws, "front", "digits", atelier.Labels{"site": "b"})

	kinds := []string{wire.TypeHello, wire.TypeDesiredAck, wire.TypeReported, wire.TypeBye, wire.TypeCollected, wire.TypeDesired, "text/plain"}
	session := atelier.NewID()
	add := func(kind int, v any) {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(kind), b)
	}
	add(0, wire.Hello{Session: session, Position: atelier.Position{Epoch: 1 << 60, Generation: 7}, Facts: d.facts})
	add(0, wire.Hello{Session: "../x", RootVersion: -5, DelegationVersion: 1 << 40})
	add(1, wire.DesiredAck{Position: atelier.Position{Epoch: 9, Generation: 9}, Saved: true})
	add(2, atelier.ReportedState{Device: other.id, Session: session, Sequence: 1})
	add(2, atelier.ReportedState{Device: d.id, Session: session, Sequence: 1 << 63, Modules: make([]atelier.ModuleStatus, 300)})
	add(3, wire.Bye{Session: session})
	add(4, wire.Collected{ID: "x", OK: true, Size: -1})
	f.Fuzz(func(t *testing.T, kind uint8, payload []byte) {
		before := foreign(t, h, ws, d.id)
		raw, err := trust.Sign(kinds[int(kind)%len(kinds)], payload, d.signer)
		if err != nil {
			return
		}
		h.fleet.Receive(t.Context(), broker.Message{Device: d.id, Channel: wire.Control, Payload: raw})
		// In the name of another device it is nothing at all.
		h.fleet.Receive(t.Context(), broker.Message{Device: other.id, Channel: wire.Control, Payload: raw})
		if c := complaints.take(); c != "" {
			t.Fatalf("%s %q made the hub fail: %s", kinds[int(kind)%len(kinds)], payload, c)
		}
		if after := foreign(t, h, ws, d.id); after != before {
			t.Fatalf("%s %q changed what is not the device's:\n%s\n%s", kinds[int(kind)%len(kinds)], payload, before, after)
		}
		if _, err := h.fleet.Why(h.ctx, ws, d.id); err != nil {
			t.Fatalf("why fails after %q: %v", payload, err)
		}
	})
}

// foreign tells all that a device has no say in.
func foreign(t testing.TB, h *hub, ws, device string) string {
	var all []any
	err := h.store.View(access.WithPrincipal(t.Context(), access.Principal{Kind: access.System}), func(tx store.Tx) error {
		all = nil
		if err := catalog.Devices.Each(tx, store.Query{Workspace: ws}, func(d atelier.Device) error {
			if d.ID == device {
				d = atelier.Device{Meta: atelier.Meta{ID: d.ID, Name: d.Name}, Labels: d.Labels, Certificate: d.Certificate, Revoked: d.Revoked}
			}
			all = append(all, d)
			return nil
		}); err != nil {
			return err
		}
		return catalog.Deployments.Each(tx, store.Query{Workspace: ws}, func(d atelier.Deployment) error {
			all = append(all, d)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// lines keeps the errors of a log.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(p []byte) (int, error) {
	if s := string(p); strings.Contains(s, "level=ERROR") {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.all = append(l.all, s)
	}
	return len(p), nil
}

func (l *lines) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := strings.Join(l.all, "")
	l.all = nil
	return s
}
