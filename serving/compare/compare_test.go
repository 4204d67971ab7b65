package compare

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	atelier "github.com/atelier-edge/atelier"
)

var tolerance = atelier.Tolerance{Absolute: 0.01, Relative: 0.001, Integer: 1}

func ofJSON(body string) *Answer {
	return &Answer{Status: 200, Type: "application/json; charset=utf-8", Body: []byte(body)}
}

func ofBinary(datatype string, data []byte) *Answer {
	head := fmt.Sprintf(`{"model_name":"m","outputs":[{"name":"y","datatype":%q,"shape":[1,2],"parameters":{"binary_data_size":%d}}]}`, datatype, len(data))
	return &Answer{Status: 200, Type: "application/octet-stream", HeaderLength: fmt.Sprint(len(head)), Body: append([]byte(head), data...)}
}

func floats(values ...float32) (b []byte) {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

func v2(version, datatype, data string) *Answer {
	return ofJSON(fmt.Sprintf(`{"model_name":"m","model_version":%q,"id":%q,"outputs":[{"name":"y","datatype":%q,"shape":[2],"data":%s}]}`, version, version, datatype, data))
}

func TestDifference(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		given, shadow *Answer
		want          string // a part of it, "" for none
	}{
		"the same":                {ofJSON(`{"a":1}`), ofJSON(`{"a":1}`), ""},
		"spaces":                  {ofJSON(`{"a":1,"b":[true,null,"x"]}`), ofJSON(` { "b" : [true, null, "x"], "a": 1 }`), ""},
		"near":                    {ofJSON(`{"a":[0.5]}`), ofJSON(`{"a":[0.5100001]}`), ""},
		"off":                     {ofJSON(`{"a":[0.5]}`), ofJSON(`{"a":[0.52]}`), "a[0] is 0.5, the shadow's 0.52"},
		"relative":                {ofJSON(`[10000.5]`), ofJSON(`[10010.4]`), ""},
		"whole":                   {ofJSON(`{"class":7}`), ofJSON(`{"class":8}`), ""},
		"whole, off":              {ofJSON(`{"class":7}`), ofJSON(`{"class":9}`), "class is 7, the shadow's 9"},
		"whole against fraction":  {ofJSON(`[1]`), ofJSON(`[1.005]`), ""},
		"beyond float64":          {ofJSON(`[9007199254740993]`), ofJSON(`[9007199254740995]`), "9007199254740995"},
		"no field":                {ofJSON(`{"a":1,"b":2}`), ofJSON(`{"a":1}`), `has the field "b", the shadow's has not`},
		"more fields":             {ofJSON(`{"a":1}`), ofJSON(`{"a":1,"b":2}`), `has no field "b"`},
		"length":                  {ofJSON(`[1,2]`), ofJSON(`[1]`), "has 2 items, the shadow's 1"},
		"another kind":            {ofJSON(`{"a":"1"}`), ofJSON(`{"a":[1]}`), `a is "1", the shadow's a list`},
		"text":                    {ofJSON(`"seven"`), ofJSON(`"eight"`), `the answer is "seven", the shadow's "eight"`},
		"status":                  {ofJSON(`{}`), &Answer{Status: 400}, "the status is 200, the shadow's 400"},
		"failures":                {&Answer{Status: 400, Body: []byte("a")}, &Answer{Status: 400, Body: []byte("b")}, ""},
		"tensors of two versions": {v2("1", "FP32", "[1,2]"), v2("2", "FP32", "[1.001,2]"), ""},
		"tensors, off":            {v2("1", "FP32", "[1,2]"), v2("2", "FP32", "[1,3]"), "outputs.y[1] is 2, the shadow's 3"},
		"class labels":            {v2("1", "INT64", "[1,2]"), v2("2", "INT64", "[1,3]"), ""},
		"datatypes":               {v2("1", "INT64", "[1,2]"), v2("2", "FP32", "[1,2]"), "type INT64, the shadow's of FP32"},
		"binary":                  {ofBinary("FP32", floats(1, 2)), ofBinary("FP32", floats(1.001, 2)), ""},
		"binary, off":             {ofBinary("FP32", floats(1, 2)), ofBinary("FP32", floats(1, 2.5)), "outputs.y[1] is 2, the shadow's 2.5"},
		"not a number":            {ofBinary("FP32", floats(float32(math.NaN()), 2)), ofBinary("FP32", floats(float32(math.NaN()), 2.001)), ""},
		"infinity":                {ofBinary("FP32", floats(float32(math.Inf(1)), 2)), ofBinary("FP32", floats(1e38, 2)), "+Inf"},
		"bytes":                   {ofBinary("INT8", []byte{0xff, 2}), ofBinary("INT8", []byte{0, 2}), ""},
		"bytes, off":              {ofBinary("INT8", []byte{0xff, 2}), ofBinary("INT8", []byte{1, 2}), "is -1, the shadow's 1"},
		"half":                    {ofBinary("FP16", []byte{0x00, 0x3c, 0, 0}), ofBinary("FP16", []byte{0x00, 0xbc, 0, 0}), "is 1, the shadow's -1"},
		"texts":                   {ofBinary("BYTES", []byte("\x01\x00\x00\x00a")), ofBinary("BYTES", []byte("\x01\x00\x00\x00b")), "is not the shadow's"},
		"lying size":              {ofBinary("FP32", floats(1, 2)), &Answer{Status: 200, HeaderLength: "999", Body: []byte("{}")}, "bytes"},
		"no JSON at all":          {&Answer{Status: 200, Type: "text/plain", Body: []byte("abc")}, &Answer{Status: 200, Type: "text/plain", Body: []byte("abd")}, "from byte 2 on"},
		"broken JSON":             {ofJSON(`{"a":`), ofJSON(`{"b":`), "from byte 2 on"},
	} {
		got := Difference(tc.given, tc.shadow, tolerance)
		if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: the difference is %q, %q was expected", name, got, tc.want)
		}
	}
}

