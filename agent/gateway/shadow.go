package gateway

import (
	"slices"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// shadowsEvery is how often it is told that comparisons went on: each report of the
// device costs its hub a write.
const shadowsEvery = 10 * time.Second

// WithShadows returns modules with what the gateway counted of shadows' answers, as of
// the last look at it.
func (s *Supervisor) WithShadows(modules []atelier.ModuleStatus) []atelier.ModuleStatus {
	s.mu.Lock()
	shadows := shadowsOf(&s.status)
	s.mu.Unlock()
	if len(shadows) == 0 {
		return modules
	}
	modules = slices.Clone(modules)
	for i := range modules {
		if t := modules[i].Trial; t != nil && shadows[t.Rollout] != nil {
			with := *t
			with.Shadow = shadows[t.Rollout]
			modules[i].Trial = &with
		}
	}
	return modules
}

// shadowsOf returns what was counted of shadows that have a route, by rollout.
func shadowsOf(status *atelier.GatewayStatus) map[string]*atelier.ShadowReport {
	shadows := map[string]*atelier.ShadowReport{}
	for i := range status.Counters {
		if c := &status.Counters[i]; c.Shadow != nil && !c.Departed {
			shadows[c.Rollout] = c.Shadow
		}
	}
	return shadows
}

// compared reports whether it shall be told that comparisons went on, and notes that it
// is. The caller holds s.mu.
func (s *Supervisor) compared(status *atelier.GatewayStatus, now time.Time) bool {
	var total uint64
	for _, r := range shadowsOf(status) {
		total += r.Compared + r.Dropped + r.Errors
	}
	if total == s.toldCompared || now.Sub(s.toldAt) < shadowsEvery {
		return false
	}
	s.toldCompared, s.toldAt = total, now
	return true
}
