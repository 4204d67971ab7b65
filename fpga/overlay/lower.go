package overlay

import (
	"fmt"
	"math"

	atelier "github.com/atelier-edge/atelier"
)

// stage is a dense layer in real numbers: y = clamp(w·x + b, low, high).
type stage struct {
	node      *node
	w         [][]float64 // by neuron, then by input
	b         []float64
	low, high float64
	scale     float64       // of weights that are quantised already, or 0
	out       *Quantisation // of y, if the model says it
}

// lowered is a model as a chain of stages.
type lowered struct {
	stages  []*stage
	in      *Quantisation // of the model's input, if the model says it
	inputs  int
	input   string
	outputs []Output
}

// unsupported is the error about a node that the overlay cannot compute.
func unsupported(n *node, format string, args ...any) error {
	return atelier.Errorf(atelier.Unsupported, "the node %s cannot be compiled for the overlay: %s", n, fmt.Sprintf(format, args...)).
		WithRemedy("Deploy the model's CPU variant, or export the model without this node.").WithField(n.outputs[0])
}

// lowering walks the nodes in their order, which ONNX wants to be topological.
type lowering struct {
	*graph
	lowered
	at      string // the name of the value that the chain has reached
	factor  float64
	offset  float64 // before the first stage, x is factor·x + offset
	softmax string  // the value that is Softmax of the last stage
	kinds   map[string]OutputKind
}

func lower(g *graph) (*lowered, error) {
	if len(g.model.Inputs) != 1 {
		return nil, atelier.Errorf(atelier.Unsupported, "the model has %d inputs, the overlay takes one", len(g.model.Inputs)).
			WithRemedy("Deploy the model's CPU variant.")
	}
	l := &lowering{graph: g, factor: 1, kinds: map[string]OutputKind{}}
	l.input = g.model.Inputs[0].Name
	l.at = l.input
	for _, n := range g.nodes {
		if n.domain != "" && n.domain != "ai.onnx" && (n.domain != "com.microsoft" || n.op != "QGemm") {
			return nil, unsupported(n, "its operators' domain %q is unknown", n.domain)
		}
		if err := l.step(n); err != nil {
			return nil, err
		}
	}
	if len(l.stages) == 0 {
		return nil, atelier.Errorf(atelier.Unsupported, "the model has no dense layer").WithRemedy("Deploy the model's CPU variant.")
	}
	l.inputs = len(l.stages[0].w[0])
	for _, o := range g.model.Outputs {
		kind, known := l.kinds[o.Name]
		if o.Name == l.at {
			kind, known = Values, true
		}
		if !known {
			return nil, atelier.Errorf(atelier.Unsupported, "the model's output %q is no result of its last layer", o.Name).
				WithRemedy("Deploy the model's CPU variant, or export the model without this output.")
		}
		l.outputs = append(l.outputs, Output{Name: o.Name, Kind: kind})
	}
	return &l.lowered, nil
}

func (l *lowering) last() *stage {
	if len(l.stages) == 0 {
		return nil
	}
	return l.stages[len(l.stages)-1]
}

// constant returns the constant that is the node's input, nil for one that is not given.
func (l *lowering) constant(n *node, i int) (*constant, error) {
	if i >= len(n.inputs) || n.inputs[i] == "" {
		return nil, nil
	}
	c := l.constants[n.inputs[i]]
	if c == nil || c.values == nil {
		return nil, unsupported(n, "its input %q is no constant, or of a type that is not supported", n.inputs[i])
	}
	return c, nil
}

// scalar returns the constant scalar that is the node's input, or otherwise.
func (l *lowering) scalar(n *node, i int, otherwise float64) (float64, error) {
	c, err := l.constant(n, i)
	if err != nil || c == nil {
		return otherwise, err
	}
	if len(c.values) != 1 {
		return 0, unsupported(n, "its input %q has %d elements, one is possible", n.inputs[i], len(c.values))
	}
	return c.values[0], nil
}

