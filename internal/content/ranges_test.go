package content

import (
	"slices"
	"testing"
)

// FuzzRanges compares the set with a plain table of bytes.
func FuzzRanges(f *testing.F) {
	f.Add([]byte{0, 3, 5, 9, 3, 5})
	f.Add([]byte{10, 20, 0, 5, 4, 11, 200, 255})
	f.Add([]byte{7, 7, 9, 2})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var set Ranges
		var table [256]bool
		for ; len(ops) >= 2; ops = ops[2:] {
			r := Range{int64(ops[0]), int64(ops[1])}
			for i := r.Start; i < r.End; i++ {
				table[i] = true
			}
			set = set.Add(r)
		}
		var want Ranges
		n := int64(0)
		for i, in := range table {
			if !in {
				continue
			}
			n++
			if k := len(want); k > 0 && want[k-1].End == int64(i) {
				want[k-1].End++
			} else {
				want = append(want, Range{int64(i), int64(i) + 1})
			}
		}
		if !slices.Equal(set, want) || set.Bytes() != n {
			t.Fatalf("got %v, want %v", set, want)
		}
		all := Range{0, 256}
		missing := set.Missing(all)
		if missing.Bytes()+set.Bytes() != 256 {
			t.Fatalf("%v misses %v", set, missing)
		}
		for _, m := range missing {
			if set.Contains(m) || len(set.Missing(m)) != 1 {
				t.Fatalf("%v contains %v", set, m)
			}
		}
		for _, e := range set {
			if !set.Contains(e) || set.Contains(Range{e.Start, e.End + 1}) || set.Contains(Range{e.Start - 1, e.End}) {
				t.Fatalf("Contains is wrong about %v in %v", e, set)
			}
		}
	})
}
