package serving

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	atelier "github.com/atelier-edge/atelier"
)

// The form of an inference request, as Open Inference Protocol v2
// (github.com/kserve/open-inference-protocol, inference_rest.md) and its binary
// tensor data extension (triton-inference-server/server, extension_binary_data.md)
// have it.
type (
	inferRequest struct {
		ID         string          `json:"id"`
		Parameters map[string]any  `json:"parameters"`
		Inputs     []requestInput  `json:"inputs"`
		Outputs    []requestOutput `json:"outputs"`
		// kserve's client says once more which model the path names.
		ModelName    any `json:"model_name"`
		ModelVersion any `json:"model_version"`
	}
	requestInput struct {
		Name       string         `json:"name"`
		Shape      []int64        `json:"shape"`
		Datatype   string         `json:"datatype"`
		Parameters map[string]any `json:"parameters"`
		Data       jsontext.Value `json:"data"`
	}
	requestOutput struct {
		Name       string         `json:"name"`
		Parameters map[string]any `json:"parameters"`
	}
)

// decodeInfer reads a request: its JSON, then the binary tensors that follow it.
func (m *Model) decodeInfer(head, tail []byte) (*inferRequest, []Tensor, error) {
	if len(tail) == 0 {
		if req, tensors, ok := m.decodeCut(head); ok {
			return req, tensors, nil
		}
	}
	req, err := m.decodeHead(head, len(tail) > 0)
	if err != nil {
		return nil, nil, err
	}
	specs := m.Engine.Signature().Inputs
	tensors, came := make([]Tensor, len(specs)), make([]bool, len(specs))
	for i := range req.Inputs {
		in := &req.Inputs[i]
		field := fmt.Sprintf("inputs[%d]", i)
		at, err := m.announced(in.Name, in.Datatype, in.Shape, came, field)
		if err != nil {
			return nil, nil, err
		}
		if tensors[at], tail, err = decodeInput(in, tail, field); err != nil {
			return nil, nil, err
		}
	}
	if len(tail) > 0 {
		return nil, nil, atelier.Errorf(atelier.Invalid, "%d bytes follow the tensors that the inputs' binary_data_size announce", len(tail))
	}
	return req, tensors, m.complete(came)
}

// announced checks the name, datatype and shape of an input against the model, and
// that it came once. It returns which it is.
func (m *Model) announced(name, datatype string, shape []int64, came []bool, field string) (int, error) {
	at, err := m.input(name, field+".name")
	if err != nil {
		return 0, err
	}
	if came[at] {
		return 0, atelier.Errorf(atelier.Invalid, "input %q came twice", name).WithField(field + ".name")
	}
	came[at] = true
	spec := &m.Engine.Signature().Inputs[at]
	if datatype != spec.Type {
		return 0, atelier.Errorf(atelier.Invalid, "%s.datatype is %.20q for input %q, %s was expected", field, datatype, name, spec.Type).
			WithField(field + ".datatype")
	}
	return at, checkShape(shape, spec, field+".shape", field+".shape")
}

// maxKeptHead is the largest JSON that is kept decoded.
const maxKeptHead = 4 << 10

// keptHead is the JSON of a request with binary tensors, and what it means.
type keptHead struct {
	text    []byte
	request *inferRequest
}

// decodeHead reads a request's JSON. The last one that came with binary tensors is
// kept: whoever sends those sends the same JSON each time, and reading it takes
// longer than many a model. What it returns may be shared, and is not to be changed.
func (m *Model) decodeHead(head []byte, inBinary bool) (*inferRequest, error) {
	if kept := m.head.Load(); inBinary && kept != nil && bytes.Equal(kept.text, head) {
		return kept.request, nil
	}
	req := &inferRequest{}
	if err := decodeJSON(head, req); err != nil {
		return nil, err
	}
	for i := range req.Inputs {
		if req.Inputs[i].Shape == nil {
			req.Inputs[i].Shape = []int64{}
		}
	}
	if inBinary && len(head) <= maxKeptHead {
		m.head.Store(&keptHead{bytes.Clone(head), req})
	}
	return req, nil
}

// decodeInput reads one input and returns what of tail comes after it.
func decodeInput(in *requestInput, tail []byte, field string) (Tensor, []byte, error) {
	bad := func(part, format string, args ...any) (Tensor, []byte, error) {
		return Tensor{}, nil, atelier.Errorf(atelier.Invalid, field+part+" "+format, args...).WithField(field + part)
	}
	if _, shared := in.Parameters["shared_memory_region"]; shared {
		return Tensor{}, nil, atelier.Errorf(atelier.Unsupported, "%s asks for shared memory, which is not offered here", field).
			WithRemedy("Send the tensor in the request.").WithField(field + ".parameters")
	}
	typ := Datatype(in.Datatype)
	announced, binaryForm := in.Parameters["binary_data_size"]
	if !binaryForm {
		if in.Data == nil {
			return bad(".data", "is missing, and no binary_data_size either")
		}
		t, err := parseData(in.Data, typ, in.Shape, field+".data")
		return t, tail, err
	}
	if in.Data != nil {
		return bad(".data", "came together with binary_data_size; one of them was expected")
	}
	number, ok := announced.(float64)
	size := int64(number)
	if !ok || number < 0 || float64(size) != number {
		return bad(".parameters.binary_data_size", "is %v, a number of bytes was expected", announced)
	}
	if size > int64(len(tail)) {
		return bad(".parameters.binary_data_size", "is %d, only %d bytes are left in the body", size, len(tail))
	}
	t, err := decodeBinary(typ, in.Shape, tail[:size], field, ".parameters.binary_data_size")
	return t, tail[size:], err
}

