package python

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestInitOnceAndRunForEach(t *testing.T) {
	t.Parallel()
	b := serve(t, `
import json, os
times = 0
def init():
    global times
    times += 1
def run(data):
    return {"got": json.loads(data), "type": type(data).__name__, "times": times, "model": os.environ["AZUREML_MODEL_DIR"]}
`, Options{ModelDir: "/models/here"})
	for i := range 3 {
		b.score(fmt.Sprintf(`{"data": [%d, "ü"]}`, i), 200, fmt.Sprintf(`{"got": {"data": [%d, "\u00fc"]}, "type": "str", "times": 1, "model": "/models/here"}`, i))
	}
	a := b.do(http.MethodGet, "/score?a=1&b=x&b=[2]", "")
	if want := `{"got": {"a": 1, "b": ["x", [2]]}, "type": "str", "times": 1, "model": "/models/here"}`; a.body != want {
		t.Errorf("GET is answered with %d %s", a.status, a.body)
	}
	for name, value := range map[string]string{"X-Ms-Run-Function-Failed": "False", "Content-Type": "application/json"} {
		if got := a.header.Get(name); got != value {
			t.Errorf("%s is %q", name, got)
		}
	}
	if a := b.do(http.MethodOptions, "/score", ""); a.status != 200 || a.body != "" {
		t.Errorf("OPTIONS is answered with %d %q", a.status, a.body)
	}
	if a := b.do(http.MethodPut, "/score", ""); a.status != 405 || a.header.Get("Allow") == "" {
		t.Errorf("PUT is answered with %d %q", a.status, a.body)
	}
	if a := b.do(http.MethodGet, "/", ""); a.status != 200 || a.body != "Healthy" {
		t.Errorf("/ is answered with %d %q", a.status, a.body)
	}
	if a := b.do(http.MethodGet, "/v2/health/ready", ""); a.status != 200 || a.body != `{"ready":true}` {
		t.Errorf("readiness is answered with %d %q", a.status, a.body)
	}
	if a := b.do(http.MethodPost, "/score", "\xff"); a.status != 400 || !strings.Contains(a.says(t).Message, "UTF-8") {
		t.Errorf("noise is answered with %d %q", a.status, a.body)
	}
	if a := b.do(http.MethodPost, "/score", strings.Repeat("x", 8<<20+1)); a.status != 413 || !strings.Contains(a.says(t).Error, "larger than") {
		t.Errorf("a body that is too large is answered with %d %q", a.status, a.body)
	}
	large := `"` + strings.Repeat("x", 5<<20) + `"`
	if a := b.score(large, 200, ""); len(a.body) < len(large) {
		t.Errorf("a large body came back with %d bytes", len(a.body))
	}
}

func TestWhatRunReturns(t *testing.T) {
	t.Parallel()
	b := serve(t, `
def init(): pass
def run(data): return eval(data)
`, Options{})
	for expression, want := range map[string]string{
		`"text"`: `"text"`, `{"a": (1, 2.5, None)}`: `{"a": [1, 2.5, null]}`, `[True]`: `[true]`, `None`: `{}`, `float("nan")`: `NaN`,
	} {
		b.score(expression, 200, want)
	}
	for expression, says := range map[string]string{`b"bytes"`: "returned a bytes", `{1, 2}`: "returned a set", `1/0`: "raised ZeroDivisionError"} {
		a := b.score(expression, 500, "")
		if e := a.says(t); !strings.Contains(e.Error, says) || !strings.HasPrefix(e.Message, "An unexpected") {
			t.Errorf("%s is answered with %+v %v", expression, e, a.header)
		}
	}
	if log := b.log.String(); !strings.Contains(log, "ZeroDivisionError: division by zero") || strings.Contains(log, "atelier-worker") {
		t.Error("the log has no traceback, or one of the worker's own frames")
	}
}

const rawScript = `
from %s.aml_request import AMLRequest, rawhttp
from %s.aml_response import AMLResponse
def init(): pass
@rawhttp
def run(request):
    if request.method == "GET":
        return AMLResponse({"args": request.args.get("name"), "all": request.args.getlist("n")}, 203, {"X-One": "a,b", "Content-Type": "application/x-own"}, json_str=True)
    if request.method in ("OPTIONS", "HEAD"):
        return AMLResponse("", 204)
    if request.headers.get("x-kind") == "json":
        return {"json": request.get_json(), "type": request.content_type}
    if request.headers.get("x-kind") == "fail":
        return AMLResponse("worse", 503)
    return AMLResponse(request.get_data(False)[::-1], 200, {"Content-Type": "image/jpeg"})
`

