package fleet_test

import (
	"context"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/fleet"
)

// try fetches what the device shall run beside another module, and notes that it does.
func (d *device) try(ctx context.Context, m *atelier.TrialModule, modules []atelier.ModuleStatus) []atelier.ModuleStatus {
	slot := &atelier.SlotStatus{
		Rollout: m.Rollout, Model: m.Model.Name, Version: m.Model.Version, Digest: m.Model.Digest,
		Standing: atelier.Stand(atelier.Serving, atelier.Because(atelier.ReasonAsDesired, "")),
	}
	slot.Split = &m.Split
	if m.Split.Kind == atelier.Shadow {
		slot.Shadow = &atelier.ShadowReport{Compared: 100, Disagreed: 7}
	}
	for _, file := range m.Content() {
		if err := d.fetch(ctx, file); err != nil {
			slot.Standing = atelier.Stand(atelier.BackOff, atelier.Because(atelier.ReasonUnreachable, err.Error()))
		}
	}
	for i := range modules {
		if modules[i].Deployment == m.Deployment {
			modules[i].Trial = slot
		}
	}
	return modules
}

func canary(weight float64) *fleet.TrialSpec {
	return &fleet.TrialSpec{Kind: atelier.Canary, Weight: &weight}
}

func TestTrialPromotedAndRolledBack(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	h.model(ws, "digits", noise(t, 1000))
	two := h.model(ws, "digits", noise(t, 3000))
	h.model(ws, "digits", noise(t, 2000))
	d, old := h.join(ws, "press", edge), h.join(ws, "old", edge)
	old.facts.Features = nil
	h.start()
	d.connect()
	old.connect()
	first := h.change(ws, h.deploy(ws, "digits", "digits", edge).Name, fleet.DeploymentSpec{Version: ptr("1")})
	d.serves(first)
	old.serves(first)

	beside := h.change(ws, "digits", fleet.DeploymentSpec{Version: ptr("2"), Trial: canary(10)})
	if beside.Version != 1 || beside.Rollout != first.Rollout || beside.Trial == nil || beside.Trial.VersionID != two.ID || beside.Trial.Weight != 10 {
		t.Fatalf("it is %+v, beside it %+v", beside, beside.Trial)
	}
	runs := func(s atelier.DeviceStatus) bool {
		return s.State() == atelier.Serving && s.Version == 1 && s.Trial != nil && s.Trial.Version == 2 && s.Trial.State() == atelier.Serving
	}
	d.on(beside, "version 2 runs beside", runs)
	refused := old.on(beside, "it is refused", func(s atelier.DeviceStatus) bool { return s.Trial != nil && s.Trial.State() == atelier.Refused })
	if refused.State() != atelier.Serving || refused.Trial.Why().Reason() != atelier.ReasonUnsupportedFeature || !strings.Contains(refused.Trial.Why().Message(), "version 1 of digits answers all requests") {
		t.Errorf("an old agent is %s, beside it: %s", refused.State(), refused.Trial.Why().Message())
	}
	if len(old.holds().Trials) > 0 {
		t.Error("an old agent was sent what it does not know")
	}
	if w, err := h.fleet.Why(h.ctx, ws, "old"); err != nil || len(w.Findings) != 1 || w.Findings[0].Subject != "trial in digits" {
		t.Errorf("why says %+v, %v", w, err)
	}
	if w, err := h.fleet.Why(h.ctx, ws, "press"); err != nil || !w.InSync {
		t.Errorf("why says %+v, %v", w, err)
	}
	if r, err := h.fleet.Trace(h.ctx, ws, beside.Trial.Rollout+"-x"); err != nil || r.Version != 2 {
		t.Errorf("a request to the canary leads to %+v, %v", r, err)
	}
	if e, err := h.fleet.Endpoint(h.ctx, ws, "digits"); err != nil || e.Version != 1 || e.Trial == nil || len(e.Addresses) == 0 && d.facts.Gateway != "" {
		t.Errorf("the endpoint is %+v, %v", e, err)
	}

	// Another weight is no rollout.
	half := h.change(ws, "digits", fleet.DeploymentSpec{Trial: canary(50)})
	if half.Trial.Rollout != beside.Trial.Rollout || half.Trial.Weight != 50 || half.Rollout != first.Rollout {
		t.Errorf("another weight made it %+v", half.Trial)
	}
	eventually(t, func() string {
		if s := d.holds(); len(s.Trials) != 1 || s.Trials[0].Split.Weight != 50 {
			return "the device does not know the weight"
		}
		return ""
	})
	// Nor is it to make a shadow of it.
	shadow := h.change(ws, "digits", fleet.DeploymentSpec{Trial: &fleet.TrialSpec{Kind: atelier.Shadow}})
	if shadow.Trial.Rollout != beside.Trial.Rollout || shadow.Trial.Sample != 1 || shadow.Trial.Weight != 0 || shadow.Trial.Tolerance != atelier.DefaultTolerance {
		t.Errorf("as a shadow it is %+v", shadow.Trial)
	}
	d.on(shadow, "it compares", func(s atelier.DeviceStatus) bool { return s.Trial.Shadow != nil && s.Trial.Shadow.Disagreed == 7 })

	// Other limits begin both anew.
	limited := h.change(ws, "digits", fleet.DeploymentSpec{Limits: &atelier.Limits{Memory: 1 << 30}})
	if limited.Trial == nil || limited.Trial.Rollout == beside.Trial.Rollout || limited.Rollout == first.Rollout {
		t.Errorf("new limits made it %+v, beside it %+v", limited, limited.Trial)
	}
	d.on(limited, "both run again", runs)

	promoted := h.change(ws, "digits", fleet.DeploymentSpec{Promote: true})
	if promoted.Trial != nil || promoted.Version != 2 || promoted.Rollout != limited.Trial.Rollout {
		t.Errorf("promoted it is %+v", promoted)
	}
	d.serves(promoted)
	if r, err := h.fleet.Trace(h.ctx, ws, promoted.Rollout+"-x"); err != nil || r.Version != 2 {
		t.Errorf("a request leads to %+v, %v", r, err)
	}

	h.change(ws, "digits", fleet.DeploymentSpec{Version: ptr("1"), Trial: canary(100)})
	back := h.change(ws, "digits", fleet.DeploymentSpec{Rollback: true})
	if back.Trial != nil || back.Version != 2 || back.Rollout != promoted.Rollout {
		t.Errorf("rolled back it is %+v", back)
	}
	d.serves(back)

	// A deploy of what runs beside promotes it, one of another version ends it.
	beside = h.change(ws, "digits", fleet.DeploymentSpec{Version: ptr("1"), Trial: canary(1)})
	if one := h.change(ws, "digits", fleet.DeploymentSpec{Version: ptr("1")}); one.Rollout != beside.Trial.Rollout || one.Trial != nil {
		t.Errorf("deployed it is %+v", one)
	}
	h.change(ws, "digits", fleet.DeploymentSpec{Version: ptr("2"), Trial: canary(1)})
	if three := h.change(ws, "digits", fleet.DeploymentSpec{Version: ptr("3")}); three.Version != 3 || three.Trial != nil {
		t.Errorf("deployed it is %+v", three)
	}
}

