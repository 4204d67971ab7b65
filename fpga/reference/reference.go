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
// clamp with low = zero.
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

// Network is a chain of layers. Further kinds of layers, such as convolutions,
// join Dense behind the interface.
type Network struct {
	Layers []Layer
}

// Layer is one step of a network.
type Layer interface {
	// Inputs and Outputs are how many values go in and come out.
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
}

// Dense is a fully connected layer.
type Dense struct {
	Weights [][]int8 // by neuron, then by input
	Bias    []int32  // by neuron; the inputs' zero point is folded in
	Requantisation
}

// Apply returns floor(sum·Multiplier / 2^Shift + 1/2) + Zero, clamped to Low to High.
func (r Requantisation) Apply(sum int32) int8 {
	scaled := int64(sum) * int64(r.Multiplier)
	if r.Shift > 0 {
		// Go shifts negative numbers towards minus infinity, as floor does.
		scaled = (scaled + 1<<(r.Shift-1)) >> r.Shift
	}
	return int8(min(max(scaled+int64(r.Zero), int64(r.Low)), int64(r.High)))
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
	if d.Shift > MaxShift || d.Low > d.High {
		return fmt.Errorf("the shift is %d, at most %d is possible; the clamp goes from %d to %d", d.Shift, MaxShift, d.Low, d.High)
	}
	for j, row := range d.Weights {
		if len(row) != d.Inputs() {
			return fmt.Errorf("neuron %d has %d weights, neuron 0 has %d", j, len(row), d.Inputs())
		}
		bound := int64(d.Bias[j])
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

// Check reports why the network could leave the bounds of the arithmetic, or why its
// layers do not fit each other.
func (n *Network) Check() error {
	if len(n.Layers) == 0 {
		return fmt.Errorf("the network has no layers")
	}
	for k, l := range n.Layers {
		if err := l.Check(); err != nil {
			return fmt.Errorf("layer %d: %w", k, err)
		}
		if k > 0 && l.Inputs() != n.Layers[k-1].Outputs() {
			return fmt.Errorf("layer %d takes %d values, the one before gives %d", k, l.Inputs(), n.Layers[k-1].Outputs())
		}
	}
	return nil
}

// Infer returns the outputs of a network that passed Check.
func (n *Network) Infer(x []int8) []int8 {
	for _, l := range n.Layers {
		x = l.Apply(x)
	}
	return x
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
