package fleet

import (
	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// plans are the plans of workspaces that were read before, of one goroutine that
// follows events: devices come and go all the time, and a plan, which may name
// hundreds of them in its selectors, changes seldom. They only tell where something
// has to change: a plan that is older than the newest event leads to a second look
// when that event is read. A nil map remembers nothing.
type plans map[string]*plan

// mostPlans bounds them.
const mostPlans = 64

// of returns the plan of a workspace, which its callers do not change.
func (ps plans) of(tx store.Tx, workspace string) (*plan, error) {
	if p := ps[workspace]; p != nil {
		return p, nil
	}
	p, err := loadPlan(tx, workspace)
	if err != nil || ps == nil {
		return &p, err
	}
	if len(ps) >= mostPlans {
		clear(ps)
	}
	ps[workspace] = &p
	return &p, nil
}

// concern forgets what an event changes.
func (ps plans) concern(e atelier.Event) {
	switch e.Kind {
	case catalog.Deployments.Kind, catalog.Endpoints.Kind, catalog.Versions.Kind, catalog.Twins.Kind:
		delete(ps, e.Workspace)
	case catalog.Workspaces.Kind:
		delete(ps, e.ID)
	case catalog.Runtimes.Kind, catalog.Fleets.Kind:
		clear(ps)
	}
}
