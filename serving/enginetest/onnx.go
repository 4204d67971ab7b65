package enginetest

import (
	"math"
	"math/rand/v2"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving"
)

// elementTypes are ONNX's numbers for element types (onnx.proto3, TensorProto.DataType).
var elementTypes = map[serving.Datatype]uint64{
	serving.FP32: 1, serving.Uint8: 2, serving.Int8: 3, serving.Uint16: 4, serving.Int16: 5, serving.Int32: 6, serving.Int64: 7,
	serving.Bytes: 8, serving.Bool: 9, serving.FP16: 10, serving.FP64: 11, serving.Uint32: 12, serving.Uint64: 13, serving.BF16: 16,
}

// Node is one operator of a graph.
type Node struct {
	Op              string
	Inputs, Outputs []string
}

// Graph is as much of an ONNX model as tests need.
type Graph struct {
	Inputs, Outputs []atelier.TensorSpec
	Nodes           []Node
	Floats          map[string][]float32 // constants of FP32
	Shapes          map[string][]int64   // of those constants that are no vectors
}

// ONNX encodes g as an ONNX file. The numbers of the fields are those of onnx.proto3.
func (g Graph) ONNX() []byte {
	var graph []byte
	for _, n := range g.Nodes {
		var node []byte
		for _, in := range n.Inputs {
			node = text(node, 1, in)
		}
		for _, out := range n.Outputs {
			node = text(node, 2, out)
		}
		graph = message(graph, 1, text(node, 4, n.Op))
	}
	graph = text(graph, 2, "test")
	for name, values := range g.Floats {
		var raw []byte
		for _, v := range values {
			raw = protowire.AppendFixed32(raw, math.Float32bits(v))
		}
		shape := g.Shapes[name]
		if shape == nil {
			shape = []int64{int64(len(values))}
		}
		var tensor []byte
		for _, d := range shape {
			tensor = number(tensor, 1, uint64(d))
		}
		tensor = number(tensor, 2, elementTypes[serving.FP32])
		tensor = text(tensor, 8, name)
		graph = message(graph, 5, message(tensor, 9, raw))
	}
	for _, in := range g.Inputs {
		graph = message(graph, 11, valueInfo(in))
	}
	for _, out := range g.Outputs {
		graph = message(graph, 12, valueInfo(out))
	}
	model := number(nil, 1, 8) // ir_version
	model = message(model, 7, graph)
	return message(model, 8, number(nil, 2, 16)) // opset 16 of the default domain
}

// valueInfo encodes a ValueInfoProto.
func valueInfo(spec atelier.TensorSpec) []byte {
	var shape []byte
	for _, d := range spec.Shape {
		var dim []byte
		if d >= 0 {
			dim = number(dim, 1, uint64(d))
		} // one without a value is free
		shape = message(shape, 1, dim)
	}
	tensor := message(number(nil, 1, elementTypes[serving.Datatype(spec.Type)]), 2, shape)
	return message(text(nil, 1, spec.Name), 2, message(nil, 1, tensor))
}

func number(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func text(b []byte, field protowire.Number, s string) []byte { return message(b, field, []byte(s)) }

func message(b []byte, field protowire.Number, m []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), m)
}

// Identity is a model that gives back its input x, of any size, as y.
func Identity(typ serving.Datatype) []byte {
	return Graph{
		Inputs:  []atelier.TensorSpec{{Name: "x", Type: string(typ), Shape: []int64{-1, -1}}},
		Outputs: []atelier.TensorSpec{{Name: "y", Type: string(typ), Shape: []int64{-1, -1}}},
		Nodes:   []Node{{"Identity", []string{"x"}, []string{"y"}}},
	}.ONNX()
}

// Affine is a model with one FP32 input x of shape [-1, 4], and two outputs of
// that shape: y = x*2 + offset, and z = -x.
func Affine(offset float32) []byte {
	spec := func(name string) atelier.TensorSpec {
		return atelier.TensorSpec{Name: name, Type: string(serving.FP32), Shape: []int64{-1, 4}}
	}
	return Graph{
		Inputs: []atelier.TensorSpec{spec("x")}, Outputs: []atelier.TensorSpec{spec("y"), spec("z")},
		Nodes: []Node{
			{"Mul", []string{"x", "two"}, []string{"twice"}},
			{"Add", []string{"twice", "offset"}, []string{"y"}},
			{"Neg", []string{"x"}, []string{"z"}},
		},
		Floats: map[string][]float32{"two": {2}, "offset": {offset}},
	}.ONNX()
}

// Perceptron is a model with one FP32 input x of shape [-1, sizes[0]] and one output y
// of shape [-1, the last of sizes]: each layer multiplies with a matrix, adds a vector and
// drops what is negative. The weights are made of a fixed sequence.
func Perceptron(sizes ...int64) []byte {
	last := len(sizes) - 1
	g := Graph{
		Inputs:  []atelier.TensorSpec{{Name: "x", Type: string(serving.FP32), Shape: []int64{-1, sizes[0]}}},
		Outputs: []atelier.TensorSpec{{Name: "y", Type: string(serving.FP32), Shape: []int64{-1, sizes[last]}}},
		Floats:  map[string][]float32{}, Shapes: map[string][]int64{},
	}
	r := rand.New(rand.NewPCG(1, 2))
	weights := func(name string, shape ...int64) {
		n, scale := int64(1), 2/math.Sqrt(float64(shape[0]))
		for _, d := range shape {
			n *= d
		}
		values := make([]float32, n)
		for i := range values {
			values[i] = float32((r.Float64() - 0.5) * 2 * scale)
		}
		g.Floats[name], g.Shapes[name] = values, shape
	}
	before := "x"
	for i := range last {
		n := strconv.Itoa(i)
		weights("w"+n, sizes[i], sizes[i+1])
		weights("b"+n, sizes[i+1])
		after := "h" + n
		if i == last-1 {
			after = "y"
		}
		g.Nodes = append(g.Nodes, Node{"MatMul", []string{before, "w" + n}, []string{"m" + n}}, Node{"Add", []string{"m" + n, "b" + n}, []string{"a" + n}},
			Node{"Relu", []string{"a" + n}, []string{after}})
		before = after
	}
	return g.ONNX()
}
