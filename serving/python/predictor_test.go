package python

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/mlflow"
	"github.com/atelier-edge/atelier/serving"
)

// saved are models that MLflow and joblib wrote, with what MLflow's own server
// answers for them.
type saved struct {
	dir   string
	Cases []struct {
		Model, Type, Body, Answer string
		Status                    int
	} `json:"cases"`
	Predict map[string]json.RawMessage `json:"predict"`
}

var saveOnce struct {
	sync.Once
	saved
	err error
	dir string
}

// models returns models in the tests' environment; the test is skipped where it has
// no MLflow, except in CI.
func models(t *testing.T) saved {
	t.Helper()
	python := interpreter(t)
	if out, err := exec.Command(python, "-c", "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, ('mlflow.pyfunc', 'sklearn', 'pandas'))))").CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("MLflow and scikit-learn are not installed: %v\n%s", err, out)
		}
		t.Skip("MLflow and scikit-learn are not installed; 'make test-tools' installs them")
	}
	saveOnce.Do(func() {
		s := &saveOnce.saved
		if s.dir, saveOnce.err = os.MkdirTemp("", "models"); saveOnce.err != nil {
			return
		}
		out, err := exec.Command(python, "testdata/models.py", s.dir).CombinedOutput()
		if err != nil {
			saveOnce.err = errors.New(err.Error() + "\n" + string(out))
			return
		}
		b, err := os.ReadFile(filepath.Join(s.dir, "expected.json"))
		saveOnce.err = errors.Join(err, json.Unmarshal(b, s))
	})
	if saveOnce.err != nil {
		t.Fatal(saveOnce.err)
	}
	return saveOnce.saved
}

// TestMain removes the models that the tests shared.
func TestMain(m *testing.M) {
	code := m.Run()
	if dir := saveOnce.saved.dir; dir != "" {
		_ = os.RemoveAll(dir) // the system removes what is left
	}
	os.Exit(code)
}

// source returns what serves the MLflow model in dir.
func source(t *testing.T, dir string) *Source {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, mlflow.File))
	if err != nil {
		t.Fatal(err)
	}
	m, err := mlflow.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return &Source{Kind: KindMLflow, Path: dir, Inputs: m.Inputs, Outputs: m.Outputs, Columns: m.Columns, Datetimes: m.Datetimes, Binaries: m.Binaries}
}

// predict serves a model without a script.
func predict(t *testing.T, s *Source) (*httptest.Server, *Pool, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	pool, err := Start(t.Context(), Options{Python: interpreter(t), Predictor: s, Deadline: 10 * time.Minute, InitTimeout: 10 * time.Minute, Log: logger})
	if err != nil {
		t.Fatal(err)
	}
	predictor, err := NewPredictor(pool)
	if err != nil {
		t.Fatal(err)
	}
	handler := serving.NewHandler("m", "1", "test", 0, logger)
	handler.SetReady(serving.NewModel("m", "1", predictor, 0))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(w, r.WithContext(WithID(r.Context(), r.Header.Get(requestID))))
	}))
	t.Cleanup(func() {
		server.Close()
		if err := predictor.Close(); err != nil {
			t.Error(err)
		}
	})
	return server, pool, log
}

// post returns status and answer, which must be a JSON object.
func post(t *testing.T, server *httptest.Server, path, contentType, body string) (int, map[string]any) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType)
	res, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	var answer map[string]any
	if err := errors.Join(json.NewDecoder(res.Body).Decode(&answer), res.Body.Close()); err != nil {
		t.Fatalf("%s: %d, %v", path, res.StatusCode, err)
	}
	return res.StatusCode, answer
}

// TestMLflow compares what is answered for MLflow models with what MLflow answers.
func TestMLflow(t *testing.T) {
	t.Parallel()
	all := models(t)
	for _, name := range []string{"frame", "tensor", "words", "bare"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, pool, log := predict(t, source(t, filepath.Join(all.dir, name)))
			for _, c := range all.Cases {
				if c.Model != name {
					continue
				}
				status, got := post(t, server, "/invocations", c.Type, c.Body)
				var want map[string]any
				if err := json.Unmarshal([]byte(c.Answer), &want); err != nil {
					t.Fatal(err)
				}
				if status != c.Status || got["error_code"] != want["error_code"] || !reflect.DeepEqual(got["predictions"], want["predictions"]) {
					t.Errorf("%s: %d %v, MLflow answers %d %v", c.Body, status, got, c.Status, want)
				}
				if status != http.StatusOK && (got["error"] == "" || got["error"] != got["message"] || got["code"] != "invalid" || got["stack_trace"] != nil) {
					t.Errorf("%s: an error is told as %v", c.Body, got)
				}
			}
			switch name {
			case "frame":
				testColumns(t, server, pool, decoded(t, all.Predict[name]))
			case "tensor":
				status, got := post(t, server, "/score", "application/json", `{"data": [[0.5, -1.25, 3], [2, 1, 0.125]]}`)
				if outputs, _ := got["outputs"].(map[string]any); status != http.StatusOK || !reflect.DeepEqual(outputs["predictions"], decoded(t, all.Predict[name])) {
					t.Errorf("/score: %d %v", status, got)
				}
			}
			if t.Failed() {
				t.Log(log)
			}
		})
	}
}

