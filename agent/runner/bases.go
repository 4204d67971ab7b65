package runner

import (
	"maps"
	"slices"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/state"
)

// maxBases is how many contents Bases returns at most.
const maxBases = 16

// Bases returns contents that the device may hold and that may resemble file: what
// has the same path in other rollouts of a module that needs file, the running one
// first, then in modules with the same model, then what else those modules have.
func (r *Runner) Bases(file atelier.File) []atelier.Digest {
	r.mu.Lock()
	slots := r.slots
	r.mu.Unlock()
	var same, others []atelier.Digest
	look := func(m *atelier.Module) {
		for _, f := range m.Content() {
			if f.Path == file.Path {
				same = append(same, f.Digest)
			} else {
				others = append(others, f.Digest)
			}
		}
	}
	models := map[string]bool{}
	var further []*state.Record
	for _, deployment := range slices.Sorted(maps.Keys(slots.Modules)) {
		record := slots.Modules[deployment]
		if !needs(record, file.Digest) {
			further = append(further, record)
			continue
		}
		for _, slot := range record.All() {
			models[slot.Module.Model.Name] = true
			look(&slot.Module)
		}
	}
	for _, record := range further {
		if c := record.Current; c != nil && models[c.Module.Model.Name] {
			look(&c.Module)
		}
	}
	var bases []atelier.Digest
	for _, d := range append(same, others...) {
		if d != file.Digest && !slices.Contains(bases, d) {
			bases = append(bases, d)
		}
	}
	return bases[:min(len(bases), maxBases)]
}

// needs reports whether a rollout of the record is made of the content.
func needs(record *state.Record, d atelier.Digest) bool {
	return slices.ContainsFunc(record.All(), func(slot *state.Slot) bool {
		return slot.Module.Has(d)
	})
}

// Arrived notes how a file came: way is "whole" or "difference", received what it
// cost on the wire.
func (r *Runner) Arrived(file atelier.File, way string, received int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.instances {
		if i.module.Has(file.Digest) {
			i.arrived(way, received)
		}
	}
}
