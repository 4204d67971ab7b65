package serving_test

import (
	"strings"
	"testing"

	"github.com/atelier-edge/atelier/serving"
)

// What each way to write inputs means for one matrix, one vector, and several inputs.
func TestInvocations(t *testing.T) {
	t.Parallel()
	matrix := handler(newMirror(spec(serving.FP32, -1, 2)), 0)
	vector := handler(newMirror(spec(serving.Int64, -1)), 0)
	image := handler(newMirror(spec(serving.FP32, -1, 1, 2)), 0)
	several := handler(newMirror(spec(serving.FP32, -1, 1), spec(serving.Bytes, -1)), 0)
	const perRow, perOutput = `{"predictions":[{"out0":[1,2]},{"out0":[3,4]}]}`, `{"predictions":{"out0":[[1,2],[3,4]]}}`
	const severalRows = `{"predictions":[{"out0":1,"out1":"a"},{"out0":2,"out1":"b"}]}`
	for _, c := range []struct {
		h          *serving.Handler
		body, want string
	}{
		{matrix, `{"dataframe_split":{"columns":["b","a"],"index":[7,8],"data":[[1,2],[3,4]]}}`, perRow},
		{matrix, `{"dataframe_split":{"columns":[0,1],"data":[[1,2],[3,4]]},"params":{}}`, perRow},
		{matrix, `{"dataframe_split":{"data":[[1,2],[3,4]]},"params":null}`, perRow},
		{matrix, `{"dataframe_records":[{"b":1,"a":2},{"a":4,"b":3}]}`, perRow},
		{matrix, `{"instances":[[1,2],[3,4]]}`, perOutput},
		{matrix, `{"instances":[{"in0":[1,2]},{"in0":[3,4]}]}`, perOutput},
		{matrix, `{"inputs":[[1,2],[3,4]]}`, perOutput},
		{matrix, `{"inputs":{"in0":[[1,2],[3,4]]}}`, perOutput},
		{vector, `{"dataframe_split":{"columns":["a"],"data":[[1],[2]]}}`, `{"predictions":[{"out0":1},{"out0":2}]}`},
		{vector, `{"dataframe_records":[{"a":1},{"a":2}]}`, `{"predictions":[{"out0":1},{"out0":2}]}`},
		{vector, `{"instances":[1,2]}`, `{"predictions":{"out0":[1,2]}}`},
		{image, `{"dataframe_split":{"columns":["a"],"data":[[[1,2]]]}}`, `{"predictions":[{"out0":[[1,2]]}]}`},
		{several, `{"dataframe_split":{"columns":["in1","in0"],"data":[["a",1],["b",2]]}}`, severalRows},
		{several, `{"dataframe_records":[{"in1":"a","in0":1},{"in0":2,"in1":"b"}]}`, severalRows},
		{several, `{"instances":[{"in1":"a","in0":[1]},{"in0":[2],"in1":"b"}]}`, `{"predictions":{"out0":[[1],[2]],"out1":["a","b"]}}`},
		{several, `{"inputs":{"in0":[1,2],"in1":["a","b"]}}`, `{"predictions":{"out0":[[1],[2]],"out1":["a","b"]}}`},
	} {
		if code, _, w := ask(c.h, "POST", "/invocations", c.body, "Content-Type", "application/json"); code != 200 || w.Body.String() != c.want {
			t.Errorf("%s: %d %s, want %s", c.body, code, w.Body, c.want)
		}
	}
	for _, c := range []struct{ body, want string }{
		{"a,b\n1,2\n3,4\n", perRow},
		{"\"a\",\"b, too\"\r\n 1.0 ,\"2\"\r\n3e0,4\r\n", perRow},
	} {
		if code, _, w := ask(matrix, "POST", "/invocations", c.body, "Content-Type", "text/csv"); code != 200 || w.Body.String() != c.want {
			t.Errorf("%q: %d %s, want %s", c.body, code, w.Body, c.want)
		}
	}
	for path, want := range map[string]string{"/ping": "\n", "/version": "test"} {
		if code, _, w := ask(matrix, "GET", path, ""); code != 200 || w.Body.String() != want {
			t.Errorf("GET %s: %d %q", path, code, w.Body)
		}
	}
	if code, _, _ := ask(handler(nil, 0), "GET", "/ping", ""); code != 503 {
		t.Errorf("a model that is not loaded pings with %d", code)
	}
}

