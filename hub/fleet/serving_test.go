package fleet_test

import (
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/fleet"
)

// TestServingSettings follows a deployment's settings to its devices: one whose agent
// does not know them is told nothing and says so.
func TestServingSettings(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	h.model(ws, "digits", noise(t, 1000))
	ready, old := h.join(ws, "ready", edge), h.join(ws, "old", edge)
	ready.facts.Features = append(ready.facts.Features, atelier.FeatureServing)
	h.start()
	for _, d := range []*device{ready, old} {
		d.connect()
	}
	before := h.deploy(ws, "digits", "digits", edge)
	ready.serves(before)
	old.serves(before)

	eight, two, none := 8, 2, 0
	_, err := h.fleet.UpdateDeployment(h.ctx, ws, "digits", 0, fleet.DeploymentSpec{Serving: &atelier.ServingChange{Workers: &two}})
	if atelier.CodeOf(err) != atelier.Invalid || !strings.Contains(err.Error(), "of the kind python") {
		t.Errorf("workers for an ONNX model: %v", err)
	}
	latest := fleet.Latest
	_, err = h.fleet.UpdateDeployment(h.ctx, ws, "digits", 0, fleet.DeploymentSpec{Version: &latest, Prefetch: true, Serving: &atelier.ServingChange{MaxBatch: &eight}})
	if atelier.CodeOf(err) != atelier.Invalid {
		t.Errorf("settings with a prefetch: %v", err)
	}
	set := h.change(ws, "digits", fleet.DeploymentSpec{Serving: &atelier.ServingChange{MaxBatch: &eight}})
	if set.Rollout == before.Rollout || set.Serving.MaxBatch != 8 {
		t.Fatalf("it is %+v", set)
	}
	ready.serves(set)
	if m := ready.holds().Modules[0]; m.Serving.MaxBatch != 8 {
		t.Errorf("the device was sent %+v", m)
	}
	s := old.on(set, "refused", func(s atelier.DeviceStatus) bool { return s.Why().Reason() == atelier.ReasonUnsupportedFeature })
	if !strings.Contains(s.Why().Message(), "max-batch 8") || s.Why().Remedy() == "" {
		t.Errorf("an old agent is told %q, %q", s.Why().Message(), s.Why().Remedy())
	}
	// What is not given stays, also with another version.
	h.model(ws, "digits", noise(t, 2000))
	next := h.change(ws, "digits", fleet.DeploymentSpec{Version: &latest})
	if next.Version != 2 || next.Serving != set.Serving {
		t.Errorf("with version 2 it is %+v", next)
	}
	plain := h.change(ws, "digits", fleet.DeploymentSpec{Serving: &atelier.ServingChange{MaxBatch: &none}})
	old.serves(plain)
}

// A model server is shared by its name: it must be nobody's endpoint, and an agent that
// knows nothing of it is told nothing.
func TestSharedServers(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	h.model(ws, "digits", noise(t, 1000))
	ready, old := h.join(ws, "ready", edge), h.join(ws, "old", edge)
	ready.facts.Features = append(ready.facts.Features, atelier.FeatureServing, atelier.FeatureServer)
	old.facts.Features = append(old.facts.Features, atelier.FeatureServing)
	h.start()
	for _, d := range []*device{ready, old} {
		d.connect()
	}
	first := h.deploy(ws, "digits", "digits", edge)
	ready.serves(first)
	to := func(server string) fleet.DeploymentSpec {
		return fleet.DeploymentSpec{Serving: &atelier.ServingChange{Server: &server}}
	}
	for _, server := range []string{"digits", "Not A Name"} {
		if _, err := h.fleet.UpdateDeployment(h.ctx, ws, "digits", 0, to(server)); err == nil {
			t.Errorf("a server %q was taken", server)
		}
	}
	shared := h.change(ws, "digits", to("shelf"))
	ready.serves(shared)
	if m := ready.holds().Modules[0]; m.Serving.Server != "shelf" {
		t.Errorf("the device was sent %+v", m.Serving)
	}
	s := old.on(shared, "refused", func(s atelier.DeviceStatus) bool { return s.Why().Reason() == atelier.ReasonUnsupportedFeature })
	if !strings.Contains(s.Why().Message(), "model server shelf") {
		t.Errorf("an old agent is told %q", s.Why().Message())
	}
	name := "shelf"
	if _, err := h.fleet.UpdateDeployment(h.ctx, ws, "digits", 0, fleet.DeploymentSpec{Endpoint: &name}); atelier.CodeOf(err) != atelier.Conflict {
		t.Errorf("an endpoint with a server's name: %v", err)
	}
	alone := h.change(ws, "digits", to(""))
	old.serves(alone)
}
