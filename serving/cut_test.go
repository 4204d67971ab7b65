package serving

import (
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

// shaped is an engine of which only the signature is of use.
type shaped struct{ signature atelier.Signature }

func (*shaped) Platform() string                { return "none" }
func (e *shaped) Signature() *atelier.Signature { return &e.signature }
func (*shaped) Close() error                    { return nil }
func (*shaped) Infer(context.Context, []Tensor, []int) ([]Tensor, error) {
	return nil, nil
}

// speech is a model that takes and gives what silero does.
func speech() *Model {
	return NewModel("speech", "1", &shaped{atelier.Signature{
		Inputs: []atelier.TensorSpec{
			{Name: "input", Type: "FP32", Shape: []int64{-1, -1}}, {Name: "state", Type: "FP64", Shape: []int64{2, -1, 2}},
			{Name: "sr", Type: "INT64", Shape: []int64{}}, {Name: "count", Type: "INT32", Shape: []int64{-1}},
		},
		Outputs: []atelier.TensorSpec{{Name: "output", Type: "FP32", Shape: []int64{-1, 1}}, {Name: "stateN", Type: "FP32", Shape: []int64{2, -1, 128}}},
	}}, 1)
}

func cutRequestText(input, state, sr, count string) string {
	return `{"inputs":[{"name":"input","shape":[1,3],"datatype":"FP32","data":` + input +
		`},{"data": ` + state + `,"name":"state","shape":[2,1,2],"datatype":"FP64"},{"name":"sr","shape":[],"datatype":"INT64","data":` + sr +
		`},{"name":"count","shape":[2],"datatype":"INT32","data":` + count + `}]}`
}

// What is usual is read without being taken for JSON, and all else as a whole.
func TestCut(t *testing.T) {
	t.Parallel()
	const input, state, sr, count = `[1,-2.5e-3, 0.10000000149011612]`, `[0,1e300,-0.0,3]`, `[16000]`, "[ 1,\n-2147483648 ]"
	usual := cutRequestText(input, state, sr, `[1,-2147483648]`)
	for text, want := range map[string]bool{
		usual: true,
		strings.Replace(usual, `"inputs"`, `"id":"a data","parameters":{"x":[1]},"inputs"`, 1):                true,
		cutRequestText(input, state, sr, count):                                                               false, // does not begin with a number
		cutRequestText(`[[1,2,3]]`, state, sr, `[1,2]`):                                                       false,
		cutRequestText(`[1,2]`, state, sr, `[1,2]`):                                                           false,
		cutRequestText(`[1,2,3,4]`, state, sr, `[1,2]`):                                                       false,
		cutRequestText(`[01,2,3]`, state, sr, `[1,2]`):                                                        false,
		cutRequestText(`[1.,2,3]`, state, sr, `[1,2]`):                                                        false,
		cutRequestText(`[1,NaN,3]`, state, sr, `[1,2]`):                                                       false,
		cutRequestText(`[1,Infinity,3]`, state, sr, `[1,2]`):                                                  false,
		cutRequestText(`[1,1e39,3]`, state, sr, `[1,2]`):                                                      false,
		cutRequestText(`[1,0x1p4,3]`, state, sr, `[1,2]`):                                                     false,
		cutRequestText(`[1,"2]",3]`, state, sr, `[1,2]`):                                                      false,
		cutRequestText(`[1,2,3],"data":[1,2,3]`, state, sr, `[1,2]`):                                          false,
		cutRequestText(`[1,2,3],"parameters":{"data":[1]}`, state, sr, `[1,2]`):                               false,
		cutRequestText(input, state, sr, `[1,2147483648]`):                                                    false,
		cutRequestText(input, state, `[1.5]`, `[1,2]`):                                                        false,
		strings.Replace(usual, `"id"`, `"\u0069d"`, 1):                                                        true, // there is none
		strings.Replace(usual, `"sr"`, `"\u0073r"`, 1):                                                        false,
		strings.Replace(usual, `[16000]`, `null`, 1):                                                          false,
		strings.Replace(usual, `[16000]`, `16000`, 1):                                                         false,
		`{"parameters":{"data":[1]},"inputs":[{"name":"sr","shape":[],"datatype":"INT64","d\u0061ta":null}]}`: false,
		``: false, `{"data":[1`: false,
	} {
		m := speech()
		for range 2 { // with the rest kept, too
			_, tensors, ok := m.decodeCut([]byte(text))
			if ok != want {
				t.Errorf("%s\nis read without its numbers: %v, want %v", text, ok, want)
			}
			if ok {
				sameAsWhole(t, m, text, tensors)
			}
		}
	}
}

// sameAsWhole compares tensors with what the request is when it is read as a whole.
func sameAsWhole(t *testing.T, m *Model, text string, tensors []Tensor) {
	t.Helper()
	req, err := m.decodeHead([]byte(text), false)
	if err != nil {
		t.Fatalf("%q is refused, %v, and was read without its numbers", text, err)
	}
	want, came := make([]Tensor, len(tensors)), make([]bool, len(tensors))
	for i := range req.Inputs {
		in := &req.Inputs[i]
		at, err := m.announced(in.Name, in.Datatype, in.Shape, came, "inputs")
		if err == nil {
			want[at], _, err = decodeInput(in, nil, "inputs")
		}
		if err != nil {
			t.Fatalf("%q is refused, %v, and was read without its numbers", text, err)
		}
	}
	if !reflect.DeepEqual(tensors, want) {
		t.Fatalf("%q\nwas read as %v, want %v", text, tensors, want)
	}
}

// FuzzCut holds what is read without being taken for JSON against what is.
func FuzzCut(f *testing.F) {
	f.Add([]byte(cutRequestText(`[1,2e-7,3.25]`, `[1,2,3,4]`, `[16000]`, `[1,2]`)))
	f.Add([]byte(`{"inputs":[{"name":"sr","shape":[],"datatype":"INT64","data":[1]}],"id":"\"data\":[1]"}`))
	f.Add([]byte(`{"inputs":[{"name":"sr","shape":[],"datatype":"INT64","data" :[-0]}],"parameters":{"data":[2]}}`))
	m := speech()
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, tensors, ok := m.decodeCut(body); ok {
			sameAsWhole(t, m, string(body), tensors)
		}
	})
}

