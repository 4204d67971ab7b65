package fleet_test

import (
	"context"
	"crypto/x509"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/internal/broker"
	"github.com/atelier-edge/atelier/internal/broker/brokertest"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// unreliable is a Bus that loses, doubles and delays messages, both ways.
type unreliable struct {
	broker.Bus
	mu   sync.Mutex
	rand *rand.Rand
	wg   sync.WaitGroup
}

// fate decides how often a message arrives, and how late each time. Of content
// none are lost: its protocol has tests of its own for that, and long pauses.
func (u *unreliable) fate(c wire.Channel) []time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	late := func() time.Duration { return time.Duration(u.rand.IntN(30)) * time.Millisecond }
	lost := 30
	if c == wire.Content {
		lost = 0
	}
	switch n := u.rand.IntN(100); {
	case n < lost:
		return nil
	case n < lost+20:
		return []time.Duration{late(), late()}
	}
	return []time.Duration{late()}
}

func (u *unreliable) Publish(ctx context.Context, topic string, payload []byte) error {
	_, channel, _ := wire.ParseDown(topic)
	for _, after := range u.fate(channel) {
		u.wg.Go(func() {
			time.Sleep(after)
			_ = u.Bus.Publish(context.WithoutCancel(ctx), topic, payload) // lost, like others
		})
	}
	return nil
}

func (u *unreliable) Run(ctx context.Context, h broker.Handler) error {
	err := u.Bus.Run(ctx, unreliableHandler{u, h})
	u.wg.Wait()
	return err
}

type unreliableHandler struct {
	u *unreliable
	h broker.Handler
}

func (h unreliableHandler) Admit(ctx context.Context, device string, c *x509.Certificate) error {
	return h.h.Admit(ctx, device, c)
}

func (h unreliableHandler) Refused(device, what string) { h.h.Refused(device, what) }

func (h unreliableHandler) Presence(ctx context.Context, device string, connected bool) {
	h.h.Presence(ctx, device, connected)
}

func (h unreliableHandler) Receive(ctx context.Context, m broker.Message) {
	for _, after := range h.u.fate(m.Channel) {
		h.u.wg.Go(func() {
			time.Sleep(after)
			h.h.Receive(ctx, broker.Message{Device: m.Device, Channel: m.Channel, Payload: slices.Clone(m.Payload)})
		})
	}
}

func TestLostDoubledAndLateMessages(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(itoa(int(seed)), func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			h.wrap = func(b broker.Bus) broker.Bus {
				return &unreliable{Bus: b, rand: rand.New(rand.NewPCG(seed, 1))}
			}
			ws := h.workspace("lab")
			h.runtime("1.20.1")
			h.model(ws, "digits", noise(t, 300<<10))
			d := h.join(ws, "kiosk", edge)
			h.start()
			d.connect()
			dep := h.deploy(ws, "digits", "digits", edge)
			d.serves(dep)
			for range 3 {
				h.model(ws, "digits", noise(t, 10<<10))
				latest := fleet.Latest
				var err error
				if dep, err = h.fleet.UpdateDeployment(h.ctx, ws, "digits", 0, fleet.DeploymentSpec{Version: &latest}); err != nil {
					t.Fatal(err)
				}
				d.serves(dep)
			}
		})
	}
}

func TestNothingButItsOwn(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	lab, shop := h.workspace("lab"), h.workspace("shop")
	h.runtime("1.20.1")
	mine, theirs := h.model(lab, "digits", noise(t, 1000)), h.model(shop, "secret", noise(t, 1000))
	d, other := h.join(lab, "kiosk", edge), h.join(shop, "till", edge)
	h.start()
	d.connect()
	other.connect()
	dep := h.deploy(lab, "digits", "digits", edge)
	d.serves(dep)
	theirDep := h.deploy(shop, "secret", "secret", edge)
	other.serves(theirDep)

	// Content: neither another workspace's, nor what nothing asks for any more.
	if _, err := d.receiver.Fetch(t.Context(), theirs.Variants[0].Files[0], nil, nil); atelier.CodeOf(err) != atelier.Forbidden {
		t.Errorf("fetch of another workspace's content: %v", err)
	}
	if _, err := other.receiver.Fetch(t.Context(), mine.Variants[0].Files[0], nil, nil); atelier.CodeOf(err) != atelier.Forbidden {
		t.Errorf("fetch of another workspace's content: %v", err)
	}
	loose := h.model(lab, "unused", noise(t, 1000))
	if _, err := d.receiver.Fetch(t.Context(), loose.Variants[0].Files[0], nil, nil); atelier.CodeOf(err) != atelier.Forbidden {
		t.Errorf("fetch of content that is not deployed: %v", err)
	}
	if err := h.fleet.DeleteDeployment(h.ctx, shop, "secret", 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		s, err := h.fleet.Desired(h.ctx, shop, "till")
		if err != nil || len(s.Modules) > 0 {
			return "the deployment is still desired"
		}
		return ""
	})
	fresh := h.join(shop, "second", edge)
	fresh.connect()
	if _, err := fresh.receiver.Fetch(t.Context(), theirs.Variants[0].Files[0], nil, nil); atelier.CodeOf(err) != atelier.Forbidden {
		t.Errorf("fetch of what was deployed once: %v", err)
	}

	// Names and ids of the other workspace are not found.
	for _, ref := range []string{"till", other.id} {
		if _, err := h.fleet.Why(h.ctx, lab, ref); atelier.CodeOf(err) != atelier.NotFound {
			t.Errorf("why of another workspace's device: %v", err)
		}
		if _, err := h.fleet.CollectLog(h.ctx, lab, ref, "", 0); atelier.CodeOf(err) != atelier.NotFound {
			t.Errorf("log of another workspace's device: %v", err)
		}
	}
	if _, err := h.fleet.Trace(h.ctx, shop, dep.Rollout+"-x"); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("trace in another workspace: %v", err)
	}
	if _, err := h.fleet.Keys(h.ctx, shop, "digits"); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("keys in another workspace: %v", err)
	}
	name, model := "steal", "digits"
	if _, err := h.fleet.CreateDeployment(h.ctx, shop, fleet.DeploymentSpec{Name: &name, Model: &model, Selector: &atelier.Selector{All: true}}); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("deployment of another workspace's model: %v", err)
	}
	if _, err := h.fleet.CreateDeployment(h.ctx, lab, fleet.DeploymentSpec{Name: &name, Model: &model, Selector: &atelier.Selector{Devices: []string{other.id}}}); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("deployment to another workspace's device: %v", err)
	}
}

