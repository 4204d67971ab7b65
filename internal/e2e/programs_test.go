package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
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

// program is a program in the background of a test.
type program struct{ *boot.Program }

// built is one of our programs.
func built(name, log string, args ...string) program {
	return program{&boot.Program{Path: filepath.Join(bin, name), Args: args, Log: log}}
}

func (p program) start(t testing.TB) {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
}

// signal sends a signal and waits until the program has ended.
func (p program) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := p.Stop(sig, 30*time.Second); err != nil {
		t.Errorf("%v\n%s", err, p.Tail(200))
	}
}

// says waits until a line of the program's output contains text, and returns it.
func (p program) says(t testing.TB, text string) string {
	t.Helper()
	line, err := p.Says(context.WithoutCancel(t.Context()), text)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// check tells the end of the program's output when the test has failed, and fails
// it when the race detector found something.
func (p program) check(t testing.TB) {
	if i := strings.Index(p.Output(), "WARNING: DATA RACE"); i >= 0 {
		t.Errorf("a data race in %s:\n%s", p.Name(), p.Output()[i:])
	}
	if t.Failed() {
		t.Logf("The end of the output of %s:\n%s", p.Name(), p.Tail(40))
	}
}

// eventually tries until it succeeds, or fails the test when patience is over.
func eventually(t testing.TB, patience time.Duration, try func() error) {
	t.Helper()
	if err := boot.Eventually(t.Context(), patience, try); err != nil {
		t.Fatal(err)
	}
}

func freeAddress(t testing.TB) string {
	t.Helper()
	address, err := boot.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return address
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

// run runs a command to its end and returns its output.
func run(ctx context.Context, env []string, name string, args ...string) (stdout, stderr string, err error) {
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}
