package fleet_test

import (
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/wire"
)

func TestDeploymentsThatCannotBe(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.start()
	v := h.model(ws, "digits", noise(t, 10))
	h.model(ws, "digits", noise(t, 10))
	h.update(func(tx store.Tx) error {
		v, err := catalog.Versions.Get(tx, ws, v.ID)
		if err != nil {
			return err
		}
		v.Archived = true
		_, err = catalog.Versions.Update(tx, ws, v)
		return err
	})
	h.update(func(tx store.Tx) error {
		_, err := catalog.Models.Insert(tx, ws, "", atelier.Model{Meta: atelier.Meta{Name: "bare"}, Next: 1})
		return err
	})
	h.deploy(ws, "taken", "digits", edge)
	all := &atelier.Selector{All: true}
	for name, c := range map[string]struct {
		name, model, version, endpoint string
		selector                       *atelier.Selector
		code                           atelier.Code
	}{
		"no selector":       {"d", "digits", "2", "d", nil, atelier.Invalid},
		"selects nothing":   {"d", "digits", "2", "d", &atelier.Selector{}, atelier.Invalid},
		"unknown device":    {"d", "digits", "2", "d", &atelier.Selector{Devices: []string{"nobody"}}, atelier.NotFound},
		"unknown model":     {"d", "nothing", "2", "d", all, atelier.NotFound},
		"unknown version":   {"d", "digits", "7", "d", all, atelier.NotFound},
		"no version":        {"d", "bare", "latest", "d", all, atelier.NotFound},
		"archived":          {"d", "digits", "1", "d", all, atelier.Conflict},
		"odd version":       {"d", "digits", "newest", "d", all, atelier.Invalid},
		"odd name":          {"D!", "digits", "2", "d", all, atelier.Invalid},
		"odd endpoint":      {"d", "digits", "2", "../d", all, atelier.Invalid},
		"name is taken":     {"taken", "digits", "2", "d", all, atelier.Exists},
		"endpoint is taken": {"d", "digits", "2", "taken", all, atelier.Exists},
	} {
		_, err := h.fleet.CreateDeployment(h.ctx, ws, fleet.DeploymentSpec{
			Name: &c.name, Model: &c.model, Version: &c.version, Endpoint: &c.endpoint, Selector: c.selector,
		})
		if atelier.CodeOf(err) != c.code {
			t.Errorf("%s: %v, expected code %s", name, err, c.code)
		}
	}
	if _, err := h.fleet.UpdateDeployment(h.ctx, ws, "taken", 99, fleet.DeploymentSpec{}); atelier.CodeOf(err) != atelier.Stale {
		t.Errorf("update of another revision: %v", err)
	}
	text := "as before"
	before, err := h.fleet.Deployment(h.ctx, ws, "taken")
	if err != nil {
		t.Fatal(err)
	}
	after, err := h.fleet.UpdateDeployment(h.ctx, ws, "taken", before.Revision, fleet.DeploymentSpec{Description: &text})
	if err != nil || after.Rollout != before.Rollout || after.Version != 2 {
		t.Errorf("a new description began a rollout: %+v, %v", after, err)
	}
}

func TestEndpointKeys(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	h.model(ws, "digits", noise(t, 10))
	d := h.join(ws, "kiosk", edge)
	h.start()
	d.connect()
	dep := h.deploy(ws, "digits", "digits", edge)
	d.serves(dep)
	first, err := h.fleet.Keys(h.ctx, ws, "digits")
	if err != nil || !strings.HasPrefix(first.Primary, "atk_") || first.Primary == first.Secondary {
		t.Fatalf("keys %+v, %v", first, err)
	}
	second, err := h.fleet.RotateKey(h.ctx, ws, "digits", fleet.PrimaryKey)
	if err != nil || second.Primary == first.Primary || second.Secondary != first.Secondary {
		t.Fatalf("keys %+v, %v", second, err)
	}
	want := atelier.DigestOf([]byte(second.Primary)).Hex()
	eventually(t, func() string {
		d.mu.Lock()
		defer d.mu.Unlock()
		if m := d.saved.Modules; len(m) != 1 || m[0].Endpoint.Keys.Primary != want || m[0].Rollout != dep.Rollout {
			return "the new key does not reach the device under the same rollout"
		}
		return ""
	})
	e, err := h.fleet.Endpoint(h.ctx, ws, "digits")
	if err != nil || len(e.Addresses) != 1 || e.Addresses[0].URL != "http://127.0.0.1:8600/digits" || e.Addresses[0].Device != "kiosk" {
		t.Errorf("endpoint %+v, %v", e, err)
	}
	if _, err := h.fleet.RotateKey(h.ctx, ws, "digits", "third"); atelier.CodeOf(err) != atelier.Invalid {
		t.Errorf("rotation of a key that is none: %v", err)
	}
	if err := h.fleet.DeleteDeployment(h.ctx, ws, "digits", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := h.fleet.Keys(h.ctx, ws, "digits"); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("keys of a deleted endpoint: %v", err)
	}
	eventually(t, func() string {
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.saved.Modules) > 0 {
			return "a deleted deployment stays on its device"
		}
		return ""
	})
}

