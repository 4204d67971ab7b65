package atelier

import (
	"path"
	"slices"
)

// Placed are the modules of one deployment on a device: that which runs, nil for
// none, and all of them, the running one first.
type Placed struct {
	Current *Module
	All     []*Module
}

// MaxResembling is how many contents Resembling returns at most.
const MaxResembling = 16

// Resembling returns contents that may resemble file and that a device may hold, of
// which these are the modules, by deployment and those that are staged. First what
// has the same path in other rollouts of a module that needs file, the running one
// first, or is what the engine loads there, if file is that; then the same in modules
// with the same model; then what else those have that looks like it: of the same name in
// another directory, or of the same kind, by its name, and neither a quarter of its
// size nor four times as large. A difference to anything else takes a hub long to find
// out to be of no use.
//
// An agent names them in this order when it asks for content, and a hub that plans
// has to know.
func Resembling(file File, placed []Placed, staged []*Module) []Digest {
	deployments := map[string]bool{} // that stage the file
	models := map[string]bool{}
	entry := false
	needs := func(m *Module) bool { return m.Has(file.Digest) }
	for _, m := range staged {
		if needs(m) {
			deployments[m.Deployment], models[m.Model.Name] = true, true
			entry = entry || m.Model.Variant.Entry == file.Path
		}
	}
	var near, further []*Module
	var others []Placed
	for _, p := range placed {
		if !slices.ContainsFunc(p.All, func(m *Module) bool { return deployments[m.Deployment] || needs(m) }) {
			others = append(others, p)
			continue
		}
		for _, m := range p.All {
			near = append(near, m)
			models[m.Model.Name] = true
			entry = entry || needs(m) && m.Model.Variant.Entry == file.Path
		}
	}
	for _, p := range others {
		if c := p.Current; c != nil && models[c.Model.Name] {
			further = append(further, c)
		}
	}
	var alike, named, rest []Digest
	for _, m := range append(near, further...) {
		for _, f := range m.Content() {
			switch {
			case f.Path == file.Path || entry && f.Path == m.Model.Variant.Entry:
				alike = append(alike, f.Digest)
			case needs(m): // the rest of the same version
			case path.Base(f.Path) == path.Base(file.Path):
				named = append(named, f.Digest)
			case path.Ext(f.Path) == path.Ext(file.Path) && f.Size < 4*file.Size && file.Size < 4*f.Size:
				rest = append(rest, f.Digest)
			}
		}
	}
	var all []Digest
	for _, d := range slices.Concat(alike, named, rest) {
		if d != file.Digest && !slices.Contains(all, d) {
			all = append(all, d)
		}
	}
	return all[:min(len(all), MaxResembling)]
}
