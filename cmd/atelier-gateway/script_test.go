package main

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

// A scoring script behind the gateway: passed on and lent, the id of a
// request is in the script's log, the key is not shown to the script, and
// when workers are killed under load nothing fails but the requests in them.
func TestScript(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatalf("the test needs python3: %v", err)
	}
	d := newDevice(t)
	script, socket := filepath.Join(d.dir, "score.py"), filepath.Join(d.dir, "script")
	if err := os.WriteFile(script, []byte(`
import os
def init(): pass
def run(data, request_headers):
    print("has", data)
    assert not any("secret" in v for v in request_headers.values()), "the key came"
    return os.getpid()
`), 0o600); err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	cmd := exec.Command(serveProgram, "--name", "m", "--script", script, "--model-dir", d.dir, "--python", python, "--listen", "unix:"+socket, "--workers", "2")
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // likewise
		if t.Failed() {
			t.Logf("%.20000s", log.String())
		}
	})
	ready := overSocket(socket)
	until(t, "the script is ready", func() bool {
		resp, err := ready.Get("http://module/v2/health/ready")
		return err == nil && resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	})
	d.lead(atelier.Backend{Socket: socket, Deployment: "dep", Rollout: "rollout-script", Model: "m", Version: 1})
	address := d.status().Listen

	score := func(client *http.Client, body string) (status int, text, id string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/affine/score", strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return 0, "", ""
		}
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			return 0, "", ""
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Error(err)
		}
		return resp.StatusCode, string(b), resp.Header.Get(atelier.HeaderRequestID)
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	pid := 0
	for i := range 10 { // on one connection, which is lent after some
		body := "body-" + strconv.Itoa(i)
		status, text, id := score(client, body)
		if pid, err = strconv.Atoi(text); status != 200 || err != nil || !strings.HasPrefix(id, "rollout-script-") {
			t.Fatalf("it is answered with %d %s, id %s", status, text, id)
		}
		until(t, "the log has "+body+" with its id", func() bool {
			for line := range strings.Lines(log.String()) {
				if strings.Contains(line, "has "+body) {
					return strings.Contains(line, "request="+id)
				}
			}
			return false
		})
	}

	const kills = 5
	var good, bad atomic.Int64
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				status, text, _ := score(client, "load")
				switch {
				case status == 200:
					good.Add(1)
				case status == 502 && strings.Contains(text, "was ended by signal"):
					bad.Add(1)
				default:
					t.Errorf("it is answered with %d %s", status, text)
					return
				}
			}
		})
	}
	for range kills {
		before := good.Load()
		until(t, "more is answered", func() bool { return good.Load() > before+20 || t.Failed() })
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		old := pid
		until(t, "another worker answers", func() bool {
			_, text, _ := score(client, "who")
			if n, err := strconv.Atoi(text); err == nil {
				pid = n
			}
			return pid != old || t.Failed()
		})
	}
	close(stop)
	group.Wait()
	if n := bad.Load(); n > kills {
		t.Errorf("%d requests failed over %d kills", n, kills)
	}
}

// syncBuffer is written and read at a time.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
