package atelier

import "slices"

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
// with the same model; then what else those modules have.
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
	var alike, rest []Digest
	for _, m := range append(near, further...) {
		for _, f := range m.Content() {
			if f.Path == file.Path || entry && f.Path == m.Model.Variant.Entry {
				alike = append(alike, f.Digest)
			} else {
				rest = append(rest, f.Digest)
			}
		}
	}
	var all []Digest
	for _, d := range append(alike, rest...) {
		if d != file.Digest && !slices.Contains(all, d) {
			all = append(all, d)
		}
	}
	return all[:min(len(all), MaxResembling)]
}
