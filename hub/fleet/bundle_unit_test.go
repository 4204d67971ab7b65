package fleet

import (
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

func TestHoldsWhatADeviceSaysToHaveStarted(t *testing.T) {
	t.Parallel()
	module := func(rollout string) atelier.Module { return atelier.Module{Deployment: "d", Rollout: rollout} }
	current := func(rollout string, s atelier.ModuleState) []atelier.ModuleStatus {
		return []atelier.ModuleStatus{{Deployment: "d", Current: &atelier.SlotStatus{
			Rollout: rollout, Standing: atelier.Stand(s, atelier.Because(atelier.ReasonInProgress, "")),
		}}}
	}
	one, two := []atelier.Module{module("one")}, []atelier.Module{module("two")}
	for name, c := range map[string]struct {
		before, desired []atelier.Module
		reported        []atelier.ModuleStatus
		want            string
	}{
		"it serves what it shall":          {nil, one, current("one", atelier.Serving), "one"},
		"it still serves the one before":   {one, two, current("one", atelier.Serving), "one"},
		"it serves the next":               {one, two, current("two", atelier.Serving), "two"},
		"it serves what nobody knows":      {nil, two, current("one", atelier.Serving), ""},
		"it is on its way":                 {nil, one, current("one", atelier.Fetching), ""},
		"it crashed":                       {one, one, current("one", atelier.BackOff), "one"},
		"a candidate is none of it":        {nil, one, []atelier.ModuleStatus{{Deployment: "d"}}, ""},
		"it says nothing of it any longer": {one, nil, nil, ""},
	} {
		got := ""
		for _, m := range holds(c.before, c.desired, c.reported) {
			got += m.Rollout
		}
		if got != c.want {
			t.Errorf("%s: holds %q, want %q", name, got, c.want)
		}
	}
}

func TestBasesOfABundle(t *testing.T) {
	t.Parallel()
	h := holding{digests: map[atelier.Digest]bool{}, paths: map[string]atelier.Digest{}}
	h.add(&atelier.Variant{Entry: "a.onnx", Files: []atelier.File{{Path: "a.onnx", Digest: "a"}, {Path: "labels", Digest: "l"}}}, atelier.File{Path: "lib", Digest: "r"})
	for _, c := range []struct {
		path  string
		entry bool
		want  atelier.Digest
	}{{"a.onnx", true, "a"}, {"b.onnx", true, "a"}, {"b.onnx", false, ""}, {"labels", false, "l"}, {"lib", false, "r"}} {
		if got := h.base(c.path, c.entry); got != c.want {
			t.Errorf("%s: %q, want %q", c.path, got, c.want)
		}
	}
	if !h.digests["a"] || !h.digests["r"] {
		t.Errorf("holds %v", h.digests)
	}
}
