package fleet_test

import (
	"slices"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/fleet"
)

// change changes a deployment.
func (h *hub) change(workspace, name string, spec fleet.DeploymentSpec) atelier.Deployment {
	h.t.Helper()
	d, err := h.fleet.UpdateDeployment(h.ctx, workspace, name, 0, spec)
	if err != nil {
		h.t.Fatal(err)
	}
	return d
}

// prefetch stages a version.
func (h *hub) prefetch(workspace, name, version string) atelier.Deployment {
	h.t.Helper()
	return h.change(workspace, name, fleet.DeploymentSpec{Version: &version, Prefetch: true})
}

// on waits until the deployment's status on a device is as it should be.
func (d *device) on(dep atelier.Deployment, what string, cond func(atelier.DeviceStatus) bool) atelier.DeviceStatus {
	d.h.t.Helper()
	var found atelier.DeviceStatus
	eventually(d.h.t, func() string {
		page, _, err := d.h.fleet.DeviceStatuses(d.h.ctx, d.ws, dep.ID, "", 100)
		if err != nil {
			return err.Error()
		}
		for _, s := range page {
			if found = s; s.Device == d.id && cond(s) {
				return ""
			}
		}
		text := d.name + " never: " + what + "; it is " + string(found.State()) + ", " + found.Why().Message()
		if found.Staged != nil {
			text += "; staged " + string(found.Staged.State()) + ", " + found.Staged.Why().Message()
		}
		return text
	})
	return found
}

func TestPrefetchAndSwitch(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	runtime := h.runtime("1.20.1")
	one, two := h.model(ws, "digits", noise(t, 1000)), h.model(ws, "digits", noise(t, 3000))
	ready, away, old := h.join(ws, "ready", edge), h.join(ws, "away", edge), h.join(ws, "old", edge)
	old.facts.Features = nil
	h.start()
	for _, d := range []*device{ready, away, old} {
		d.connect()
	}
	first := h.change(ws, h.deploy(ws, "digits", "digits", edge).Name, fleet.DeploymentSpec{Version: ptr("1")})
	for _, d := range []*device{ready, away, old} {
		d.serves(first)
	}
	away.disconnect()

	staged := h.prefetch(ws, "digits", "2")
	if staged.Rollout != first.Rollout || staged.Version != 1 || staged.Staged == nil || staged.Staged.Version != 2 || staged.Staged.VersionID != two.ID {
		t.Fatalf("after the prefetch it is %+v, staged %+v", staged, staged.Staged)
	}
	s := ready.on(staged, "ready to switch", func(s atelier.DeviceStatus) bool { return s.ReadyToSwitch() })
	if s.State() != atelier.Serving || s.Version != 1 || s.Wanted != 1 {
		t.Errorf("while version 2 is staged, %s is %s with version %d", s.DeviceName, s.State(), s.Version)
	}
	if has, err := ready.store.Has(two.Variants[0].Files[0].Digest); err != nil || !has {
		t.Errorf("what is staged is not there: %v", err)
	}
	if w, err := h.fleet.Why(h.ctx, ws, "ready"); err != nil || !w.InSync {
		t.Errorf("why ready: %+v, %v", w, err)
	}
	if !ready.packed.Load() {
		t.Error("a device that reads packed messages has been sent none")
	}
	// An agent that cannot prefetch is told nothing of it, and serves.
	s = old.on(staged, "refused", func(s atelier.DeviceStatus) bool {
		return s.Staged != nil && s.Staged.Why().Reason() == atelier.ReasonUnsupportedFeature
	})
	if s.State() != atelier.Serving || !strings.Contains(s.Staged.Why().Message(), "when the deployment is switched") {
		t.Errorf("an old agent is %s, staged: %s", s.State(), s.Staged.Why().Message())
	}
	if old.holds().Staged != nil {
		t.Error("an agent was sent what it does not know")
	}
	away.on(staged, "unreachable", func(s atelier.DeviceStatus) bool {
		return s.Staged != nil && s.Staged.Why().Reason() == atelier.ReasonUnreachable
	})

	// The runtime that came with the prefetch stays with the rollout.
	h.runtime("1.21.0")
	after := h.change(ws, "digits", fleet.DeploymentSpec{Switch: true})
	if after.Staged != nil || after.Version != 2 || after.VersionID != two.ID || after.Rollout != staged.Staged.Rollout {
		t.Fatalf("after the switch it is %+v", after)
	}
	ready.serves(after)
	old.serves(after)
	if m := ready.holds().Modules[0]; m.Runtime.Files[0].Digest != runtime.Digest {
		t.Errorf("the switch brought runtime %s, %s was prefetched", m.Runtime.Version, "1.20.1")
	}
	if len(ready.holds().Staged) > 0 {
		t.Error("it is still staged")
	}
	r, err := h.fleet.Trace(h.ctx, ws, after.Rollout+"-x")
	if err != nil || r.Version != 2 || r.By == "" {
		t.Errorf("trace of an answer after the switch: %+v, %v", r, err)
	}
	// One that was away gets it when it is back, and so it goes back.
	away.connect()
	away.serves(after)
	back := h.change(ws, "digits", fleet.DeploymentSpec{Version: ptr("1")})
	ready.serves(back)
	if back.VersionID != one.ID {
		t.Errorf("back at %+v", back)
	}
}

func ptr[T any](v T) *T { return &v }