func TestTrialsThatCannotBe(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	h.model(ws, "digits", noise(t, 1000))
	h.model(ws, "digits", noise(t, 1000))
	h.model(ws, "other", noise(t, 1000))
	h.start()
	h.change(ws, h.deploy(ws, "digits", "digits", edge).Name, fleet.DeploymentSpec{Version: ptr("1")})
	for name, tc := range map[string]struct {
		spec fleet.DeploymentSpec
		code atelier.Code
	}{
		"no version":     {fleet.DeploymentSpec{Trial: canary(1)}, atelier.Conflict},
		"the same":       {fleet.DeploymentSpec{Version: ptr("1"), Trial: canary(1)}, atelier.Conflict},
		"another model":  {fleet.DeploymentSpec{Model: ptr("other"), Version: ptr("1"), Trial: canary(1)}, atelier.Conflict},
		"too much":       {fleet.DeploymentSpec{Version: ptr("2"), Trial: canary(101)}, atelier.Invalid},
		"no kind":        {fleet.DeploymentSpec{Version: ptr("2"), Trial: &fleet.TrialSpec{Kind: "x"}}, atelier.Invalid},
		"with limits":    {fleet.DeploymentSpec{Version: ptr("2"), Trial: canary(1), Limits: &atelier.Limits{}}, atelier.Invalid},
		"with prefetch":  {fleet.DeploymentSpec{Version: ptr("2"), Trial: canary(1), Prefetch: true}, atelier.Invalid},
		"both":           {fleet.DeploymentSpec{Promote: true, Rollback: true}, atelier.Invalid},
		"promote none":   {fleet.DeploymentSpec{Promote: true}, atelier.Conflict},
		"roll back none": {fleet.DeploymentSpec{Rollback: true}, atelier.Conflict},
	} {
		if _, err := h.fleet.UpdateDeployment(h.ctx, ws, "digits", 0, tc.spec); atelier.CodeOf(err) != tc.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := h.fleet.CreateDeployment(h.ctx, ws, fleet.DeploymentSpec{Name: ptr("new"), Model: ptr("digits"), Selector: &atelier.Selector{All: true}, Trial: canary(1)})
	if atelier.CodeOf(err) != atelier.Conflict {
		t.Errorf("a new deployment: %v", err)
	}
	h.change(ws, "digits", fleet.DeploymentSpec{Version: ptr("2"), Trial: canary(1)})
	for name, spec := range map[string]fleet.DeploymentSpec{
		"promote another": {Version: ptr("1"), Promote: true},
		"prefetch it":     {Version: ptr("2"), Prefetch: true},
	} {
		if _, err := h.fleet.UpdateDeployment(h.ctx, ws, "digits", 0, spec); atelier.CodeOf(err) != atelier.Conflict {
			t.Errorf("%s: %v", name, err)
		}
	}
}
