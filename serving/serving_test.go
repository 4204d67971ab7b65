package serving_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving"
)

// mirror is an engine that gives back its inputs: outputs have the inputs' order
// and the names that the signature says. It needs no library.
type mirror struct {
	signature atelier.Signature
	fail      error
	block     chan struct{} // when set, Infer waits until it is closed
	begun     chan struct{}
}

func (m *mirror) Platform() string              { return "mirror" }
func (m *mirror) Signature() *atelier.Signature { return &m.signature }
func (m *mirror) Close() error                  { return nil }
func (m *mirror) Infer(ctx context.Context, inputs []serving.Tensor, outputs []int) ([]serving.Tensor, error) {
	if m.block != nil {
		m.begun <- struct{}{}
		select {
		case <-m.block:
		case <-ctx.Done():
			return nil, atelier.Errorf(atelier.Timeout, "gave up")
		}
	}
	results := make([]serving.Tensor, len(outputs))
	for i, o := range outputs {
		results[i] = inputs[o]
		results[i].Data = bytes.Clone(inputs[o].Data)
	}
	return results, m.fail
}

// newMirror has one input for each datatype and shape, named in0, in1, …
func newMirror(specs ...atelier.TensorSpec) *mirror {
	m := &mirror{}
	for i, s := range specs {
		in, out := s, s
		in.Name, out.Name = fmt.Sprintf("in%d", i), fmt.Sprintf("out%d", i)
		m.signature.Inputs = append(m.signature.Inputs, in)
		m.signature.Outputs = append(m.signature.Outputs, out)
	}
	return m
}

func spec(t serving.Datatype, shape ...int64) atelier.TensorSpec {
	return atelier.TensorSpec{Type: string(t), Shape: shape}
}

func handler(e serving.Engine, maxBody int64) *serving.Handler {
	h := serving.NewHandler("m", "3", "test", maxBody, slog.New(slog.DiscardHandler))
	if e != nil {
		h.SetReady(serving.NewModel("m", "3", e, 2))
	}
	return h
}

func ask(h http.Handler, method, path, body string, header ...string) (int, map[string]any, *httptest.ResponseRecorder) {
	req := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	answer := map[string]any{}
	if json.Unmarshal(w.Body.Bytes(), &answer) != nil {
		answer = nil
	}
	return w.Code, answer, w
}

const inferPath = "/v2/models/m/infer"

func TestHealthAndMetadata(t *testing.T) {
	t.Parallel()
	cold, warm := handler(nil, 0), handler(newMirror(spec(serving.FP32, -1, 4)), 0)
	for path, want := range map[string][2]int{
		"/": {200, 200}, "/v2": {200, 200}, "/v2/health/live": {200, 200}, "/v2/health/ready": {503, 200}, "/v2/models/m": {503, 200},
		"/v2/models/m/ready": {503, 200}, "/v2/models/m/versions/3": {503, 200}, "/v2/models/m/versions/3/ready": {503, 200},
		"/v2/models/m/versions/4": {404, 404}, "/v2/models/other": {404, 404}, "/nothing": {404, 404}, "/score": {405, 405},
	} {
		for i, h := range []http.Handler{cold, warm} {
			if code, answer, _ := ask(h, "GET", path, ""); code != want[i] || answer == nil {
				t.Errorf("GET %s: %d %v, want %d with JSON", path, code, answer, want[i])
			}
		}
	}
	_, answer, _ := ask(warm, "GET", "/v2/models/m", "")
	got, err := json.Marshal(answer)
	want := `{"inputs":[{"datatype":"FP32","name":"in0","shape":[-1,4]}],"name":"m","outputs":[{"datatype":"FP32","name":"out0","shape":[-1,4]}],"platform":"mirror","versions":["3"]}`
	if err != nil || string(got) != want {
		t.Errorf("metadata = %s, %v, want %s", got, err, want)
	}
}

