package fleet

import (
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
)

// A plan is read anew after whatever it is made of has changed, and only then.
func TestPlansAreForgotten(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		event atelier.Event
		left  int
	}{
		{atelier.Event{Kind: catalog.Devices.Kind, Workspace: "a", ID: "d"}, 2},
		{atelier.Event{Kind: catalog.ReportedStates.Kind, Workspace: "a", ID: "d"}, 2},
		{atelier.Event{Kind: catalog.Deployments.Kind, Workspace: "a", ID: "x"}, 1},
		{atelier.Event{Kind: catalog.Endpoints.Kind, Workspace: "a", ID: "x"}, 1},
		{atelier.Event{Kind: catalog.Versions.Kind, Workspace: "a", ID: "x"}, 1},
		{atelier.Event{Kind: catalog.Workspaces.Kind, ID: "a"}, 1},
		{atelier.Event{Kind: catalog.Runtimes.Kind, ID: "x"}, 0},
		{atelier.Event{Kind: catalog.Fleets.Kind, ID: "x"}, 0},
	} {
		ps := plans{"a": &plan{}, "b": &plan{}}
		ps.concern(c.event)
		if len(ps) != c.left || c.left > 0 && ps["b"] == nil {
			t.Errorf("after an event of kind %s %d plans are left, expected were %d", c.event.Kind, len(ps), c.left)
		}
	}
}

// What was read of a device before it changed is not remembered after.
func TestPeersReadMeanwhile(t *testing.T) {
	t.Parallel()
	var ps peers
	_, _, first := ps.get("d")
	ps.forget("d")
	_, _, second := ps.get("d")
	old, now := &peer{device: "d", workspace: "w"}, &peer{device: "d", workspace: "w", revoked: true}
	ps.remember("d", now, second)
	ps.remember("d", old, first)
	if p, _, _ := ps.get("d"); p != now {
		t.Fatalf("what is remembered of the device is %+v, expected was what was read last", p)
	}
	// Others that change meanwhile are no reason to read this one again.
	ps.forget("d")
	_, place, r := ps.get("d")
	if place != "w" {
		t.Errorf("the device was in workspace w, remembered is %q", place)
	}
	ps.forget("e")
	ps.remember("d", now, r)
	if p, _, _ := ps.get("d"); p != now {
		t.Error("the device is not remembered after another one changed")
	}
	ps.lose("d")
	_, place, r = ps.get("d")
	if place != "" {
		t.Errorf("a device that was deleted is remembered in workspace %q", place)
	}
	ps.remember("d", nil, r)
	if len(ps.reads) != 0 || len(ps.known) != 0 {
		t.Errorf("%d readings and %d devices are left of a device that is not there", len(ps.reads), len(ps.known))
	}
}
