package runner

import (
	"maps"
	"reflect"
	"slices"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/state"
)

// situation is what assign needs to know of the instances.
type situation struct {
	ready func(rollout string) bool // it can take traffic
	gone  func(rollout string) bool // it was stopped and nothing of it is left
}

// assign works out which rollout shall hold which slot. It is a function of what
// is written down, what is desired and how the instances are, and changes nothing.
//
// Without a desired state everything stays: the device waits for its hub's first word.
func assign(now state.Slots, desired *atelier.DesiredState, s situation) state.Slots {
	next := state.Slots{RouteTable: now.RouteTable, Modules: map[string]*state.Record{}}
	for deployment, record := range now.Modules {
		copied := *record
		copied.Leaving = slices.DeleteFunc(slices.Clone(record.Leaving), func(slot *state.Slot) bool { return s.gone(slot.Module.Rollout) })
		next.Modules[deployment] = &copied
	}
	if desired != nil {
		wanted := map[string]bool{}
		for i := range desired.Modules {
			m := &desired.Modules[i]
			wanted[m.Deployment] = true
			record := next.Modules[m.Deployment]
			if record == nil {
				record = &state.Record{}
				next.Modules[m.Deployment] = record
			}
			want(record, m)
		}
		for deployment, record := range next.Modules {
			try(record, trialOf(desired, deployment))
		}
		for deployment, record := range next.Modules {
			if !wanted[deployment] {
				dismiss(record)
			}
		}
	}
	for deployment, record := range next.Modules {
		if c := record.Candidate; c != nil && s.ready(c.Module.Rollout) {
			promote(record)
		}
		if record.Current == nil && record.Candidate == nil && len(record.Leaving) == 0 {
			delete(next.Modules, deployment)
		}
	}
	return next
}

// want makes m the record's module: the current one where it is that already,
// otherwise its candidate.
func want(record *state.Record, m *atelier.Module) {
	switch {
	case record.Current != nil && record.Current.Module.Rollout == m.Rollout:
		record.Current = refresh(record.Current, m)
		leave(record, record.Candidate) // a superseded attempt to move away from it
		record.Candidate = nil
	case record.Candidate != nil && record.Candidate.Module.Rollout == m.Rollout:
		record.Candidate = refresh(record.Candidate, m)
	case record.Trial != nil && record.Trial.Module.Rollout == m.Rollout: // it is promoted, and runs
		leave(record, record.Candidate)
		record.Candidate = refresh(record.Trial, m)
		record.Trial, record.Split = nil, atelier.Split{}
	case slices.ContainsFunc(record.Leaving, func(s *state.Slot) bool { return s.Module.Rollout == m.Rollout }):
		// It was dismissed and is wanted again: first it must be gone.
	default:
		leave(record, record.Candidate)
		record.Candidate = &state.Slot{Module: *m}
	}
}

// try makes m the rollout that runs beside the record's module; nil ends the one that did.
func try(record *state.Record, m *atelier.TrialModule) {
	switch {
	case m == nil:
		leave(record, record.Trial)
		record.Trial, record.Split = nil, atelier.Split{}
	case record.Trial != nil && record.Trial.Module.Rollout == m.Rollout:
		record.Trial, record.Split = refresh(record.Trial, &m.Module), m.Split
	case slices.ContainsFunc(append([]*state.Slot{record.Current, record.Candidate}, record.Leaving...), func(s *state.Slot) bool { return s != nil && s.Module.Rollout == m.Rollout }):
		// It was something else a moment ago: first it must be gone.
		leave(record, record.Trial)
		record.Trial, record.Split = nil, atelier.Split{}
	default:
		leave(record, record.Trial)
		record.Trial, record.Split = &state.Slot{Module: m.Module}, m.Split
	}
}

// trialOf returns what shall run beside a deployment's module, nil where nothing shall.
func trialOf(desired *atelier.DesiredState, deployment string) *atelier.TrialModule {
	for i := range desired.Trials {
		if t := &desired.Trials[i]; t.Deployment == deployment {
			return t
		}
	}
	return nil
}

// refresh takes over what may change without a new rollout: the names, the
// keys of the endpoint, and what is collected. All else of a rollout is immutable.
func refresh(slot *state.Slot, m *atelier.Module) *state.Slot {
	if slot.Module.Name == m.Name && slot.Module.Endpoint == m.Endpoint && reflect.DeepEqual(slot.Module.Collect, m.Collect) {
		return slot
	}
	changed := slot.Module
	changed.Name, changed.Endpoint, changed.Collect = m.Name, m.Endpoint, m.Collect
	return &state.Slot{Module: changed}
}

// promote makes the candidate the current rollout.
func promote(record *state.Record) {
	if record.Current != nil {
		leave(record, record.Current)
		// The way back leads to another version, also where this one was rolled
		// out again with other settings.
		if record.Current.Module.Model.Digest != record.Candidate.Module.Model.Digest {
			record.Previous = record.Current
		}
	}
	record.Current, record.Candidate = record.Candidate, nil
}

// dismiss lets everything of a deployment leave.
func dismiss(record *state.Record) {
	leave(record, record.Candidate)
	leave(record, record.Current)
	leave(record, record.Trial)
	record.Candidate, record.Current, record.Previous = nil, nil, nil
	record.Trial, record.Split = nil, atelier.Split{}
}

func leave(record *state.Record, slot *state.Slot) {
	if slot != nil {
		record.Leaving = append(record.Leaving, slot)
	}
}

// routes returns the route table for slots: one route for each current rollout,
// also where it is just being restarted, so that callers get an answer that says
// so. What runs beside it is part of the route only while it is ready. The sequence is
// the last one where the table is as it was.
func routes(slots state.Slots, device string, socket func(rollout string) string, ready func(rollout string) bool) atelier.RouteTable {
	table := atelier.RouteTable{Sequence: slots.RouteTable.Sequence, Device: device}
	for _, deployment := range slices.Sorted(maps.Keys(slots.Modules)) {
		c := slots.Modules[deployment].Current
		if c == nil || !c.Module.HasEndpoint() {
			continue
		}
		backend := func(m *atelier.Module) atelier.Backend {
			return atelier.Backend{
				Socket: socket(m.Rollout), Deployment: m.Deployment, Rollout: m.Rollout, Package: m.Package,
				Model: m.Model.Name, Version: m.Model.Version, Digest: m.Model.Digest,
			}
		}
		m := &c.Module
		route := atelier.Route{Endpoint: m.Endpoint.Name, Keys: m.Endpoint.Keys, Backend: backend(m), Server: m.Serving.Server}
		if t := slots.Modules[deployment].Trial; t != nil && ready(t.Module.Rollout) {
			route.Trial = &atelier.RouteTrial{Backend: backend(&t.Module), Split: slots.Modules[deployment].Split}
		}
		table.Routes = append(table.Routes, route)
	}
	if !reflect.DeepEqual(table, slots.RouteTable) {
		table.Sequence++
	}
	return table
}