// Whatever a device says that is forged, replayed, malformed or another's counts
// as ignored, and changes nothing.
func TestForgedAndReplayed(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	h.model(ws, "digits", noise(t, 1000))
	d, other := h.join(ws, "kiosk", edge), h.join(ws, "till", nil)
	h.start()
	d.connect()
	oldHello, oldSession := d.sign(wire.TypeHello, d.helloMessage()), d.session
	d.serves(h.deploy(ws, "digits", "digits", edge))
	oldReport := d.sign(wire.TypeReported, atelier.ReportedState{Device: d.id, Session: oldSession, Sequence: 1 << 40})
	oldBye := d.sign(wire.TypeBye, wire.Bye{Session: oldSession})
	d.disconnect()
	d.connect()
	other.connect()

	forged := other.sign(wire.TypeReported, atelier.ReportedState{Device: d.id, Session: d.session, Sequence: 9})
	for name, raw := range map[string][]byte{
		"hello of an ended session":  oldHello,
		"report of an ended session": oldReport,
		"bye of an ended session":    oldBye,
		"signed by another device":   forged,
		"no envelope":                []byte("{"),
		"empty":                      {},
		"unknown type":               d.sign("application/vnd.atelier.nonsense", 1),
		"not JSON":                   mustSign(t, wire.TypeHello, "{]", d.signer),
		"another device's report":    d.sign(wire.TypeReported, atelier.ReportedState{Device: other.id, Session: d.session, Sequence: 9}),
		"malformed session":          d.sign(wire.TypeHello, wire.Hello{Session: "../x"}),
		"unasked log":                d.sign(wire.TypeCollected, wire.Collected{ID: "x", OK: true}),
		"ack of nothing":             d.sign(wire.TypeDesiredAck, wire.DesiredAck{Position: atelier.Position{Epoch: 1 << 60}, Saved: true}),
		"refusal of what it holds":   d.sign(wire.TypeDesiredAck, wire.DesiredAck{Position: d.position(), Why: atelier.Because(atelier.ReasonSignatureInvalid, "forged")}),
	} {
		before := h.fleet.Ignored()
		d.control.Publish(d.topic(wire.Control), 0, false, raw)
		eventually(t, func() string {
			if h.fleet.Ignored() == before {
				return name + " was not ignored"
			}
			return ""
		})
	}
	found, err := h.fleet.Device(h.ctx, ws, d.id)
	if err != nil || !found.Connected {
		t.Errorf("the device is connected: %v, %v", found.Connected, err)
	}
	r, err := h.fleet.Reported(h.ctx, ws, d.id)
	if err != nil || r.Session == "" || r.Sequence >= 1<<40 {
		t.Errorf("report %d of %s, %v", r.Sequence, r.Session, err)
	}
	// It still works.
	h.model(ws, "digits", noise(t, 1000))
	latest := fleet.Latest
	dep, err := h.fleet.UpdateDeployment(h.ctx, ws, "digits", 0, fleet.DeploymentSpec{Version: &latest})
	if err != nil {
		t.Fatal(err)
	}
	d.serves(dep)
}

