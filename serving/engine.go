// Package serving answers inference requests for one model: Open Inference
// Protocol v2 with JSON and binary tensors, and a plain POST /score.
//
// It checks every request against the model's signature before an engine sees
// it. It knows no engine: one is a directory below this one that implements
// Engine and passes serving/enginetest. It knows nothing of endpoints, keys or
// rollouts; those are the gateway's.
package serving

import (
	"context"

	atelier "github.com/atelier-edge/atelier"
)

// Engine runs one loaded model. All methods are safe for concurrent use.
type Engine interface {
	// Platform names the model's form and the engine in Open Inference Protocol's
	// words, such as "onnx_onnxv1".
	Platform() string
	// Signature returns what the model takes and gives. The caller does not change it.
	Signature() *atelier.Signature
	// Infer runs the model. inputs hold each input of the signature once, in the
	// signature's order, with matching datatypes and shapes; outputs are indices
	// of the signature's outputs and say which are computed, in this order. The engine
	// keeps nothing of inputs; the result is the caller's. When ctx ends, Infer
	// returns soon, with the code Timeout. Input that the model itself refuses is
	// Invalid.
	Infer(ctx context.Context, inputs []Tensor, outputs []int) ([]Tensor, error)
	// Close frees the model. No Infer may be in progress or follow.
	Close() error
}

// Invoker is an Engine that answers MLflow's POST /invocations itself.
type Invoker interface {
	Engine
	// Invoke answers a body of the given type, "" where none was given. An error is one
	// that Infer could return. Nothing of body is kept.
	Invoke(ctx context.Context, contentType string, body []byte) (Answer, error)
}

// Standby is an Engine that has another to answer in its place.
type Standby interface {
	Engine
	// Health says what answers now, and, where that is not what should, why.
	Health() atelier.ModuleHealth
}

// Tensor is one input or output. Data holds the elements in row-major order,
// little-endian, as Open Inference Protocol's binary form has them; for BYTES
// Data is nil and Strings holds the elements.
type Tensor struct {
	Type    Datatype
	Shape   []int64
	Data    []byte
	Strings []string
}

// Datatype is an element type in Open Inference Protocol's words.
type Datatype string

// The datatypes.
const (
	Bool   Datatype = "BOOL"
	Uint8  Datatype = "UINT8"
	Uint16 Datatype = "UINT16"
	Uint32 Datatype = "UINT32"
	Uint64 Datatype = "UINT64"
	Int8   Datatype = "INT8"
	Int16  Datatype = "INT16"
	Int32  Datatype = "INT32"
	Int64  Datatype = "INT64"
	FP16   Datatype = "FP16"
	BF16   Datatype = "BF16"
	FP32   Datatype = "FP32"
	FP64   Datatype = "FP64"
	Bytes  Datatype = "BYTES"
)

// Datatypes lists all datatypes.
var Datatypes = []Datatype{Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, FP16, BF16, FP32, FP64, Bytes}

// Size returns the bytes of one element; 0 for BYTES and for what is no datatype.
func (d Datatype) Size() int64 {
	switch d {
	case Bool, Uint8, Int8:
		return 1
	case Uint16, Int16, FP16, BF16:
		return 2
	case Uint32, Int32, FP32:
		return 4
	case Uint64, Int64, FP64:
		return 8
	}
	return 0
}

// MaxElements bounds the elements of one tensor, so that a shape cannot ask for
// more memory than any request could carry.
const MaxElements = 1 << 28

// Elements returns the number of elements of a tensor of the given shape, and
// whether it is a valid one: no negative size, and at most MaxElements.
func Elements(shape []int64) (n int64, ok bool) {
	n = 1
	for _, d := range shape {
		if d < 0 || d > MaxElements {
			return 0, false
		}
		n *= d // both factors are at most 2^28
		if n > MaxElements {
			return 0, false
		}
	}
	return n, true
}

// Zeros returns a tensor of zeros (empty strings) that fits spec, with 1 for each
// dimension that the caller may choose.
func Zeros(spec atelier.TensorSpec) Tensor {
	t := Tensor{Type: Datatype(spec.Type), Shape: make([]int64, len(spec.Shape))}
	for i, d := range spec.Shape {
		t.Shape[i] = max(d, 1)
		if d == 0 {
			t.Shape[i] = 0
		}
	}
	n, ok := Elements(t.Shape)
	switch {
	case !ok:
		return t // the engine says what is wrong with it
	case t.Type == Bytes:
		t.Strings = make([]string, n)
	default:
		t.Data = make([]byte, n*t.Type.Size())
	}
	return t
}
