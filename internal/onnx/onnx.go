// Package onnx reads out of an ONNX file what others need to know of a model
// without running it: its inputs and outputs, its operator sets, who made it, and
// which further files hold its weights.
//
// It promises to read any input, however long or hostile, with constant memory
// and bounded work, and never to panic: weights are skipped, not read. It does
// not judge whether the model computes anything sensible; the engine does.
//
// The format is onnx.proto of github.com/onnx/onnx (IR version 3 and later), a
// protocol buffer; field numbers stand beside their names below.
package onnx

import (
	"io"

	atelier "github.com/atelier-edge/atelier"
)

// The bounds on what is read. Models in use stay far below them.
const (
	maxFields   = 50_000_000 // of all messages together
	maxDepth    = 32         // of graphs within graphs
	maxValues   = 4096       // inputs, and outputs
	maxRank     = 64         // dimensions of a value
	maxOpsets   = 256
	maxExternal = 16384 // files that hold weights
	maxName     = 1024  // bytes of a name or a path
)

// Model is what a file says of its model.
type Model struct {
	IRVersion       int64
	Producer        string // such as "pytorch"
	ProducerVersion string
	Opsets          []Opset
	// Inputs are what a caller gives; initialisers, which old files list among
	// the inputs, are not.
	Inputs  []atelier.TensorSpec
	Outputs []atelier.TensorSpec
	// External lists the files, beside the model's own, that hold weights.
	External []ExternalFile
}

// Opset is a set of operators that the model uses.
type Opset struct {
	Domain  string // "" for ONNX's own
	Version int64
}

// ExternalFile is a file that holds weights of the model.
type ExternalFile struct {
	// Path is relative to the directory of the model's file, as it stands there:
	// nothing has checked it.
	Path string
	Size int64 // at least so many bytes are needed of it
}

// Types that a value may have besides those of Open Inference Protocol v2. Values
// of these types cannot be sent over that protocol.
const (
	TypeUnknown  = "UNKNOWN"
	TypeSequence = "SEQUENCE"
	TypeMap      = "MAP"
	TypeOptional = "OPTIONAL"
	TypeSparse   = "SPARSE"
	TypeOpaque   = "OPAQUE"
)

// datatypes gives TensorProto.DataType in the words of Open Inference Protocol v2
// where it has one, and in ONNX's own otherwise.
var datatypes = map[uint64]string{
	1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
	10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 14: "COMPLEX64", 15: "COMPLEX128", 16: "BF16",
	17: "FLOAT8E4M3FN", 18: "FLOAT8E4M3FNUZ", 19: "FLOAT8E5M2", 20: "FLOAT8E5M2FNUZ", 21: "UINT4", 22: "INT4",
	23: "FLOAT4E2M1", 24: "FLOAT8E8M0", 25: "UINT2", 26: "INT2",
}

// Read reads the model in the first size bytes of r. What is no whole ONNX model
// gives an *atelier.Error with code Invalid, what exceeds the bounds of this
// package TooLarge; an error of r is returned as it came.
func Read(r io.ReaderAt, size int64) (*Model, error) {
	if size <= 0 {
		return nil, invalid("it is empty")
	}
	d := &decoder{src: source{r: r, size: size}, budget: maxFields}
	if err := d.model(message{0, size}); err != nil {
		return nil, err
	}
	return &d.out, nil
}

// Signature returns the model's inputs and outputs.
func (m *Model) Signature() *atelier.Signature {
	return &atelier.Signature{Inputs: m.Inputs, Outputs: m.Outputs}
}

func invalid(why string) error {
	return atelier.Errorf(atelier.Invalid, "this is no ONNX model: %s", why).
		WithRemedy("Export the model to ONNX anew, and check with onnx.checker that it is whole.")
}

func tooLarge(what string, limit int) error {
	return atelier.Errorf(atelier.TooLarge, "the ONNX model has more than %d %s", limit, what)
}
