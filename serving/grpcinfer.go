package serving

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	atelier "github.com/atelier-edge/atelier"
)

// The messages of Open Inference Protocol v2 (github.com/kserve/open-inference-protocol,
// specification/protocol/open_inference_grpc.proto), read and written by their fields'
// numbers: the generated types would copy each tensor once more.

// grpcMethods answer the calls. They append to b.
var grpcMethods = map[string]func(h *Handler, ctx context.Context, message, b []byte) ([]byte, error){
	"ServerLive": func(_ *Handler, _ context.Context, _, b []byte) ([]byte, error) { return appendBool(b, 1, true), nil },
	"ServerReady": func(h *Handler, _ context.Context, _, b []byte) ([]byte, error) {
		return appendBool(b, 1, h.model.Load() != nil), nil
	},
	"ModelReady": func(h *Handler, _ context.Context, message, b []byte) ([]byte, error) {
		if err := h.grpcNamed(message); err != nil {
			return nil, err
		}
		return appendBool(b, 1, h.model.Load() != nil), nil
	},
	"ServerMetadata": func(h *Handler, _ context.Context, _, b []byte) ([]byte, error) {
		return appendText(appendText(b, 1, "atelier-serve"), 2, h.program), nil
	},
	"ModelMetadata": (*Handler).grpcMetadata,
	"ModelInfer":    (*Handler).grpcInfer,
}

