package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

	"github.com/atelier-edge/atelier/serving/enginetest"
)

const repository = "../.."

// Where the real program and the runtime are.
var program, library string

func TestMain(m *testing.M) { os.Exit(setUp(m)) }

func setUp(m *testing.M) int {
	dir, err := os.MkdirTemp("", "serve")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	cache, err := filepath.Abs(repository + "/.cache/onnxruntime")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	program, library = filepath.Join(dir, "atelier-serve"), filepath.Join(cache, "libonnxruntime.so")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is shipped
	for _, cmd := range []*exec.Cmd{exec.Command(repository+"/scripts/fetch-runtime", cache), build} {
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %v\n%s", cmd.Args, err, out)
			return 1
		}
	}
	return m.Run()
}

// file writes a file into a directory whose path is short enough for sockets.
func file(t testing.TB, name string, data []byte) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What cannot be loaded is told by the exit code and the last line.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	model, noise := file(t, "model.onnx", enginetest.Affine(1)), file(t, "noise", []byte("noise"))
	socket := filepath.Join(filepath.Dir(model), "s")
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"model":   {[]string{"--name", "m", "--model", noise, "--runtime", library}, 65, "cannot load the model"},
		"runtime": {[]string{"--name", "m", "--model", model, "--runtime", noise}, 69, "cannot be loaded"},
		"usage":   {[]string{"--model", model, "--runtime", library}, 2, "--name is missing"},
		"address": {[]string{"--name", "m", "--model", model, "--runtime", library, "--listen", "unix:/nowhere/at/all"}, 1, "cannot listen"},
	} {
		cmd := exec.Command(program, append([]string{"--listen", "unix:" + socket}, c.args...)...)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if !errors.As(err, &exit) || exit.ExitCode() != c.code || !strings.Contains(lines[len(lines)-1], c.says) {
			t.Errorf("%s: %v, last line %q; want exit code %d and %q", name, err, lines[len(lines)-1], c.code, c.says)
		}
	}
}

// The program answers on its socket, takes over one that was left behind, and on
// SIGTERM finishes what it has.
func TestServe(t *testing.T) {
	t.Parallel()
	model := file(t, "model.onnx", enginetest.Affine(1))
	socket := filepath.Join(filepath.Dir(model), "s")
	left, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	args := []string{"--name", "affine", "--version", "7", "--model", model, "--runtime", library, "--listen", "unix:" + socket}
	cmd := exec.Command(program, args...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }() // it has ended when all went well
	client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		resp, err := client.Get("http://module/v2/health/ready")
		if err == nil {
			_ = resp.Body.Close() // its status is all that counts
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Now().After(end) {
			t.Fatalf("it was never ready: %v", err)
		}
	}
	resp, err := client.Post("http://module/v2/models/affine/versions/7/infer", "application/json",
		strings.NewReader(`{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}],"outputs":[{"name":"y"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	var answer struct{ Outputs []struct{ Data []float64 } }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || len(answer.Outputs) != 1 || fmt.Sprint(answer.Outputs[0].Data) != "[3 5 7 9]" {
		t.Errorf("%s %+v, %v", resp.Status, answer, err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v, %v", info.Mode(), err)
	}
	if out, err := exec.Command(program, args...).CombinedOutput(); err == nil || !strings.Contains(string(out), "another process answers") {
		t.Errorf("a second one on the same socket: %v %s", err, out)
	}

	// A request whose body is still on its way when the end is asked for. That the
	// body is asked for tells that the request is being answered.
	body, send := io.Pipe()
	answered := make(chan string, 1)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://module/score", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Expect", "100-continue")
	go func() {
		resp, err := client.Do(req)
		if err != nil {
			answered <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		answered <- fmt.Sprint(resp.StatusCode, string(b), err)
	}()
	if _, err := io.WriteString(send, `{"data":[[1,2,3,`); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) { // until it listens no more
		conn, err := net.Dial("unix", socket)
		if err != nil {
			break
		}
		_ = conn.Close() // nothing was sent
		if time.Now().After(end) {
			t.Fatal("it goes on listening")
		}
	}
	if _, err := io.WriteString(send, `4]]}`); err != nil {
		t.Fatal(err)
	}
	if err := send.Close(); err != nil {
		t.Fatal(err)
	}
	if got := <-answered; !strings.HasPrefix(got, `200{"outputs":{"y":[[3,5,7,9]]`) {
		t.Errorf("the request in progress was answered with %s", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v\n%s", err, log.String())
	}
}
