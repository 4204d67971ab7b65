//go:build linux

package powerfs

import (
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// node is a file or a directory, as it is now and as it was last synced.
type node struct {
	id      uint64
	mode    uint32 // with the type, as stat(2) has it
	links   uint32
	changed time.Time
	target  string // of a symbolic link

	// Of a file: its bytes, and what it takes to have those of the last sync again.
	data   []byte
	size   int              // when it was synced
	before map[int64][]byte // blocks that have changed since, as they were

	// Of a directory.
	names, synced map[string]*node
}

// block is what a disk writes whole or not at all.
const block = 512

// touch keeps the blocks that hold bytes from begin to end as they were when
// the file was synced; call it before they change.
func (n *node) touch(begin, end int) {
	end = min(end, n.size)
	for at := begin / block * block; at < end; at += block {
		if _, kept := n.before[int64(at)]; !kept {
			n.before[int64(at)] = slices.Clone(n.data[at:min(at+block, n.size)])
		}
	}
}

func (n *node) write(p []byte, at int) {
	n.touch(at, at+len(p))
	if grow := at + len(p) - len(n.data); grow > 0 {
		n.data = append(n.data, make([]byte, grow)...)
	}
	copy(n.data[at:], p)
	n.changed = time.Now()
}

func (n *node) truncate(size int) {
	if size < len(n.data) {
		n.touch(size, len(n.data))
		n.data = n.data[:size]
	} else {
		n.data = append(n.data, make([]byte, size-len(n.data))...)
	}
	n.changed = time.Now()
}

// sync makes what n holds now certain: a file's bytes and size, a directory's names.
func (n *node) sync() {
	n.size = len(n.data)
	clear(n.before)
	n.synced = maps.Clone(n.names)
}

// tear leaves of a file what a power cut leaves: what was synced, or, with rng,
// one of its two sizes and each changed block as it was, as it is, or, where its size was
// written and its bytes were not, full of zeros.
func (n *node) tear(rng *rand.Rand) {
	size := n.size
	if rng != nil && rng.IntN(2) == 0 {
		size = len(n.data)
	}
	out := make([]byte, size)
	copy(out, n.data)
	for _, at := range slices.Sorted(maps.Keys(n.before)) {
		if int(at) < size && (rng == nil || rng.IntN(2) == 0) {
			clear(out[at:min(int(at)+block, size)])
			copy(out[at:], n.before[at])
		}
	}
	if rng != nil {
		for at := (n.size + block - 1) / block * block; at < size; at += block {
			if rng.IntN(2) == 0 {
				clear(out[at:min(at+block, size)])
			}
		}
	}
	n.data, n.size = out, size
	clear(n.before)
}

// settle leaves of n, and of what is below it, what a power cut leaves. With rng,
// each name that was not synced is there or not, by chance.
func (n *node) settle(rng *rand.Rand, seen map[*node]bool) {
	if n.names == nil {
		if !seen[n] {
			n.links = 0
			n.tear(rng)
		}
		seen[n] = true
		n.links++
		return
	}
	if rng != nil {
		all := maps.Clone(n.synced)
		maps.Copy(all, n.names)
		for _, name := range slices.Sorted(maps.Keys(all)) { // in order, so that a seed always gives the same
			if now := n.names[name]; now != n.synced[name] && rng.IntN(2) == 0 {
				if now == nil {
					delete(n.synced, name)
				} else {
					n.synced[name] = now
				}
			}
		}
	}
	for name, below := range n.synced {
		// A directory that was moved between two others may have survived in both.
		if below.names != nil && seen[below] {
			delete(n.synced, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(n.synced)) {
		below := n.synced[name]
		if below.names != nil {
			seen[below] = true
		}
		below.settle(rng, seen)
	}
	n.names = maps.Clone(n.synced)
}
