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
// first, or is what the engine loads there, if file is that; then the same in modules
// with the same model; then what else those modules have.
func (r *Runner) Bases(file atelier.File) []atelier.Digest {
	r.mu.Lock()
	slots := r.slots
	r.mu.Unlock()
	var near, further []*atelier.Module
	models := map[string]bool{}
	entry := false
	var others []*state.Record
	for _, deployment := range slices.Sorted(maps.Keys(slots.Modules)) {
		record := slots.Modules[deployment]
		if !slices.ContainsFunc(record.All(), func(s *state.Slot) bool { return s.Module.Has(file.Digest) }) {
			others = append(others, record)
			continue
		}
		for _, slot := range record.All() {
			m := &slot.Module
			near = append(near, m)
			models[m.Model.Name] = true
			entry = entry || m.Has(file.Digest) && m.Model.Variant.Entry == file.Path
		}
	}
	for _, record := range others {
		if c := record.Current; c != nil && models[c.Module.Model.Name] {
			further = append(further, &c.Module)
		}
	}
	var alike, rest []atelier.Digest
	for _, m := range append(near, further...) {
		for _, f := range m.Content() {
			if f.Path == file.Path || entry && f.Path == m.Model.Variant.Entry {
				alike = append(alike, f.Digest)
			} else {
				rest = append(rest, f.Digest)
			}
		}
	}
	var bases []atelier.Digest
	for _, d := range append(alike, rest...) {
		if d != file.Digest && !slices.Contains(bases, d) {
			bases = append(bases, d)
		}
	}
	return bases[:min(len(bases), maxBases)]
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
