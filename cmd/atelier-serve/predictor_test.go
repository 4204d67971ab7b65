package main

import (
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// numpyPython returns an interpreter that has NumPy; the test is skipped where there
// is none, except in CI.
func numpyPython(t *testing.T) string {
	t.Helper()
	python := repository + "/.cache/venv/bin/python"
	if err := exec.Command(python, "-c", "import numpy").Run(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("NumPy is not installed: %v", err)
		}
		t.Skip("NumPy is not installed; 'make test-tools' installs it")
	}
	return python
}

// negates is a pickle of an object whose predict() changes the sign.
const negates = "ctypes\nSimpleNamespace\np0\n(tRp1\n(dp2\nVpredict\np3\nc_operator\nneg\np4\nsb."

// A model in Python that cannot be served is told by the exit code and the last line.
func TestPredictorExitCodes(t *testing.T) {
	t.Parallel()
	python := numpyPython(t)
	good := file(t, "model.pkl", []byte(negates))
	none := file(t, "model.pkl", []byte("(dp0\n."))
	cut := file(t, "model.pkl", []byte(negates[:20]))
	golden := file(t, "golden.json", []byte(`{"format": 1, "cases": [{"name": "two",
		"request": {"inputs": [{"name": "input", "datatype": "FP64", "shape": [1, 1], "data": [2]}]}, "response": {"outputs": [{"name": "predictions", "datatype": "FP64", "shape": [1, 1], "data": [3]}]}}]}`))
	spark := filepath.Dir(file(t, "MLmodel", []byte("flavors: {spark: {}}\n")))
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"no model":    {[]string{"--pickle", none, "--python", python}, 65, "the file holds a dict, which has no predict()"},
		"cut off":     {[]string{"--pickle", cut, "--python", python}, 65, "the model cannot be loaded: "},
		"golden":      {[]string{"--pickle", good, "--python", python, "--golden", golden}, 70, "predictions"},
		"spark":       {[]string{"--mlflow", spark, "--python", python}, 65, "python_function was expected"},
		"absent":      {[]string{"--mlflow", spark + "/nowhere", "--python", python}, 65, "no such file"},
		"interpreter": {[]string{"--pickle", good, "--python", "/nowhere/python"}, 69, "/nowhere/python cannot be started"},
		"usage":       {[]string{"--pickle", good}, 2, "need --python"},
		"two":         {[]string{"--pickle", good, "--mlflow", spark, "--python", python}, 2, "one of them was expected"},
		"negative":    {[]string{"--pickle", good, "--python", python, "--workers", "-1"}, 2, "must not be negative"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			socket := filepath.Join(filepath.Dir(file(t, "here", nil)), "s")
			out, err := exec.Command(program, append([]string{"--name", "m", "--listen", "unix:" + socket}, c.args...)...).CombinedOutput()
			var exit *exec.ExitError
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			if last := lines[len(lines)-1]; !errors.As(err, &exit) || exit.ExitCode() != c.code || !strings.Contains(last, c.says) {
				t.Errorf("%v, %q; want exit code %d and %q", err, last, c.code, c.says)
			}
		})
	}
}

// The program serves a model in Python at the routes of ONNX models.
func TestServePredictor(t *testing.T) {
	t.Parallel()
	python, model := numpyPython(t), file(t, "model.pkl", []byte(negates))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{}}
	startOn(t, client, "http://"+address, "--name", "m", "--pickle", model, "--python", python, "--listen", address, "--workers", "2")
	out, err := exec.CommandContext(t.Context(), python, "testdata/predictor_clients.py", address).CombinedOutput()
	if err != nil || string(out) != "ok\n" {
		t.Errorf("%v\n%s", err, out)
	}
}
