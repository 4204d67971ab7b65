package overlay

import (
	"math"
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

// quantised notes how the chain's value is quantised.
func (l *lowering) quantised(n *node, q *Quantisation) error {
	s := l.last()
	switch {
	case s == nil && l.in == nil:
		l.in = q
	case s == nil && *l.in != *q, s != nil && s.out != nil && *s.out != *q:
		return unsupported(n, "it quantises anew what is quantised already")
	case s != nil:
		s.out = q
	}
	return nil
}

// quantisedAs returns how the chain's value is quantised, nil if it is not.
func (l *lowering) quantisedAs() *Quantisation {
	if s := l.last(); s != nil {
		return s.out
	}
	return l.in
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

// quantisedDense is QLinearMatMul, or QGemm of ONNX Runtime's own operators.
func (l *lowering) quantisedDense(n *node) error {
	in, err := l.quantisation(n, 1)
	if err != nil {
		return err
	}
	before := l.quantisedAs()
	if before == nil || *before != *in {
		return unsupported(n, "its input is quantised otherwise than the value before it")
	}
	w, err := l.constant(n, 3)
	if err != nil {
		return err
	}
	scale, err := l.scalar(n, 4, 0)
	if err != nil {
		return err
	}
	zero, err := l.scalar(n, 5, 0)
	if err != nil {
		return err
	}
	if !(scale > 0) || w == nil {
		return unsupported(n, "its weights have the scale %v", scale)
	}
	s, err := l.begin(n, dequantised(w, scale, zero), n.op == "QGemm" && n.ints["transB"] != 0)
	if err != nil {
		return err
	}
	s.scale = scale
	out := 6
	if n.op == "QGemm" {
		if alpha, given := n.floats["alpha"]; given && alpha != 1 || n.ints["transA"] != 0 {
			return unsupported(n, "it scales or transposes its input")
		}
		b, err := l.constant(n, 6)
		if err != nil {
			return err
		}
		if err := s.bias(b, scale*in.Scale); err != nil {
			return err
		}
		out = 7
	}
	if out < len(n.inputs) {
		if s.out, err = l.quantisation(n, out); err != nil {
			return err
		}
	}
	return l.fold(s)
}