// A device that cannot run a deployment says so, before anything is sent for it.
func TestUnmet(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.model(ws, "digits", noise(t, 10))
	d := h.join(ws, "kiosk", edge)
	h.start()
	dep := h.deploy(ws, "digits", "digits", edge)
	reason := func(want atelier.Reason) {
		t.Helper()
		eventually(t, func() string {
			page, _, err := h.fleet.DeviceStatuses(h.ctx, ws, dep.Name, "", 10)
			if err != nil || len(page) != 1 || page[0].Why().Reason() != want {
				return "the status is not " + string(want)
			}
			if page[0].Why().Remedy() == "" {
				return "there is no remedy for " + string(want)
			}
			return ""
		})
		w, err := h.fleet.Why(h.ctx, ws, d.name)
		if err != nil || w.InSync {
			t.Errorf("why %+v, %v", w, err)
		}
	}
	reason(atelier.ReasonNeverConnected)
	d.facts.Runtimes[0] = atelier.RuntimeSupport{Name: atelier.RuntimeONNX, Why: "glibc 2.17 is older than 2.28"}
	d.connect()
	reason(atelier.ReasonRuntimeMissing)
	again := func(change func(*atelier.Facts)) {
		t.Helper()
		d.disconnect()
		change(&d.facts)
		d.connect()
	}
	again(func(f *atelier.Facts) { f.Runtimes = []atelier.RuntimeSupport{{Name: atelier.RuntimeONNX, OK: true}} })
	reason(atelier.ReasonRuntimeMissing) // none is registered
	again(func(f *atelier.Facts) { f.Targets = nil })
	reason(atelier.ReasonUnsupportedFeature)
	d.mu.Lock()
	sent := len(d.saved.Modules)
	d.mu.Unlock()
	if sent > 0 {
		t.Error("something was sent that cannot run")
	}
	again(func(f *atelier.Facts) { f.Targets = []string{"process"} })
	h.runtime("1.20.1")
	d.serves(dep)
	// A newer runtime is for the next rollout; this one keeps what it was tried with.
	before := d.position()
	h.runtime("1.21.0")
	h.model(ws, "other", noise(t, 10))
	d.serves(h.deploy(ws, "other", "other", edge))
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.saved.Modules; len(m) != 2 || m[0].Runtime.Version != "1.20.1" || m[1].Runtime.Version != "1.21.0" || d.saved.Generation != before.Generation+1 {
		t.Errorf("generation %d after %d with %d modules", d.saved.Generation, before.Generation, len(m))
	}
}

func TestRefusedDesiredState(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	h.model(ws, "digits", noise(t, 10))
	d := h.join(ws, "kiosk", edge)
	h.start()
	d.connect()
	why := atelier.Because(atelier.ReasonUnsupportedFeature, "too new for me")
	d.mu.Lock()
	d.refuse = &why
	d.mu.Unlock()
	dep := h.deploy(ws, "digits", "digits", edge)
	eventually(t, func() string {
		w, err := h.fleet.Why(h.ctx, ws, d.name)
		if err != nil {
			return err.Error()
		}
		for _, f := range w.Findings {
			if f.Subject == "desired state" && f.Why.Reason() == atelier.ReasonUnsupportedFeature && strings.Contains(f.Why.Message(), "too new") {
				return ""
			}
		}
		return "the refusal is not told"
	})
	d.mu.Lock()
	d.refuse = nil
	d.mu.Unlock()
	d.disconnect()
	d.connect() // a new session, perhaps a new agent: it is sent again
	d.serves(dep)
}

func TestTelemetryIsAcknowledgedWhenStored(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	d := h.join(ws, "kiosk", edge)
	h.start()
	d.connect()
	acked := func() uint64 {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.telAcked
	}
	h.sink.mu.Lock()
	h.sink.fail = atelier.Errorf(atelier.NoSpace, "disk full")
	h.sink.mu.Unlock()
	d.control.Publish(d.topic(wire.Telemetry), 0, false, "one")
	eventually(t, func() string {
		if h.bus.Counters().Received < 2 { // hello and this
			return "the frame does not arrive"
		}
		return ""
	})
	h.sink.mu.Lock()
	h.sink.fail = nil
	h.sink.mu.Unlock()
	d.control.Publish(d.topic(wire.Telemetry), 0, false, "one")
	eventually(t, func() string {
		if acked() == 0 {
			return "no acknowledgement comes"
		}
		return ""
	})
}

func TestPresence(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	d := h.join(ws, "kiosk", edge)
	h.start()
	connected := func(want bool) {
		t.Helper()
		eventually(t, func() string {
			found, err := h.fleet.Device(h.ctx, ws, d.id)
			if err != nil || found.Connected != want {
				return "the device's presence is not what it should be"
			}
			if want && (found.LastSeen == nil || time.Since(*found.LastSeen) > time.Minute || found.Agent != "test") {
				return "what the device said of itself is not recorded"
			}
			return ""
		})
	}
	connected(false)
	w, err := h.fleet.Why(h.ctx, ws, d.id)
	if err != nil || len(w.Findings) == 0 || w.Findings[0].Why.Reason() != atelier.ReasonNeverConnected {
		t.Errorf("why %+v, %v", w, err)
	}
	d.connect()
	connected(true)
	d.control.Cut()
	connected(false)
	d.connect()
	connected(true)
	if err := h.enrol.Delete(h.ctx, ws, d.id, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		var left error
		err := h.store.View(h.ctx, func(tx store.Tx) error {
			_, left = catalog.ReportedStates.Get(tx, ws, d.id)
			return nil
		})
		if err != nil || atelier.CodeOf(left) != atelier.NotFound {
			return "a deleted device's state stays"
		}
		return ""
	})
}
