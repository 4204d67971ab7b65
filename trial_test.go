package atelier

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestSplitCheck(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		split Split
		field string
	}{
		"canary":            {Split{Kind: Canary, Weight: 10}, ""},
		"none of it":        {Split{Kind: Canary}, ""},
		"all of it":         {Split{Kind: Canary, Weight: 100, Sticky: "key"}, ""},
		"by header":         {Split{Kind: Canary, Weight: 0.5, Sticky: "header:X-Customer"}, ""},
		"shadow":            {Split{Kind: Shadow, Sample: 1, Tolerance: DefaultTolerance}, ""},
		"no kind":           {Split{Weight: 10}, "kind"},
		"too much":          {Split{Kind: Canary, Weight: 101}, "weight"},
		"no number":         {Split{Kind: Canary, Weight: math.NaN()}, "weight"},
		"no such way":       {Split{Kind: Canary, Weight: 1, Sticky: "cookie"}, "sticky"},
		"no header":         {Split{Kind: Canary, Weight: 1, Sticky: "header:"}, "sticky"},
		"odd header":        {Split{Kind: Canary, Weight: 1, Sticky: "header:a b"}, "sticky"},
		"canary's sample":   {Split{Kind: Canary, Weight: 1, Sample: 1}, "sample"},
		"no sample":         {Split{Kind: Shadow}, "sample"},
		"large sample":      {Split{Kind: Shadow, Sample: 1.1}, "sample"},
		"shadow's weight":   {Split{Kind: Shadow, Sample: 1, Weight: 1}, "weight"},
		"infinite tolerant": {Split{Kind: Shadow, Sample: 1, Tolerance: Tolerance{Absolute: math.Inf(1)}}, "tolerance"},
	} {
		err := tc.split.Check()
		var field string
		if e, ok := err.(*Error); ok {
			field = e.Field
		}
		if field != tc.field || (err == nil) != (tc.field == "") {
			t.Errorf("%s: %v, field %q; %q was expected", name, err, field, tc.field)
		}
	}
}

// Of numbers that are spread evenly a canary takes its weight, and a weight that grows
// takes none away.
func TestSplitTakesItsShare(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	const n = 100000
	weights := []float64{0, 0.1, 10, 50, 99.9, 100}
	taken := make([]int, len(weights))
	for range n {
		u, before := r.Uint64(), false
		for i, w := range weights {
			takes := (&Split{Kind: Canary, Weight: w}).Takes(u)
			if takes {
				taken[i]++
			}
			if before && !takes {
				t.Fatalf("%d is the canary's at a smaller weight than %v, and not at that", u, w)
			}
			before = takes
		}
	}
	for i, w := range weights {
		p := w / 100
		// Five standard deviations: by chance that fails once in 1.7 million.
		if off := math.Abs(float64(taken[i]) - n*p); off > 5*math.Sqrt(n*p*(1-p)) {
			t.Errorf("at weight %v the canary takes %d of %d", w, taken[i], n)
		}
	}
	for _, u := range []uint64{0, 1, math.MaxUint64} {
		if (&Split{Weight: 0}).Takes(u) || !(&Split{Weight: 100}).Takes(u) || !(&Split{Sample: 1}).Samples(u) {
			t.Errorf("%d: nothing and everything have exceptions", u)
		}
	}
}