func TestInvocationsRefusals(t *testing.T) {
	t.Parallel()
	matrix := handler(newMirror(spec(serving.FP32, -1, 2)), 0)
	several := handler(newMirror(spec(serving.FP32, -1, 1), spec(serving.Int8, -1)), 0)
	for _, c := range []struct {
		h          *serving.Handler
		kind, body string
		code       int
		says       string
	}{
		{matrix, "", `{}`, 400, "exactly one of"},
		{matrix, "", `{"inputs":[[1,2]],"instances":[[1,2]]}`, 400, "2 came: [inputs instances]"},
		{matrix, "", `{"inputs":[[1,2]],"params":{"a":1}}`, 422, "takes none"},
		{matrix, "", `{"messages":[]}`, 400, "messages"},
		{matrix, "", `{"dataframe_split":{"columns":["a","b"]}}`, 400, "data is missing"},
		{matrix, "", `{"dataframe_split":{"columns":["a"],"data":[[1,2]]}}`, 400, "rows of 1 columns"},
		{matrix, "", `{"dataframe_split":{"columns":["a","b","c"],"data":[[1,2,3]]}}`, 400, "dimension 1 is 3 instead of 2"},
		{matrix, "", `{"dataframe_split":{"columns":["a","b"],"data":[[1,2],[3]]}}`, 400, "ragged"},
		{matrix, "", `{"dataframe_records":[]}`, 400, "missing"},
		{matrix, "", `{"dataframe_records":[1]}`, 400, "an object was expected"},
		{matrix, "", `{"dataframe_records":[{"a":1,"b":2},{"a":1}]}`, 400, "has 1 values"},
		{matrix, "", `{"dataframe_records":[{"a":1,"b":2},{"a":1,"c":2}]}`, 400, `"c"`},
		{matrix, "", `{"dataframe_records":[{"a":1,"b":null}]}`, 400, "null"},
		{matrix, "", `{"instances":[[1,"x"]]}`, 400, "a number"},
		{matrix, "", `{"instances":[]}`, 400, "dimensions"},
		{matrix, "", `{"inputs":{"x":[[1,2]]}}`, 400, `"in0"`},
		{several, "", `{"inputs":[[1,2]]}`, 400, "has 2 inputs"},
		{several, "", `{"instances":[{"in0":1},{"in1":1}]}`, 400, "others have not"},
		{several, "", `{"dataframe_split":{"columns":["in0","in0"],"data":[[1,2]]}}`, 400, "twice"},
		{several, "", `{"dataframe_split":{"columns":["in0"],"data":[[1,2]]}}`, 400, "2 values for 1 columns"},
		{several, "", `{"dataframe_split":{"columns":["in0"],"data":[[1]]}}`, 400, `"in1" is missing`},
		{several, "", `{"dataframe_split":{"columns":["in0","in1"],"data":[[1,300]]}}`, 400, "INT8"},
		{several, "text/csv", "in0,in1\n1,2\n", 422, "Send JSON"},
		{matrix, "text/csv", "", 400, "empty"},
		{matrix, "text/csv", "a,b\n1\n", 400, "no CSV"},
		{matrix, "text/csv", "a,b\n1,x\n", 400, `column "b" of row 0`},
		{matrix, "text/csv", "a,b\n1,[2\n", 400, `column "b" of row 0`},
		{matrix, "text/csv", "a\n1\n", 400, "dimension 1 is 1 instead of 2"},
		{matrix, "application/x-parquet", "PAR1", 422, "text/csv was expected"},
		{matrix, "application/json; format=pandas-split", `{}`, 422, "format"},
		{matrix, "application/json; charset=latin1", `{}`, 422, "charset"},
		{matrix, ";;", `{}`, 400, "Content-Type"},
	} {
		code, answer, w := ask(c.h, "POST", "/invocations", c.body, "Content-Type", c.kind)
		message, _ := answer["message"].(string)
		remedy, _ := answer["remedy"].(string)
		if code != c.code || !strings.Contains(message+remedy, c.says) || answer["error_code"] != "BAD_REQUEST" || answer["message"] != answer["error"] {
			t.Errorf("%s: %d %s, want %d saying %q", c.body, code, w.Body, c.code, c.says)
		}
	}
}

func FuzzInvocations(f *testing.F) {
	f.Add([]byte(`{"dataframe_split":{"columns":["in0","in1"],"index":[0],"data":[[1,"a"]]}}`), false)
	f.Add([]byte(`{"dataframe_records":[{"in0":1,"in1":"a"},{"in1":"b","in0":2}]}`), false)
	f.Add([]byte(`{"instances":[{"in0":[1],"in1":"a"}],"params":{}}`), false)
	f.Add([]byte(`{"inputs":[[1,2]]}`), false)
	f.Add([]byte("a,b\n1,2\n"), true)
	several := handler(newMirror(spec(serving.FP32, -1, 1), spec(serving.Bytes, -1)), 1<<16)
	matrix := handler(newMirror(spec(serving.FP32, -1, 2)), 1<<16)
	f.Fuzz(func(t *testing.T, body []byte, csv bool) {
		kind := "application/json"
		if csv {
			kind = "text/csv"
		}
		for _, h := range []*serving.Handler{several, matrix} {
			code, answer, w := ask(h, "POST", "/invocations", string(body), "Content-Type", kind)
			if code >= 500 || answer == nil || (code == 200) != (answer["predictions"] != nil) {
				t.Errorf("%d %s", code, w.Body)
			}
		}
	})
}
