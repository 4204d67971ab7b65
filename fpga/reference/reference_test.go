package reference_test

import (
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/atelier-edge/atelier/fpga/reference"
)

// TestRounding has the ties written out: half goes up, below zero too.
func TestRounding(t *testing.T) {
	t.Parallel()
	plain := reference.Requantisation{Multiplier: 1, Shift: 1, Low: -128, High: 127}
	for sum, want := range map[int32]int8{1: 1, 2: 1, 3: 2, -1: 0, -2: -1, -3: -1, -5: -2, 0: 0, 253: 127, 252: 126, 255: 127, -256: -128, -257: -128, -8388607: -128} {
		if got := plain.Apply(sum); got != want {
			t.Errorf("%d/2 is rounded to %d, want %d", sum, got, want)
		}
	}
	shiftless := reference.Requantisation{Multiplier: 3, Zero: -4, Low: -10, High: 10}
	for sum, want := range map[int32]int8{0: -4, 1: -1, 4: 8, 5: 10, -2: -10, -3: -10} {
		if got := shiftless.Apply(sum); got != want {
			t.Errorf("3·%d−4 gives %d, want %d", sum, got, want)
		}
	}
}

// TestRequantisationAgainstRationals compares with exact rational numbers.
func TestRequantisationAgainstRationals(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		q := reference.Requantisation{
			Multiplier: uint16(r.Uint32()), Shift: uint8(r.IntN(reference.MaxShift + 1)),
			Zero: int8(r.Uint32()), Low: -128, High: 127,
		}
		sum := int32(r.IntN(1<<24) - 1<<23)
		exact := new(big.Rat).SetFrac(new(big.Int).Mul(big.NewInt(int64(sum)), big.NewInt(int64(q.Multiplier))), new(big.Int).Lsh(big.NewInt(1), uint(q.Shift)))
		exact.Add(exact, big.NewRat(1, 2))
		floor := new(big.Int).Div(exact.Num(), exact.Denom()) // Euclidean: the denominator is positive, so it is the floor
		want := min(max(floor.Int64()+int64(q.Zero), -128), 127)
		if got := q.Apply(sum); int64(got) != want {
			t.Fatalf("%d by %+v gives %d, want %d", sum, q, got, want)
		}
	}
}

func TestDense(t *testing.T) {
	t.Parallel()
	n := reference.Network{Layers: []reference.Layer{
		&reference.Dense{Weights: [][]int8{{1, -2}, {127, 127}}, Bias: []int32{5, 0},
			Requantisation: reference.Requantisation{Multiplier: 1, Low: -128, High: 127}},
		&reference.Dense{Weights: [][]int8{{1, 1}, {1, 1}, {0, 1}}, Bias: []int32{0, 0, 1},
			Requantisation: reference.Requantisation{Multiplier: 1, Low: 0, High: 127}},
	}}
	if err := n.Check(); err != nil {
		t.Fatal(err)
	}
	// 1·3 − 2·4 + 5 = 0 and 127·7 saturates at 127; then the clamp from 0.
	if got := n.Infer([]int8{3, 4}); !slices.Equal(got, []int8{127, 127, 127}) {
		t.Error(got)
	}
	if got := n.Infer([]int8{-3, -4}); !slices.Equal(got, []int8{0, 0, 0}) { // 10 − 128 = −118
		t.Error(got)
	}
	if got := reference.ArgMax([]int8{-3, 7, 7, 1}); got != 1 {
		t.Errorf("the largest of equals is at %d, want the first", got)
	}
}

func TestCheckProvesTheAccumulator(t *testing.T) {
	t.Parallel()
	layer := func(n int, bias int32) *reference.Dense {
		w := make([]int8, n)
		for i := range w {
			w[i] = -128
		}
		return &reference.Dense{Weights: [][]int8{w}, Bias: []int32{bias}, Requantisation: reference.Requantisation{High: 127}}
	}
	// 511·128·128 = 2^23 − 2^14.
	if err := layer(511, 1<<14-1).Check(); err != nil {
		t.Error(err)
	}
	for _, over := range []*reference.Dense{layer(511, 1<<14), layer(511, -1<<14), layer(512, 0)} {
		if err := over.Check(); err == nil || !strings.Contains(err.Error(), "neuron 0") {
			t.Errorf("an overflow was not found: %v", err)
		}
	}
}