// decodeBinary reads a tensor in the protocol's binary form. Its memory is data's,
// but for strings. size is what of field tells how long data is, for errors.
func decodeBinary(typ Datatype, shape []int64, data []byte, field, size string) (Tensor, error) {
	bad := func(part, format string, args ...any) (Tensor, error) {
		return Tensor{}, atelier.Errorf(atelier.Invalid, field+part+" "+format, args...).WithField(field + part)
	}
	n, _ := Elements(shape)
	t := Tensor{Type: typ, Shape: shape}
	if typ != Bytes {
		if int64(len(data)) != n*typ.Size() {
			return bad(size, "is %d, shape %v of %s needs %d bytes", len(data), shape, typ, n*typ.Size())
		}
		t.Data = data
		return t, nil
	}
	t.Strings = make([]string, 0, min(n, int64(len(data))/4))
	for len(data) > 0 {
		if len(data) < 4 || int64(binary.LittleEndian.Uint32(data)) > int64(len(data)-4) {
			return bad("", "is torn: element %d is longer than what is left", len(t.Strings))
		}
		end := 4 + int(binary.LittleEndian.Uint32(data))
		t.Strings = append(t.Strings, string(data[4:end]))
		data = data[end:]
	}
	if int64(len(t.Strings)) != n {
		return bad("", "holds %d strings, shape %v needs %d", len(t.Strings), shape, n)
	}
	return t, nil
}

// wantedOutput is an output that is to be answered.
type wantedOutput struct {
	index  int
	binary bool
}

// wanted reads which outputs the request asks for, and in which form.
func (m *Model) wanted(req *inferRequest) ([]wantedOutput, error) {
	inBinary, err := flag(req.Parameters, "binary_data_output", false, "parameters")
	if err != nil {
		return nil, err
	}
	specs := m.Engine.Signature().Outputs
	if len(req.Outputs) == 0 {
		all := make([]wantedOutput, len(specs))
		for i := range all {
			all[i] = wantedOutput{i, inBinary}
		}
		return all, nil
	}
	var some []wantedOutput
	came := make([]bool, len(specs))
	for i, out := range req.Outputs {
		field := fmt.Sprintf("outputs[%d]", i)
		at, err := m.output(out.Name, field+".name")
		if err != nil {
			return nil, err
		}
		if came[at] {
			return nil, atelier.Errorf(atelier.Invalid, "output %q is asked for twice", out.Name).WithField(field + ".name")
		}
		came[at] = true
		for _, p := range []string{"classification", "shared_memory_region"} {
			if _, asked := out.Parameters[p]; asked {
				return nil, atelier.Errorf(atelier.Unsupported, "%s asks for %s, which is not offered here", field, p).WithField(field + ".parameters." + p)
			}
		}
		w := wantedOutput{index: at}
		if w.binary, err = flag(out.Parameters, "binary_data", inBinary, field+".parameters"); err != nil {
			return nil, err
		}
		some = append(some, w)
	}
	return some, nil
}

// flag reads a parameter that is true or false.
func flag(parameters map[string]any, name string, otherwise bool, field string) (bool, error) {
	v, ok := parameters[name]
	if !ok {
		return otherwise, nil
	}
	b, ok := v.(bool)
	if !ok {
		return false, atelier.Errorf(atelier.Invalid, "%s.%s is %v, true or false was expected", field, name, v).WithField(field + "." + name)
	}
	return b, nil
}

// maxAhead bounds what is allocated for text before it is written.
const maxAhead = 64 << 10

// encodeInfer writes the answer: its JSON of headLen bytes, then the binary
// tensors. Without any of those headLen is all of it and binaryForm false. It is
// written by hand, since an encoder would read the tensors' text once more.
func (m *Model) encodeInfer(id string, wanted []wantedOutput, outputs []Tensor) (body []byte, headLen int, binaryForm bool, err error) {
	room := 256
	for i := range outputs {
		room += 96 + len(outputs[i].Data)
		if !wanted[i].binary {
			room += min(2*len(outputs[i].Data), maxAhead) // a float32 takes some 12 bytes of text
		}
	}
	b := quoted(append(make([]byte, 0, room), `{"model_name":`...), m.Name)
	b = quoted(append(b, `,"model_version":`...), m.Version)
	if id != "" {
		b = quoted(append(b, `,"id":`...), id)
	}
	b = append(b, `,"outputs":[`...)
	var tail []byte
	for i := range outputs {
		t := &outputs[i]
		name := m.Engine.Signature().Outputs[wanted[i].index].Name
		if i > 0 {
			b = append(b, ',')
		}
		b = quoted(append(b, `{"name":`...), name)
		b = quoted(append(b, `,"datatype":`...), string(t.Type))
		b = appendShape(append(b, `,"shape":`...), t.Shape)
		if wanted[i].binary {
			before := len(tail)
			tail = appendBinary(tail, t)
			b = strconv.AppendInt(append(b, `,"parameters":{"binary_data_size":`...), int64(len(tail)-before), 10)
			b = append(b, '}')
			binaryForm = true
		} else if b, err = appendFlat(append(b, `,"data":`...), t, name); err != nil {
			return nil, 0, false, err
		}
		b = append(b, '}')
	}
	b = append(b, "]}"...)
	return append(b, tail...), len(b), binaryForm, nil
}

func appendShape(b []byte, shape []int64) []byte {
	b = append(b, '[')
	for i, d := range shape {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, d, 10)
	}
	return append(b, ']')
}

// appendBinary appends t's elements in the protocol's binary form.
func appendBinary(b []byte, t *Tensor) []byte {
	for _, s := range t.Strings {
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(s))), s...)
	}
	return append(b, t.Data...)
}