// ofCall is an answer to a call of gRPC with one output, y, raw or in contents of its type.
func ofCall(datatype string, shape []uint64, raw []byte, contents []byte) *Answer {
	output := protowire.AppendString(protowire.AppendTag(nil, outputName, protowire.BytesType), "y")
	output = protowire.AppendString(protowire.AppendTag(output, outputDatatype, protowire.BytesType), datatype)
	for _, d := range shape {
		output = protowire.AppendVarint(protowire.AppendTag(output, outputShape, protowire.VarintType), d)
	}
	if contents != nil {
		output = protowire.AppendBytes(protowire.AppendTag(output, outputContents, protowire.BytesType), contents)
	}
	message := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "m")
	message = protowire.AppendBytes(protowire.AppendTag(message, responseOutputs, protowire.BytesType), output)
	if raw != nil {
		message = protowire.AppendBytes(protowire.AppendTag(message, responseRaw, protowire.BytesType), raw)
	}
	return &Answer{Status: 200, Type: TypeGRPC, Body: message}
}

func TestDifferenceOfCalls(t *testing.T) {
	t.Parallel()
	tolerance := atelier.Tolerance{Absolute: 0.01}
	var one, two []byte
	for _, f := range []float32{1, 2} {
		one = binary.LittleEndian.AppendUint32(one, math.Float32bits(f))
		two = binary.LittleEndian.AppendUint32(two, math.Float32bits(f+0.5))
	}
	typed := protowire.AppendBytes(protowire.AppendTag(nil, 6, protowire.BytesType), one) // fp32_contents, packed
	minus := protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), math.MaxUint64)
	text := func(s string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, 8, protowire.BytesType), s)
	}
	shape := []uint64{2}
	for name, tc := range map[string]struct {
		given, shadow *Answer
		want          string
	}{
		"same":         {ofCall("FP32", shape, one, nil), ofCall("FP32", shape, one, nil), ""},
		"raw, off":     {ofCall("FP32", shape, one, nil), ofCall("FP32", shape, two, nil), "outputs.y[0] is 1, the shadow's 1.5"},
		"both forms":   {ofCall("FP32", shape, one, nil), ofCall("FP32", shape, nil, typed), ""},
		"whole":        {ofCall("INT8", []uint64{1}, []byte{0xff}, nil), ofCall("INT8", []uint64{1}, nil, minus), ""},
		"texts":        {ofCall("BYTES", []uint64{1}, []byte("\x01\x00\x00\x00a"), nil), ofCall("BYTES", []uint64{1}, nil, text("a")), ""},
		"texts, off":   {ofCall("BYTES", []uint64{1}, nil, text("b")), ofCall("BYTES", []uint64{1}, nil, text("a")), "is not the shadow's"},
		"shape":        {ofCall("FP32", shape, one, nil), ofCall("FP32", []uint64{1, 2}, one, nil), "has the shape [2], the shadow's [1 2]"},
		"torn":         {ofCall("FP32", shape, one, nil), &Answer{Status: 200, Type: TypeGRPC, Body: []byte{0xff}}, "bytes"},
		"of a failure": {ofCall("FP32", shape, one, nil), &Answer{Status: 400, Type: TypeGRPC}, "the status is 200, the shadow's 400"},
	} {
		got := Difference(tc.given, tc.shadow, tolerance)
		if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: the difference is %q, %q was expected", name, got, tc.want)
		}
	}
	version := protowire.AppendString(protowire.AppendTag(nil, 2, protowire.BytesType), "3")
	if !NamesVersion(version) || NamesVersion(ofCall("FP32", shape, nil, nil).Body[:3]) {
		t.Error("a version that a request names is not seen, or one that it does not")
	}
}

