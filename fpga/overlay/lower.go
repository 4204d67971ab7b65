package overlay

import (
	"fmt"
	"math"
	"slices"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/program"
)

// stage is a layer in real numbers: y = clamp(layer(x), low, high), and then a function.
type stage struct {
	node *node
	kind program.Kind
	from []int // the values that it takes: 0 is the model's input, k+1 what stage k gives
	// in is the shape of what it takes, and window, stride and pad are as program.Operation has them.
	in             program.Image
	window, stride [2]int
	pad            [4]int
	// w are the weights by neuron, then by input as the overlay has them: by row, column and
	// channel.
	w         [][]float64
	b         []float64
	low, high float64
	scale     float64       // of weights that are quantised already, or 0
	out       *Quantisation // of the result, if the model says it
	// function, if there is one, comes after the clamp, whose values are quantised as middle.
	function func(float64) float64
	middle   *Quantisation
}

// lowered is a model as stages.
type lowered struct {
	stages  []*stage
	in      *Quantisation // of the model's input, if the model says it
	shape   program.Image // of the model's input
	input   string
	outputs []Output
}

// value is what a name of the graph stands for.
type value struct {
	from int // 0 is the model's input, k+1 what stage k gives
	program.Image
	// flat is an image that was made a row: ONNX has its elements by channel, row and column.
	flat bool
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
	values  map[string]value
	uses    map[string]int // how many nodes and outputs take a value
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
	l := &lowering{graph: g, factor: 1, kinds: map[string]OutputKind{}, values: map[string]value{}, uses: map[string]int{}}
	in := g.model.Inputs[0]
	l.input = in.Name
	l.shape = imageOf(in.Shape)
	l.values[l.input] = value{Image: l.shape, flat: len(in.Shape) != 4}
	for _, n := range g.nodes {
		for _, name := range n.inputs {
			l.uses[name]++
		}
	}
	for _, o := range g.model.Outputs {
		l.uses[o.Name]++
	}
	for _, n := range g.nodes {
		if n.domain != "" && n.domain != "ai.onnx" && (n.domain != "com.microsoft" || !microsoft[n.op]) {
			return nil, unsupported(n, "its operators' domain %q is unknown", n.domain)
		}
		if err := l.step(n); err != nil {
			return nil, err
		}
	}
	if len(l.stages) == 0 {
		return nil, atelier.Errorf(atelier.Unsupported, "the model has no dense layer or convolution").WithRemedy("Deploy the model's CPU variant.")
	}
	for _, o := range g.model.Outputs {
		kind, known := l.kinds[o.Name]
		if v, is := l.values[o.Name]; is && v.from == len(l.stages) && (v.Channels == 1 || v.Height*v.Width == 1) {
			kind, known = Values, true
		}
		if !known {
			return nil, atelier.Errorf(atelier.Unsupported, "the model's output %q is no row of numbers that its last layer gives", o.Name).
				WithRemedy("Deploy the model's CPU variant, or export the model without this output.")
		}
		l.outputs = append(l.outputs, Output{Name: o.Name, Kind: kind})
	}
	return &l.lowered, nil
}

// microsoft are the operators of ONNX Runtime's own that are known.
var microsoft = map[string]bool{"QGemm": true, "QLinearAdd": true, "QLinearGlobalAveragePool": true}

// imageOf reads a shape; what the caller chooses, and the batch, are left open.
func imageOf(shape []int64) program.Image {
	const most = 1 << 15 // no overlay has more activations
	size := func(d int64) int { return int(min(max(d, 0), most)) }
	if len(shape) == 4 {
		return program.Image{Height: size(shape[2]), Width: size(shape[3]), Channels: size(shape[1])}
	}
	m := program.Image{Height: 1, Width: 1, Channels: 1}
	for i, d := range shape {
		if i > 0 || len(shape) == 1 {
			m.Channels = min(m.Channels*size(d), most)
		}
	}
	return m
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
	if n.op == "Softmax" || n.op == "ArgMax" {
		return l.end(n)
	}
	if len(l.kinds) > 0 {
		return unsupported(n, "it comes after Softmax or ArgMax")
	}
	// Which of its inputs are no constants.
	var data []int
	for i, name := range n.inputs {
		if _, is := l.values[name]; is {
			data = append(data, i)
		} else if l.constants[name] == nil && name != "" {
			return unsupported(n, "its input %q is neither a constant nor the result of a layer", name)
		}
	}
	if len(data) == 0 {
		return unsupported(n, "it takes no layer's result")
	}
	two := n.op == "Add" || n.op == "QLinearAdd"
	if len(data) > 2 || len(data) == 2 && !two || data[0] != 0 && !two && n.op != "Mul" {
		return unsupported(n, "it takes the results of layers where a constant is expected")
	}
	v, err := l.operator(n, data)
	if err != nil {
		return err
	}
	l.values[n.outputs[0]] = v
	return nil
}

