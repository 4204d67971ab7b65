package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/targets"
	"github.com/atelier-edge/atelier/targets/targettest"
)

var shim string // the real atelier-shim, built once

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	shim = filepath.Join(dir, "atelier-shim")
	build := exec.Command("go", "build", "-o", shim, "../../cmd/atelier-shim")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build atelier-shim: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

func newTarget(t testing.TB, dir string) targets.Target {
	target, err := New(dir, shim)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestTarget(t *testing.T) {
	t.Parallel()
	targettest.Run(t, targettest.Subject{
		New: newTarget,
		KillHolder: func(t testing.TB, _ targets.Target, dir, id string) {
			pid, err := instance(filepath.Join(dir, id)).holder()
			if err != nil || pid == 0 {
				t.Fatalf("no shim holds %s: %v", id, err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
	})
}

// startSleeper starts an instance that sleeps and returns its target, directory and status.
func startSleeper(t *testing.T) (*Target, instance, targets.Status) {
	t.Helper()
	dir, work := t.TempDir(), t.TempDir()
	target := newTarget(t, dir).(*Target)
	spec := targets.Spec{ID: "m", Command: []string{"/bin/sleep", "1000"}, Dir: work, Log: filepath.Join(work, "log")}
	if err := target.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	s, err := target.Status(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	return target, instance(filepath.Join(dir, "m")), s
}

// stopSleeper stops the instance and waits until its shim, which writes down how
// it ended before it lets go, is gone.
func stopSleeper(t *testing.T, target *Target) {
	t.Helper()
	if err := target.Stop(t.Context(), "m", time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := target.settled(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
}

// After a reboot there is no shim, and the numbers of processes mean others.
func TestRebootReadsAsExited(t *testing.T) {
	t.Parallel()
	target, inst, _ := startSleeper(t)
	stopSleeper(t, target)
	for name, s := range map[string]state{
		"another boot":    {BootID: "another", Status: targets.Status{PID: os.Getpid()}},
		"another process": {BootID: bootID(), StartTicks: 1, Status: targets.Status{PID: os.Getpid()}},
		"no process":      {BootID: bootID(), StartTicks: 1, Status: targets.Status{PID: 1 << 22}},
	} {
		s.ID, s.Phase = "m", targets.Running
		if err := inst.write(statusFile, &s); err != nil {
			t.Fatal(err)
		}
		got, err := target.Status(t.Context(), "m")
		if err != nil || got.Phase != targets.Exited || got.Exit == nil || got.Exit.Code != -1 {
			t.Errorf("%s: status = %+v, %v, want exited with code -1", name, got, err)
		}
	}
}

func TestTornFilesAreStartable(t *testing.T) {
	t.Parallel()
	target, inst, _ := startSleeper(t)
	stopSleeper(t, target)
	if err := os.WriteFile(inst.path(statusFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := target.Status(t.Context(), "m"); atelier.CodeOf(err) != atelier.Corrupt {
		t.Errorf("Status of a torn file: %v, want code corrupt", err)
	}
	if list, err := target.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("List = %v, %v, want nothing", list, err)
	}
	if err := target.Remove(t.Context(), "m"); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

// A stopped shim answers no signal; Stop gets the module down all the same.
func TestStopFrozenShim(t *testing.T) {
	t.Parallel()
	target, inst, s := startSleeper(t)
	pid, err := inst.holder()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := target.Stop(t.Context(), "m", 0); err != nil {
		t.Fatal(err)
	}
	if _, zombie, err := startTicks(s.PID); err == nil && !zombie {
		t.Errorf("process %d outlived its shim", s.PID)
	}
}

// A missing shim is said plainly.
func TestShimMissing(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	target, err := New(t.TempDir(), filepath.Join(work, "no-shim"))
	if err != nil {
		t.Fatal(err)
	}
	err = target.Start(t.Context(), targets.Spec{ID: "m", Command: []string{"/bin/true"}, Dir: work, Log: filepath.Join(work, "log")})
	if e, ok := err.(*atelier.Error); !ok || e.Remedy == "" {
		t.Errorf("Start = %v, want an error with a remedy", err)
	}
}

// The conformance suite's shim is a small program; so small shall it stay.
func TestShimIsSmall(t *testing.T) {
	t.Parallel()
	target, inst, _ := startSleeper(t)
	pid, err := inst.holder()
	if err != nil {
		t.Fatal(err)
	}
	const limit = 6 << 20
	if got := ownMemory(fmt.Sprintf("/proc/%d", pid)); got > limit {
		t.Errorf("the shim holds %d bytes, at most %d are allowed", got, limit)
	}
	if err := target.Stop(t.Context(), "m", time.Second); err != nil {
		t.Fatal(err)
	}
}

// What a module started ends with it, also what left its group, and what has
// ended before is not kept.
func TestOrphans(t *testing.T) {
	t.Parallel()
	dir, work := t.TempDir(), t.TempDir()
	target := newTarget(t, dir)
	script := `for i in 1 2 3; do (setsid sleep 0.01 &); done; (setsid sleep 1000 & echo $! >one); sh -c 'setsid sleep 1000 & echo $! >two; mv two pids'; cat one >>pids; sleep 1000`
	spec := targets.Spec{ID: "m", Command: []string{"/bin/sh", "-c", script}, Dir: work, Log: filepath.Join(work, "log")}
	if err := target.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	pids := func() (pids []int) {
		text, err := os.ReadFile(filepath.Join(work, "pids"))
		for _, word := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
		if err != nil {
			return nil
		}
		return pids
	}
	wait := func(what string, holds func() bool) {
		for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("it never came that %s", what)
			}
		}
	}
	wait("the module has started others", func() bool { return len(pids()) == 2 })
	left := pids()
	shim, err := instance(filepath.Join(dir, "m")).holder()
	if err != nil {
		t.Fatal(err)
	}
	wait("only those that run are the shim's", func() bool { return children(t, shim) == 3 })
	if err := target.Stop(t.Context(), "m", time.Second); err != nil {
		t.Fatal(err)
	}
	for _, pid := range left {
		wait("an orphan is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	}
}

// children counts the children of a process, those that ended included.
func children(t *testing.T, pid int) (n int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		n += len(strings.Fields(string(text)))
	}
	return n
}
