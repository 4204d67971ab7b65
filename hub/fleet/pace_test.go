package fleet_test

import (
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/hub/store"
)

// away returns a window that is half a day away.
func away() *string {
	now := time.Now().UTC()
	w := atelier.Window{From: (now.Hour() + 12) % 24 * 60, To: (now.Hour() + 13) % 24 * 60, Zone: "UTC"}
	text := w.String()
	return &text
}

// A policy holds from the moment when it is set, and so does its end, for what is
// under way, too.
func TestPoliciesTakeEffectAtOnce(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	h.model(ws, "digits", noise(t, 100_000))
	d := h.join(ws, "kiosk", edge)
	h.start()
	d.connect()
	set := func(c atelier.TransferChange) {
		t.Helper()
		if _, err := h.fleet.UpdateDevice(h.ctx, ws, "kiosk", 0, fleet.DeviceChange{Transfer: &c}); err != nil {
			t.Fatal(err)
		}
	}
	setWorkspace := func(c atelier.TransferChange) {
		t.Helper()
		h.update(func(tx store.Tx) error {
			w, err := catalog.Workspaces.Get(tx, "", ws)
			if err != nil {
				return err
			}
			if w.Transfer, err = c.Apply(w.Transfer); err != nil {
				return err
			}
			_, err = catalog.Workspaces.Update(tx, "", w)
			return err
		})
	}
	dep := h.deploy(ws, "digits", "digits", edge)
	d.serves(dep)
	always, none := "", int64(0)
	for _, c := range []struct{ begin, end func() }{
		{func() { set(atelier.TransferChange{Window: away()}) }, func() { set(atelier.TransferChange{Window: &always}) }},
		{func() { setWorkspace(atelier.TransferChange{Window: away()}) }, func() { setWorkspace(atelier.TransferChange{Window: &always}) }},
		{func() { set(atelier.TransferChange{Bandwidth: ptr(int64(1))}) }, func() { set(atelier.TransferChange{Bandwidth: &none}) }},
	} {
		c.begin()
		v := h.model(ws, "digits", noise(t, 300_000))
		dep = h.change(ws, "digits", fleet.DeploymentSpec{Version: ptr(itoa(v.Number))})
		eventually(t, func() string {
			if m := d.holds().Modules; len(m) != 1 || m[0].Rollout != dep.Rollout {
				return "the device has not got its desired state"
			}
			return ""
		})
		if has, err := d.store.Has(v.Variants[0].Files[0].Digest); err != nil || has {
			t.Errorf("the content is there: %v, %v", has, err)
		}
		c.end()
		d.serves(dep)
	}
	labels := atelier.Labels{"site": "b"}
	set(atelier.TransferChange{Bandwidth: ptr(int64(5))})
	if dev, err := h.fleet.UpdateDevice(h.ctx, ws, "kiosk", 0, fleet.DeviceChange{Labels: &labels}); err != nil || dev.Transfer.Limit() != 5 || dev.Labels["site"] != "b" {
		t.Errorf("got %+v, %v", dev, err)
	}
	if _, err := h.fleet.UpdateDevice(h.ctx, ws, "kiosk", 99, fleet.DeviceChange{Labels: &labels}); atelier.CodeOf(err) != atelier.Stale {
		t.Errorf("got %v", err)
	}
	if _, err := h.fleet.UpdateDevice(h.ctx, ws, "kiosk", 0, fleet.DeviceChange{Transfer: &atelier.TransferChange{Window: ptr("soon")}}); atelier.CodeOf(err) != atelier.Invalid {
		t.Errorf("got %v", err)
	}
}
