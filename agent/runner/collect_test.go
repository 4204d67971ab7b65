package runner

import (
	"slices"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/state"
)

// What answers requests of a deployment is recorded: what serves it, what answers its
// last ones, and a canary; not a shadow.
func TestCollectedAreThoseThatAnswer(t *testing.T) {
	t.Parallel()
	slot := func(rollout string, c *atelier.Collection) *state.Slot {
		return &state.Slot{Module: atelier.Module{Name: "digits", Rollout: rollout, Collect: c}}
	}
	c := &atelier.Collection{Share: 0.5}
	for name, want := range map[string]struct {
		record state.Record
		said   []string
	}{
		"one":     {state.Record{Current: slot("a", c)}, []string{"a"}},
		"nothing": {state.Record{Current: slot("a", nil), Leaving: []*state.Slot{slot("b", c)}}, nil},
		"leaving": {state.Record{Current: slot("a", c), Leaving: []*state.Slot{slot("b", nil)}}, []string{"a", "b"}},
		"canary":  {state.Record{Current: slot("a", c), Trial: slot("b", c), Split: atelier.Split{Kind: atelier.Canary, Weight: 10}}, []string{"a", "b"}},
		"shadow":  {state.Record{Current: slot("a", c), Trial: slot("b", c), Split: atelier.Split{Kind: atelier.Shadow, Sample: 1}}, []string{"a"}},
	} {
		r := &Runner{}
		r.slots.Modules = map[string]*state.Record{"d": &want.record}
		var got []string
		for _, m := range r.Collected() {
			got = append(got, m.Rollout)
			if m.Deployment != "d" || m.Name != "digits" || m.Collection.Share != 0.5 {
				t.Errorf("%s: %+v", name, m)
			}
		}
		if !slices.Equal(got, want.said) {
			t.Errorf("%s: %q, want %q", name, got, want.said)
		}
	}
}