func mustSign(t *testing.T, kind, payload string, s trust.Signer) []byte {
	t.Helper()
	raw, err := trust.Sign(kind, []byte(payload), s)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestRevokedIsCutOff(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	h.model(ws, "digits", noise(t, 1000))
	d := h.join(ws, "kiosk", edge)
	h.start()
	d.connect()
	d.serves(h.deploy(ws, "digits", "digits", edge))
	if _, err := h.enrol.Revoke(h.ctx, ws, d.name); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*brokertest.Client{d.control, d.bulk} {
		select {
		case <-c.Lost:
		case <-time.After(patience):
			t.Fatal("a revoked device stays connected")
		}
	}
	eventually(t, func() string {
		d.mu.Lock()
		defer d.mu.Unlock()
		if !d.revoked {
			return "the device was not told that it is revoked"
		}
		return ""
	})
	if _, err := brokertest.Dial(t, h.url, d.id, brokertest.Options{TLS: h.tls(d.cert)}); err == nil {
		t.Error("a revoked device could connect")
	}
	// What it says by whatever way is ignored, and it is told nothing.
	before := h.fleet.Ignored()
	h.fleet.Receive(t.Context(), broker.Message{Device: d.id, Channel: wire.Control, Payload: d.sign(wire.TypeHello, d.helloMessage())})
	if h.fleet.Ignored() == before {
		t.Error("a revoked device's hello was not ignored")
	}
	position := d.position()
	h.model(ws, "digits", noise(t, 1000))
	latest := fleet.Latest
	if _, err := h.fleet.UpdateDeployment(h.ctx, ws, "digits", 0, fleet.DeploymentSpec{Version: &latest}); err != nil {
		t.Fatal(err)
	}
	w, err := h.fleet.Why(h.ctx, ws, d.name)
	if err != nil || w.InSync || len(w.Findings) != 1 || w.Findings[0].Why.Reason() != atelier.ReasonRevoked || w.Findings[0].Why.Remedy() == "" {
		t.Errorf("why %+v, %v", w, err)
	}
	s, err := h.fleet.Desired(h.ctx, ws, d.name)
	if err != nil || s.Position() != position {
		t.Errorf("a revoked device got a new desired state at %+v: %v", s.Position(), err)
	}
}

// A key that is replaced takes effect at once, also where the first messages get lost.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	h.model(ws, "digits", noise(t, 1000))
	d := h.join(ws, "kiosk", edge)
	h.start()
	d.connect()
	d.serves(h.deploy(ws, "digits", "digits", edge))
	for _, rotate := range []func() error{
		func() error { return h.enrol.RotateStateKey(h.ctx, ws) },
		func() error { return h.enrol.RotateRoot(h.ctx) },
		func() error { return h.enrol.RotateStateKey(h.ctx, ws) },
	} {
		if err := rotate(); err != nil {
			t.Fatal(err)
		}
		h.model(ws, "digits", noise(t, 1000))
		latest := fleet.Latest
		dep, err := h.fleet.UpdateDeployment(h.ctx, ws, "digits", 0, fleet.DeploymentSpec{Version: &latest})
		if err != nil {
			t.Fatal(err)
		}
		d.serves(dep)
	}
}

// A restored hub is behind its devices: a new epoch, or the device's own word,
// brings it ahead again.
func TestRestoredHub(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	h.model(ws, "digits", noise(t, 1000))
	d := h.join(ws, "kiosk", edge)
	h.start()
	d.connect()
	dep := h.deploy(ws, "digits", "digits", edge)
	d.serves(dep)
	epoch, err := fleet.NewEpoch(h.ctx, h.store)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if p := d.position(); p.Epoch != epoch {
			return "the device does not follow into the new epoch"
		}
		return ""
	})
	// Now the device knows more than the hub.
	d.disconnect()
	d.mu.Lock()
	d.saved.Generation += 41
	ahead := d.saved.Position()
	d.mu.Unlock()
	d.connect()
	eventually(t, func() string {
		if p := d.position(); !p.After(ahead) {
			return "the device is still ahead of its hub"
		}
		return ""
	})
	d.serves(dep)
}

// A hub that starts again knows who is connected to the broker that went on.
func TestHubRestarts(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	h.model(ws, "digits", noise(t, 1000))
	d := h.join(ws, "kiosk", edge)
	mosquitto := brokertest.Mosquitto(t, h)
	h.startOn(mosquitto)
	d.connect()
	dep := h.deploy(ws, "digits", "digits", edge)
	d.serves(dep)
	h.stop()
	h.model(ws, "digits", noise(t, 1000))
	latest := fleet.Latest
	dep, err := h.fleet.UpdateDeployment(h.ctx, ws, "digits", 0, fleet.DeploymentSpec{Version: &latest})
	if err != nil {
		t.Fatal(err)
	}
	h.startOn(mosquitto)
	d.serves(dep)
	// The broker's last will tells that it has gone.
	d.control.Cut()
	eventually(t, func() string {
		if found, err := h.fleet.Device(h.ctx, ws, d.id); err != nil || found.Connected {
			return "a device that was cut off counts as connected"
		}
		return ""
	})
}