func TestPrefetchIsReplacedAndTakenBack(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	for range 3 {
		h.model(ws, "digits", noise(t, 100))
	}
	d := h.join(ws, "kiosk", edge)
	h.start()
	d.connect()
	first := h.change(ws, h.deploy(ws, "digits", "digits", edge).Name, fleet.DeploymentSpec{Version: ptr("1")})
	d.serves(first)
	two := h.prefetch(ws, "digits", "2")
	if again := h.prefetch(ws, "digits", "2"); again.Staged.Rollout != two.Staged.Rollout {
		t.Error("the same prefetch twice began anew")
	}
	three := h.prefetch(ws, "digits", "3")
	d.on(three, "3 is staged", func(s atelier.DeviceStatus) bool { return s.ReadyToSwitch() && s.Staged.Version == 3 })
	// Another change of what runs leaves it alone.
	limited := h.change(ws, "digits", fleet.DeploymentSpec{Limits: &atelier.Limits{Memory: 1 << 30}})
	if limited.Staged == nil || limited.Staged.Rollout != three.Staged.Rollout || limited.Rollout == first.Rollout {
		t.Errorf("new limits made it %+v, staged %+v", limited, limited.Staged)
	}
	// The version that runs takes it back.
	same := h.change(ws, "digits", fleet.DeploymentSpec{Version: ptr("1")})
	if same.Staged != nil || same.Rollout != limited.Rollout {
		t.Errorf("it is %+v, staged %+v", same, same.Staged)
	}
	eventually(t, func() string {
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.saved.Staged) > 0 {
			return "the device still holds what was taken back"
		}
		return ""
	})
	// A deploy of what is staged is the switch.
	staged := h.prefetch(ws, "digits", "2")
	if deployed := h.change(ws, "digits", fleet.DeploymentSpec{Version: ptr("2")}); deployed.Rollout != staged.Staged.Rollout || deployed.Staged != nil {
		t.Errorf("deployed %+v, staged was %+v", deployed, staged.Staged)
	}
}

// A deployment may begin with a prefetch: nothing runs before the switch.
func TestPrefetchOfTheFirstVersion(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	v := h.model(ws, "digits", noise(t, 100))
	d := h.join(ws, "kiosk", edge)
	h.start()
	d.connect()
	name := "digits"
	dep, err := h.fleet.CreateDeployment(h.ctx, ws, fleet.DeploymentSpec{
		Name: &name, Model: &name, Selector: &atelier.Selector{Labels: edge}, Prefetch: true,
	})
	if err != nil || dep.VersionID != "" || dep.Rollout != "" || dep.Staged == nil || dep.Staged.VersionID != v.ID {
		t.Fatalf("got %+v, staged %+v, %v", dep, dep.Staged, err)
	}
	s := d.on(dep, "ready to switch", func(s atelier.DeviceStatus) bool { return s.ReadyToSwitch() })
	if s.State() != atelier.Pending || s.Why().Reason() != atelier.ReasonWaiting || s.Version != 0 {
		t.Errorf("it is %s, %s, version %d", s.State(), s.Why().Message(), s.Version)
	}
	if len(d.holds().Modules) > 0 {
		t.Error("the device shall run something")
	}
	// What only stays and does not run follows the selector, too.
	if moved := h.change(ws, name, fleet.DeploymentSpec{Limits: &atelier.Limits{Memory: 1 << 30}}); moved.Rollout != "" {
		t.Errorf("a rollout of nothing began: %+v", moved)
	}
	d.serves(h.change(ws, name, fleet.DeploymentSpec{Switch: true}))
}

func TestStagingThatCannotBe(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.start()
	h.model(ws, "digits", noise(t, 10))
	h.model(ws, "digits", noise(t, 10))
	h.deploy(ws, "digits", "digits", edge)
	h.deploy(ws, "waits", "digits", edge)
	h.prefetch(ws, "waits", "1")
	all := &atelier.Selector{All: true}
	for name, c := range map[string]struct {
		deployment string
		spec       fleet.DeploymentSpec
		code       atelier.Code
	}{
		"nothing staged":    {"digits", fleet.DeploymentSpec{Switch: true}, atelier.Conflict},
		"another version":   {"waits", fleet.DeploymentSpec{Switch: true, Version: ptr("2")}, atelier.Conflict},
		"another model":     {"waits", fleet.DeploymentSpec{Switch: true, Model: ptr("speech")}, atelier.Conflict},
		"it runs already":   {"digits", fleet.DeploymentSpec{Prefetch: true, Version: ptr("2")}, atelier.Conflict},
		"no such version":   {"digits", fleet.DeploymentSpec{Prefetch: true, Version: ptr("9")}, atelier.NotFound},
		"no version":        {"digits", fleet.DeploymentSpec{Prefetch: true}, atelier.Invalid},
		"both":              {"waits", fleet.DeploymentSpec{Prefetch: true, Switch: true}, atelier.Invalid},
		"elsewhere":         {"digits", fleet.DeploymentSpec{Prefetch: true, Version: ptr("1"), Selector: all}, atelier.Invalid},
		"switch, elsewhere": {"waits", fleet.DeploymentSpec{Switch: true, Selector: all}, atelier.Invalid},
	} {
		_, err := h.fleet.UpdateDeployment(h.ctx, ws, c.deployment, 0, c.spec)
		if atelier.CodeOf(err) != c.code || atelier.BecauseOf(atelier.ReasonWaiting, err).Remedy() == "" {
			t.Errorf("%s: %v, expected code %s and a remedy", name, err, c.code)
		}
	}
	if _, err := h.fleet.CreateDeployment(h.ctx, ws, fleet.DeploymentSpec{Name: ptr("new"), Model: ptr("digits"), Selector: all, Switch: true}); atelier.CodeOf(err) != atelier.Conflict {
		t.Errorf("switch of what is not there: %v", err)
	}
	d, err := h.fleet.Deployment(h.ctx, ws, "waits")
	if err != nil || d.Staged == nil || slices.Contains([]int{0, 1}, d.Version) {
		t.Errorf("after all that it is %+v, staged %+v, %v", d, d.Staged, err)
	}
}
