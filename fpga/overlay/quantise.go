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
// on the calibration inputs. Inputs lie as the overlay has them.
func (l *lowered) calibrate(inputs [][]float64) error {
	complete := l.in != nil
	for _, s := range l.stages {
		complete = complete && (s.out != nil || s.passes()) && (s.middle != nil || s.function == nil || s.kind == program.MaxPool)
	}
	if !complete {
		if err := l.observe(inputs); err != nil {
			return err
		}
	}
	for _, s := range l.stages {
		if s.passes() {
			s.out = l.quantisation(s.from[0])
		} else if s.kind == program.MaxPool {
			s.middle = l.quantisation(s.from[0])
		}
	}
	return nil
}

// passes reports whether the stage leaves numbers as they are.
func (s *stage) passes() bool { return s.kind == program.MaxPool && s.function == nil }

// quantisation is that of a value.
func (l *lowered) quantisation(from int) *Quantisation {
	if from == 0 {
		return l.in
	}
	return l.stages[from-1].out
}

func (l *lowered) observe(inputs [][]float64) error {
	if len(inputs) == 0 {
		return atelier.Errorf(atelier.Invalid, "the model is not quantised, and there are no calibration inputs").
			WithRemedy("Give some hundred inputs as the model sees them in use.")
	}
	ranges := make([]span, len(l.stages)+1)
	middles := make([]span, len(l.stages))
	for _, x := range inputs {
		for _, v := range x {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return atelier.Errorf(atelier.Invalid, "a calibration input holds %v", v).WithRemedy("Give finite numbers.")
			}
		}
		ranges[0].take(x)
		values := [][]float64{x}
		for k, s := range l.stages {
			var in []float64
			for _, from := range s.from {
				in = append(in, values[from]...)
			}
			y := s.infer(in)
			if s.function != nil {
				middles[k].take(y)
				for i, v := range y {
					y[i] = s.function(v)
				}
			}
			ranges[k+1].take(y)
			values = append(values, y)
		}
	}
	if l.in == nil {
		l.in = ranges[0].quantisation()
	}
	for k, s := range l.stages {
		if s.function != nil && s.middle == nil {
			s.middle = middles[k].quantisation()
		}
		if s.out == nil {
			s.out = ranges[k+1].quantisation()
		}
	}
	return nil
}

// each calls fn for each place of the window, with the elements that are seen there: for
// each its index in the image, -1 beyond the edges.
func (s *stage) each(fn func(seen []int)) {
	out := s.shape()
	seen := make([]int, 0, s.window[0]*s.window[1])
	for y := range out.Height {
		for x := range out.Width {
			seen = seen[:0]
			for dy := range s.window[0] {
				for dx := range s.window[1] {
					row, column := y*s.stride[0]-s.pad[0]+dy, x*s.stride[1]-s.pad[1]+dx
					at := -1
					if row >= 0 && column >= 0 && row < s.in.Height && column < s.in.Width {
						at = (row*s.in.Width + column) * s.in.Channels
					}
					seen = append(seen, at)
				}
			}
			fn(seen)
		}
	}
}

// infer computes the stage in real numbers, up to the clamp.
func (s *stage) infer(x []float64) (y []float64) {
	add := func(v float64) { y = append(y, min(max(v, s.low), s.high)) }
	channels := s.in.Channels
	switch s.kind {
	case program.Dense:
		for j, row := range s.w {
			sum := s.b[j]
			for i, w := range row {
				sum += w * x[i]
			}
			add(sum)
		}
	case program.Convolution:
		s.each(func(seen []int) {
			for j, row := range s.w {
				sum := s.b[j]
				for k, at := range seen {
					for c := range channels {
						if at >= 0 {
							sum += row[k*channels+c] * x[at+c]
						}
					}
				}
				add(sum)
			}
		})
	case program.MaxPool:
		s.each(func(seen []int) {
			for c := range channels {
				top := math.Inf(-1)
				for _, at := range seen {
					top = max(top, x[at+c])
				}
				add(top)
			}
		})
	case program.Average:
		for c := range channels {
			sum := 0.0
			for at := c; at < len(x); at += channels {
				sum += x[at]
			}
			add(sum / float64(s.in.Height*s.in.Width))
		}
	case program.Sum:
		n := len(x) / 2
		for i := range n {
			add(x[i] + x[n+i])
		}
	}
	return y
}

