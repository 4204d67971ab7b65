package main

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/atelier-edge/atelier/serving/enginetest"
)

// TestOtherPeoplesClients lets unpatched clients of others use the program.
func TestOtherPeoplesClients(t *testing.T) {
	t.Parallel()
	python := repository + "/.cache/venv/bin/python"
	if err := exec.Command(python, "-c", "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, ('tritonclient.grpc', 'mlflow.pyfunc', 'pandas', 'scipy'))))").Run(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("the clients are not installed: %v", err)
		}
		t.Skip("tritonclient and mlflow are not installed; 'make test-tools' installs them")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	model := file(t, "model.onnx", enginetest.Affine(1))
	client := &http.Client{Transport: &http.Transport{}}
	startOn(t, client, "http://"+address, "--name", "m", "--model", model, "--runtime", library, "--listen", address, "--max-batch", "8")
	for _, script := range []string{"triton_grpc.py", "mlflow_scoring.py"} {
		t.Run(script, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), python, "testdata/"+script, address).CombinedOutput()
			if err != nil || string(out) != "ok\n" {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestKServeClient lets the kserve Python client, which has an environment of its own, use
// the program unpatched, over REST and gRPC.
func TestKServeClient(t *testing.T) {
	t.Parallel()
	python := repository + "/.cache/venv-kserve/bin/python"
	if err := exec.Command(python, "-c", "import importlib.util, sys; sys.exit(not importlib.util.find_spec('kserve'))").Run(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("the kserve client is not installed: %v", err)
		}
		t.Skip("the kserve client is not installed; 'make test-tools' installs it")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{}}
	startOn(t, client, "http://"+address, "--name", "m", "--model", file(t, "model.onnx", enginetest.Affine(1)), "--runtime", library, "--listen", address)
	out, err := exec.CommandContext(t.Context(), python, "testdata/kserve_client.py", address).CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "ok\n") {
		t.Errorf("%v\n%s", err, out)
	}
}
