// Package reference defines the arithmetic of the overlay, the soft neural
// processor of FPGA hosts. What it computes is right by definition: compiler,
// cycle model, RTL, netlist and bitstream are compared with it bit for bit. It is
// written to be read beside docs/fpga.md, not to be fast.
//
// All of a network's values are 8-bit two's complement integers. A dense layer with
// inputs x and weights w computes for each of its neurons j
//
//	sum  = Σ w[j][i]·x[i] + b[j]                          a 24-bit integer
//	q    = floor(sum·multiplier / 2^shift + 1/2) + zero   rounds half up
//	y[j] = min(max(q, low), high)
//
// The sum never leaves 24 bits, whatever the inputs: Check proves it, and nothing
// wraps or saturates before the clamp. The zero point of x is no part of the
// formula: whoever makes the network folds −zero·Σw into the bias. ReLU is the
// clamp with low = zero. Where a layer has a table, y[j] is looked up in it.
//
// The other layers differ in what a sum is of: a window of an image for
// convolutions, all of a channel for averages, the same element of two images for
// additions; MaxPool takes the largest instead of a sum. Images lie row by row,
// and the channels of a pixel side by side.
package reference

import (
	"fmt"
)

// The bounds of the arithmetic.
const (
	SumBits  = 24
	MaxShift = 40
	sumLimit = 1 << (SumBits - 1)
)

// Network is layers in the order in which they are computed. The last gives the result.
type Network struct {
	Layers []Layer
	// From tells which values each layer takes, where it is not the one before: 0 is the
	// network's input, k+1 what layer k gives. It is as long as Layers, or nil for a chain;
	// an empty entry is the value before.
	From [][]int
}

// Layer is one step of a network.
type Layer interface {
	// Inputs and Outputs are how many numbers go in and come out; of a layer that takes
	// two values, the second's come after the first's.
	Inputs() int
	Outputs() int
	// Check reports why the layer could leave the bounds of the arithmetic.
	Check() error
	// Apply computes the outputs of as many values as Inputs says.
	Apply(x []int8) []int8
}

// Requantisation brings a sum back to 8 bits.
type Requantisation struct {
	Multiplier      uint16
	Shift           uint8 // at most MaxShift
	Zero, Low, High int8  // Low ≤ High
	// Table, where there is one, holds what the clamped value becomes, -128's first.
	Table *[256]int8
}

// Dense is a fully connected layer.
type Dense struct {
	Weights [][]int8 // by neuron, then by input
	Bias    []int32  // by neuron; the inputs' zero point is folded in
	Requantisation
}

// Apply returns floor(sum·Multiplier / 2^Shift + 1/2) + Zero, clamped to Low to High,
// or what the table has for it.
func (r Requantisation) Apply(sum int32) int8 {
	scaled := int64(sum) * int64(r.Multiplier)
	if r.Shift > 0 {
		// Go shifts negative numbers towards minus infinity, as floor does.
		scaled = (scaled + 1<<(r.Shift-1)) >> r.Shift
	}
	y := int8(min(max(scaled+int64(r.Zero), int64(r.Low)), int64(r.High)))
	if r.Table != nil {
		return r.Table[int(y)+128]
	}
	return y
}

func (r Requantisation) check() error {
	if r.Shift > MaxShift || r.Low > r.High {
		return fmt.Errorf("the shift is %d, at most %d is possible; the clamp goes from %d to %d", r.Shift, MaxShift, r.Low, r.High)
	}
	return nil
}

// Inputs implements Layer.
func (d *Dense) Inputs() int {
	if len(d.Weights) == 0 {
		return 0
	}
	return len(d.Weights[0])
}

// Outputs implements Layer.
func (d *Dense) Outputs() int { return len(d.Weights) }

// Check implements Layer: for each neuron, Σ|w|·128 + |b| < 2^23 must hold.
func (d *Dense) Check() error {
	if d.Inputs() == 0 || len(d.Bias) != len(d.Weights) {
		return fmt.Errorf("a layer of %d neurons with %d inputs has %d biases", d.Outputs(), d.Inputs(), len(d.Bias))
	}
	if err := d.check(); err != nil {
		return err
	}
	return bounded(d.Weights, d.Bias)
}

// bounded proves that no sum leaves the accumulators.
func bounded(weights [][]int8, bias []int32) error {
	for j, row := range weights {
		if len(row) != len(weights[0]) {
			return fmt.Errorf("neuron %d has %d weights, neuron 0 has %d", j, len(row), len(weights[0]))
		}
		bound := int64(bias[j])
		bound = max(bound, -bound)
		for _, w := range row {
			bound += max(int64(w), -int64(w)) << 7
		}
		if bound >= sumLimit {
			return fmt.Errorf("the sum of neuron %d could reach %d, the accumulators hold less than %d", j, bound, sumLimit)
		}
	}
	return nil
}

// Apply implements Layer.
func (d *Dense) Apply(x []int8) []int8 {
	y := make([]int8, len(d.Weights))
	for j, row := range d.Weights {
		sum := d.Bias[j]
		for i, w := range row {
			sum += int32(w) * int32(x[i])
		}
		y[j] = d.Requantisation.Apply(sum)
	}
	return y
}

// sources are the values that layer k takes.
func (n *Network) sources(k int) []int {
	if k < len(n.From) && len(n.From[k]) > 0 {
		return n.From[k]
	}
	return []int{k}
}

// Check reports why the network could leave the bounds of the arithmetic, or why its
// layers do not fit each other.
func (n *Network) Check() error {
	if len(n.Layers) == 0 {
		return fmt.Errorf("the network has no layers")
	}
	if n.From != nil && len(n.From) != len(n.Layers) {
		return fmt.Errorf("%d layers are told what they take, there are %d", len(n.From), len(n.Layers))
	}
	sizes := []int{0} // of the values; the input is as long as whoever takes it first wants it
	for k, l := range n.Layers {
		if err := l.Check(); err != nil {
			return fmt.Errorf("layer %d: %w", k, err)
		}
		gives := 0
		for _, v := range n.sources(k) {
			if v < 0 || v > k {
				return fmt.Errorf("layer %d takes the value %d, which is not there yet", k, v)
			}
			if v == 0 && sizes[0] == 0 {
				sizes[0] = l.Inputs() / len(n.sources(k))
			}
			gives += sizes[v]
		}
		if l.Inputs() != gives {
			return fmt.Errorf("layer %d takes %d values, the one before gives %d", k, l.Inputs(), gives)
		}
		sizes = append(sizes, l.Outputs())
	}
	return nil
}

// Infer returns the outputs of a network that passed Check.
func (n *Network) Infer(x []int8) []int8 {
	values := [][]int8{x}
	for k, l := range n.Layers {
		var in []int8
		for _, v := range n.sources(k) {
			in = append(in, values[v]...)
		}
		values = append(values, l.Apply(in))
	}
	return values[len(values)-1]
}

// ArgMax returns the index of the largest value, the lowest of several.
func ArgMax(y []int8) int {
	best := 0
	for i, v := range y {
		if v > y[best] {
			best = i
		}
	}
	return best
}
