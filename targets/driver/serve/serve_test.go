package serve_test

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/targets"
	"github.com/atelier-edge/atelier/targets/driver"
	"github.com/atelier-edge/atelier/targets/driver/serve"
	"github.com/atelier-edge/atelier/targets/process"
	"github.com/atelier-edge/atelier/targets/targettest"
)

// The test program is also the driver, of plain processes, that the client starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 4 && os.Args[1] == "drive" {
		os.Exit(drive(os.Args[2], os.Args[3], os.Args[4]))
	}
	code := m.Run()
	if path, err := shim(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path)) // it lies in a temporary directory
	}
	os.Exit(code)
}

const version = "test"

func drive(dir, shim, socket string) int {
	target, err := process.New(dir, shim)
	if err == nil {
		err = serve.Run(context.Background(), serve.Options{Target: target, Version: version, Socket: socket, Idle: time.Minute})
	}
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error() + "\n") // nobody else could be told
		return 1
	}
	return 0
}

var shim = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "atelier-shim")
	cmd := exec.Command("go", "build", "-o", path, "github.com/atelier-edge/atelier/cmd/atelier-shim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return path, cmd.Run()
})

// newClient returns a client of a driver over dir, which ends with the test.
func newClient(t testing.TB, dir string, version string) *driver.Client {
	t.Helper()
	shim, err := shim()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "d.sock")
	c := driver.New(driver.Options{
		Kind: process.Kind, Program: self, Args: []string{"drive", filepath.Join(dir, "instances"), shim, socket}, Socket: socket,
		Log: filepath.Join(dir, "driver.log"), Version: version, Logger: slog.New(slog.DiscardHandler),
	})
	return c
}

// short returns a directory whose path leaves room for a socket's name, and ends the driver
// that serves there.
func short(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "drv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		endDriver(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// endDriver kills the driver that serves dir, where there is one, and returns when it is gone.
func endDriver(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")) // "" for what is no process
		words := strings.Split(string(line), "\x00")
		if len(words) < 5 || words[1] != "drive" || words[4] != filepath.Join(dir, "d.sock") {
			continue
		}
		var pid int
		for _, r := range e.Name() {
			pid = pid*10 + int(r-'0')
		}
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	targettest.Run(t, targettest.Subject{New: func(t testing.TB, dir string) targets.Target {
		// Its own directory is too deep for a socket.
		link := short(t)
		if err := os.Symlink(dir, filepath.Join(link, "instances")); err != nil {
			t.Fatal(err)
		}
		return newClient(t, link, version)
	}})
}

// TestDriverIsKilled kills the driver under its client: the module goes on, and so does whoever
// waits for it.
func TestDriverIsKilled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir, work := short(t), t.TempDir()
	c := newClient(t, dir, version)
	spec := targets.Spec{ID: "m", Command: []string{"/bin/sh", "-c", "echo up; exec sleep 1000"}, Dir: work, Log: filepath.Join(work, "m.log")}
	if err := c.Start(ctx, spec); err != nil {
		t.Fatal(err)
	}
	before, err := c.Status(ctx, "m")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		s, err := c.Wait(ctx, "m")
		if err == nil && (s.Exit == nil || s.Exit.Signal != "terminated") {
			err = atelier.Errorf(atelier.Internal, "Wait returned %+v", s)
		}
		ended <- err
	}()
	for range 3 {
		endDriver(t, dir)
		after, err := c.Status(ctx, "m")
		for begin := time.Now(); atelier.CodeOf(err) == atelier.Unavailable && time.Since(begin) < 10*time.Second; {
			after, err = c.Status(ctx, "m") // the first request met the driver that was being killed
		}
		if err != nil || after.PID != before.PID {
			t.Fatalf("status = %+v, %v, want process %d", after, err, before.PID)
		}
	}
	if err := c.Stop(ctx, "m", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	r, err := c.Log(ctx, "m", 100)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != "up\n" {
		t.Errorf("the log is %q, %v", b, err)
	}
	_ = r.Close() // it was read
}

// TestDriverOfAnotherVersion must be ended, and the client's own be started; one that is
// missing must be told with what to do.
func TestDriverOfAnotherVersion(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := short(t)
	if _, err := newClient(t, dir, "").List(ctx); err != nil {
		t.Fatal(err)
	}
	_, err := newClient(t, dir, "other").List(ctx)
	if atelier.CodeOf(err) != atelier.Unavailable || !strings.Contains(err.Error(), "another version: test") {
		t.Errorf("a driver that is always of another version: %v", err)
	}
	gone := driver.New(driver.Options{Kind: "x", Program: filepath.Join(dir, "missing"), Socket: filepath.Join(dir, "x.sock"), Log: filepath.Join(dir, "x.log"), Logger: slog.New(slog.DiscardHandler)})
	if _, err := gone.List(ctx); atelier.CodeOf(err) != atelier.Unavailable || !strings.Contains(err.Error(), "missing") {
		t.Errorf("a driver that is not there: %v", err)
	}
}
