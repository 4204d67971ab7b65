package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving"
	"github.com/atelier-edge/atelier/serving/enginetest"
)

// process is a program that a test has started, and how it is asked over its sockets.
type process struct {
	*testing.T
	cmd    *exec.Cmd
	log    bytes.Buffer
	socket string
}

// ask sends a request to a socket and returns the answer.
func ask(ctx context.Context, socket, method, path, body string) (int, string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, method, "http://server"+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// holder starts a server of several models.
func holder(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{T: t, socket: filepath.Join(filepath.Dir(file(t, "x", nil)), "c")}
	p.cmd = exec.Command(program, append([]string{"--server", p.socket, "--server-name", "edge", "--runtime", library}, args...)...)
	p.cmd.Stderr = &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill() }) // it has ended when all went well
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if status, _, err := ask(t.Context(), p.socket, http.MethodGet, "/v2/health/ready", ""); err == nil && status == http.StatusOK {
			return p
		}
		if time.Now().After(end) {
			t.Fatalf("the server never answered")
		}
	}
}

// load lets the server load a model; the answer's status and body come back.
func (p *process) load(id, model string, args ...string) (status int, answer string) {
	p.Helper()
	body, err := json.Marshal(atelier.ModelLoad{Args: append([]string{"--name", id, "--model", model, "--listen", "unix:" + p.of(id)}, args...)})
	if err != nil {
		p.Fatal(err)
	}
	status, answer, err = ask(p.Context(), p.socket, http.MethodPut, "/models/"+id, string(body))
	if err != nil {
		p.Fatal(err)
	}
	return status, answer
}

// of is the socket of a model.
func (p *process) of(id string) string { return filepath.Join(filepath.Dir(p.socket), id) }

// refuses checks that a model is not loaded, and why.
func (p *process) refuses(id, model string, exit int, says string, args ...string) {
	p.Helper()
	status, answer := p.load(id, model, args...)
	var failure atelier.ModelFailure
	if err := json.Unmarshal([]byte(answer), &failure); err != nil || status != http.StatusUnprocessableEntity || failure.Exit != exit || !strings.Contains(failure.Reason, says) {
		p.Errorf("%s: %d %s (%v); exit code %d and %q were expected", id, status, answer, err, exit, says)
	}
}

// answers checks that a model gives twice its input and the offset.
func (p *process) answers(id, want string) {
	p.Helper()
	status, answer, err := ask(p.Context(), p.of(id), http.MethodPost, "/score", `{"inputs":{"x":[[1,1,1,1]]}}`)
	if err != nil || status != http.StatusOK || !strings.Contains(answer, `"y":[[`+want) {
		p.Errorf("%s answers %d %s (%v), y of %s was expected", id, status, answer, err, want)
	}
}

// heavy is a model with weights of that many bytes, which takes one float and gives one.
func heavy(size int) []byte {
	spec := atelier.TensorSpec{Type: string(serving.FP32), Shape: []int64{1}}
	in, out := spec, spec
	in.Name, out.Name = "x", "y"
	return enginetest.Graph{
		Inputs: []atelier.TensorSpec{in}, Outputs: []atelier.TensorSpec{out},
		Nodes:  []enginetest.Node{{Op: "Mul", Inputs: []string{"x", "w"}, Outputs: []string{"p"}}, {Op: "ReduceSum", Inputs: []string{"p"}, Outputs: []string{"y"}}},
		Floats: map[string][]float32{"w": make([]float32, size/4)},
	}.ONNX()
}

// Several models answer from one process, each on its own socket; one that cannot be
// loaded, or for which there is no room, says why, and the others go on.
func TestServerOfSeveralModels(t *testing.T) {
	t.Parallel()
	const limit = 96 << 20
	p := holder(t, "--memory", "100663296")
	one, two := file(t, "one.onnx", enginetest.Affine(1)), file(t, "two.onnx", enginetest.Affine(2))
	for id, model := range map[string]string{"one": one, "two": two} {
		status, answer := p.load(id, model)
		var health atelier.ModuleHealth
		if err := json.Unmarshal([]byte(answer), &health); err != nil || status != http.StatusOK || health.Memory <= 0 || health.Memory > limit/2 {
			t.Fatalf("%s: %d %s (%v)", id, status, answer, err)
		}
	}
	p.answers("one", "3")
	p.answers("two", "4")
	if status, answer := p.load("one", one); status != http.StatusOK {
		t.Errorf("a model that is loaded already: %d %s", status, answer)
	}
	p.refuses("one", two, 2, "other arguments")
	p.refuses("noise", file(t, "noise", []byte("noise")), 65, "cannot load the model")
	golden := file(t, "golden.json", []byte(`{"format":1,"cases":[{"name":"three",
		"request":{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,1,1,1]}]},
		"response":{"outputs":[{"name":"y","datatype":"FP32","shape":[1,4],"data":[9,9,9,9]}]}}]}`))
	p.refuses("wrong", one, 70, "three", "--golden", golden)
	p.refuses("large", file(t, "large.onnx", heavy(128<<20)), 71, "takes at least 128.0 MiB of memory")
	p.refuses("growing", file(t, "growing.onnx", heavy(70<<20)), 71, "are left")
	p.refuses("usage", one, 2, "no option", "more")
	p.answers("one", "3")

	status, answer, err := ask(t.Context(), p.of("two"), http.MethodPost, "/v2/repository/index", "")
	var index []serving.IndexEntry
	if err == nil {
		err = json.Unmarshal([]byte(answer), &index)
	}
	if err != nil || status != http.StatusOK || len(index) != 2 || index[0].Name != "one" || index[0].State != "READY" || index[0].Memory <= 0 {
		t.Errorf("the index is %d %s (%v)", status, answer, err)
	}
	if status, _, err := ask(t.Context(), p.socket, http.MethodDelete, "/models/one", ""); err != nil || status != http.StatusNoContent {
		t.Errorf("unloading: %d, %v", status, err)
	}
	if _, err := os.Stat(p.of("one")); err == nil {
		t.Error("the socket of a model that was unloaded is still there")
	}
	p.answers("two", "4")
	if status, answer := p.load("one", two); status != http.StatusOK {
		t.Errorf("another model under an id that is free again: %d %s", status, answer)
	}
	p.answers("one", "4")
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("it ended with %v\n%s", err, p.log.String())
	}
}
