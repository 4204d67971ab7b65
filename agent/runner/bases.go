package runner

import (
	"maps"
	"slices"

	atelier "github.com/atelier-edge/atelier"
)

// Bases returns contents that the device may hold and that may resemble file, the most
// similar first; see atelier.Resembling.
func (r *Runner) Bases(file atelier.File) []atelier.Digest {
	r.mu.Lock()
	slots := r.slots
	staged := make([]*atelier.Module, 0, len(r.staged))
	for _, s := range r.staged {
		staged = append(staged, &s.module)
	}
	r.mu.Unlock()
	placed := make([]atelier.Placed, 0, len(slots.Modules))
	for _, deployment := range slices.Sorted(maps.Keys(slots.Modules)) {
		var p atelier.Placed
		record := slots.Modules[deployment]
		for _, slot := range record.All() {
			p.All = append(p.All, &slot.Module)
		}
		if record.Current != nil {
			p.Current = &record.Current.Module
		}
		placed = append(placed, p)
	}
	return atelier.Resembling(file, placed, staged)
}

// Kept returns the versions that are kept for the way back, by deployment.
func (r *Runner) Kept() []atelier.Kept {
	r.mu.Lock()
	slots := r.slots
	r.mu.Unlock()
	var kept []atelier.Kept
	for _, deployment := range slices.Sorted(maps.Keys(slots.Modules)) {
		if p := slots.Modules[deployment].Previous; p != nil {
			m := &p.Module
			kept = append(kept, atelier.Kept{
				Deployment: deployment, Model: m.Model.Name, Version: m.Model.Version, Entry: m.Model.Variant.Entry, Files: m.Content(),
			})
		}
	}
	return kept
}

// Arrived notes how a file came: way is "whole" or "difference", received what it
// cost on the wire.
func (r *Runner) Arrived(file atelier.File, way string, received int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, instances := range []map[string]*instance{r.instances, r.staged} {
		for _, i := range instances {
			if i.module.Has(file.Digest) {
				i.arrived(way, received)
			}
		}
	}
}
