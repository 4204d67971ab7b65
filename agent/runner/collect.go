package runner

import (
	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/state"
)

// Collected is a module whose requests are to be recorded.
type Collected struct {
	Deployment string // id
	Name       string // of the deployment
	Rollout    string
	Socket     string // at which the module answers
	Collection atelier.Collection
}

// Collected returns the modules whose requests are to be recorded, those that answer their
// last requests among them. A deployment that is not collected any more is not named.
func (r *Runner) Collected() []Collected {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Collected
	for deployment, record := range r.slots.Modules {
		if record.Current == nil || record.Current.Module.Collect == nil {
			continue
		}
		// What leaves is recorded as its successor is: masks that came since hold for it too.
		c := *record.Current.Module.Collect
		slots := append([]*state.Slot{record.Current}, record.Leaving...)
		if record.Trial != nil && record.Split.Kind == atelier.Canary { // a shadow answers nobody
			slots = append(slots, record.Trial)
		}
		for _, slot := range slots {
			rollout := slot.Module.Rollout
			all = append(all, Collected{Deployment: deployment, Name: record.Current.Module.Name, Rollout: rollout, Socket: r.socket(rollout), Collection: c})
		}
	}
	return all
}
