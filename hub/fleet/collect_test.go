package fleet_test

import (
	"fmt"
	"slices"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/hub/store"
)

// What is collected reaches agents that know of it, as it changes, and begins no rollout.
func TestCollectionIsNoRollout(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	h.model(ws, "digits", noise(t, 1000))
	able, old := h.join(ws, "able", edge), h.join(ws, "old", edge)
	able.facts.Features = append(slices.Clone(able.facts.Features), atelier.FeatureCollect)
	h.start()
	able.connect()
	old.connect()
	first := h.deploy(ws, "digits", "digits", edge)
	for _, c := range []atelier.Collection{{Share: 0.5, Mask: []string{"inputs.*"}}, {Share: 0}} {
		changed := h.change(ws, "digits", fleet.DeploymentSpec{Collect: &c})
		if changed.Rollout != first.Rollout {
			t.Errorf("collecting began rollout %s after %s", changed.Rollout, first.Rollout)
		}
		able.serves(changed)
		old.serves(changed)
		eventually(t, func() string {
			w, err := h.fleet.Why(h.ctx, ws, old.id)
			if err != nil {
				return err.Error()
			}
			told := slices.ContainsFunc(w.Findings, func(f fleet.Finding) bool {
				return f.Subject == "collecting of digits" && f.Why.Reason() == atelier.ReasonUnsupportedFeature
			})
			if told != (c.Share > 0) {
				return fmt.Sprintf("with a share of %v an old agent's findings are %+v", c.Share, w.Findings)
			}
			return ""
		})
		for _, d := range []*device{able, old} {
			eventually(t, func() string {
				var m *atelier.Collection
				err := h.store.View(h.ctx, func(tx store.Tx) error {
					s, err := catalog.DesiredStates.Get(tx, ws, d.id)
					if err == nil && len(s.Modules) == 1 {
						m = s.Modules[0].Collect
					}
					return err
				})
				switch {
				case err != nil:
					return err.Error()
				case d == old && m != nil:
					t.Fatalf("an agent that does not know of it was sent %+v", m)
				case d == able && (m == nil || m.Share != c.Share || m.Disk != atelier.DefaultCollectionDisk || len(m.Mask) != len(c.Mask)):
					return "the device is to collect something else"
				}
				return ""
			})
		}
	}
	for _, c := range []atelier.Collection{{Share: 2}, {Share: 1, Disk: 1}, {Share: 1, Mask: []string{"everything"}}} {
		if _, err := h.fleet.UpdateDeployment(h.ctx, ws, "digits", 0, fleet.DeploymentSpec{Collect: &c}); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
