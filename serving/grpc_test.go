package serving_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/atelier-edge/atelier/serving"
)

// field appends a field whose type follows from v's.
func field(b []byte, number protowire.Number, v any) []byte {
	switch v := v.(type) {
	case string:
		return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), v)
	case []byte:
		return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), v)
	case int:
		return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), uint64(v))
	}
	panic("no such type")
}

// tensor is an InferInputTensor.
func tensor(name, datatype string, shape []int, contents []byte) []byte {
	b := field(field(nil, 1, name), 2, datatype)
	for _, d := range shape {
		b = field(b, 3, d)
	}
	if contents != nil {
		b = field(b, 5, contents)
	}
	return b
}

// grpcCall makes a call and returns its message, status and text.
func grpcCall(h *serving.Handler, method string, message []byte, header ...string) ([]byte, string, string) {
	body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	return grpcRaw(h, "/inference.GRPCInferenceService/"+method, body, header...)
}

func grpcRaw(h *serving.Handler, path string, body []byte, header ...string) ([]byte, string, string) {
	req := httptest.NewRequest("POST", path, bytes.NewReader(body))
	req.ProtoMajor = 2
	req.Header.Set("Content-Type", "application/grpc")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	trailer := w.Result().Trailer
	answer := w.Body.Bytes()
	if len(answer) > 0 {
		answer = answer[5:]
	}
	return answer, trailer.Get("Grpc-Status"), trailer.Get("Grpc-Message")
}

// Each datatype goes in and out unchanged, raw and as contents of its type.
func TestGRPCRoundTrip(t *testing.T) {
	t.Parallel()
	floats := func(size int, values ...float64) (b []byte) {
		for _, v := range values {
			if size == 4 {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(v)))
			} else {
				b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
			}
		}
		return b
	}
	varints := func(values ...int) (b []byte) {
		for _, v := range values {
			b = protowire.AppendVarint(b, uint64(v))
		}
		return b
	}
	for typ, c := range map[serving.Datatype]struct{ raw, contents []byte }{
		serving.Bool:   {[]byte{1, 0}, field(nil, 1, varints(1, 0))},
		serving.Int8:   {[]byte{0x80, 1}, field(nil, 2, varints(-128, 1))},
		serving.Int16:  {[]byte{0, 0x80, 1, 0}, field(nil, 2, varints(-32768, 1))},
		serving.Int32:  {[]byte{0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0}, field(nil, 2, varints(-1, 1))},
		serving.Int64:  {floatsOf(-2, 3), field(nil, 3, varints(-2, 3))},
		serving.Uint8:  {[]byte{255, 1}, field(nil, 4, varints(255, 1))},
		serving.Uint16: {[]byte{255, 255, 1, 0}, field(nil, 4, varints(65535, 1))},
		serving.Uint32: {[]byte{255, 255, 255, 255, 1, 0, 0, 0}, field(nil, 4, varints(math.MaxUint32, 1))},
		serving.Uint64: {floatsOf(-1, 1), field(nil, 5, varints(-1, 1))},
		serving.FP16:   {[]byte{1, 2, 3, 4}, nil},
		serving.BF16:   {[]byte{1, 2, 3, 4}, nil},
		serving.FP32:   {floats(4, 1.5, math.NaN()), field(nil, 6, floats(4, 1.5, math.NaN()))},
		serving.FP64:   {floats(8, 1.5, -2), field(nil, 7, floats(8, 1.5, -2))},
		serving.Bytes:  {[]byte("\x02\x00\x00\x00\xffa\x00\x00\x00\x00"), field(field(nil, 8, "\xffa"), 8, "")},
	} {
		h := handler(newMirror(spec(typ, 2)), 0)
		message := field(field(field(nil, 1, "m"), 3, "id"), 5, tensor("in0", string(typ), []int{2}, nil))
		head := append(field(field(nil, 1, "out0"), 2, string(typ)), 0x1a, 1, 2) // the shape is packed
		want := field(field(field(field(field(nil, 1, "m"), 2, "3"), 3, "id"), 5, head), 6, c.raw)
		if got, status, text := grpcCall(h, "ModelInfer", field(message, 7, c.raw)); status != "0" || !bytes.Equal(got, want) {
			t.Errorf("%s raw: %s %s, %q, want %q", typ, status, text, got, want)
		}
		if c.contents == nil {
			continue
		}
		message = field(field(nil, 1, "m"), 5, tensor("in0", string(typ), []int{2}, c.contents))
		want = field(field(field(nil, 1, "m"), 2, "3"), 5, field(head, 5, c.contents))
		if got, status, text := grpcCall(h, "ModelInfer", message); status != "0" || !bytes.Equal(got, want) {
			t.Errorf("%s contents: %s %s, %q, want %q", typ, status, text, got, want)
		}
	}
}