// FuzzCalls holds comparisons of messages of gRPC to what they promise of any answers.
func FuzzCalls(f *testing.F) {
	f.Add(ofCall("FP32", []uint64{1}, []byte{0, 0, 128, 63}, nil).Body, []byte{})
	f.Add(ofCall("INT8", []uint64{1}, nil, []byte{0x10, 0x01}).Body, ofCall("BYTES", []uint64{1}, nil, []byte{0x42, 0x01, 'a'}).Body)
	f.Fuzz(func(t *testing.T, given, shadow []byte) {
		a, b := &Answer{Status: 200, Type: TypeGRPC, Body: given}, &Answer{Status: 200, Type: TypeGRPC, Body: shadow}
		if d := Difference(a, a, atelier.Tolerance{}); d != "" {
			t.Errorf("an answer differs from itself: %s", d)
		}
		if d := Difference(a, b, atelier.Tolerance{}); len(d) > 500 {
			t.Errorf("a sentence of %d bytes", len(d))
		}
		NamesVersion(given)
	})
}

func FuzzDifference(f *testing.F) {
	for _, a := range []*Answer{ofJSON(`{"a":[1,2.5,null]}`), v2("1", "FP32", "[1,2]"), ofBinary("FP32", floats(1, 2)), ofBinary("BYTES", []byte("\x01\x00\x00\x00a"))} {
		f.Add(a.HeaderLength, a.Body, []byte(`{"outputs":[]}`))
		f.Add(a.HeaderLength, a.Body, a.Body)
	}
	f.Fuzz(func(t *testing.T, headerLength string, given, shadow []byte) {
		a := &Answer{Status: 200, Type: "application/json", HeaderLength: headerLength, Body: given}
		b := &Answer{Status: 200, Type: "application/json", HeaderLength: headerLength, Body: shadow}
		if d := Difference(a, a, atelier.Tolerance{}); d != "" {
			t.Errorf("an answer differs from itself: %s", d)
		}
		there, back := Difference(a, b, atelier.Tolerance{}), Difference(b, a, atelier.Tolerance{})
		if (there == "") != (back == "") {
			t.Errorf("there it is %q, and back %q", there, back)
		}
		if len(there) > 500 {
			t.Errorf("a sentence of %d bytes", len(there))
		}
	})
}
