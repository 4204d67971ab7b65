package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/enginetest"
)

const (
	repository = "../.."
	key        = "secret-key"
)

// Where the real programs and the runtime are.
var gatewayProgram, serveProgram, library string

func TestMain(m *testing.M) { os.Exit(setUp(m)) }

func setUp(m *testing.M) int {
	dir, err := os.MkdirTemp("", "gateway")
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
	gatewayProgram, serveProgram, library = filepath.Join(dir, "atelier-gateway"), filepath.Join(dir, "atelier-serve"), filepath.Join(cache, "libonnxruntime.so")
	build := exec.Command("go", "build", "-o", dir, ".", repository+"/cmd/atelier-serve")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as they are shipped
	for _, cmd := range []*exec.Cmd{exec.Command(repository+"/scripts/fetch-runtime", cache), build} {
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %v\n%s", cmd.Args, err, out)
			return 1
		}
	}
	return m.Run()
}

// device is a device's data side, run by the real programs.
type device struct {
	t       *testing.T
	dir     string
	control *http.Client
	gateway *exec.Cmd
	seq     uint64
}

func start(t *testing.T, program string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(program, args...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // likewise
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(program), log.String())
		}
	})
	return cmd
}

func overSocket(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
}

func newDevice(t *testing.T) *device {
	t.Helper()
	dir, err := os.MkdirTemp("", "d") // t.TempDir's paths are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	d := &device{t: t, dir: dir, control: overSocket(filepath.Join(dir, "control"))}
	d.startGateway("127.0.0.1:0")
	return d
}

func (d *device) startGateway(listen string) {
	d.t.Helper()
	d.gateway = start(d.t, gatewayProgram, "--state", filepath.Join(d.dir, "state"), "--listen", listen, "--control", filepath.Join(d.dir, "control"))
	until(d.t, "the gateway listens", func() bool { return d.status().Listen != "" })
}

// status asks the gateway; the zero value while it does not answer.
func (d *device) status() (s atelier.GatewayStatus) {
	resp, err := d.control.Get("http://gateway/status")
	if err != nil {
		return s
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		d.t.Error(err)
	}
	return s
}

// serve starts a model server whose output y is x*2 + offset.
func (d *device) serve(name string, offset float32) (*exec.Cmd, atelier.Backend) {
	d.t.Helper()
	model, socket := filepath.Join(d.dir, name+".onnx"), filepath.Join(d.dir, name)
	if err := os.WriteFile(model, enginetest.Affine(offset), 0o600); err != nil {
		d.t.Fatal(err)
	}
	cmd := start(d.t, serveProgram, "--name", "affine", "--version", "1", "--model", model, "--runtime", library, "--listen", "unix:"+socket, "--threads", "1")
	ready := overSocket(socket)
	until(d.t, name+" is ready", func() bool {
		resp, err := ready.Get("http://module/v2/health/ready")
		if err != nil {
			return false
		}
		_ = resp.Body.Close() // its status is all that counts
		return resp.StatusCode == http.StatusOK
	})
	return cmd, atelier.Backend{Socket: socket, Deployment: "dep", Rollout: "rollout-" + name, Model: "affine", Version: 1}
}

func (d *device) lead(b atelier.Backend) {
	d.t.Helper()
	d.seq++
	sum := sha256.Sum256([]byte(key))
	body, err := json.Marshal(atelier.RouteTable{Sequence: d.seq, Routes: []atelier.Route{{
		Endpoint: "affine", Keys: atelier.EndpointKeys{Primary: hex.EncodeToString(sum[:])}, Backend: b,
	}}})
	if err != nil {
		d.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodPut, "http://gateway/routes", bytes.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	resp, err := d.control.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		d.t.Fatalf("PUT /routes: %s", resp.Status)
	}
}