func floatsOf(values ...int64) (b []byte) {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	return b
}

func TestGRPCRefusals(t *testing.T) {
	t.Parallel()
	h, cold := handler(newMirror(spec(serving.FP32, -1)), 1<<10), handler(nil, 0)
	one := floatsOf(0)[:4]
	in := func(tensors ...[]byte) []byte {
		b := field(nil, 1, "m")
		for _, t := range tensors {
			b = field(b, 5, t)
		}
		return b
	}
	good := tensor("in0", "FP32", []int{1}, field(nil, 6, one))
	for name, c := range map[string]struct {
		message      []byte
		status, says string
	}{
		"nothing":       {nil, "5", "is not served here"},
		"version":       {field(in(good), 2, "9"), "5", "version"},
		"no input":      {in(), "3", "missing"},
		"twice":         {in(good, good), "3", "twice"},
		"name":          {in(tensor("x", "FP32", []int{1}, nil)), "3", "inputs[0].name"},
		"datatype":      {in(tensor("in0", "INT8", []int{1}, nil)), "3", "FP32 was expected"},
		"rank":          {in(tensor("in0", "FP32", []int{1, 1}, nil)), "3", "2 dimensions instead of 1"},
		"negative":      {in(tensor("in0", "FP32", []int{-1}, nil)), "3", "negative"},
		"huge":          {in(tensor("in0", "FP32", []int{1 << 60}, nil)), "3", "elements"},
		"no contents":   {in(tensor("in0", "FP32", []int{1}, nil)), "3", "0 elements"},
		"few":           {in(tensor("in0", "FP32", []int{2}, field(nil, 6, one))), "3", "1 elements, shape [2] needs 2"},
		"many unpacked": {in(tensor("in0", "FP32", []int{1}, field(field(nil, 6, one), 6, one))), "3", "2 elements"},
		"other field":   {in(tensor("in0", "FP32", []int{1}, field(nil, 7, one))), "3", "field 6"},
		"torn number":   {in(tensor("in0", "FP32", []int{1}, field(nil, 6, "abc"))), "3", "no numbers of 4 bytes"},
		"raw count":     {field(field(in(good), 7, one), 7, one), "3", "has 2 tensors, the inputs are 1"},
		"raw and typed": {field(in(good), 7, one), "3", "together"},
		"raw short":     {field(in(tensor("in0", "FP32", []int{1}, nil)), 7, "ab"), "3", "needs 4 bytes"},
		"torn":          {[]byte{0x2a, 0x7f}, "3", "no protobuf message"},
		"wire type":     {field(nil, 1, 7), "3", "wire type"},
		"no UTF-8":      {field(nil, 1, "\xff"), "3", "UTF-8"},
		"output":        {field(in(good), 6, field(nil, 1, "x")), "3", "out0"},
		"class":         {field(in(good), 6, field(field(nil, 1, "out0"), 2, field(field(nil, 1, "classification"), 2, field(nil, 2, 3)))), "12", "not offered"},
		"too large":     {make([]byte, 2000), "8", "1024"},
	} {
		got, status, text := grpcCall(h, "ModelInfer", c.message)
		if status != c.status || !strings.Contains(text, c.says) || len(got) > 0 {
			t.Errorf("%s: %s %q %q, want %s saying %q", name, status, text, got, c.status, c.says)
		}
	}
	for name, c := range map[string]struct {
		body         []byte
		status, says string
	}{
		"no prefix": {[]byte{0, 0}, "3", "2 bytes"}, "compressed": {[]byte{1, 0, 0, 0, 0}, "12", "compressed"},
		"lying length": {[]byte{0, 0xff, 0xff, 0xff, 0xff, 1}, "3", "4294967295 bytes is announced, 1"},
		"two messages": {make([]byte, 10), "3", "announced"},
	} {
		if _, status, text := grpcRaw(h, "/inference.GRPCInferenceService/ModelInfer", c.body); status != c.status || !strings.Contains(text, c.says) {
			t.Errorf("%s: %s %q, want %s saying %q", name, status, text, c.status, c.says)
		}
	}
	if _, status, _ := grpcCall(h, "ModelStreamInfer", nil); status != "12" {
		t.Errorf("an unknown call: status %s", status)
	}
	if _, status, _ := grpcCall(cold, "ModelInfer", in(good)); status != "14" {
		t.Errorf("a model that is not loaded: status %s", status)
	}
	if got, status, _ := grpcCall(cold, "ModelReady", field(nil, 1, "m")); status != "0" || !bytes.Equal(got, []byte{8, 0}) {
		t.Errorf("a model that is not loaded: %v, status %s", got, status)
	}
	if _, status, text := grpcCall(h, "ModelReady", field(nil, 1, "%é")); status != "5" || !strings.Contains(text, "%25%C3%A9") {
		t.Errorf("status %s, %q", status, text)
	}
	if code, _, _ := ask(h, "POST", "/inference.GRPCInferenceService/ModelInfer", "", "Content-Type", "application/grpc"); code != 422 {
		t.Errorf("gRPC over HTTP/1.1 was answered with %d", code)
	}
}