func (l *lowering) step(n *node) error {
	if n.op == "Constant" {
		c := n.tensors["value"]
		if c == nil {
			return unsupported(n, "it has no tensor as its value")
		}
		l.constants[n.outputs[0]] = c
		return nil
	}
	if n.op == "DequantizeLinear" && len(n.inputs) > 0 && l.constants[n.inputs[0]] != nil {
		return l.dequantiseConstant(n)
	}
	data := 0
	if len(n.inputs) > 1 && n.inputs[1] == l.at && (n.op == "Add" || n.op == "Mul") {
		data = 1
	}
	if len(n.inputs) == 0 || n.inputs[data] != l.at && (n.op != "ArgMax" || n.inputs[0] != l.softmax) {
		return unsupported(n, "it does not continue the chain of layers, which has reached %q", l.at)
	}
	switch n.op {
	case "Softmax", "ArgMax":
		return l.end(n)
	}
	if len(l.kinds) > 0 {
		return unsupported(n, "it comes after Softmax or ArgMax")
	}
	err := l.operator(n, data)
	l.at = n.outputs[0]
	return err
}

// end takes what only the end of a network may have.
func (l *lowering) end(n *node) error {
	axis, given := n.ints["axis"]
	if n.op == "ArgMax" && !given {
		axis = 0
	} else if !given {
		axis = -1
	}
	if axis != 1 && axis != -1 || l.last() == nil {
		return unsupported(n, "it must come after a layer and go along axis 1, not %d", axis)
	}
	if n.op == "Softmax" {
		l.softmax = n.outputs[0]
		l.kinds[l.softmax] = Softmax
		return nil
	}
	if n.ints["select_last_index"] != 0 {
		return unsupported(n, "it selects the last of equal values, the overlay the first")
	}
	l.kinds[n.outputs[0]] = ArgMax
	return nil
}

func (l *lowering) operator(n *node, data int) error {
	switch n.op {
	case "Identity", "Dropout":
		return nil
	case "Flatten":
		if axis, given := n.ints["axis"]; given && axis != 1 {
			return unsupported(n, "its axis is %d, 1 is possible", axis)
		}
		return nil
	case "Reshape":
		shape, err := l.constant(n, 1)
		if err != nil || shape == nil {
			return unsupported(n, "its shape is no constant")
		}
		if len(shape.values) != 2 || shape.values[0] > 1 {
			return unsupported(n, "its shape is %v, possible is that of a batch of rows", shape.values)
		}
		return nil
	case "Add", "Sub", "Mul", "Div":
		return l.elementwise(n, 1-data)
	case "Gemm", "MatMul":
		return l.dense(n)
	case "Relu":
		return l.clamp(n, 0, math.Inf(1))
	case "Clip":
		low, err := l.scalar(n, 1, math.Inf(-1))
		if err != nil {
			return err
		}
		high, err := l.scalar(n, 2, math.Inf(1))
		if err != nil {
			return err
		}
		if v, given := n.floats["min"]; given { // before operator set 11
			low = v
		}
		if v, given := n.floats["max"]; given {
			high = v
		}
		return l.clamp(n, low, high)
	case "QuantizeLinear":
		q, err := l.quantisation(n, 1)
		if err != nil {
			return err
		}
		return l.quantised(n, q)
	case "DequantizeLinear":
		q, err := l.quantisation(n, 1)
		if err != nil {
			return err
		}
		if before := l.quantisedAs(); before == nil || *before != *q {
			return unsupported(n, "the value before it is not quantised so")
		}
		return nil
	case "QLinearMatMul", "QGemm":
		return l.quantisedDense(n)
	}
	return unsupported(n, "the operator is unknown")
}

// elementwise folds a constant into the layer before, or into the input.
func (l *lowering) elementwise(n *node, other int) error {
	c, err := l.constant(n, other)
	if err != nil {
		return err
	}
	if c == nil {
		return unsupported(n, "its input %d is missing", other)
	}
	s := l.last()
	if s == nil {
		if len(c.values) != 1 || l.in != nil {
			return unsupported(n, "before the first layer only a constant number is possible")
		}
		l.factor, l.offset = apply(n.op, l.factor, l.offset, c.values[0])
		return nil
	}
	if !math.IsInf(s.low, -1) || !math.IsInf(s.high, 1) || s.out != nil || s.scale != 0 && n.op != "Add" {
		return unsupported(n, "it comes after an activation or a quantisation")
	}
	if len(c.values) != 1 && (len(c.values) != len(s.b) || c.dims[len(c.dims)-1] != int64(len(s.b))) {
		return unsupported(n, "its constant has the shape %v, the layer %d neurons", c.dims, len(s.b))
	}
	for j := range s.b {
		v := c.values[j%len(c.values)]
		factor, offset := apply(n.op, 1, s.b[j], v)
		s.b[j] = offset
		for i := range s.w[j] {
			s.w[j][i] *= factor
		}
	}
	return nil
}

