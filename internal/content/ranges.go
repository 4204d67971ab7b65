package content

import (
	"cmp"
	"slices"
)

// Range is the bytes from Start up to, but not including, End.
type Range struct{ Start, End int64 }

// Len returns how many bytes r holds.
func (r Range) Len() int64 { return r.End - r.Start }

// Ranges is a set of bytes: ranges in order that neither touch nor overlap, none
// of them empty. The zero value is the empty set.
type Ranges []Range

// Add returns the set with the bytes of a added. It may change r's memory, as
// append does.
func (r Ranges) Add(a Range) Ranges {
	if a.Len() <= 0 {
		return r
	}
	// [i, j) are the ranges that touch a.
	i, _ := slices.BinarySearchFunc(r, a.Start, func(e Range, at int64) int { return cmp.Compare(e.End, at) })
	j := i
	for j < len(r) && r[j].Start <= a.End {
		a.Start = min(a.Start, r[j].Start)
		a.End = max(a.End, r[j].End)
		j++
	}
	return slices.Replace(r, i, j, a)
}

// Contains reports whether all bytes of a are in the set.
func (r Ranges) Contains(a Range) bool {
	if a.Len() <= 0 {
		return true
	}
	i, _ := slices.BinarySearchFunc(r, a.Start, func(e Range, at int64) int { return cmp.Compare(e.End, at+1) })
	return i < len(r) && r[i].Start <= a.Start && a.End <= r[i].End
}

// Missing returns the bytes of a that are not in the set.
func (r Ranges) Missing(a Range) Ranges {
	var out Ranges
	at := a.Start
	for _, e := range r {
		if e.End <= at {
			continue
		}
		if e.Start >= a.End {
			break
		}
		if e.Start > at {
			out = append(out, Range{at, e.Start})
		}
		at = e.End
	}
	if at < a.End {
		out = append(out, Range{at, a.End})
	}
	return out
}

// Bytes returns how many bytes the set holds.
func (r Ranges) Bytes() (sum int64) {
	for _, e := range r {
		sum += e.Len()
	}
	return sum
}