// grpcNamed checks the model that a ModelReadyRequest or ModelMetadataRequest names.
func (h *Handler) grpcNamed(message []byte) error {
	var name, version string
	err := fields(message, "the request", func(f *protoField) error {
		switch f.number {
		case 1:
			return f.text(&name)
		case 2:
			return f.text(&version)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return h.isThis(name, version)
}

func (h *Handler) grpcMetadata(_ context.Context, message, b []byte) ([]byte, error) {
	if err := h.grpcNamed(message); err != nil {
		return nil, err
	}
	m, err := h.loaded()
	if err != nil {
		return nil, err
	}
	b = appendText(appendText(appendText(b, 1, m.Name), 2, m.Version), 3, m.Engine.Platform())
	s := m.Engine.Signature()
	for _, spec := range s.Inputs {
		b = appendMessage(b, 4, appendTensorHead(nil, spec.Name, spec.Type, spec.Shape))
	}
	for _, spec := range s.Outputs {
		b = appendMessage(b, 5, appendTensorHead(nil, spec.Name, spec.Type, spec.Shape))
	}
	return b, nil
}

// grpcRequest is a ModelInferRequest. Its byte slices are the message's.
type grpcRequest struct {
	model, version, id string
	parameters         map[string]any
	inputs             []grpcInput
	outputs            []requestOutput
	raw                [][]byte
}

// grpcInput is an InferInputTensor.
type grpcInput struct {
	name, datatype string
	shape          []int64
	parameters     map[string]any
	contents       []byte
	typed          bool // contents came
}

func (h *Handler) grpcInfer(ctx context.Context, message, b []byte) ([]byte, error) {
	req, err := decodeGRPCRequest(message)
	if err != nil {
		return nil, err
	}
	if err := h.isThis(req.model, req.version); err != nil {
		return nil, err
	}
	m, err := h.loaded()
	if err != nil {
		return nil, err
	}
	inputs, typed, err := m.grpcTensors(req)
	if err != nil {
		return nil, err
	}
	wanted, err := m.wanted(&inferRequest{Parameters: req.parameters, Outputs: req.outputs})
	if err != nil {
		return nil, err
	}
	indices := make([]int, len(wanted))
	for i := range wanted {
		indices[i] = wanted[i].index
	}
	outputs, err := m.infer(ctx, inputs, indices)
	if err != nil {
		return nil, err
	}
	return m.appendGRPCAnswer(b, req.id, indices, outputs, typed), nil
}

// decodeGRPCRequest reads a ModelInferRequest.
func decodeGRPCRequest(message []byte) (*grpcRequest, error) {
	req := &grpcRequest{parameters: map[string]any{}}
	err := fields(message, "the request", func(f *protoField) error {
		switch f.number {
		case 1:
			return f.text(&req.model)
		case 2:
			return f.text(&req.version)
		case 3:
			return f.text(&req.id)
		case 4:
			return f.parameter(req.parameters)
		case 5:
			in := grpcInput{parameters: map[string]any{}, shape: []int64{}}
			if err := f.message(fmt.Sprintf("inputs[%d]", len(req.inputs)), in.field); err != nil {
				return err
			}
			req.inputs = append(req.inputs, in)
		case 6:
			out := requestOutput{Parameters: map[string]any{}}
			err := f.message(fmt.Sprintf("outputs[%d]", len(req.outputs)), func(f *protoField) error {
				switch f.number {
				case 1:
					return f.text(&out.Name)
				case 2:
					return f.parameter(out.Parameters)
				}
				return nil
			})
			if err != nil {
				return err
			}
			req.outputs = append(req.outputs, out)
		case 7:
			if err := f.is(protowire.BytesType); err != nil {
				return err
			}
			req.raw = append(req.raw, f.bytes)
		}
		return nil
	})
	return req, err
}

// field reads a field of an InferInputTensor.
func (in *grpcInput) field(f *protoField) error {
	switch f.number {
	case 1:
		return f.text(&in.name)
	case 2:
		return f.text(&in.datatype)
	case 3:
		return f.varints(func(v uint64) error {
			if len(in.shape) >= maxRank {
				return atelier.Errorf(atelier.Invalid, "%s has a shape of more than %d dimensions", f.within, maxRank)
			}
			in.shape = append(in.shape, int64(v))
			return nil
		})
	case 4:
		return f.parameter(in.parameters)
	case 5:
		if err := f.is(protowire.BytesType); err != nil {
			return err
		}
		if in.typed {
			return atelier.Errorf(atelier.Invalid, "%s has its contents twice", f.within)
		}
		in.contents, in.typed = f.bytes, true
	}
	return nil
}

// grpcTensors reads the inputs' elements, and whether they came as contents of
// their type, rather than raw.
func (m *Model) grpcTensors(req *grpcRequest) (tensors []Tensor, typed bool, err error) {
	specs := m.Engine.Signature().Inputs
	tensors, came := make([]Tensor, len(specs)), make([]bool, len(specs))
	if len(req.raw) > 0 && len(req.raw) != len(req.inputs) {
		return nil, false, atelier.Errorf(atelier.Invalid, "raw_input_contents has %d tensors, the inputs are %d", len(req.raw), len(req.inputs)).WithField("raw_input_contents")
	}
	for i := range req.inputs {
		in := &req.inputs[i]
		field := fmt.Sprintf("inputs[%d]", i)
		at, err := m.announced(in.name, in.datatype, in.shape, came, field)
		if err != nil {
			return nil, false, err
		}
		if _, shared := in.parameters["shared_memory_region"]; shared {
			return nil, false, atelier.Errorf(atelier.Unsupported, "%s asks for shared memory, which is not offered here", field).
				WithRemedy("Send the tensor in the request.").WithField(field + ".parameters")
		}
		switch {
		case len(req.raw) > 0 && in.typed:
			err = atelier.Errorf(atelier.Invalid, "%s.contents came together with raw_input_contents; one of them was expected", field).WithField(field + ".contents")
		case len(req.raw) > 0:
			tensors[at], err = decodeBinary(Datatype(in.datatype), in.shape, req.raw[i], fmt.Sprintf("raw_input_contents[%d]", i), "")
		default:
			typed = true
			tensors[at], err = decodeContents(Datatype(in.datatype), in.shape, in.contents, field+".contents")
		}
		if err != nil {
			return nil, false, err
		}
	}
	return tensors, typed, m.complete(came)
}

// contentsField is the field of InferTensorContents for a datatype; 0 where there is none.
func contentsField(t Datatype) protowire.Number {
	switch t {
	case Bool:
		return 1
	case Int8, Int16, Int32:
		return 2
	case Int64:
		return 3
	case Uint8, Uint16, Uint32:
		return 4
	case Uint64:
		return 5
	case FP32:
		return 6
	case FP64:
		return 7
	case Bytes:
		return 8
	}
	return 0
}

// decodeContents reads InferTensorContents.
func decodeContents(typ Datatype, shape []int64, contents []byte, field string) (Tensor, error) {
	want := contentsField(typ)
	if want == 0 {
		return Tensor{}, atelier.Errorf(atelier.Invalid, "%s cannot hold %s", field, typ).WithRemedy("Send the tensor in raw_input_contents.").WithField(field)
	}
	n, _ := Elements(shape)
	t, count, size, own := Tensor{Type: typ, Shape: shape}, int64(0), typ.Size(), false
	err := fields(contents, field, func(f *protoField) error {
		if f.number != want {
			return atelier.Errorf(atelier.Invalid, "%s holds field %d, %s goes into field %d", field, f.number, typ, want).WithField(field)
		}
		switch typ {
		case Bytes:
			if err := f.is(protowire.BytesType); err != nil {
				return err
			}
			if count++; count <= n { // others are only counted
				t.Strings = append(t.Strings, string(f.bytes))
			}
			return nil
		case FP32, FP64:
			b, err := f.fixed(int(size))
			switch {
			case t.Data == nil:
				t.Data = b // as it lies there: little-endian
			case !own:
				t.Data, own = append(append(make([]byte, 0, 2*(len(t.Data)+len(b))), t.Data...), b...), true
			default:
				t.Data = append(t.Data, b...)
			}
			count = int64(len(t.Data)) / size
			return err
		}
		if t.Data == nil {
			t.Data = make([]byte, 0, min(n, int64(len(f.bytes)))*size)
		}
		return f.varints(func(v uint64) error {
			if count++; count > n {
				return nil
			}
			if !fitsType(v, typ) {
				return atelier.Errorf(atelier.Invalid, "%s holds %d as element %d, %s was expected", field, int64(v), count-1, expected(typ)).WithField(field)
			}
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], v)
			t.Data = append(t.Data, b[:size]...)
			return nil
		})
	})
	if err != nil {
		return Tensor{}, err
	}
	if count != n {
		return Tensor{}, atelier.Errorf(atelier.Invalid, "%s has %d elements, shape %v needs %d", field, count, shape, n).WithField(field)
	}
	return t, nil
}

// fitsType reports whether the varint v is a number of the integer type typ. Negative
// int32 come with 64 bits.
func fitsType(v uint64, typ Datatype) bool {
	switch typ {
	case Bool:
		return v <= 1
	case Uint8:
		return v <= math.MaxUint8
	case Uint16:
		return v <= math.MaxUint16
	case Uint32:
		return v <= math.MaxUint32
	case Int8:
		return int64(v) == int64(int8(v))
	case Int16:
		return int64(v) == int64(int16(v))
	case Int32:
		return int64(v) == int64(int32(v))
	}
	return true
}

// appendGRPCAnswer appends a ModelInferResponse. The tensors have the form in which
// those of the request came, as far as there is one for each of them.
func (m *Model) appendGRPCAnswer(b []byte, id string, indices []int, outputs []Tensor, typed bool) []byte {
	b = appendText(appendText(appendText(b, 1, m.Name), 2, m.Version), 3, id)
	for i := range outputs {
		typed = typed && contentsField(outputs[i].Type) != 0
	}
	specs := m.Engine.Signature().Outputs
	for i := range outputs {
		t := &outputs[i]
		head := appendTensorHead(nil, specs[indices[i]].Name, string(t.Type), t.Shape)
		if typed {
			head = appendMessage(head, 5, appendContents(nil, t))
		}
		b = appendMessage(b, 5, head)
	}
	if typed {
		return b
	}
	for i := range outputs {
		t := &outputs[i]
		size := len(t.Data)
		for _, s := range t.Strings {
			size += 4 + len(s)
		}
		b = protowire.AppendVarint(protowire.AppendTag(b, 6, protowire.BytesType), uint64(size))
		b = appendBinary(b, t)
	}
	return b
}

// appendContents appends InferTensorContents. Numbers are packed.
func appendContents(b []byte, t *Tensor) []byte {
	number := contentsField(t.Type)
	switch t.Type {
	case Bytes:
		for _, s := range t.Strings {
			b = protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), s)
		}
		return b
	case FP32, FP64:
		return appendMessage(b, number, t.Data)
	}
	size := int(t.Type.Size())
	packed := make([]byte, 0, len(t.Data)/size)
	for d := t.Data; len(d) > 0; d = d[size:] {
		var word [8]byte
		copy(word[:], d[:size])
		v := binary.LittleEndian.Uint64(word[:])
		switch t.Type { // the sign of short ones goes on
		case Int8:
			v = uint64(int8(v))
		case Int16:
			v = uint64(int16(v))
		case Int32:
			v = uint64(int32(v))
		}
		packed = protowire.AppendVarint(packed, v)
	}
	return appendMessage(b, number, packed)
}

// appendTensorHead appends what TensorMetadata and InferOutputTensor begin with.
func appendTensorHead(b []byte, name, datatype string, shape []int64) []byte {
	var packed []byte
	for _, d := range shape {
		packed = protowire.AppendVarint(packed, uint64(d))
	}
	return appendMessage(appendText(appendText(b, 1, name), 2, datatype), 3, packed)
}
