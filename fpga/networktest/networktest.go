// Package networktest makes networks and inputs for tests that compare the overlay's
// implementations with the reference: random ones, and ones that hit saturation and
// the ties of rounding.
package networktest

import (
	"math/rand/v2"

	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/fpga/reference"
)

// Random returns a network with the widths that fits the accumulators. Multipliers
// and shifts are such that results use the whole range and saturate now and then.
func Random(r *rand.Rand, widths ...int) *reference.Network {
	n := &reference.Network{}
	for k := range len(widths) - 1 {
		n.Layers = append(n.Layers, dense(r, widths[k], widths[k+1]))
	}
	return n
}

func dense(r *rand.Rand, in, out int) *reference.Dense {
	d := &reference.Dense{}
	top := min(127, 60_000/in) // of a weight, so that in·top·128 stays below 2^23
	for range out {
		row := make([]int8, in)
		for i := range row {
			row[i] = int8(r.IntN(2*top+1) - top)
		}
		if r.IntN(4) == 0 { // sums that reach far
			sign := int8(1 - 2*r.IntN(2))
			for i := range row {
				row[i] = sign * int8(top)
			}
		}
		d.Weights, d.Bias = append(d.Weights, row), append(d.Bias, int32(r.IntN(1<<17)-1<<16))
	}
	switch r.IntN(4) {
	case 0: // few bits go: ties are frequent, and nearly everything saturates
		d.Multiplier, d.Shift = uint16(1+r.IntN(7)), uint8(r.IntN(4))
	case 1: // a power of two: ties
		d.Multiplier, d.Shift = 1<<r.IntN(16), uint8(10+r.IntN(14))
	default:
		// The range of sums, about top·64·√in, onto a few hundred values.
		d.Multiplier, d.Shift = uint16(1<<15+r.IntN(1<<15)), uint8(20+r.IntN(9))
	}
	if r.IntN(20) == 0 {
		d.Multiplier, d.Shift = 65535, reference.MaxShift
	}
	d.Zero, d.Low, d.High = int8(r.IntN(256)-128), -128, 127
	switch r.IntN(3) {
	case 0: // ReLU
		d.Low = d.Zero
	case 1:
		a, b := int8(r.IntN(256)-128), int8(r.IntN(256)-128)
		d.Low, d.High = min(a, b), max(a, b)
	}
	return d
}

// RandomWidths returns the widths of a network that fits the geometry.
func RandomWidths(r *rand.Rand, g program.Geometry) []int {
	for {
		widths := []int{1 + r.IntN(80)}
		for range 1 + r.IntN(3) {
			widths = append(widths, 1+r.IntN(40))
		}
		words, neurons := 0, 0
		for k, out := range widths[1:] {
			words += max(widths[k], g.Lanes) * ((out + g.Lanes - 1) / g.Lanes)
			neurons += out
		}
		if words <= 1<<g.Weights && neurons <= 1<<g.Biases && len(widths)-1 <= 1<<g.Program/2 {
			return widths
		}
	}
}

// Ties returns a layer of one input whose sums are x times the weight, with a shift of 1:
// every odd sum is a tie of rounding. Its neurons cover both signs, all clamps
// and the zero points at the ends.
func Ties(zero, low, high int8) *reference.Network {
	d := &reference.Dense{Requantisation: reference.Requantisation{Multiplier: 1, Shift: 1, Zero: zero, Low: low, High: high}}
	for _, w := range []int8{1, -1, 3, -3, 127, -128} {
		d.Weights, d.Bias = append(d.Weights, []int8{w}), append(d.Bias, 0)
	}
	for _, bias := range []int32{1, -1, 8388607 - 128, -(8388607 - 128)} {
		d.Weights, d.Bias = append(d.Weights, []int8{0}), append(d.Bias, bias)
	}
	return &reference.Network{Layers: []reference.Layer{d}}
}

// Inputs returns random inputs, a quarter of them at the ends of the range.
func Inputs(r *rand.Rand, n int) []int8 {
	x := make([]int8, n)
	extreme := r.IntN(4) == 0
	for i := range x {
		if x[i] = int8(r.IntN(256) - 128); extreme {
			x[i] = int8(r.IntN(2)*255 - 128)
		}
	}
	return x
}

// Widest returns a layer of 510 inputs whose sums reach to the ends of the
// accumulators, with the shift that brings them back to 8 bits.
func Widest() *reference.Network {
	d := &reference.Dense{Requantisation: reference.Requantisation{Multiplier: 65535, Shift: 32, Low: -128, High: 127}}
	for _, w := range []int8{127, -128} {
		row := make([]int8, 510)
		for i := range row {
			row[i] = w
		}
		d.Weights, d.Bias = append(d.Weights, row), append(d.Bias, 1000)
	}
	return &reference.Network{Layers: []reference.Layer{d}}
}