// Each datatype goes in and out as JSON unchanged.
func TestJSONRoundTrip(t *testing.T) {
	t.Parallel()
	for typ, data := range map[serving.Datatype]string{
		serving.Bool: `true,false,true,true`, serving.Uint8: `0,1,2,255`, serving.Int8: `-128,0,1,127`, serving.Uint16: `0,1,2,65535`,
		serving.Int16: `-32768,0,1,32767`, serving.Uint32: `0,1,2,4294967295`, serving.Int32: `-2147483648,0,1,2147483647`,
		serving.Uint64: `0,1,2,18446744073709551615`, serving.Int64: `-9223372036854775808,0,1,9223372036854775807`,
		serving.FP16: `0,0.5,-65504,0.000061035156`, serving.BF16: `0,0.5,-2,1`, serving.FP32: `0,-0.1,3.4028235e+38,1e-45`,
		serving.FP64: `0,-0.1,1.7976931348623157e+308,5e-324`, serving.Bytes: `"","a","Grüße \"x\" \n","€"`,
	} {
		h := handler(newMirror(spec(typ, 2, 2)), 0)
		v := strings.Split(data, ",")
		nested := "[[" + v[0] + "," + v[1] + "],[" + v[2] + "," + v[3] + "]]"
		for _, form := range []string{"[" + data + "]", nested} {
			body := fmt.Sprintf(`{"id":"r","inputs":[{"name":"in0","shape":[2,2],"datatype":%q,"data":%s}]}`, typ, form)
			code, answer, w := ask(h, "POST", inferPath, body)
			if code != 200 || answer["id"] != "r" || answer["model_name"] != "m" || answer["model_version"] != "3" {
				t.Errorf("%s: %d %s", typ, code, w.Body)
				continue
			}
			var got struct {
				Outputs []struct {
					Data json.RawMessage
				}
			}
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || string(got.Outputs[0].Data) != "["+data+"]" {
				t.Errorf("%s: %s came back as %s, %v", typ, data, got.Outputs[0].Data, err)
			}
		}
		if code, _, w := ask(h, "POST", "/score", `{"data":`+nested+`}`); code != 200 || w.Body.String() != `{"outputs":{"out0":`+nested+`}}` {
			t.Errorf("%s: score answered %d %s, want %s", typ, code, w.Body, nested)
		}
	}
}