// apply gives factor and offset after the operation.
func apply(op string, factor, offset, v float64) (float64, float64) {
	switch op {
	case "Add":
		return factor, offset + v
	case "Sub":
		return factor, offset - v
	case "Mul":
		return factor * v, offset * v
	}
	return factor / v, offset / v
}

func (l *lowering) clamp(n *node, low, high float64) error {
	s := l.last()
	if s == nil {
		return unsupported(n, "it does not come after a layer")
	}
	s.low, s.high = min(max(s.low, low), high), max(min(s.high, high), low)
	return nil
}

// dense begins a stage.
func (l *lowering) dense(n *node) error {
	if n.ints["transA"] != 0 {
		return unsupported(n, "it transposes its input")
	}
	w, err := l.constant(n, 1)
	if err != nil {
		return err
	}
	alpha, beta := 1.0, 1.0
	if v, given := n.floats["alpha"]; given {
		alpha = v
	}
	if v, given := n.floats["beta"]; given {
		beta = v
	}
	s, err := l.begin(n, w, n.ints["transB"] != 0)
	if err != nil {
		return err
	}
	if w.scale != 0 && alpha == 1 {
		s.scale = w.scale
	}
	for _, row := range s.w {
		for i := range row {
			row[i] *= alpha
		}
	}
	if n.op == "Gemm" {
		b, err := l.constant(n, 2)
		if err != nil {
			return err
		}
		if err := s.bias(b, beta); err != nil {
			return err
		}
	}
	return l.fold(s)
}

// bias adds b, a scalar or one number per neuron.
func (s *stage) bias(b *constant, factor float64) error {
	if b == nil {
		return nil
	}
	if len(b.values) != 1 && len(b.values) != len(s.b) {
		return unsupported(s.node, "it has %d biases for %d neurons", len(b.values), len(s.b))
	}
	for j := range s.b {
		s.b[j] += factor * b.values[j%len(b.values)]
	}
	return nil
}

// begin appends a stage with the weights, which lie by input unless transposed.
func (l *lowering) begin(n *node, w *constant, transposed bool) (*stage, error) {
	if w == nil || len(w.dims) != 2 || w.dims[0] == 0 || w.dims[1] == 0 {
		return nil, unsupported(n, "its weights are no matrix")
	}
	in, out := int(w.dims[0]), int(w.dims[1])
	if transposed {
		in, out = out, in
	}
	if before := l.last(); before != nil && len(before.b) != in {
		return nil, unsupported(n, "it takes %d values, the layer before gives %d", in, len(before.b))
	}
	s := &stage{node: n, b: make([]float64, out), low: math.Inf(-1), high: math.Inf(1)}
	for j := range out {
		row := make([]float64, in)
		for i := range row {
			if transposed {
				row[i] = w.values[j*in+i]
			} else {
				row[i] = w.values[i*out+j]
			}
			if math.IsNaN(row[i]) || math.IsInf(row[i], 0) {
				return nil, unsupported(n, "a weight of neuron %d is no number", j)
			}
		}
		s.w = append(s.w, row)
	}
	l.stages = append(l.stages, s)
	return s, nil
}

// fold takes into the first stage what was done to its input.
func (l *lowering) fold(s *stage) error {
	if len(l.stages) > 1 || l.factor == 1 && l.offset == 0 {
		return nil
	}
	if l.in != nil { // it is of what the constants made of the input
		if l.offset != 0 || l.factor <= 0 {
			return unsupported(s.node, "its input is shifted or turned round before it is quantised")
		}
		l.in.Scale /= l.factor
	}
	for j, row := range s.w {
		for i := range row {
			s.b[j] += row[i] * l.offset
			row[i] *= l.factor
		}
	}
	s.scale *= math.Abs(l.factor)
	return nil
}
