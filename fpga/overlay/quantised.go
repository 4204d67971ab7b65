package overlay

import (
	"math"

	"github.com/atelier-edge/atelier/fpga/program"
)

// quantisation reads scale and zero point from the node's inputs i and i+1. The
// overlay's values are signed: those of unsigned types are shifted by 128.
func (l *lowering) quantisation(n *node, i int) (*Quantisation, error) {
	scale, err := l.scalar(n, i, 0)
	if err != nil {
		return nil, err
	}
	if !(scale > 0) || math.IsInf(scale, 0) {
		return nil, unsupported(n, "its scale is %v", scale)
	}
	zero := -128.0 // without a zero point the type is UINT8, and it is 0
	if i+1 < len(n.inputs) && n.inputs[i+1] != "" {
		c, err := l.constant(n, i+1)
		if err != nil {
			return nil, err
		}
		if len(c.values) != 1 {
			return nil, unsupported(n, "it has %d zero points, one is possible", len(c.values))
		}
		switch c.kind {
		case 2: // UINT8
			zero = c.values[0] - 128
		case 3: // INT8
			zero = c.values[0]
		default:
			return nil, unsupported(n, "its type is %d, possible are UINT8 (2) and INT8 (3)", c.kind)
		}
	}
	return &Quantisation{Scale: scale, Zero: int8(zero)}, nil
}

// quantised notes how a value is quantised.
func (l *lowering) quantised(n *node, v value, q *Quantisation) error {
	if v.from == 0 {
		if l.in == nil {
			l.in = q
		}
		if *l.in != *q {
			return unsupported(n, "it quantises anew what is quantised already")
		}
		return nil
	}
	s := l.stages[v.from-1]
	if before := l.quantisedAs(v); before != nil && *before != *q {
		return unsupported(n, "it quantises anew what is quantised already")
	}
	if s.kind == program.MaxPool && s.function == nil {
		return l.quantised(n, value{from: s.from[0]}, q) // it leaves numbers as they are
	}
	s.out = q
	return nil
}

// quantisedAs returns how a value is quantised, nil if it is not.
func (l *lowering) quantisedAs(v value) *Quantisation {
	if v.from == 0 {
		return l.in
	}
	if s := l.stages[v.from-1]; s.kind != program.MaxPool || s.function != nil {
		return s.out
	} else {
		return l.quantisedAs(value{from: s.from[0]})
	}
}

// expects refuses a value that is quantised otherwise than the node's input i says.
func (l *lowering) expects(n *node, v value, i int) error {
	in, err := l.quantisation(n, i)
	if err != nil {
		return err
	}
	if before := l.quantisedAs(v); before == nil || *before != *in {
		return unsupported(n, "its input is quantised otherwise than the value before it")
	}
	return nil
}

// dequantiseConstant makes real numbers of quantised weights or biases.
func (l *lowering) dequantiseConstant(n *node) error {
	c, err := l.constant(n, 0)
	if err != nil {
		return err
	}
	scale, err := l.scalar(n, 1, 0)
	if err != nil {
		return err
	}
	zero, err := l.scalar(n, 2, 0)
	if err != nil {
		return err
	}
	if !(scale > 0) || math.IsInf(scale, 0) {
		return unsupported(n, "its scale is %v", scale)
	}
	l.constants[n.outputs[0]] = dequantised(c, scale, zero)
	return nil
}

func dequantised(c *constant, scale, zero float64) *constant {
	real := &constant{dims: c.dims, kind: 1, values: make([]float64, len(c.values)), scale: scale}
	for i, v := range c.values {
		real.values[i] = (v - zero) * scale
	}
	return real
}

// quantisedWeights reads weights, their scale and zero point from the node's inputs i to i+2.
func (l *lowering) quantisedWeights(n *node, i int) (*constant, error) {
	w, err := l.constant(n, i)
	if err != nil {
		return nil, err
	}
	scale, err := l.scalar(n, i+1, 0)
	if err != nil {
		return nil, err
	}
	zero, err := l.scalar(n, i+2, 0)
	if err != nil {
		return nil, err
	}
	if !(scale > 0) || w == nil {
		return nil, unsupported(n, "its weights have the scale %v", scale)
	}
	return dequantised(w, scale, zero), nil
}

// quantisedDense is QLinearMatMul, or QGemm of ONNX Runtime's own operators.
func (l *lowering) quantisedDense(n *node, v value) (value, error) {
	if err := l.expects(n, v, 1); err != nil {
		return v, err
	}
	w, err := l.quantisedWeights(n, 3)
	if err != nil {
		return v, err
	}
	s, err := l.matrix(n, v, w, n.op == "QGemm" && n.ints["transB"] != 0)
	if err != nil {
		return v, err
	}
	s.scale = w.scale
	out := 6
	if n.op == "QGemm" {
		if alpha, given := n.floats["alpha"]; given && alpha != 1 || n.ints["transA"] != 0 {
			return v, unsupported(n, "it scales or transposes its input")
		}
		b, err := l.constant(n, 6)
		if err != nil {
			return v, err
		}
		if err := s.bias(b, w.scale*l.quantisedAs(v).Scale); err != nil {
			return v, err
		}
		out = 7
	}
	if out < len(n.inputs) {
		if s.out, err = l.quantisation(n, out); err != nil {
			return v, err
		}
	}
	return l.result(s)
}

// quantisedConvolution is QLinearConv.
func (l *lowering) quantisedConvolution(n *node, v value) (value, error) {
	if err := l.expects(n, v, 1); err != nil {
		return v, err
	}
	w, err := l.quantisedWeights(n, 3)
	if err != nil {
		return v, err
	}
	s, err := l.filters(n, v, w)
	if err != nil {
		return v, err
	}
	s.scale = w.scale
	b, err := l.constant(n, 8)
	if err != nil {
		return v, err
	}
	if err := s.bias(b, w.scale*l.quantisedAs(v).Scale); err != nil {
		return v, err
	}
	if s.out, err = l.quantisation(n, 6); err != nil {
		return v, err
	}
	return l.result(s)
}

// quantisedSum is QLinearAdd of ONNX Runtime's own operators.
func (l *lowering) quantisedSum(n *node) (value, error) {
	if len(n.inputs) < 7 {
		return value{}, unsupported(n, "it has %d inputs, 7 or 8 were expected", len(n.inputs))
	}
	for i := range 2 {
		v, is := l.values[n.inputs[3*i]]
		if !is {
			return v, unsupported(n, "its input %q is no layer's result", n.inputs[3*i])
		}
		if err := l.expects(n, v, 3*i+1); err != nil {
			return v, err
		}
	}
	v, err := l.sum(n, n.inputs[0], n.inputs[3])
	if err != nil {
		return v, err
	}
	l.last().out, err = l.quantisation(n, 6)
	return v, err
}