func decoded(t *testing.T, text json.RawMessage) (v any) {
	t.Helper()
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// testColumns asks an MLflow model of three columns in other dialects than its own, and
// sees that types, names and shapes are checked before it. want is what it predicts.
func testColumns(t *testing.T, frame *httptest.Server, pool *Pool, want any) {
	t.Helper()
	inputs := `{"length": [0.5, 2], "width": [-1.25, 1], "height": [3, 0.125]}`
	status, got := post(t, frame, "/score", "application/json", `{"inputs": `+inputs+`}`)
	if outputs, _ := got["outputs"].(map[string]any); status != http.StatusOK || !reflect.DeepEqual(outputs["predictions"], want) {
		t.Errorf("/score: %d %v", status, got)
	}
	v2 := func(datatype string, length string) string {
		input := func(name, typ, data string) string {
			return `{"name": "` + name + `", "datatype": "` + typ + `", "shape": [2], "data": ` + data + `}`
		}
		return `{"id": "7", "inputs": [` + input("height", "FP64", "[3, 0.125]") + "," + input("length", datatype, length) + "," + input("width", "FP64", "[-1.25, 1]") + `]}`
	}
	status, got = post(t, frame, "/v2/models/m/infer", "application/json", v2("FP64", "[0.5, 2]"))
	outputs, _ := got["outputs"].([]any)
	if status != http.StatusOK || len(outputs) != 1 {
		t.Fatalf("v2: %d %v", status, got)
	}
	if o := outputs[0].(map[string]any); o["name"] != "predictions" || o["datatype"] != "INT64" || !reflect.DeepEqual(o["data"], want) {
		t.Errorf("v2: %v", o)
	}
	for says, body := range map[string]string{
		"inputs[1].datatype is \"FP32\" for input \"length\", FP64 was expected": v2("FP32", "[0.5, 2]"),
		"inputs[1].data has 3 elements, shape [2] needs 2":                       v2("FP64", "[1, 2, 3]"),
	} {
		if status, got := post(t, frame, "/v2/models/m/infer", "application/json", body); status != http.StatusBadRequest || got["error"] != says || got["field"] == "" {
			t.Errorf("v2: %d %v, want %q", status, got, says)
		}
	}
	if status, got := post(t, frame, "/score", "application/json", `{"inputs": {"length": [1], "width": [1]}}`); status != http.StatusBadRequest || !strings.Contains(got["error"].(string), `input "height" is missing`) {
		t.Errorf("/score: %d %v", status, got)
	}
	// Columns of unlike lengths only the model can refuse.
	if status, got := post(t, frame, "/score", "application/json", `{"inputs": {"length": [1], "width": [1, 2], "height": [1]}}`); status != http.StatusBadRequest || !strings.Contains(got["error"].(string), "unlike lengths") {
		t.Errorf("/score: %d %v", status, got)
	}
	// A process that dies over a request costs that request.
	worker := pool.all()[0].cmd.Process.Pid
	if err := syscall.Kill(worker, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	answered := make(chan int, 1)
	go func() {
		status, _ := post(t, frame, "/score", "application/json", `{"inputs": `+inputs+`}`)
		answered <- status
	}()
	eventually(t, "the worker had the request", func() bool {
		pool.mu.Lock()
		defer pool.mu.Unlock()
		return len(pool.idle) == 0
	})
	if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := <-answered; status != http.StatusBadGateway {
		t.Errorf("the request of a process that died: %d", status)
	}
	if status, got := post(t, frame, "/score", "application/json", `{"inputs": `+inputs+`}`); status != http.StatusOK {
		t.Errorf("behind it: %d %v", status, got)
	}
}

// TestPickle serves an estimator that joblib wrote.
func TestPickle(t *testing.T) {
	t.Parallel()
	all := models(t)
	server, _, log := predict(t, &Source{Kind: KindPickle, Path: filepath.Join(all.dir, "frame.joblib")})
	want := []any{0.0, 1.0}
	for _, c := range all.Cases {
		if c.Model == "frame" && c.Status == http.StatusOK {
			if status, got := post(t, server, "/invocations", c.Type, c.Body); status != http.StatusOK || !reflect.DeepEqual(got["predictions"], want) {
				t.Errorf("%s: %d %v\n%s", c.Body, status, got, log)
			}
		}
	}
	status, got := post(t, server, "/score", "application/json", `{"data": [[0.5, -1.25, 3], [2, 1, 0.125]]}`)
	if outputs, _ := got["outputs"].(map[string]any); status != http.StatusOK || !reflect.DeepEqual(outputs["predictions"], want) {
		t.Errorf("/score: %d %v", status, got)
	}
	for body, says := range map[string]string{
		`{"dataframe_split": {"columns": ["length", "depth", "height"], "data": [[1, 2, 3]]}}`: `lacks the columns ['width'] and has ['depth'] besides`,
		`{"dataframe_records": [{"length": 1, "width": "x", "height": 2}]}`:                    `row 0 of dataframe_records has 'x' in column 'width', a number was expected`,
		`{"instances": [[1, 2]]}`:       `row 0 of instances is [1, 2], a list of 3 numbers was expected`,
		`{"instances": [[1, 2, null]]}`: `Input X contains NaN`,
		`{"instances": []`:              `the body is no JSON`,
		`{"columns": []}`:               `exactly one of dataframe_split`,
	} {
		if status, got := post(t, server, "/invocations", "application/json", body); status != http.StatusBadRequest || !strings.Contains(got["error"].(string), says) || got["error_code"] != "BAD_REQUEST" {
			t.Errorf("%s: %d %v, want %q", body, status, got, says)
		}
	}
	if status, got := post(t, server, "/invocations", "text/plain", "x"); status != http.StatusUnprocessableEntity {
		t.Errorf("text: %d %v", status, got)
	}
	_, err := Start(t.Context(), Options{Python: interpreter(t), Predictor: &Source{Kind: KindPickle, Path: filepath.Join(all.dir, "other.pkl")}, Log: slog.New(slog.DiscardHandler)})
	var script *ScriptError
	if !errors.As(err, &script) || script.Message != "the file holds a dict, which has no predict()" {
		t.Errorf("a pickle of something else: %v", err)
	}
}

// TestTensorsOfWorkers reads answers that lie.
func TestTensorsOfWorkers(t *testing.T) {
	t.Parallel()
	specs := []atelier.TensorSpec{{Name: "a", Type: "INT16", Shape: []int64{-1}}, {Name: "b", Type: "BYTES", Shape: []int64{-1}}}
	sound, err := appendTensors(specs, []serving.Tensor{{Type: "INT16", Shape: []int64{2}, Data: []byte{1, 0, 2, 0}}, {Type: "BYTES", Shape: []int64{2}, Strings: []string{"x", ""}}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := readTensors(specs, sound)
	if err != nil || !reflect.DeepEqual(got[1].Strings, []string{"x", ""}) || got[0].Data[2] != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	for cut := range sound {
		if _, err := readTensors(specs, sound[:cut]); atelier.CodeOf(err) != atelier.Internal {
			t.Errorf("the first %d bytes: %v", cut, err)
		}
	}
	if _, err := readTensors(specs, append(sound, 0)); err == nil {
		t.Error("a byte too many is taken")
	}
}

func FuzzTensorsOfWorkers(f *testing.F) {
	specs := []atelier.TensorSpec{{Name: "a", Type: "INT16"}, {Name: "b", Type: "BYTES"}}
	sound, err := appendTensors(specs, []serving.Tensor{{Type: "INT16", Shape: []int64{2}, Data: []byte{1, 0, 2, 0}}, {Type: "BYTES", Shape: []int64{1}, Strings: []string{"x"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sound)
	f.Fuzz(func(t *testing.T, b []byte) {
		tensors, err := readTensors(specs, b)
		if err != nil {
			return
		}
		if n, ok := serving.Elements(tensors[0].Shape); !ok || int64(len(tensors[0].Data)) != 2*n {
			t.Fatalf("%+v", tensors[0])
		}
		if n, ok := serving.Elements(tensors[1].Shape); !ok || int64(len(tensors[1].Strings)) != n {
			t.Fatalf("%+v", tensors[1])
		}
	})
}
