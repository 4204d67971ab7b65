package overlay

import (
	"math"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/fpga/reference"
)

// span is a range of real numbers that holds 0.
type span struct{ low, high float64 }

func (s *span) take(values []float64) {
	for _, v := range values {
		s.low, s.high = min(s.low, v), max(s.high, v)
	}
}

// quantisation spreads 8 bits over the range.
func (s *span) quantisation() *Quantisation {
	scale := (s.high - s.low) / 255
	if scale == 0 {
		scale = 1
	}
	return &Quantisation{Scale: scale, Zero: int8(min(max(math.RoundToEven(-128-s.low/scale), -128), 127))}
}

// calibrate gives a quantisation to each value that has none: the range that it takes
// on the calibration inputs.
func (l *lowered) calibrate(inputs [][]float64) error {
	complete := l.in != nil
	for _, s := range l.stages {
		complete = complete && s.out != nil
	}
	if complete {
		return nil
	}
	if len(inputs) == 0 {
		return atelier.Errorf(atelier.Invalid, "the model is not quantised, and there are no calibration inputs").
			WithRemedy("Give some hundred inputs as the model sees them in use.")
	}
	ranges := make([]span, len(l.stages)+1)
	for _, x := range inputs {
		for _, v := range x {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return atelier.Errorf(atelier.Invalid, "a calibration input holds %v", v).WithRemedy("Give finite numbers.")
			}
		}
		ranges[0].take(x)
		for k, s := range l.stages {
			x = s.infer(x)
			ranges[k+1].take(x)
		}
	}
	if l.in == nil {
		l.in = ranges[0].quantisation()
	}
	for k, s := range l.stages {
		if s.out == nil {
			s.out = ranges[k+1].quantisation()
		}
	}
	return nil
}

// infer computes the stage in real numbers.
func (s *stage) infer(x []float64) []float64 {
	y := make([]float64, len(s.w))
	for j, row := range s.w {
		sum := s.b[j]
		for i, w := range row {
			sum += w * x[i]
		}
		y[j] = min(max(sum, s.low), s.high)
	}
	return y
}

// quantise makes the network of integers, and the same for the overlay.
func (l *lowered) quantise() (*reference.Network, []program.Dense, error) {
	n := &reference.Network{}
	var layers []program.Dense
	in := *l.in
	for _, s := range l.stages {
		d, err := s.quantise(in)
		if err != nil {
			return nil, nil, err
		}
		n.Layers = append(n.Layers, d)
		layers = append(layers, program.Dense{Weights: d.Weights, Bias: d.Bias, Multiplier: d.Multiplier, Shift: d.Shift,
			Zero: d.Zero, Low: d.Low, High: d.High})
		in = *s.out
	}
	return n, layers, n.Check()
}

// quantise tries finer weights first: coarser ones are for layers so wide that sums
// could leave the accumulators.
func (s *stage) quantise(in Quantisation) (*reference.Dense, error) {
	if s.scale != 0 {
		return s.with(in, s.scale)
	}
	top := 0.0
	for _, row := range s.w {
		for _, w := range row {
			top = max(top, math.Abs(w))
		}
	}
	if top == 0 {
		top = 1
	}
	var err error
	for _, levels := range []float64{127, 63, 31, 15} {
		var d *reference.Dense
		if d, err = s.with(in, top/levels); err == nil {
			return d, nil
		}
	}
	return nil, err
}

func (s *stage) with(in Quantisation, scale float64) (*reference.Dense, error) {
	d := &reference.Dense{}
	out := *s.out
	for j, row := range s.w {
		quantised, sum := make([]int8, len(row)), 0
		for i, w := range row {
			v := math.RoundToEven(w / scale)
			if v < -128 || v > 127 {
				return nil, unsupported(s.node, "the weight %d of neuron %d is %v steps of the scale, they have 8 bits and a sign", i, j, v)
			}
			quantised[i] = int8(v)
			sum += int(v)
		}
		bias := math.RoundToEven(s.b[j]/(scale*in.Scale)) - float64(in.Zero)*float64(sum)
		if math.Abs(bias) > 1<<30 {
			return nil, unsupported(s.node, "the bias of neuron %d is too large for its scale", j)
		}
		d.Weights, d.Bias = append(d.Weights, quantised), append(d.Bias, int32(bias))
	}
	var fits bool
	if d.Multiplier, d.Shift, fits = multiplier(scale * in.Scale / out.Scale); !fits {
		return nil, unsupported(s.node, "its results are scaled by %v, possible is less than %d", scale*in.Scale/out.Scale, 1<<16)
	}
	d.Zero = out.Zero
	d.Low, d.High = out.Quantise(s.low), out.Quantise(s.high)
	if err := d.Check(); err != nil {
		return nil, unsupported(s.node, "%v", err)
	}
	return d, nil
}

// multiplier returns the factor as multiplier / 2^shift.
func multiplier(factor float64) (m uint16, shift uint8, fits bool) {
	fraction, exponent := math.Frexp(factor) // fraction is in [1/2, 1)
	whole := math.RoundToEven(math.Ldexp(fraction, 16))
	if whole == 1<<16 {
		whole, exponent = whole/2, exponent+1
	}
	n := 16 - exponent
	if n > reference.MaxShift { // the factor is so small that bits of the multiplier go
		whole, n = math.RoundToEven(math.Ldexp(whole, reference.MaxShift-n)), reference.MaxShift
	}
	if n < 0 || !(factor > 0) {
		return 0, 0, false
	}
	return uint16(whole), uint8(n), true
}
