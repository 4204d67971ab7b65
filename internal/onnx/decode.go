package onnx

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	atelier "github.com/atelier-edge/atelier"
)

// decoder reads one model. It goes over the main graph twice: inputs come after
// the initialisers in a file, and remembering those would take memory.
type decoder struct {
	src    source
	budget int
	out    Model
	inputs map[string]bool // names of inputs; false once an initialiser has the name
	at     map[string]int  // where a path is in out.External
}

// model reads ModelProto.
func (d *decoder) model(m message) error {
	var graph message
	graphs := 0
	err := d.each(m, func(f field) (err error) {
		switch f.num {
		case 1: // ir_version
			d.out.IRVersion = int64(f.value)
		case 2: // producer_name
			d.out.Producer, err = d.text(f)
		case 3: // producer_version
			d.out.ProducerVersion, err = d.text(f)
		case 7: // graph
			graphs++
			graph, err = f.sub()
		case 8: // opset_import
			err = d.opset(f)
		}
		return err
	})
	if err != nil {
		return err
	}
	if graphs != 1 || d.out.IRVersion < 1 {
		return invalid("it does not hold exactly one graph and an IR version")
	}
	if !utf8.ValidString(d.out.Producer) || !utf8.ValidString(d.out.ProducerVersion) {
		return invalid("its producer is no UTF-8 text")
	}
	if err := d.values(graph); err != nil {
		return err
	}
	if len(d.out.Outputs) == 0 {
		return invalid("its graph has no output")
	}
	return d.weights(m)
}

// opset reads OperatorSetIdProto.
func (d *decoder) opset(f field) error {
	m, err := f.sub()
	if err != nil {
		return err
	}
	if len(d.out.Opsets) == maxOpsets {
		return tooLarge("operator sets", maxOpsets)
	}
	var o Opset
	err = d.each(m, func(f field) (err error) {
		switch f.num {
		case 1: // domain
			o.Domain, err = d.text(f)
		case 2: // version
			o.Version = int64(f.value)
		}
		return err
	})
	if err == nil && !utf8.ValidString(o.Domain) {
		err = invalid("the name of an operator set is no UTF-8 text")
	}
	d.out.Opsets = append(d.out.Opsets, o)
	return err
}

// values reads the inputs and outputs of the main GraphProto, and drops the inputs
// that are initialisers.
func (d *decoder) values(graph message) error {
	d.inputs = map[string]bool{}
	err := d.each(graph, func(f field) error {
		switch f.num {
		case 11: // input
			v, err := d.value(f)
			if err != nil {
				return err
			}
			if _, twice := d.inputs[v.Name]; twice {
				return invalid("two inputs have the name " + strconv.Quote(v.Name))
			}
			d.inputs[v.Name] = true
			d.out.Inputs = append(d.out.Inputs, v)
			return bounded(len(d.out.Inputs), "inputs")
		case 12: // output
			v, err := d.value(f)
			d.out.Outputs = append(d.out.Outputs, v)
			if err != nil {
				return err
			}
			return bounded(len(d.out.Outputs), "outputs")
		}
		return nil
	})
	if err != nil || len(d.out.Inputs) == 0 {
		return err
	}
	err = d.each(graph, func(f field) error {
		switch f.num {
		case 5, 15: // initializer, sparse_initializer
			return d.initialiser(f, f.num == 15)
		}
		return nil
	})
	if err != nil {
		return err
	}
	free := d.out.Inputs[:0]
	for _, v := range d.out.Inputs {
		if d.inputs[v.Name] {
			free = append(free, v)
		}
	}
	d.out.Inputs = free
	return nil
}

func bounded(n int, what string) error {
	if n > maxValues {
		return tooLarge(what, maxValues)
	}
	return nil
}

// initialiser takes the name of a TensorProto, or of the values of a
// SparseTensorProto, off the inputs.
func (d *decoder) initialiser(f field, sparse bool) error {
	m, err := f.sub()
	if err != nil {
		return err
	}
	return d.each(m, func(f field) error {
		switch {
		case sparse && f.num == 1: // values
			return d.initialiser(f, false)
		case !sparse && f.num == 8: // name
			name, err := d.text(f)
			if err == nil && d.inputs[name] {
				d.inputs[name] = false
			}
			return err
		}
		return nil
	})
}

// value reads ValueInfoProto.
func (d *decoder) value(f field) (atelier.TensorSpec, error) {
	v := atelier.TensorSpec{Type: TypeUnknown}
	m, err := f.sub()
	if err != nil {
		return v, err
	}
	err = d.each(m, func(f field) (err error) {
		switch f.num {
		case 1: // name
			v.Name, err = d.text(f)
		case 2: // type
			err = d.typeOf(f, &v)
		}
		return err
	})
	if err == nil && (v.Name == "" || !utf8.ValidString(v.Name)) {
		err = invalid("an input or output has no name, or one that is no UTF-8 text")
	}
	return v, err
}

// typeOf reads TypeProto.
func (d *decoder) typeOf(f field, v *atelier.TensorSpec) error {
	m, err := f.sub()
	if err != nil {
		return err
	}
	return d.each(m, func(f field) error {
		switch f.num {
		case 1: // tensor_type
			return d.tensorType(f, v)
		case 4:
			v.Type = TypeSequence
		case 5:
			v.Type = TypeMap
		case 7:
			v.Type = TypeOpaque
		case 8:
			v.Type = TypeSparse
		case 9:
			v.Type = TypeOptional
		}
		return nil
	})
}