// Both where Azure's packages are installed, which bring Flask, and where they
// are not.
func TestRawHTTP(t *testing.T) {
	t.Parallel()
	for _, from := range []string{"azureml.contrib.services", "azureml_inference_server_http.api"} {
		for _, bare := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s bare=%v", from, bare), func(t *testing.T) {
				t.Parallel()
				script := fmt.Sprintf(rawScript, from, from)
				if bare { // as in an environment that has none of them
					script = "import sys\nsys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n" + script
				} else {
					azure(t)
				}
				b := serve(t, script, Options{})
				a := b.do(http.MethodGet, "/score?name=Ada&n=1&n=2", "")
				if a.status != 203 || a.body != `{"args": "Ada", "all": ["1", "2"]}` || fmt.Sprint(a.header["X-One"]) != "[a b]" {
					t.Errorf("GET is answered with %d %s %v", a.status, a.body, a.header)
				}
				a = b.do(http.MethodPost, "/score", "\x00\xff\x01", "Content-Type", "application/octet-stream")
				if a.status != 200 || a.body != "\x01\xff\x00" || fmt.Sprint(a.header["Content-Type"]) != "[image/jpeg]" {
					t.Errorf("bytes are answered with %d %q %v", a.status, a.body, a.header)
				}
				a = b.do(http.MethodPost, "/score", `{"x": 1}`, "Content-Type", "application/json", "X-Kind", "json")
				if a.status != 200 || a.body != `{"json": {"x": 1}, "type": "application/json"}` {
					t.Errorf("JSON is answered with %d %q", a.status, a.body)
				}
				a = b.do(http.MethodPost, "/score", "", "X-Kind", "fail")
				if a.status != 503 || a.body != "worse" || a.header.Get("X-Ms-Run-Function-Failed") != "True" {
					t.Errorf("a failure is answered with %d %q %v", a.status, a.body, a.header)
				}
				if a := b.do(http.MethodOptions, "/score", ""); a.status != 204 {
					t.Errorf("OPTIONS is answered with %d %q", a.status, a.body)
				}
			})
		}
	}
}

const schemaScript = `
import numpy as np
from inference_schema.schema_decorators import input_schema, output_schema
from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
def init(): pass
@input_schema("data", NumpyParameterType(np.array([[0.1, 1.2]])))
@input_schema("factor", StandardPythonParameterType(2))
@output_schema(StandardPythonParameterType([1.0]))
def run(data, factor=3, request_headers=None):
    assert isinstance(data, np.ndarray)
    return {"sums": (data.sum(axis=1) * factor).tolist(), "agent": request_headers["X-Agent"]}
`

func TestSchemas(t *testing.T) {
	t.Parallel()
	b := serve(t, schemaScript, Options{Python: azure(t)})
	post := func(body, kind string) answer {
		return b.do(http.MethodPost, "/score", body, "Content-Type", kind, "X-Agent", "me")
	}
	if a := post(`{"data": [[1, 2], [3, 4]]}`, "application/json; charset=utf-8"); a.status != 200 || a.body != `{"sums": [9.0, 21.0], "agent": "me"}` {
		t.Errorf("it is answered with %d %s", a.status, a.body)
	}
	for _, c := range []struct {
		body, kind, says string
		status           int
	}{
		{`{"factor": 1}`, "application/json", "'data'", 400},
		{`[]`, "application/json", "JSON dictionary", 400},
		{``, "application/json", "empty", 400},
		{`{`, "application/json", "could not be decoded", 400},
		{strings.Repeat("[", 1<<20), "application/json", "could not be decoded", 400},
		{`{"data": [[1, 2]]}`, "text/plain", "Content-Type", 415},
	} {
		if a := post(c.body, c.kind); a.status != c.status || !strings.Contains(a.says(t).Message, c.says) {
			t.Errorf("%.40s is answered with %d %.300s", c.body, a.status, a.body)
		}
	}
	a := b.do(http.MethodGet, "/swagger.json", "")
	var doc struct {
		Swagger     string
		Definitions map[string]struct {
			Type       string
			Properties map[string]any
			Example    any
		}
	}
	if err := json.Unmarshal([]byte(a.body), &doc); err != nil || a.status != 200 {
		t.Fatalf("/swagger.json is %d %.500s: %v", a.status, a.body, err)
	}
	in := doc.Definitions["ServiceInput"]
	if doc.Swagger != "2.0" || in.Properties["data"] == nil || in.Properties["factor"] == nil || fmt.Sprint(in.Example) != "map[data:[[0.1 1.2]] factor:2 request_headers:]" {
		t.Errorf("the description is %.2000s", a.body)
	}
	for version, status := range map[string]int{"2": 200, "3.0": 200, "3.1": 200, "4": 404} {
		if a := b.do(http.MethodGet, "/swagger.json?version="+version, ""); a.status != status {
			t.Errorf("version %s is answered with %d %.200s", version, a.status, a.body)
		}
	}
}

