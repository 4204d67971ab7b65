package e2e

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// figure is something that is measured again and again, and that must level off.
type figure struct {
	name  string
	unit  string
	scale float64 // values are divided by it when they are shown
	// share and slack are how much the median of the last half may lie above that
	// of the first: the share of it, and as much again in its own unit.
	share, slack float64
	values       []float64
}

// warmUp is the part of the values that the verdict leaves out: caches fill, and
// what is kept for a time reaches its full size.
const warmUp = 1.0 / 3

// level compares the medians of the two halves after the warm-up. Medians bear
// outliers and saws; what grows by G over the time that is judged lifts the second by
// G/2. It returns both and an error where the figure still grows.
func (f *figure) level() (early, late float64, err error) {
	rest := f.values[int(float64(len(f.values))*warmUp):]
	if len(rest) < 8 {
		return 0, 0, fmt.Errorf("%s: %d values after the warm-up are too few to judge", f.name, len(rest))
	}
	early, late = median(rest[:len(rest)/2]), median(rest[len(rest)/2:])
	if allowed := early*(1+f.share) + f.slack; late > allowed {
		err = fmt.Errorf("%s still grows: its median went from %s to %s, at most %s %s was allowed",
			f.name, f.show(early), f.show(late), f.show(allowed), f.unit)
	}
	return early, late, err
}

func (f *figure) show(v float64) string {
	if f.scale > 1 {
		return fmt.Sprintf("%.1f", v/f.scale)
	}
	return fmt.Sprintf("%.0f", v)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// TestLevelTellsALeak tries the criterion itself on values that are known to grow
// and on such that are not.
func TestLevelTellsALeak(t *testing.T) {
	t.Parallel()
	const n = 120
	noise := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		name  string
		value func(i int) float64
		level bool
	}{
		{"flat with noise", func(int) float64 { return 100 + 6*noise.NormFloat64() }, true},
		{"a saw", func(i int) float64 { return 100 + float64(i%15)*4 }, true},
		{"a rise that ends with the warm-up", func(i int) float64 { return 100 + 3*float64(min(i, n/3)) }, true},
		{"single peaks", func(i int) float64 { return 100 + 1000*float64(i%20/19) }, true},
		{"falling", func(i int) float64 { return 300 - float64(i) }, true},
		{"one more each time", func(i int) float64 { return 100 + float64(i) }, false},
		{"a slow leak under noise", func(i int) float64 { return 100 + 0.6*float64(i) + 3*noise.NormFloat64() }, false},
		{"a leak under a saw", func(i int) float64 { return 100 + 0.7*float64(i) + float64(i%10)*3 }, false},
		{"a step late in time", func(i int) float64 { return 100 + 50*math.Floor(float64(i)/(0.7*n)) }, false},
		{"doubling", func(i int) float64 { return math.Pow(2, float64(i)/20) }, false},
	} {
		f := figure{name: c.name, share: 0.1, slack: 5, scale: 1}
		for i := range n {
			f.values = append(f.values, c.value(i))
		}
		if early, late, err := f.level(); (err == nil) != c.level {
			t.Errorf("%s, from %.1f to %.1f: %v", c.name, early, late, err)
		}
	}
	if _, _, err := (&figure{values: make([]float64, 9)}).level(); err == nil {
		t.Error("6 values were judged")
	}
}