func TestBinary(t *testing.T) {
	t.Parallel()
	h := handler(newMirror(spec(serving.FP32, -1), spec(serving.Bytes, -1)), 0)
	var tail []byte
	for _, v := range []float32{1, float32(math.NaN())} {
		tail = binary.LittleEndian.AppendUint32(tail, math.Float32bits(v))
	}
	tail = append(tail, "\x02\x00\x00\x00\x00\xff\x00\x00\x00\x00"...)
	head := `{"parameters":{"binary_data_output":true},"inputs":[{"name":"in0","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}},` +
		`{"name":"in1","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":10}}]}`
	code, _, w := ask(h, "POST", inferPath, head+string(tail), "Inference-Header-Content-Length", fmt.Sprint(len(head)))
	var n int
	if _, err := fmt.Sscan(w.Header().Get("Inference-Header-Content-Length"), &n); code != 200 || err != nil {
		t.Fatalf("%d %v %s", code, err, w.Body)
	}
	if got := w.Body.Bytes()[n:]; !bytes.Equal(got, tail) || !json.Valid(w.Body.Bytes()[:n]) {
		t.Errorf("the tensors came back as %q, want %q, after %s", got, tail, w.Body.Bytes()[:n])
	}
	mixed := `{"inputs":[{"name":"in1","shape":[1],"datatype":"BYTES","data":["x"]},{"name":"in0","shape":[1],"datatype":"FP32","data":[2]}],` +
		`"outputs":[{"name":"out1","parameters":{"binary_data":true}},{"name":"out0"}]}`
	code, _, w = ask(h, "POST", inferPath, mixed)
	if code != 200 || !strings.HasSuffix(w.Body.String(), `"data":[2]}]}`+"\x01\x00\x00\x00x") {
		t.Errorf("%d %q", code, w.Body)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	h := handler(newMirror(spec(serving.FP32, -1, 2), spec(serving.Int8, 1)), 4096)
	const int8s = `{"name":"in1","shape":[1],"datatype":"INT8","data":[1]}`
	in := func(s string) string { return `{"inputs":[` + s + `,` + int8s + `]}` }
	good := `{"name":"in0","shape":[1,2],"datatype":"FP32","data":[1,2]}`
	for name, c := range map[string]struct {
		path, body  string
		code        int
		field, says string
	}{
		"no JSON":          {inferPath, `hello`, 400, "", "not JSON"},
		"empty":            {inferPath, ``, 400, "", "empty"},
		"torn":             {inferPath, `{"inputs":[`, 400, "", "middle"},
		"more":             {inferPath, in(good) + `x`, 400, "", "goes on"},
		"NaN":              {inferPath, in(`{"name":"in0","shape":[1,2],"datatype":"FP32","data":[1,NaN]}`), 400, "", "NaN"},
		"unknown field":    {inferPath, `{"input":[]}`, 400, "input", "not known"},
		"list":             {inferPath, `{"inputs":7}`, 400, "inputs", "list"},
		"no such input":    {inferPath, in(`{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}`), 400, "inputs[0].name", `"in0"`},
		"input twice":      {inferPath, in(good + `,` + good), 400, "inputs[1].name", "twice"},
		"input missing":    {inferPath, `{"inputs":[` + good + `]}`, 400, "inputs", `"in1"`},
		"datatype":         {inferPath, in(`{"name":"in0","shape":[1,2],"datatype":"FP64","data":[1,2]}`), 400, "inputs[0].datatype", "FP32 was expected"},
		"rank":             {inferPath, in(`{"name":"in0","shape":[2],"datatype":"FP32","data":[1,2]}`), 400, "inputs[0].shape", "1 dimensions instead of 2"},
		"dimension":        {inferPath, in(`{"name":"in0","shape":[1,3],"datatype":"FP32","data":[1,2,3]}`), 400, "inputs[0].shape", "dimension 1 is 3 instead of 2"},
		"negative":         {inferPath, in(`{"name":"in0","shape":[-1,2],"datatype":"FP32","data":[1,2]}`), 400, "inputs[0].shape", "negative"},
		"overflow":         {inferPath, in(`{"name":"in0","shape":[4611686018427387904,2],"datatype":"FP32","data":[1,2]}`), 400, "inputs[0].shape", "elements"},
		"fraction":         {inferPath, in(`{"name":"in0","shape":[1.5,2],"datatype":"FP32","data":[1,2]}`), 400, "inputs[0].shape[0]", "whole number"},
		"field twice":      {inferPath, `{"inputs":[],"inputs":[]}`, 400, "inputs", "twice"},
		"no UTF-8":         {inferPath, "{\"id\":\"\xff\",\"inputs\":[]}", 400, "", "UTF-8"},
		"too few":          {inferPath, in(`{"name":"in0","shape":[2,2],"datatype":"FP32","data":[1,2]}`), 400, "inputs[0].data", "2 elements, shape [2 2] needs 4"},
		"nested wrongly":   {inferPath, in(`{"name":"in0","shape":[1,2],"datatype":"FP32","data":[[1],[2]]}`), 400, "inputs[0].data", "nested as"},
		"ragged":           {inferPath, in(`{"name":"in0","shape":[2,2],"datatype":"FP32","data":[[1,2],[3]]}`), 400, "inputs[0].data", "ragged"},
		"mixed depth":      {inferPath, in(`{"name":"in0","shape":[1,2],"datatype":"FP32","data":[1,[2]]}`), 400, "inputs[0].data", "ragged"},
		"too large number": {inferPath, in(`{"name":"in0","shape":[1,2],"datatype":"FP32","data":[1,1e39]}`), 400, "inputs[0].data", "element 1"},
		"string":           {inferPath, in(`{"name":"in0","shape":[1,2],"datatype":"FP32","data":[1,"2"]}`), 400, "inputs[0].data", "a number"},
		"null":             {inferPath, in(`{"name":"in0","shape":[1,2],"datatype":"FP32","data":[1,null]}`), 400, "inputs[0].data", "null"},
		"out of range":     {inferPath, `{"inputs":[` + good + `,{"name":"in1","shape":[1],"datatype":"INT8","data":[128]}]}`, 400, "inputs[1].data", "INT8"},
		"no data":          {inferPath, in(`{"name":"in0","shape":[1,2],"datatype":"FP32"}`), 400, "inputs[0].data", "missing"},
		"binary short":     {inferPath, in(`{"name":"in0","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}`), 400, "inputs[0].parameters.binary_data_size", "left"},
		"shared memory":    {inferPath, in(`{"name":"in0","shape":[1,2],"datatype":"FP32","parameters":{"shared_memory_region":"x"}}`), 422, "inputs[0].parameters", "shared memory"},
		"no such output":   {inferPath, `{"inputs":[` + good + `,` + int8s + `],"outputs":[{"name":"x"}]}`, 400, "outputs[0].name", `"out0"`},
		"output flag":      {inferPath, `{"inputs":[` + good + `,` + int8s + `],"parameters":{"binary_data_output":"yes"}}`, 400, "parameters.binary_data_output", "true or false"},
		"too large":        {inferPath, strings.Repeat(" ", 5000), 413, "", "4096"},
		"no such model":    {"/v2/models/x/infer", in(good), 404, "", `"m" is`},
		"score: nothing":   {"/score", `{}`, 400, "inputs", "neither"},
		"score: both":      {"/score", `{"inputs":{},"data":[]}`, 400, "data", "both"},
		"score: data":      {"/score", `{"data":[1]}`, 400, "data", "2 inputs"},
		"score: name":      {"/score", `{"inputs":{"x":[1]}}`, 400, "inputs", `"in0"`},
		"score: shape":     {"/score", `{"inputs":{"in0":[1,2],"in1":[1]}}`, 400, "inputs.in0", "was expected"},
		"score: missing":   {"/score", `{"inputs":{"in0":[[1,2]]}}`, 400, "inputs", `"in1" is missing`},
	} {
		code, answer, w := ask(h, "POST", c.path, c.body)
		message, _ := answer["error"].(string)
		remedy, _ := answer["remedy"].(string)
		field, _ := answer["field"].(string)
		if code != c.code || !strings.Contains(message+remedy, c.says) || c.field != "" && field != c.field {
			t.Errorf("%s: %d %s, want %d at %q, saying %q", name, code, w.Body, c.code, c.field, c.says)
		}
	}
	for name, header := range map[string][]string{
		"compressed":      {"Content-Encoding", "gzip"},
		"header too long": {"Inference-Header-Content-Length", "100000"},
		"header negative": {"Inference-Header-Content-Length", "-1"},
	} {
		if code, answer, _ := ask(h, "POST", inferPath, in(good), header...); code/100 != 4 || answer["error"] == nil {
			t.Errorf("%s: %d %v", name, code, answer)
		}
	}
}

// JSON has no NaN, so that a model that makes one is told apart from a broken server.
func TestNaNOutput(t *testing.T) {
	t.Parallel()
	h := handler(newMirror(spec(serving.FP32, 1)), 0)
	head := `{"inputs":[{"name":"in0","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}`
	body := head + string(binary.LittleEndian.AppendUint32(nil, math.Float32bits(float32(math.NaN()))))
	code, answer, w := ask(h, "POST", inferPath, body, "Inference-Header-Content-Length", fmt.Sprint(len(head)))
	if code != 422 || answer["field"] != "out0" {
		t.Errorf("%d %s", code, w.Body)
	}
}

func TestEngineFails(t *testing.T) {
	t.Parallel()
	m := newMirror(spec(serving.FP32, 1))
	m.fail = io.ErrUnexpectedEOF
	if code, answer, _ := ask(handler(m, 0), "POST", "/score", `{"data":[1]}`); code != 500 || answer["code"] != "internal" {
		t.Errorf("%d %v", code, answer)
	}
}

// More requests than may wait are turned away; those that wait are answered.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	m := newMirror(spec(serving.FP32, 1))
	m.block, m.begun = make(chan struct{}), make(chan struct{}, 300)
	h := serving.NewHandler("m", "3", "test", 0, slog.New(slog.DiscardHandler))
	h.SetReady(serving.NewModel("m", "3", m, 1))
	const many = 300
	codes := make(chan int, many)
	for range many {
		go func() { // ends when block is closed
			code, _, _ := ask(h, "POST", "/score", `{"data":[1]}`)
			codes <- code
		}()
	}
	<-m.begun
	for range many - 257 { // those that are turned away
		if code := <-codes; code != 429 {
			t.Fatalf("a request ended with %d while the model was busy", code)
		}
	}
	close(m.block)
	for range 257 {
		if code := <-codes; code != 200 {
			t.Errorf("a request that waited ended with %d", code)
		}
	}
}

