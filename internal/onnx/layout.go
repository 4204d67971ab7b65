package onnx

import (
	"io"
)

// The bounds on a layout, beside those of the package.
const (
	maxTensors = 200_000
	maxPaths   = 16 << 20 // bytes of the names of all tensors together
)

// Tensor says where the elements of a tensor lie, one after the other and
// little-endian.
type Tensor struct {
	// Name is unique in most models: of a tensor within a node, such as a constant
	// or an initialiser of a loop's body, it starts with the names on the way there.
	Name   string
	Type   string // of an element, in the words that TensorSpec has
	File   string // the file that holds it, as ExternalFile.Path has it; "" for the model's own
	Offset int64  // of the first byte, from the start of that file
	Length int64  // in bytes
}

// Layout returns where the tensors of the model in the first size bytes of r lie,
// in the order of the file: initialisers and constants, those of nested graphs and
// of functions too. Tensors whose elements are written as varints or strings, and
// those in other files without a length, are left out. Errors are as those of Read;
// a layout does not tell whether the model is whole.
func Layout(r io.ReaderAt, size int64) ([]Tensor, error) {
	l := &layout{decoder: decoder{src: source{r: r, size: size}, budget: maxFields}}
	err := l.each(message{0, size}, func(f field) error {
		switch f.num {
		case 7: // graph
			return l.graph(f, "", 0)
		case 20: // training_info
			m, err := f.sub()
			if err != nil {
				return err
			}
			return l.each(m, func(f field) error {
				switch f.num {
				case 1, 2: // initialization, algorithm
					return l.graph(f, "training/", 0)
				}
				return nil
			})
		case 25: // functions
			return l.function(f)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return l.tensors, nil
}

type layout struct {
	decoder
	tensors []Tensor
	paths   int // bytes of their names
}

// graph reads GraphProto.
func (l *layout) graph(f field, path string, depth int) error {
	if depth++; depth > maxDepth {
		return tooLarge("graphs within each other", maxDepth)
	}
	m, err := f.sub()
	if err != nil {
		return err
	}
	return l.each(m, func(f field) error {
		switch f.num {
		case 1: // node
			return l.node(f, path, depth)
		case 5: // initializer
			return l.tensor(f, path)
		case 15: // sparse_initializer
			return l.sparse(f, path)
		}
		return nil
	})
}

// function reads FunctionProto.
func (l *layout) function(f field) error {
	m, err := f.sub()
	if err != nil {
		return err
	}
	path := ""
	return l.each(m, func(f field) (err error) {
		switch f.num {
		case 1: // name
			path, err = l.text(f)
			path += "/"
		case 7: // node
			err = l.node(f, path, 0)
		}
		return err
	})
}

// node reads NodeProto. Its first output names it: node names are optional.
func (l *layout) node(f field, path string, depth int) error {
	m, err := f.sub()
	if err != nil {
		return err
	}
	output := ""
	return l.each(m, func(f field) (err error) {
		switch f.num {
		case 2: // output
			if output == "" {
				output, err = l.text(f)
			}
		case 5: // attribute
			err = l.attribute(f, path, output, depth)
		}
		return err
	})
}

// attribute reads AttributeProto.
func (l *layout) attribute(f field, path, node string, depth int) error {
	m, err := f.sub()
	if err != nil {
		return err
	}
	name := ""
	return l.each(m, func(f field) (err error) {
		within := func() string { return clipped(path + node + "." + name + "/") }
		switch f.num {
		case 1: // name
			name, err = l.text(f)
		case 5, 10: // t, tensors
			err = l.tensor(f, within())
		case 6, 11: // g, graphs
			err = l.graph(f, within(), depth)
		case 22, 23: // sparse_tensor, sparse_tensors
			err = l.sparse(f, within())
		}
		return err
	})
}

// clipped keeps the end of a path, which differs more than its start.
func clipped(path string) string { return path[max(0, len(path)-maxName):] }

// sparse reads SparseTensorProto.
func (l *layout) sparse(f field, path string) error {
	m, err := f.sub()
	if err != nil {
		return err
	}
	return l.each(m, func(f field) error {
		switch f.num {
		case 1, 2: // values, indices
			return l.tensor(f, path)
		}
		return nil
	})
}

// tensor reads TensorProto.
func (l *layout) tensor(f field, path string) error {
	m, err := f.sub()
	if err != nil {
		return err
	}
	t := Tensor{Type: TypeUnknown}
	var data message
	var offset, length int64
	outside := false
	err = l.each(m, func(f field) (err error) {
		switch f.num {
		case 2: // data_type
			if word, known := datatypes[f.value]; known {
				t.Type = word
			}
		case 4, 10: // float_data, double_data: packed, they lie as raw_data does
			if f.bytes.end-f.bytes.at > data.end-data.at {
				data = f.bytes
			}
		case 8: // name
			t.Name, err = l.text(f)
		case 9: // raw_data
			data = f.bytes
		case 13: // external_data
			key, value, err := l.pair(f)
			if err != nil {
				return err
			}
			switch key {
			case "location":
				t.File = value
			case "offset":
				offset, err = bytesOf(value)
			case "length":
				length, err = bytesOf(value)
			}
			return err
		case 14: // data_location: EXTERNAL is 1
			outside = f.value == 1
		}
		return err
	})
	if err != nil {
		return err
	}
	if outside {
		t.Offset, t.Length = offset, length
	} else {
		t.File, t.Offset, t.Length = "", data.at, data.end-data.at
	}
	if t.Length == 0 {
		return nil
	}
	t.Name = clipped(path + t.Name)
	if l.paths += len(t.Name); l.paths > maxPaths {
		return tooLarge("bytes in the names of tensors", maxPaths)
	}
	if len(l.tensors) == maxTensors {
		return tooLarge("tensors", maxTensors)
	}
	l.tensors = append(l.tensors, t)
	return nil
}