// The deadline of a call is that of its inference.
func TestGRPCDeadline(t *testing.T) {
	t.Parallel()
	m := newMirror(spec(serving.FP32, -1))
	m.block, m.begun = make(chan struct{}), make(chan struct{}, 10)
	defer close(m.block)
	message := field(field(field(nil, 1, "m"), 5, tensor("in0", "FP32", []int{1}, nil)), 7, make([]byte, 4))
	for timeout, want := range map[string]string{"20m": "4", "1n": "4", "5x": "3", "123456789S": "3", "-1S": "3", "S": "3"} {
		if _, status, text := grpcCall(handler(m, 0), "ModelInfer", message, "Grpc-Timeout", timeout); status != want {
			t.Errorf("%s: status %s %s, want %s", timeout, status, text, want)
		}
	}
}

func FuzzGRPC(f *testing.F) {
	typed := tensor("in0", "FP32", []int{1, 2}, field(nil, 6, floatsOf(1)))
	strings := tensor("in1", "BYTES", []int{1}, field(nil, 8, "a"))
	f.Add(field(field(field(nil, 1, "m"), 5, typed), 5, strings))
	raw := field(field(field(nil, 1, "m"), 5, tensor("in0", "FP32", []int{1, 2}, nil)), 5, tensor("in1", "BYTES", []int{1}, nil))
	f.Add(field(field(raw, 7, floatsOf(1)), 7, "\x01\x00\x00\x00a"))
	f.Add(field(field(field(nil, 1, "m"), 4, field(field(nil, 1, "p"), 2, field(nil, 1, 1))), 6, field(nil, 1, "out1")))
	h := handler(newMirror(spec(serving.FP32, -1, 2), spec(serving.Bytes, -1), spec(serving.Int16, -1)), 1<<16)
	two := handler(newMirror(spec(serving.FP32, -1, 2), spec(serving.Bytes, -1)), 1<<16)
	f.Fuzz(func(t *testing.T, message []byte) {
		for _, h := range []*serving.Handler{h, two} {
			for _, method := range []string{"ModelInfer", "ModelMetadata"} {
				if got, status, text := grpcCall(h, method, message); status == "13" || (status == "0") != (len(got) > 0) {
					t.Errorf("status %q, %q, %q", status, text, got)
				}
			}
		}
	})
}