// A script whose contract is broken says so before it takes requests.
func TestBrokenContracts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ script, says string }{
		"no run":      {"def init(): pass", "has no function run()"},
		"no init":     {"def run(data): pass", "has no function init()"},
		"no argument": {"def init(): pass\ndef run(): pass", "no argument for the data"},
		"kwargs":      {"def init(): pass\ndef run(**kw): pass", "**kwargs"},
		"syntax":      {"def init(:", "cannot be imported: SyntaxError"},
		"import":      {"import nowhere", "No module named 'nowhere'"},
		"exit":        {"import sys\nsys.exit(4)", "SystemExit: 4"},
		"exit hard":   {"import os\nos._exit(4)", "exited with 4 before init() returned"},
		"init":        {"def init():\n    print('so far')\n    raise KeyError('gone')\ndef run(d): pass", "init() failed: KeyError: 'gone'"},
		"signal":      {"import os\ndef init(): os.kill(os.getpid(), 11)\ndef run(d): pass", `ended by signal "segmentation fault"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := scriptError(t, c.script, Options{})
			if !strings.Contains(e.Message, c.says) || strings.Contains(e.Message, "\n") {
				t.Errorf("the message is %q", e.Message)
			}
			if name == "init" && (!strings.HasPrefix(e.Output, "so far\nTraceback") || !strings.HasSuffix(e.Output, "KeyError: 'gone'")) {
				t.Errorf("the output is %q", e.Output)
			}
		})
	}
}

// Modules beside the script are found, as are its own classes by pickle.
func TestSurroundings(t *testing.T) {
	t.Parallel()
	b := serve(t, `
import os, pickle, sys
def init():
    with open(os.path.join(os.path.dirname(__file__), "beside.py"), "w") as f: f.write("value = 41")
class Model:
    def __init__(self, n): self.n = n
def run(data):
    import beside
    return [pickle.loads(pickle.dumps(Model(beside.value))).n + 1, __name__, sys.stdin.read(), os.path.basename(os.environ["AZUREML_ENTRY_SCRIPT"])]
`, Options{})
	b.score("", 200, `[42, "entry_module", "", "score.py"]`)
}

// Request ids go into the log, with what the script printed over that request
// and by whatever means.
func TestOutputCarriesTheRequest(t *testing.T) {
	t.Parallel()
	b := serve(t, `
import ctypes, logging, os, sys
def init(): print("init says")
def run(data):
    print("print", data)
    print("err", data, file=sys.stderr)
    logging.info("info %s", data)
    logging.getLogger("own").warning("warning %s", data)
    os.write(1, b"raw " + data.encode() + b"\n")
    os.system("echo child " + data)
    sys.stdout.write("no end " + data)
    return data
`, Options{Workers: 2})
	for _, id := range []string{"r1", "r2", "r3"} {
		if a := b.do(http.MethodPost, "/score", id, requestID, id); a.body != `"`+id+`"` || a.header.Get("X-Request-Id") != id {
			t.Errorf("%s was answered with %+v", id, a)
		}
	}
	log := b.log.String()
	for _, id := range []string{"r1", "r2", "r3"} {
		for _, text := range []string{"print ", "err ", "INFO:root:info ", "WARNING:own:warning ", "raw ", "child ", "no end "} {
			found := false
			for line := range strings.Lines(log) {
				if strings.Contains(line, text+id) {
					found = strings.Contains(line, "request="+id+"\n")
				}
			}
			if !found {
				t.Errorf("the log has no line of %q with its request", text+id)
			}
		}
	}
	if !strings.Contains(log, `msg="init says" worker=1`) {
		t.Error("what init() printed is not in the log")
	}
}