// tensorType reads TypeProto.Tensor.
func (d *decoder) tensorType(f field, v *atelier.TensorSpec) error {
	m, err := f.sub()
	if err != nil {
		return err
	}
	return d.each(m, func(f field) error {
		switch f.num {
		case 1: // elem_type
			v.Type = TypeUnknown
			if t, known := datatypes[f.value]; known {
				v.Type = t
			}
		case 2: // shape
			m, err := f.sub()
			if err != nil {
				return err
			}
			v.Shape = []int64{}
			return d.each(m, func(f field) error {
				if f.num != 1 { // dim
					return nil
				}
				size, err := d.dimension(f)
				v.Shape = append(v.Shape, size)
				if err == nil && len(v.Shape) > maxRank {
					err = tooLarge("dimensions in a value", maxRank)
				}
				return err
			})
		}
		return nil
	})
}

// dimension reads TensorShapeProto.Dimension; -1 for one without a fixed size.
func (d *decoder) dimension(f field) (int64, error) {
	size := int64(-1)
	m, err := f.sub()
	if err != nil {
		return size, err
	}
	err = d.each(m, func(f field) error {
		switch f.num {
		case 1: // dim_value
			size = -1
			if f.value <= math.MaxInt64 {
				size = int64(f.value)
			}
		case 2: // dim_param
			size = -1
		}
		return nil
	})
	return size, err
}

// container says in which fields of a message other messages lie that may lead to
// weights, and what these are.
type container map[int32]*container

// The messages on the way to tensors. A graph holds nodes, their attributes hold
// graphs; so the table refers to itself.
var (
	tensorMsg    = &container{} // TensorProto, read by external
	sparseMsg    = &container{1: tensorMsg, 2: tensorMsg}
	attributeMsg = &container{5: tensorMsg, 10: tensorMsg, 22: sparseMsg, 23: sparseMsg} // 6 and 11, graphs: see graphMsg
	nodeMsg      = &container{5: attributeMsg}
	graphMsg     = makeGraph()
	functionMsg  = &container{7: nodeMsg, 11: attributeMsg}
	trainingMsg  = &container{1: graphMsg, 2: graphMsg}
	modelMsg     = &container{7: graphMsg, 20: trainingMsg, 25: functionMsg}
)

func makeGraph() *container {
	graph := &container{1: nodeMsg, 5: tensorMsg, 15: sparseMsg}
	(*attributeMsg)[6], (*attributeMsg)[11] = graph, graph
	return graph
}

// weights looks for tensors whose data lies in other files.
func (d *decoder) weights(m message) error {
	d.at = map[string]int{}
	return d.walk(m, modelMsg, 0)
}

func (d *decoder) walk(m message, kind *container, depth int) error {
	if kind == tensorMsg {
		return d.external(m)
	}
	if kind == graphMsg {
		if depth++; depth > maxDepth {
			return tooLarge("graphs within each other", maxDepth)
		}
	}
	return d.each(m, func(f field) error {
		inner := (*kind)[int32(f.num)]
		if inner == nil {
			return nil
		}
		m, err := f.sub()
		if err != nil {
			return err
		}
		return d.walk(m, inner, depth)
	})
}

// external reads of TensorProto where its data lies.
func (d *decoder) external(m message) error {
	var file ExternalFile
	var offset, length int64
	outside := false
	err := d.each(m, func(f field) error {
		switch f.num {
		case 13: // external_data: StringStringEntryProto
			key, value, err := d.pair(f)
			if err != nil {
				return err
			}
			switch key {
			case "location":
				file.Path = value
			case "offset":
				offset, err = bytesOf(value)
			case "length":
				length, err = bytesOf(value)
			}
			return err
		case 14: // data_location: EXTERNAL is 1
			outside = f.value == 1
		}
		return nil
	})
	if err != nil || !outside {
		return err
	}
	if file.Path == "" || !utf8.ValidString(file.Path) {
		return invalid("weights lie in another file, and it does not say in which")
	}
	if offset > math.MaxInt64-length {
		return invalid("weights lie beyond any file's end")
	}
	file.Size = offset + length
	if i, seen := d.at[file.Path]; seen {
		d.out.External[i].Size = max(d.out.External[i].Size, file.Size)
		return nil
	}
	if len(d.out.External) == maxExternal {
		return tooLarge("files with weights", maxExternal)
	}
	d.at[file.Path] = len(d.out.External)
	d.out.External = append(d.out.External, file)
	return nil
}

func bytesOf(s string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil || n < 0 {
		return 0, invalid("the place of weights in another file is no number")
	}
	return n, nil
}

// pair reads StringStringEntryProto.
func (d *decoder) pair(f field) (key, value string, err error) {
	m, err := f.sub()
	if err != nil {
		return "", "", err
	}
	err = d.each(m, func(f field) (err error) {
		switch f.num {
		case 1:
			key, err = d.text(f)
		case 2:
			value, err = d.text(f)
		}
		return err
	})
	return key, value, err
}