// FuzzNumber holds the reader of single numbers against strconv and JSON's syntax.
func FuzzNumber(f *testing.F) {
	for _, text := range []string{"0", "-0", "01", "1.", ".5", "1e5", "1E-7", "1e", "1e+", "12345678901234567890", "1e-400", "1e400", "9007199254740993", "0.1000000014901161193847656250"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		f32, length, ok := number32([]byte(text))
		if ok {
			want, err := strconv.ParseFloat(text[:length], 32)
			if err != nil || !json.Valid([]byte(text[:length])) || math.Float32bits(f32) != math.Float32bits(float32(want)) {
				t.Errorf("%q was read as %v, strconv reads %v, %v", text[:length], f32, want, err)
			}
		}
		f64, length, ok := number64([]byte(text))
		if ok {
			want, err := strconv.ParseFloat(text[:length], 64)
			if err != nil || !json.Valid([]byte(text[:length])) || math.Float64bits(f64) != math.Float64bits(want) {
				t.Errorf("%q was read as %v, strconv reads %v, %v", text[:length], f64, want, err)
			}
		}
		whole, length, ok := integer([]byte(text))
		if ok {
			if want, err := strconv.ParseInt(text[:length], 10, 64); err != nil || want != whole {
				t.Errorf("%q was read as %v, strconv reads %v, %v", text[:length], whole, want, err)
			}
		}
	})
}

// speechRequest asks as a client of silero does.
func speechRequest(b *testing.B) []byte {
	samples := make([]float32, 576)
	for i := range samples {
		samples[i] = float32(0.1 * math.Sin(2*math.Pi*140*float64(i)/16000))
	}
	type input struct {
		Name     string  `json:"name"`
		Datatype string  `json:"datatype"`
		Shape    []int64 `json:"shape"`
		Data     any     `json:"data"`
	}
	body, err := json.Marshal(map[string]any{"inputs": []input{
		{"input", "FP32", []int64{1, 576}, samples}, {"state", "FP64", []int64{2, 64, 2}, make([]float64, 256)},
		{"sr", "INT64", []int64{}, []int64{16000}}, {"count", "INT32", []int64{1}, []int32{1}},
	}})
	if err != nil {
		b.Fatal(err)
	}
	return body
}

func BenchmarkDecodeJSON(b *testing.B) {
	m, body := speech(), speechRequest(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := m.decodeInfer(body, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeJSON(b *testing.B) {
	m, random := speech(), rand.New(rand.NewPCG(1, 2))
	outputs := []Tensor{{Type: FP32, Shape: []int64{1, 1}}, {Type: FP32, Shape: []int64{2, 1, 128}}}
	for i := range outputs {
		n, _ := Elements(outputs[i].Shape)
		for range n {
			outputs[i].Data = appendFloat32(outputs[i].Data, float32(random.NormFloat64()))
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, _, err := m.encodeInfer("", []wantedOutput{{0, false}, {1, false}}, outputs); err != nil {
			b.Fatal(err)
		}
	}
}

func appendFloat32(b []byte, f float32) []byte {
	u := math.Float32bits(f)
	return append(b, byte(u), byte(u>>8), byte(u>>16), byte(u>>24))
}