// end takes what only the end of a network may have.
func (l *lowering) end(n *node) error {
	axis, given := n.ints["axis"]
	if n.op == "ArgMax" && !given {
		axis = 0
	} else if !given {
		axis = -1
	}
	if len(n.inputs) == 0 {
		return unsupported(n, "it has no input")
	}
	v, is := l.values[n.inputs[0]]
	if !is && (n.op != "ArgMax" || n.inputs[0] != l.softmax) || is && (v.from != len(l.stages) || v.Height*v.Width != 1) ||
		axis != 1 && axis != -1 || l.last() == nil {
		return unsupported(n, "it must come after the last layer and go along axis 1, not %d", axis)
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

// own returns the stage whose result is the value, if nobody else takes that: what follows may be
// made a part of it. It is nil for the model's input.
func (l *lowering) own(n *node, name string) (*stage, error) {
	v := l.values[name]
	if l.uses[name] > 1 {
		return nil, unsupported(n, "others take %q as well, and would see what it does", name)
	}
	if v.from == 0 {
		return nil, nil
	}
	return l.stages[v.from-1], nil
}

func (l *lowering) operator(n *node, data []int) (value, error) {
	name := n.inputs[data[0]]
	v := l.values[name]
	switch n.op {
	case "Identity", "Dropout":
		return v, nil
	case "Flatten":
		if axis, given := n.ints["axis"]; given && axis != 1 {
			return v, unsupported(n, "its axis is %d, 1 is possible", axis)
		}
		v.flat = true
		return v, nil
	case "Reshape":
		return l.reshape(n, v)
	case "Squeeze":
		if v.Height*v.Width != 1 {
			return v, unsupported(n, "it takes an image of %d×%d apart", v.Height, v.Width)
		}
		v.flat = true
		return v, nil
	case "Gemm", "MatMul":
		return l.dense(n, v)
	case "QLinearMatMul", "QGemm":
		return l.quantisedDense(n, v)
	case "Conv":
		return l.convolution(n, v)
	case "QLinearConv":
		return l.quantisedConvolution(n, v)
	case "MaxPool":
		return l.maxPool(n, v)
	case "GlobalAveragePool", "QLinearGlobalAveragePool", "ReduceMean":
		return l.average(n, v)
	case "QLinearAdd":
		return l.quantisedSum(n)
	case "Add":
		if len(data) == 2 {
			return l.sum(n, n.inputs[0], n.inputs[1])
		}
	case "DequantizeLinear":
		q, err := l.quantisation(n, 1)
		if err != nil {
			return v, err
		}
		if before := l.quantisedAs(v); before == nil || *before != *q {
			return v, unsupported(n, "the value before it is not quantised so")
		}
		return v, nil
	case "QuantizeLinear":
		q, err := l.quantisation(n, 1)
		if err != nil {
			return v, err
		}
		return v, l.quantised(n, v, q)
	}
	s, err := l.own(n, name)
	if err != nil {
		return v, err
	}
	switch n.op {
	case "Add", "Sub", "Mul", "Div":
		return v, l.elementwise(n, s, 1-data[0])
	case "BatchNormalization":
		return v, l.normalisation(n, s)
	case "Relu":
		return v, clamp(n, s, 0, math.Inf(1))
	case "Clip":
		low, err := l.scalar(n, 1, math.Inf(-1))
		if err != nil {
			return v, err
		}
		high, err := l.scalar(n, 2, math.Inf(1))
		if err != nil {
			return v, err
		}
		if v, given := n.floats["min"]; given { // before operator set 11
			low = v
		}
		if v, given := n.floats["max"]; given {
			high = v
		}
		return v, clamp(n, s, low, high)
	}
	return v, unary(n, s)
}

// elementwise folds a constant into the layer before, or into the input.
func (l *lowering) elementwise(n *node, s *stage, other int) error {
	c, err := l.constant(n, other)
	if err != nil {
		return err
	}
	if c == nil {
		return unsupported(n, "its input %d is missing", other)
	}
	if n.op == "Div" && other == 0 || n.op == "Sub" && other == 0 {
		return unsupported(n, "it takes the constant first")
	}
	if s == nil {
		if len(c.values) != 1 || l.in != nil || len(l.stages) > 0 {
			return unsupported(n, "before the first layer only a constant number is possible")
		}
		l.factor, l.offset = apply(n.op, l.factor, l.offset, c.values[0])
		return nil
	}
	if s.scale != 0 && n.op != "Add" {
		return unsupported(n, "it comes after an activation or a quantisation")
	}
	perNeuron := len(c.values) == len(s.b)
	if s.kind == program.Convolution && perNeuron && len(c.values) > 1 { // its last dimensions are rows and columns
		perNeuron = len(c.dims) >= 3 && c.dims[len(c.dims)-3] == int64(len(s.b))
	} else if perNeuron && len(c.values) > 1 {
		perNeuron = c.dims[len(c.dims)-1] == int64(len(s.b))
	}
	if len(c.values) != 1 && !perNeuron {
		return unsupported(n, "its constant has the shape %v, the layer %d neurons", c.dims, len(s.b))
	}
	factors, offsets := make([]float64, len(s.b)), make([]float64, len(s.b))
	for j := range s.b {
		factors[j], offsets[j] = apply(n.op, 1, 0, c.values[j%len(c.values)])
	}
	return s.scaled(n, factors, offsets)
}

// scaled makes y·factor + offset of the stage's result, by neuron.
func (s *stage) scaled(n *node, factors, offsets []float64) error {
	if !math.IsInf(s.low, -1) || !math.IsInf(s.high, 1) || s.out != nil || s.function != nil {
		return unsupported(n, "it comes after an activation or a quantisation")
	}
	if s.kind != program.Dense && s.kind != program.Convolution {
		return unsupported(n, "it does not come after a dense layer or a convolution")
	}
	for j := range s.b {
		s.b[j] = s.b[j]*factors[j] + offsets[j]
		for i := range s.w[j] {
			s.w[j][i] *= factors[j]
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

func clamp(n *node, s *stage, low, high float64) error {
	if s == nil {
		return unsupported(n, "it does not come after a layer")
	}
	if s.function != nil || s.out != nil && s.kind == program.MaxPool {
		return unsupported(n, "it comes after another activation")
	}
	s.low, s.high = min(max(s.low, low), high), max(min(s.high, high), low)
	return nil
}

// dense begins a stage.
func (l *lowering) dense(n *node, v value) (value, error) {
	if n.ints["transA"] != 0 {
		return v, unsupported(n, "it transposes its input")
	}
	w, err := l.constant(n, 1)
	if err != nil {
		return v, err
	}
	alpha, beta := 1.0, 1.0
	if v, given := n.floats["alpha"]; given {
		alpha = v
	}
	if v, given := n.floats["beta"]; given {
		beta = v
	}
	s, err := l.matrix(n, v, w, n.ints["transB"] != 0)
	if err != nil {
		return v, err
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
			return v, err
		}
		if err := s.bias(b, beta); err != nil {
			return v, err
		}
	}
	return l.result(s)
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

// matrix begins a dense stage with the weights, which lie by input unless transposed.
func (l *lowering) matrix(n *node, v value, w *constant, transposed bool) (*stage, error) {
	if w == nil || len(w.dims) != 2 || w.dims[0] == 0 || w.dims[1] == 0 {
		return nil, unsupported(n, "its weights are no matrix")
	}
	in, out := int(w.dims[0]), int(w.dims[1])
	if transposed {
		in, out = out, in
	}
	if v.Size() == 0 && v.from == 0 { // the model leaves open how long its input is
		v.Image = program.Image{Height: 1, Width: 1, Channels: in}
		l.shape = v.Image
	}
	if v.Size() != in || !v.flat && v.Height*v.Width != 1 {
		return nil, unsupported(n, "it takes %d values, the layer before gives %d×%d×%d", in, v.Height, v.Width, v.Channels)
	}
	s := &stage{node: n, from: []int{v.from}, in: v.Image, b: make([]float64, out), low: math.Inf(-1), high: math.Inf(1)}
	for j := range out {
		row := make([]float64, in)
		for i := range row {
			to := v.flatTo(i)
			if transposed {
				row[to] = w.values[j*in+i]
			} else {
				row[to] = w.values[i*out+j]
			}
		}
		s.w = append(s.w, row)
	}
	return s, s.finite()
}

// flatTo is where the overlay has element i of the image as ONNX lays it flat.
func (v value) flatTo(i int) int {
	pixels := v.Height * v.Width
	return i%pixels*v.Channels + i/pixels
}

func (s *stage) finite() error {
	for j, row := range s.w {
		for _, w := range row {
			if math.IsNaN(w) || math.IsInf(w, 0) {
				return unsupported(s.node, "a weight of neuron %d is no number", j)
			}
		}
	}
	return nil
}

// result appends the stage, and returns what it gives. The first stage takes in what was
// done to the model's input.
func (l *lowering) result(s *stage) (value, error) {
	l.stages = append(l.stages, s)
	v := value{from: len(l.stages), Image: s.shape()}
	v.flat = v.Height*v.Width == 1
	if len(l.stages) > 1 {
		if slices.Contains(s.from, 0) && (l.factor != 1 || l.offset != 0) {
			return v, unsupported(s.node, "it takes the model's input, which another layer takes as well and constants change")
		}
		return v, nil
	}
	if l.factor == 1 && l.offset == 0 {
		return v, nil
	}
	if s.kind != program.Dense && s.kind != program.Convolution || s.pad != [4]int{} && l.offset != 0 {
		return v, unsupported(s.node, "constants change its input, which it has to take as it is")
	}
	if l.in != nil { // it is of what the constants made of the input
		if l.offset != 0 || l.factor <= 0 {
			return v, unsupported(s.node, "its input is shifted or turned round before it is quantised")
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
	if slices.ContainsFunc(s.from, func(from int) bool { return from != 0 }) {
		return v, unsupported(s.node, "it does not take the model's input alone")
	}
	return v, nil
}

// shape is that of the stage's result.
func (s *stage) shape() program.Image {
	channels := len(s.b)
	switch s.kind {
	case program.Sum:
		return s.in
	case program.MaxPool:
		channels = s.in.Channels
	case program.Average:
		return program.Image{Height: 1, Width: 1, Channels: s.in.Channels}
	case program.Dense:
		return program.Image{Height: 1, Width: 1, Channels: channels}
	}
	return program.Image{
		Height: (s.in.Height+s.pad[0]+s.pad[2]-s.window[0])/s.stride[0] + 1,
		Width:  (s.in.Width+s.pad[1]+s.pad[3]-s.window[1])/s.stride[1] + 1, Channels: channels,
	}
}

// reshape makes a row of an image, or of the model's input an image.
func (l *lowering) reshape(n *node, v value) (value, error) {
	shape, err := l.constant(n, 1)
	if err != nil || shape == nil {
		return v, unsupported(n, "its shape is no constant")
	}
	d := shape.values
	if len(d) == 2 && d[0] <= 1 {
		v.flat = true
		return v, nil
	}
	if len(d) != 4 || d[0] > 1 || min(d[1], d[2], d[3]) < 1 || max(d[1], d[2], d[3]) > 1<<15 {
		return v, unsupported(n, "its shape is %v, possible is that of a batch of rows or of images", d)
	}
	m := program.Image{Height: int(d[2]), Width: int(d[3]), Channels: int(d[1])}
	if v.Size() != m.Size() && (v.from != 0 || v.Size() != 0) {
		return v, unsupported(n, "it makes %d numbers of %d", m.Size(), v.Size())
	}
	if v.from == 0 && v.flat { // whoever writes the input puts it in order
		l.shape = m
	} else if m.Channels != 1 || v.Channels != 1 {
		return v, unsupported(n, "it makes another image of a layer's result")
	}
	return value{from: v.from, Image: m}, nil
}