// score sends one request and returns the answer's status, first value and id.
func (d *device) score(client *http.Client, address string) (status int, y float64, id string, err error) {
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodPost, "http://"+address+"/affine/score", strings.NewReader(`{"data":[[1,2,3,4]]}`))
	if err != nil {
		return 0, 0, "", err
	}
	req.Header.Set("X-Api-Key", key)
	resp, err := client.Do(req)
	if err != nil {
		return 0, 0, "", err
	}
	defer resp.Body.Close()
	id = resp.Header.Get(atelier.HeaderRequestID)
	if resp.StatusCode != http.StatusOK {
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, 0, id, err
	}
	var answer struct {
		Outputs struct{ Y [][]float64 }
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return resp.StatusCode, 0, id, err
	}
	return resp.StatusCode, answer.Outputs.Y[0][0], id, nil
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("gave up waiting until %s", what)
		}
	}
}

// A new version takes over under load, and no request fails.
func TestSwitchUnderLoad(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	old, backend := d.serve("v1", 100)
	d.lead(backend)
	address := d.status().Listen
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var first, second atomic.Int64
	for range 4 {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				status, y, id, err := d.score(client, address)
				switch {
				case err == nil && status == 200 && y == 102 && strings.HasPrefix(id, "rollout-v1-"):
					first.Add(1)
				case err == nil && status == 200 && y == 202 && strings.HasPrefix(id, "rollout-v2-"):
					second.Add(1)
				default:
					t.Errorf("status %d, value %v, id %s, error %v", status, y, id, err)
					return
				}
			}
		})
	}
	until(t, "the first version answers", func() bool { return first.Load() > 100 || t.Failed() })
	_, next := d.serve("v2", 200)
	d.lead(next)
	until(t, "the first version is idle", func() bool {
		for _, c := range d.status().Counters {
			if c.Rollout == backend.Rollout {
				return c.InFlight == 0
			}
		}
		return false
	})
	if err := old.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := old.Wait(); err != nil {
		t.Errorf("the first version's server: %v", err)
	}
	until(t, "the second version answers", func() bool { return second.Load() > 100 || t.Failed() })
	stop()
	wg.Wait()
	t.Logf("%d answers of the first version, %d of the second", first.Load(), second.Load())
}

// A model server that is killed is answered for, at once.
func TestModuleKilled(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	cmd, backend := d.serve("v1", 100)
	d.lead(backend)
	address := d.status().Listen
	if status, _, _, err := d.score(http.DefaultClient, address); status != 200 {
		t.Fatalf("%d, %v", status, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	begin := time.Now()
	status, _, id, err := d.score(http.DefaultClient, address)
	if status != 502 && status != 503 || id == "" || err != nil || time.Since(begin) > 5*time.Second {
		t.Errorf("%d with id %q after %v, %v", status, id, time.Since(begin), err)
	}
	if _, again := d.serve("v1", 100); again != backend {
		t.Fatalf("the second server's backend is %+v", again)
	}
	if status, y, _, err := d.score(http.DefaultClient, address); status != 200 || y != 102 {
		t.Errorf("after a new start: %d, %v, %v", status, y, err)
	}
}

// A gateway that is killed answers from its saved table when it starts again.
func TestGatewayKilled(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	_, backend := d.serve("v1", 100)
	d.lead(backend)
	address := d.status().Listen
	if err := d.gateway.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = d.gateway.Wait() // it was killed
	d.startGateway(address)
	if s := d.status(); s.Sequence != 1 || s.PID != d.gateway.Process.Pid {
		t.Errorf("status = %+v", s)
	}
	if status, y, _, err := d.score(http.DefaultClient, address); status != 200 || y != 102 {
		t.Errorf("%d, %v, %v", status, y, err)
	}
	info, err := os.Stat(filepath.Join(d.dir, "control"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the control socket has mode %v, %v", info.Mode(), err)
	}
	second := exec.Command(gatewayProgram, "--state", filepath.Join(d.dir, "state"), "--listen", "127.0.0.1:0", "--control", filepath.Join(d.dir, "control"))
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "another gateway") {
		t.Errorf("a second gateway on the same socket: %v\n%s", err, out)
	}
	if err := d.gateway.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.gateway.Wait(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
}
