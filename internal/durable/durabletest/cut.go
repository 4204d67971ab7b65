package durabletest

import (
	"math/rand/v2"
	"slices"
)

// settle leaves of n, and of what is below it, what a power cut leaves.
func (n *node) settle(rng *rand.Rand, seen map[*node]bool) {
	if seen[n] {
		return
	}
	seen[n] = true
	if !n.dir {
		n.synced = tear(n.synced, n.data, rng)
		n.data = slices.Clone(n.synced)
		return
	}
	if rng != nil {
		var all []string // in order, so that a seed always gives the same
		for name := range n.names {
			all = append(all, name)
		}
		for name := range n.stable {
			if n.names[name] == nil {
				all = append(all, name)
			}
		}
		slices.Sort(all)
		for _, name := range all {
			if now := n.names[name]; now != n.stable[name] && rng.IntN(2) == 0 {
				setName(n.stable, name, now)
			}
		}
	}
	n.names = map[string]*node{}
	for _, name := range sortedNames(n.stable) {
		n.names[name] = n.stable[name]
		n.stable[name].settle(rng, seen)
	}
}

const block = 512

// tear returns what a power cut leaves of a file that held before when it was
// last synced, and now when the power went.
func tear(before, now []byte, rng *rand.Rand) []byte {
	if rng == nil || slices.Equal(before, now) {
		return before
	}
	size := len(before)
	if rng.IntN(2) == 0 {
		size = len(now)
	}
	out := make([]byte, size)
	for at := 0; at < size; at += block {
		src := before
		if rng.IntN(2) == 0 {
			src = now
		}
		if at < len(src) { // else the block stays zero: its size was written, its bytes were not
			copy(out[at:min(at+block, size)], src[at:])
		}
	}
	return out
}

func setName(m map[string]*node, name string, n *node) {
	if n == nil {
		delete(m, name)
	} else {
		m[name] = n
	}
}

func sortedNames(m map[string]*node) []string {
	out := make([]string, 0, len(m))
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
