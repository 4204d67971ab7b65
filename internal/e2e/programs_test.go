package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// root is the repository.
var root = func() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	return filepath.Dir(filepath.Dir(dir))
}()

// bin is where TestMain built the programs.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "atelier-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		bin = dir
		if err := build(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// build builds the programs as `make build` does; those that are not
// time-critical with the race detector where the test itself has it.
func build() error {
	targets := [][]string{{"CGO_ENABLED=0"}}
	if raceEnabled {
		targets = append(targets, []string{"CGO_ENABLED=1"})
	}
	for i, env := range targets {
		args := []string{"build", "-trimpath", "-o", bin + "/"}
		programs := []string{"./cmd/..."}
		if i == 1 {
			args = append(args, "-race")
			programs = []string{"./cmd/atelier-hub", "./cmd/atelier-agent", "./cmd/atelier-gateway"}
		}
		cmd := exec.Command("go", append(args, programs...)...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build the programs: %w\n%s", err, out)
		}
	}
	return nil
}

// program is one program running in the background.
type program struct {
	name string
	args []string
	log  string

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
}

func (p *program) start(t testing.TB) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	path := p.name // of somebody else's program
	if !filepath.IsAbs(path) {
		path = filepath.Join(bin, p.name)
	}
	cmd := exec.Command(path, p.args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	p.cmd, p.exited = cmd, exited
}

// signal sends a signal and waits until the program has ended.
func (p *program) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	select {
	case <-p.exited:
		return
	default:
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	select {
	case <-p.exited:
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go into its log
		<-p.exited
		t.Errorf("%s did not end after %s", p.name, sig)
	}
}

func (p *program) output(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// says waits until a line of the program's output contains text, and returns it.
func (p *program) says(t testing.TB, text string) string {
	t.Helper()
	var found string
	eventually(t, 60*time.Second, func() error {
		for line := range strings.SplitSeq(p.output(t), "\n") {
			if strings.Contains(line, text) {
				found = strings.TrimSpace(line)
				return nil
			}
		}
		select {
		case <-p.exited:
			t.Fatalf("%s ended by itself:\n%s", p.name, p.output(t))
		default:
		}
		return fmt.Errorf("%s does not say %q", p.name, text)
	})
	return found
}

// tell prints the end of the program's output when the test has failed.
func (p *program) tell(t testing.TB) {
	if !t.Failed() {
		return
	}
	lines := strings.Split(p.output(t), "\n")
	t.Logf("The end of the output of %s:\n%s", p.name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	if i := strings.Index(p.output(t), "WARNING: DATA RACE"); i >= 0 {
		t.Logf("A data race in %s:\n%s", p.name, p.output(t)[i:])
	}
}

// eventually tries until it succeeds, or fails the test when patience is over.
func eventually(t testing.TB, patience time.Duration, try func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("gave up after %s: %v", patience, err)
		}
		<-time.After(50 * time.Millisecond)
	}
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// shortDir is a temporary directory with a path short enough for Unix sockets.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "at-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// endAll ends every program of ours that was started with a path below dir:
// gateways, shims and model servers outlive their agents by design.
func endAll(t testing.TB, dir string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		left := 0
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
				return err
			}
			if bytes.HasPrefix(cmdline, []byte(bin+"/")) && bytes.Contains(cmdline, []byte(dir+"/")) {
				left++
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
					return err
				}
			}
		}
		if left > 0 {
			return fmt.Errorf("%d programs are left in %s", left, dir)
		}
		return nil
	})
}

// run runs a command to its end and returns its output.
func run(ctx context.Context, env []string, name string, args ...string) (stdout, stderr string, err error) {
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}
