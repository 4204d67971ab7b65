package fleet_test

import (
	"slices"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/internal/wire"
)

// A device that sends what no agent sends is told of, and nobody else is; what it
// sends too much of is dropped, and a sound neighbour is served meanwhile.
func TestMisbehaviourIsTold(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.start()
	ws := h.workspace("plant")
	h.model(ws, "digits", []byte("a model"))
	h.runtime("1")
	bad, good := h.join(ws, "bad", atelier.Labels{"site": "a"}), h.join(ws, "good", atelier.Labels{"site": "b"})
	bad.connect()
	good.connect()
	misbehaves := func(d *device) bool {
		w, err := h.fleet.Why(h.ctx, ws, d.id)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(w.Findings, func(f fleet.Finding) bool { return f.Why.Reason() == atelier.ReasonMisbehaves })
	}
	if misbehaves(bad) {
		t.Error("a device is accused that did nothing")
	}
	for range 40 { // what the broker refuses
		bad.control.Listen(wire.DownPattern(good.id))
	}
	eventually(t, func() string {
		if !misbehaves(bad) {
			return "nobody is told of foreign subscriptions"
		}
		return ""
	})
	for range 2000 {
		bad.hello()
	}
	good.serves(h.deploy(ws, "front", "digits", atelier.Labels{"site": "b"}))
	if misbehaves(good) {
		t.Error("the neighbour is accused")
	}
}
