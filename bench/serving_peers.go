package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

// peer is a server that people use in place of ours. scripts/install-peers
// installs each into an environment of its own.
type peer struct {
	name    string
	venv    string
	pkg     string // on PyPI
	workers []int
	// launch says how it serves a workload from dir, which is its own, on a port.
	launch func(w *world, load workload, dir string, workers, port int) (launch, error)
}

// launch is how a peer is started, and how it is asked.
type launch struct {
	env     []string
	command []string // the first word is a program of its environment
	ready   string   // path that answers 200 when it is ready
	path    string   // of requests
	in      payload
}

var peers = []peer{
	{name: "azureml-inference-server-http", venv: "azureml", pkg: "azureml-inference-server-http", workers: []int{1, 2, 4}, launch: azureServer},
	{name: "MLServer", venv: "mlserver", pkg: "mlserver", workers: []int{0, 1, 2, 4}, launch: mlServer}, // 0: in the process that answers
	{name: "mlflow models serve", venv: "mlflow", pkg: "mlflow", workers: []int{1, 2, 4}, launch: mlflowServer},
	{name: "FastAPI, uvicorn", venv: "fastapi", pkg: "fastapi", workers: []int{1, 2, 4}, launch: fastAPI},
}

// onnxEnv tells a peer's code which model it serves. One thread for each inference
// serves these small models best: requests run beside each other.
func onnxEnv(w *world, load workload) []string {
	if model := load.model(w); model != "" {
		return []string{"MODEL=" + model, "THREADS=1"}
	}
	return nil
}

func azureServer(w *world, load workload, _ string, workers, port int) (launch, error) {
	script := "azureml_onnx.py"
	if load.model(w) == "" {
		script = "score.py"
	}
	in, err := asJSON(load.score())
	return launch{
		env: onnxEnv(w, load), ready: "/", path: "/score", in: in,
		command: []string{"azmlinfsrv", "--entry_script", script, "--model_dir", ".", "--port", strconv.Itoa(port), "--worker_count", strconv.Itoa(workers)},
	}, err
}

func mlServer(w *world, load workload, dir string, workers, port int) (launch, error) {
	runtime := "mlserver_runtime.Onnx"
	if load.model(w) == "" {
		runtime = "mlserver_runtime.Script"
	}
	others := make([]int, 2)
	for i := range others {
		var err error
		if others[i], err = freePort(); err != nil {
			return launch{}, err
		}
	}
	settings := fmt.Sprintf(`{"debug": false, "host": "127.0.0.1", "http_port": %d, "grpc_port": %d, "metrics_port": %d, "parallel_workers": %d}`, port, others[0], others[1], workers)
	model := fmt.Sprintf(`{"name": %q, "implementation": %q}`, load.name, runtime)
	in, inErr := load.v2()
	err := errors.Join(inErr, os.WriteFile(filepath.Join(dir, "settings.json"), []byte(settings), 0o600),
		os.WriteFile(filepath.Join(dir, "model-settings.json"), []byte(model), 0o600))
	base := "/v2/models/" + load.name
	return launch{env: append(onnxEnv(w, load), "PYTHONPATH=."), command: []string{"mlserver", "start", "."}, ready: base + "/ready", path: base + "/infer", in: in}, err
}

func mlflowServer(w *world, load workload, dir string, workers, port int) (launch, error) {
	kind, source := "onnx", load.model(w)
	if source == "" {
		kind, source = "script", "score.py"
	}
	venv := w.venv("mlflow")
	save := exec.Command(filepath.Join(venv, "bin/python"), "mlflow_save.py", kind, source, "model")
	save.Dir, save.Env = dir, append(os.Environ(), "MLFLOW_DISABLE_TELEMETRY=true")
	if out, err := save.CombinedOutput(); err != nil {
		return launch{}, fmt.Errorf("%s: %w\n%s", save, err, out)
	}
	in, err := asJSON(load.mlflow())
	return launch{
		env: []string{"MLFLOW_DISABLE_TELEMETRY=true", "PATH=" + filepath.Join(venv, "bin") + ":" + os.Getenv("PATH")}, ready: "/ping", path: "/invocations", in: in,
		command: []string{"mlflow", "models", "serve", "-m", "model", "--env-manager", "local", "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-w", strconv.Itoa(workers)},
	}, err
}

func fastAPI(w *world, load workload, _ string, workers, port int) (launch, error) {
	l := launch{
		env: onnxEnv(w, load), ready: "/ready", path: "/v2/models/" + load.name + "/infer",
		command: []string{"uvicorn", "fastapi_app:app", "--port", strconv.Itoa(port), "--workers", strconv.Itoa(workers), "--log-level", "warning"},
	}
	var err error
	if load.model(w) == "" {
		l.path = "/score"
		l.in, err = asJSON(load.score())
	} else {
		l.in, err = load.v2()
	}
	return l, err
}

func (w *world) venv(name string) string { return filepath.Join(w.root, ".cache/peers", name) }

// missing says why a peer is not installed, "" where it is.
func (w *world) missing(p peer) string {
	if b, err := os.ReadFile(w.venv(p.venv) + ".failed"); err == nil {
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		return "pip says: " + lines[len(lines)-1]
	}
	if _, err := os.Stat(filepath.Join(w.venv(p.venv), "bin/python")); err != nil {
		return "it is not installed: " + err.Error()
	}
	return ""
}

// versionOf asks a peer's environment what is in it.
func (w *world) versionOf(ctx context.Context, p peer) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(w.venv(p.venv), "bin/python"), "-c",
		"import sys, importlib.metadata as m; print(m.version(sys.argv[1]), 'with ONNX Runtime', m.version('onnxruntime'), 'on Python', sys.version.split()[0])", p.pkg)
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

// running is a peer that runs.
type running struct {
	program *boot.Program
	target  target
	command string // for people
}

// startPeer starts a peer and waits until it is ready. It ends with the part.
func (w *world) startPeer(ctx context.Context, p peer, load workload, workers int) (*running, error) {
	dir, err := os.MkdirTemp(w.dir, p.venv)
	if err != nil {
		return nil, err
	}
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(w.root, "bench/peers"))); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	l, err := p.launch(w, load, dir, workers, port)
	if err != nil {
		return nil, err
	}
	command := slices.Clone(l.command)
	command[0] = filepath.Join(w.venv(p.venv), "bin", command[0])
	r := &running{
		program: &boot.Program{Path: "/usr/bin/env", Args: slices.Concat([]string{"-C", dir}, l.env, command), Log: filepath.Join(dir, "log")},
		target:  target{url: fmt.Sprintf("http://127.0.0.1:%d%s", port, l.path), in: l.in},
		command: strings.Join(l.command, " "),
	}
	if err := r.program.Start(); err != nil {
		return nil, err
	}
	w.peers = append(w.peers, r)
	ready := fmt.Sprintf("http://127.0.0.1:%d%s", port, l.ready)
	err = boot.Eventually(ctx, 2*time.Minute, func() error {
		select {
		case <-r.program.Exited():
			return boot.Hopeless{} // its log says why
		default:
		}
		return get(ctx, ready)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s is not ready: %w\n%s", r.command, err, r.program.Tail(10)), r.stop())
	}
	return r, nil
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, res.Body)
	if err = errors.Join(err, res.Body.Close()); err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	return err
}

// stop ends a peer with all processes that it started, which are in its group.
func (r *running) stop() error {
	if err := syscall.Kill(-r.program.PID(), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	<-r.program.Exited()
	return nil
}

func freePort() (int, error) {
	address, err := boot.FreeAddress()
	if err != nil {
		return 0, err
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(port)
}
