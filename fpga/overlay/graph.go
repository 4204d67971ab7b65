package overlay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/onnx"
	"google.golang.org/protobuf/encoding/protowire"
)

// The bounds on what is compiled; overlays are far smaller.
const (
	maxFile     = 64 << 20
	maxNodes    = 1024
	maxElements = 16 << 20
)

// graph is the main graph of an ONNX model.
type graph struct {
	model     *onnx.Model
	nodes     []*node
	constants map[string]*constant
}

// node is NodeProto.
type node struct {
	name, op, domain string
	inputs, outputs  []string
	ints             map[string]int64
	lists            map[string][]int64
	floats           map[string]float64
	strings          map[string]string
	tensors          map[string]*constant
}

// constant is TensorProto, its elements as numbers.
type constant struct {
	dims   []int64
	kind   uint64 // TensorProto.DataType
	values []float64
	// scale is of a dequantised constant: values are whole multiples of it.
	scale float64
}

func (n *node) String() string {
	if n.name != "" {
		return fmt.Sprintf("%s %q", n.op, n.name)
	}
	if len(n.outputs) > 0 {
		return fmt.Sprintf("%s that gives %q", n.op, n.outputs[0])
	}
	return n.op
}

func malformed(what string) error {
	return atelier.Errorf(atelier.Invalid, "this is no ONNX model: %s", what).
		WithRemedy("Export the model to ONNX anew, and check with onnx.checker that it is whole.")
}

// parse reads a model whose weights are in the file itself.
func parse(b []byte) (*graph, error) {
	if len(b) > maxFile {
		return nil, atelier.Errorf(atelier.TooLarge, "the model has %d bytes, at most %d are compiled", len(b), maxFile).
			WithRemedy("Use the model's CPU variant.")
	}
	m, err := onnx.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	if len(m.External) > 0 {
		return nil, atelier.Errorf(atelier.Unsupported, "the model has weights in the file %q beside it", m.External[0].Path).
			WithRemedy("Save the model with its weights in one file.")
	}
	g := &graph{model: m, constants: map[string]*constant{}}
	return g, fields(b, func(f field) error {
		if f.num != 7 { // graph
			return nil
		}
		return fields(f.bytes, func(f field) error {
			switch f.num {
			case 1: // node
				n, err := parseNode(f.bytes)
				if g.nodes = append(g.nodes, n); err == nil && len(g.nodes) > maxNodes {
					err = atelier.Errorf(atelier.TooLarge, "the model has more than %d nodes", maxNodes).WithRemedy("Use the model's CPU variant.")
				}
				return err
			case 5: // initializer
				name, c, err := parseTensor(f.bytes)
				g.constants[name] = c
				return err
			}
			return nil
		})
	})
}

// field is one field of a protocol buffer message.
type field struct {
	num   protowire.Number
	typ   protowire.Type
	value uint64
	bytes []byte
}

// fields calls fn for each field of a message.
func fields(b []byte, fn func(field) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return malformed("it has a malformed field")
		}
		b = b[n:]
		f := field{num: num, typ: typ}
		switch typ {
		case protowire.VarintType:
			f.value, n = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			var v uint32
			v, n = protowire.ConsumeFixed32(b)
			f.value = uint64(v)
		case protowire.Fixed64Type:
			f.value, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(b)
		default:
			n = -1
		}
		if n < 0 {
			return malformed("it has a malformed field")
		}
		b = b[n:]
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