func FuzzInfer(f *testing.F) {
	f.Add([]byte(`{"inputs":[{"name":"in0","shape":[1,2],"datatype":"FP32","data":[1,2]},{"name":"in1","shape":[1],"datatype":"BYTES","data":["a"]}]}`), 0)
	f.Add([]byte(`{"inputs":[{"name":"in0","shape":[1,2],"datatype":"FP32","data":[[1e3,-2]]},{"name":"in1","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":5}}]}`+"\x01\x00\x00\x00a"), 145)
	f.Add([]byte(`{"inputs":{"in0":[[1,2]],"in1":["\ud800"]}}`), -1)
	h := handler(newMirror(spec(serving.FP32, -1, 2), spec(serving.Bytes, -1)), 1<<16)
	f.Fuzz(func(t *testing.T, body []byte, head int) {
		path, header := inferPath, []string{}
		if head < 0 {
			path = "/score"
		} else if head > 0 {
			header = []string{"Inference-Header-Content-Length", fmt.Sprint(head)}
		}
		if code, _, w := ask(h, "POST", path, string(body), header...); code >= 500 || code == 200 && w.Body.Len() == 0 {
			t.Errorf("%d %s", code, w.Body)
		}
	})
}

// A request that takes longer than its model's deadline is answered with that.
func TestDeadline(t *testing.T) {
	t.Parallel()
	d := newDoubler()
	d.gate = make(chan struct{}) // nobody opens it
	m := serving.NewModel("m", "1", d, 1)
	m.Deadline = time.Millisecond
	h := serving.NewHandler("m", "1", "test", 0, slog.New(slog.DiscardHandler))
	h.SetReady(m)
	a := h.Score(t.Context(), []byte(`{"data":[[1]]}`))
	if a.Status != http.StatusGatewayTimeout || !strings.Contains(string(a.Body), `"code":"timeout"`) {
		t.Errorf("%d %s", a.Status, a.Body)
	}
}