// quantise makes the network of integers, and the same for the overlay.
func (l *lowered) quantise() (*reference.Network, []program.Operation, error) {
	n := &reference.Network{}
	var operations []program.Operation
	for _, s := range l.stages {
		layer, o, err := l.integers(s)
		if err != nil {
			return nil, nil, err
		}
		n.Layers, n.From = append(n.Layers, layer), append(n.From, s.from)
		operations = append(operations, o)
	}
	return n, operations, n.Check()
}

// integers makes a layer of the stage.
func (l *lowered) integers(s *stage) (reference.Layer, program.Operation, error) {
	in := *l.quantisation(s.from[0])
	o := program.Operation{Kind: s.kind, From: s.from, In: s.in, Window: s.window, Stride: s.stride, Pad: s.pad, Padding: in.Zero}
	image := reference.Image(s.in)
	window := reference.Window{Height: s.window[0], Width: s.window[1], StrideY: s.stride[0], StrideX: s.stride[1],
		Top: s.pad[0], Left: s.pad[1], Bottom: s.pad[2], Right: s.pad[3]}
	var layer reference.Layer
	var q reference.Requantisation
	var err error
	switch s.kind {
	case program.Dense, program.Convolution:
		var d *reference.Dense
		if d, err = s.neurons(in); err != nil {
			return nil, o, err
		}
		o.Weights, o.Bias, q = d.Weights, d.Bias, d.Requantisation
		layer = d
		if s.kind == program.Convolution {
			layer = &reference.Convolution{In: image, Window: window, Padding: in.Zero, Weights: d.Weights, Bias: d.Bias, Requantisation: q}
		}
	case program.MaxPool:
		q = reference.Identity
		q.Low, q.High = in.Quantise(s.low), in.Quantise(s.high)
		q.Table = s.table()
		layer = &reference.MaxPool{In: image, Window: window, Requantisation: q}
	case program.Average:
		count := s.in.Height * s.in.Width
		if q, err = s.requantisation(in.Scale / float64(count)); err != nil {
			return nil, o, err
		}
		bias := int32(-count * int(in.Zero))
		o.Bias = []int32{bias}
		layer = &reference.Average{In: image, Bias: bias, Requantisation: q}
	case program.Sum:
		other := *l.quantisation(s.from[1])
		scale := max(in.Scale, other.Scale) / 127
		a, b := int8(math.RoundToEven(in.Scale/scale)), int8(math.RoundToEven(other.Scale/scale))
		if q, err = s.requantisation(scale); err != nil {
			return nil, o, err
		}
		bias := -int32(a)*int32(in.Zero) - int32(b)*int32(other.Zero)
		o.Weights, o.Bias = [][]int8{{a, b}}, []int32{bias}
		layer = &reference.Sum{In: image, First: a, Second: b, Bias: bias, Requantisation: q}
	}
	o.Multiplier, o.Shift, o.Zero, o.Low, o.High, o.Table = q.Multiplier, q.Shift, q.Zero, q.Low, q.High, q.Table
	if err := layer.Check(); err != nil {
		return nil, o, unsupported(s.node, "%v", err)
	}
	return layer, o, nil
}

// clamped is how the values after the clamp are quantised.
func (s *stage) clamped() Quantisation {
	if s.function != nil {
		return *s.middle
	}
	return *s.out
}

// requantisation brings sums of that scale to the stage's results.
func (s *stage) requantisation(scale float64) (q reference.Requantisation, err error) {
	out := s.clamped()
	var fits bool
	if q.Multiplier, q.Shift, fits = multiplier(scale / out.Scale); !fits {
		return q, unsupported(s.node, "its results are scaled by %v, possible is less than %d", scale/out.Scale, 1<<16)
	}
	q.Zero = out.Zero
	q.Low, q.High = out.Quantise(s.low), out.Quantise(s.high)
	q.Table = s.table()
	return q, nil
}

// table is the stage's function for all values, nil where there is none.
func (s *stage) table() *[256]int8 {
	if s.function == nil {
		return nil
	}
	t := &[256]int8{}
	for i := range t {
		t[i] = s.out.Quantise(s.function(s.middle.Real(int8(i - 128))))
	}
	return t
}

// neurons tries finer weights first: coarser ones are for layers so wide that sums
// could leave the accumulators.
func (s *stage) neurons(in Quantisation) (*reference.Dense, error) {
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
		if !(math.Abs(bias) < 1<<30) {
			return nil, unsupported(s.node, "the bias of neuron %d is too large for its scale", j)
		}
		d.Weights, d.Bias = append(d.Weights, quantised), append(d.Bias, int32(bias))
	}
	var err error
	if d.Requantisation, err = s.requantisation(scale * in.Scale); err != nil {
		return nil, err
	}
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