func parseNode(b []byte) (*node, error) {
	n := &node{ints: map[string]int64{}, lists: map[string][]int64{}, floats: map[string]float64{}, strings: map[string]string{}, tensors: map[string]*constant{}}
	err := fields(b, func(f field) error {
		switch f.num {
		case 1:
			n.inputs = append(n.inputs, string(f.bytes))
		case 2:
			n.outputs = append(n.outputs, string(f.bytes))
		case 3:
			n.name = string(f.bytes)
		case 4:
			n.op = string(f.bytes)
		case 7:
			n.domain = string(f.bytes)
		case 5: // attribute
			var name, text string
			var i int64
			var list []int64
			var v float64
			var t *constant
			err := fields(f.bytes, func(f field) (err error) {
				switch f.num {
				case 1:
					name = string(f.bytes)
				case 2: // f
					v = float64(math.Float32frombits(uint32(f.value)))
				case 3: // i
					i = int64(f.value)
				case 4: // s
					text = string(f.bytes)
				case 5: // t
					_, t, err = parseTensor(f.bytes)
				case 8: // ints
					err = varints(f, func(v uint64) { list = append(list, int64(v)) })
				}
				return err
			})
			n.ints[name], n.lists[name], n.floats[name], n.strings[name], n.tensors[name] = i, list, v, text, t
			return err
		}
		return nil
	})
	if err == nil && len(n.outputs) == 0 {
		err = malformed("a node has no output")
	}
	return n, err
}

// parseTensor reads TensorProto of the types that networks are made of.
func parseTensor(b []byte) (name string, c *constant, err error) {
	c = &constant{}
	var raw []byte
	hasRaw := false
	err = fields(b, func(f field) error {
		switch f.num {
		case 1: // dims
			return varints(f, func(v uint64) { c.dims = append(c.dims, int64(v)) })
		case 2:
			c.kind = f.value
		case 4: // float_data
			if f.typ != protowire.BytesType {
				c.values = append(c.values, float64(math.Float32frombits(uint32(f.value))))
			}
			for b := f.bytes; len(b) >= 4; b = b[4:] {
				c.values = append(c.values, float64(math.Float32frombits(binary.LittleEndian.Uint32(b))))
			}
		case 5, 7: // int32_data, int64_data
			return varints(f, func(v uint64) { c.values = append(c.values, float64(int64(v))) })
		case 8:
			name = string(f.bytes)
		case 9:
			raw, hasRaw = f.bytes, true
		case 10: // double_data
			for b := f.bytes; len(b) >= 8; b = b[8:] {
				c.values = append(c.values, math.Float64frombits(binary.LittleEndian.Uint64(b)))
			}
		}
		return nil
	})
	if err != nil {
		return name, c, err
	}
	want := int64(1)
	for _, d := range c.dims {
		if d < 0 || d > maxElements || want*d > maxElements {
			return name, c, malformed(fmt.Sprintf("the tensor %q has the shape %v", name, c.dims))
		}
		want *= d
	}
	if hasRaw {
		c.values = fromRaw(c.kind, raw)
	}
	if int64(len(c.values)) != want {
		// Types that no network of the overlay needs have no values here; the node that uses one is refused.
		c.values = nil
	}
	return name, c, nil
}

func varints(f field, fn func(uint64)) error {
	if f.typ == protowire.VarintType {
		fn(f.value)
		return nil
	}
	for b := f.bytes; len(b) > 0; {
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return malformed("it has a malformed field")
		}
		fn(v)
		b = b[n:]
	}
	return nil
}

// fromRaw reads raw_data of FLOAT, UINT8, INT8, INT32, INT64 and DOUBLE.
func fromRaw(kind uint64, b []byte) (values []float64) {
	sizes := map[uint64]int{1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 11: 8}
	size := sizes[kind]
	if size == 0 {
		return nil
	}
	for ; len(b) >= size; b = b[size:] {
		var v float64
		switch kind {
		case 1:
			v = float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))
		case 2:
			v = float64(b[0])
		case 3:
			v = float64(int8(b[0]))
		case 6:
			v = float64(int32(binary.LittleEndian.Uint32(b)))
		case 7:
			v = float64(int64(binary.LittleEndian.Uint64(b)))
		case 11:
			v = math.Float64frombits(binary.LittleEndian.Uint64(b))
		}
		values = append(values, v)
	}
	return values
}
