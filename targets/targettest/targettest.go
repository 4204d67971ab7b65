// Package targettest is the conformance suite of target kinds: what every
// implementation of targets.Target must do, tested on the real thing. A kind
// joins by one call of Run in its tests.
package targettest

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/targets"
)

// patience is how long anything in the suite may take.
const patience = 30 * time.Second

// Subject is a target kind under test. Its instances must be able to run /bin/sh.
type Subject struct {
	// New returns a target that keeps its instances in dir. It is called again
	// with the same dir where an agent would have been restarted.
	New func(t testing.TB, dir string) targets.Target
	// KillHolder ends, as by SIGKILL, whatever program of the target's holds
	// instance id. It is nil for a kind that has no such program.
	KillHolder func(t testing.TB, target targets.Target, dir, id string)
	// Isolated tells that instances count their processes from 1, not as the machine does.
	Isolated bool
}

// Run tests subject.
func Run(t *testing.T, subject Subject) {
	cases := map[string]func(*testing.T, *fixture){
		"start":             testStart,
		"start again":       testStartAgain,
		"exit":              testExit,
		"cannot start":      testCannotStart,
		"stop with grace":   testStopGrace,
		"stop the stubborn": testStopStubborn,
		"stop helpers":      testStopHelpers,
		"stop gives up":     testStopGivesUp,
		"environment":       testEnvironment,
		"adoption":          testAdoption,
		"holder killed":     testHolderKilled,
		"log is capped":     testLogCapped,
		"memory limit":      testMemoryLimit,
		"list":              testList,
		"wait":              testWait,
		"remove":            testRemove,
		"unknown":           testUnknown,
		"hostile ids":       testHostileIDs,
		"many at once":      testConcurrent,
	}
	for name, run := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			t.Cleanup(cancel)
			f := &fixture{Subject: subject, ctx: ctx, dir: t.TempDir(), work: t.TempDir()}
			f.Target = subject.New(t, f.dir)
			t.Cleanup(func() { f.stopAll(t) })
			run(t, f)
		})
	}
}

type fixture struct {
	Subject
	targets.Target
	ctx  context.Context
	dir  string // the target's
	work string // the modules'
}

func (f *fixture) stopAll(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	list, err := f.List(ctx)
	if err != nil {
		t.Errorf("List while cleaning up: %v", err)
	}
	for _, s := range list {
		if err := f.Stop(ctx, s.ID, 0); err != nil {
			t.Errorf("Stop while cleaning up: %v", err)
		}
	}
}

// spec describes an instance that runs a shell script.
func (f *fixture) spec(id, script string) targets.Spec {
	return targets.Spec{
		ID: id, Command: []string{"/bin/sh", "-c", script}, Dir: f.work,
		Log: filepath.Join(f.work, id+".log"), LogLimit: 1 << 20,
	}
}

func (f *fixture) start(t *testing.T, spec targets.Spec) targets.Status {
	t.Helper()
	if err := f.Start(f.ctx, spec); err != nil {
		t.Fatalf("Start: %v", err)
	}
	s, err := f.Status(f.ctx, spec.ID)
	if err != nil {
		t.Fatalf("Status after Start: %v", err)
	}
	return s
}

func (f *fixture) wait(t *testing.T, id string) *targets.Exit {
	t.Helper()
	s, err := f.Wait(f.ctx, id)
	if err != nil {
		t.Fatalf("Wait: %v", err)
	}
	if s.Phase != targets.Exited || s.Exit == nil {
		t.Fatalf("Wait returned phase %q, exit %v", s.Phase, s.Exit)
	}
	return s.Exit
}

func (f *fixture) log(t *testing.T, id string, max int64) string {
	t.Helper()
	r, err := f.Log(f.ctx, id, max)
	if err != nil {
		t.Fatalf("Log: %v", err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read the log: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatalf("close the log: %v", err)
	}
	return string(b)
}

// until polls until ok, or fails.
func (f *fixture) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-f.ctx.Done():
			t.Fatalf("gave up waiting until %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// says waits until the instance has written word.
func (f *fixture) says(t *testing.T, id, word string) {
	t.Helper()
	f.until(t, id+" says "+word, func() bool { return strings.Contains(f.log(t, id, 1<<16), word) })
}

func testStart(t *testing.T, f *fixture) {
	s := f.start(t, f.spec("m-1", "echo up; exec sleep 1000"))
	if s.Phase != targets.Running || s.PID <= 0 || s.Exit != nil || s.ID != "m-1" {
		t.Fatalf("status = %+v, want a running one", s)
	}
	if d := time.Since(s.Started); d < -time.Minute || d > patience {
		t.Fatalf("started %v ago", d)
	}
	if err := syscall.Kill(s.PID, 0); err != nil {
		t.Fatalf("process %d: %v", s.PID, err)
	}
	f.says(t, "m-1", "up")
}

func testStartAgain(t *testing.T, f *fixture) {
	first := f.start(t, f.spec("m", "exec sleep 1000"))
	second := f.start(t, f.spec("m", "exec sleep 1000"))
	if first.PID != second.PID {
		t.Fatalf("a second Start replaced process %d by %d", first.PID, second.PID)
	}
	if err := f.Stop(f.ctx, "m", time.Second); err != nil {
		t.Fatal(err)
	}
	third := f.start(t, f.spec("m", "exec sleep 1000"))
	if third.Phase != targets.Running || third.PID == first.PID {
		t.Fatalf("status after a Start of the ended instance = %+v", third)
	}
}

func testExit(t *testing.T, f *fixture) {
	f.start(t, f.spec("bad", "echo one; echo two >&2; echo; exit 65"))
	exit := f.wait(t, "bad")
	if exit.Code != 65 || exit.Signal != "" || exit.LastLine != "two" || exit.OutOfMemory {
		t.Errorf("exit = %+v, want code 65 with last line two", exit)
	}
	f.start(t, f.spec("shot", "printf 'no end'; kill -SEGV $$"))
	exit = f.wait(t, "shot")
	if exit.Code != -1 || exit.Signal != "segmentation fault" || exit.LastLine != "no end" {
		t.Errorf("exit = %+v, want signal segmentation fault", exit)
	}
	f.start(t, f.spec("long", "head -c 10000 /dev/zero | tr '\\0' x"))
	if exit = f.wait(t, "long"); exit.Code != 0 || len(exit.LastLine) != 4096 {
		t.Errorf("exit code %d with a last line of %d bytes, want 0 and 4096", exit.Code, len(exit.LastLine))
	}
}

func testCannotStart(t *testing.T, f *fixture) {
	spec := f.spec("m", "")
	spec.Command = []string{filepath.Join(f.work, "missing")}
	err := f.Start(f.ctx, spec)
	if err == nil || !strings.Contains(err.Error(), "missing") {
		t.Fatalf("Start of a missing program: %v, want an error that names it", err)
	}
	if code := atelier.CodeOf(err); code != atelier.Invalid {
		t.Errorf("code = %q, want invalid", code)
	}
	for name, change := range map[string]func(*targets.Spec){
		"no command":    func(s *targets.Spec) { s.Command = nil },
		"relative dir":  func(s *targets.Spec) { s.Dir = "x" },
		"relative log":  func(s *targets.Spec) { s.Log = "x" },
		"long socket":   func(s *targets.Spec) { s.Socket = "/" + strings.Repeat("x", 120) },
		"bad variable":  func(s *targets.Spec) { s.Env = []string{"x"} },
		"memory limit":  func(s *targets.Spec) { s.Limits.Memory = -1 },
		"relative prog": func(s *targets.Spec) { s.Command = []string{"sh"} },
	} {
		spec := f.spec("n", "exit 0")
		change(&spec)
		if err := f.Start(f.ctx, spec); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%s: %v, want code invalid", name, err)
		}
	}
	f.start(t, f.spec("m", "exec sleep 1000")) // a failed start leaves nothing in the way
}

func testStopGrace(t *testing.T, f *fixture) {
	f.start(t, f.spec("m", `trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.01; done`))
	f.says(t, "m", "up")
	begin := time.Now()
	if err := f.Stop(f.ctx, "m", patience); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > patience/2 {
		t.Errorf("Stop took %v although the process ended at once", took)
	}
	if exit := f.wait(t, "m"); exit.Code != 3 || exit.LastLine != "bye" {
		t.Errorf("exit = %+v, want code 3 and bye", exit)
	}
	if err := f.Stop(f.ctx, "m", time.Second); err != nil {
		t.Errorf("a second Stop: %v", err)
	}
}

func testStopStubborn(t *testing.T, f *fixture) {
	s := f.start(t, f.spec("m", `trap '' TERM; echo up; while :; do sleep 0.01; done`))
	f.says(t, "m", "up")
	if err := f.Stop(f.ctx, "m", 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if exit := f.wait(t, "m"); exit.Signal != "killed" || exit.Code != -1 || exit.OutOfMemory {
		t.Errorf("exit = %+v, want signal killed", exit)
	}
	if err := syscall.Kill(s.PID, 0); err != syscall.ESRCH {
		t.Errorf("process %d is still there: %v", s.PID, err)
	}
}

func testStopHelpers(t *testing.T, f *fixture) {
	f.start(t, f.spec("m", `(trap '' TERM; echo helper=$(exec sh -c 'echo $PPID')=; while :; do sleep 0.01; done) & wait`))
	f.says(t, "m", "=\n")
	var helper int
	if _, err := fmt.Sscanf(f.log(t, "m", 1<<10), "helper=%d=", &helper); err != nil {
		t.Fatal(err)
	}
	if f.Isolated {
		helper = outside(t, f, helper)
	}
	if err := f.Stop(f.ctx, "m", patience); err != nil {
		t.Fatal(err)
	}
	f.until(t, "the helper is gone", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", helper))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// outside returns the number that the machine has for a process of instance m: its namespace
// is that of the instance's own process.
func outside(t *testing.T, f *fixture, inside int) int {
	t.Helper()
	s, err := f.Status(f.ctx, "m")
	if err != nil {
		t.Fatal(err)
	}
	space := func(pid string) string {
		name, _ := os.Readlink("/proc/" + pid + "/ns/pid") // "" for one that has just ended
		return name
	}
	own := space(strconv.Itoa(s.PID))
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || space(e.Name()) != own {
			continue
		}
		status, _ := os.ReadFile("/proc/" + e.Name() + "/status") // likewise
		if strings.Contains(string(status), fmt.Sprintf("\nNSpid:\t%d\t%d\n", pid, inside)) {
			return pid
		}
	}
	t.Fatalf("no process of the machine is process %d of the instance", inside)
	return 0
}

func testStopGivesUp(t *testing.T, f *fixture) {
	f.start(t, f.spec("m", `trap '' TERM; echo up; while :; do sleep 0.01; done`))
	f.says(t, "m", "up")
	ctx, cancel := context.WithTimeout(f.ctx, 50*time.Millisecond)
	defer cancel()
	if err := f.Stop(ctx, "m", patience); atelier.CodeOf(err) != atelier.Timeout {
		t.Errorf("Stop with a context that ends: %v, want code timeout", err)
	}
	if s, err := f.Status(f.ctx, "m"); err != nil || s.Phase != targets.Running {
		t.Errorf("status = %+v, %v, want it running still", s, err)
	}
}

func testEnvironment(t *testing.T, f *fixture) {
	if err := os.Setenv("ATELIER_TEST_SECRET", "leaked"); err != nil { // t.Setenv forbids parallel tests
		t.Fatal(err)
	}
	spec := f.spec("m", `pwd; env; cat; echo end`)
	spec.Env = []string{"COLOUR=blue green"}
	f.start(t, spec)
	f.wait(t, "m")
	out := f.log(t, "m", 1<<16)
	for _, want := range []string{f.work + "\n", "COLOUR=blue green\n", "HOME=" + f.work + "\n", "PATH=", "end\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in %q", want, out)
		}
	}
	if strings.Contains(out, "leaked") {
		t.Errorf("the device's own environment was passed on: %q", out)
	}
}

func testAdoption(t *testing.T, f *fixture) {
	before := f.start(t, f.spec("m", "echo up; exec sleep 1000"))
	f.start(t, f.spec("done", "exit 7"))
	f.wait(t, "done")
	second := f.New(t, f.dir)
	after, err := second.Status(f.ctx, "m")
	if err != nil || after.Phase != targets.Running || after.PID != before.PID || !after.Started.Equal(before.Started) {
		t.Fatalf("the second target sees %+v, %v, want %+v", after, err, before)
	}
	if s, err := second.Status(f.ctx, "done"); err != nil || s.Exit == nil || s.Exit.Code != 7 {
		t.Errorf("the second target sees %+v, %v, want exit code 7", s, err)
	}
	if err := second.Start(f.ctx, f.spec("m", "exit 1")); err != nil {
		t.Fatalf("Start of what runs already: %v", err)
	}
	if err := second.Stop(f.ctx, "m", time.Second); err != nil {
		t.Fatal(err)
	}
	if exit := f.wait(t, "m"); exit.Signal != "terminated" {
		t.Errorf("the first target sees exit %+v, want signal terminated", exit)
	}
}

func testHolderKilled(t *testing.T, f *fixture) {
	if f.KillHolder == nil {
		return // this kind has no program that could be killed
	}
	s := f.start(t, f.spec("m", "echo up; exec sleep 1000"))
	f.says(t, "m", "up")
	f.KillHolder(t, f.Target, f.dir, "m")
	exit := f.wait(t, "m")
	if exit.Code != -1 || exit.Signal != "killed" || exit.LastLine != "up" {
		t.Errorf("exit = %+v, want signal killed and last line up", exit)
	}
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.PID)); err == nil && !strings.Contains(string(stat), ") Z ") {
		t.Errorf("process %d outlived its holder: %s", s.PID, stat)
	}
	if again := f.start(t, f.spec("m", "exec sleep 1000")); again.Phase != targets.Running {
		t.Errorf("status after a new start = %+v", again)
	}
}

func testLogCapped(t *testing.T, f *fixture) {
	spec := f.spec("m", `i=0; while [ $i -lt 3000 ]; do echo "line $i"; i=$((i+1)); done`)
	spec.LogLimit = 8 << 10
	f.start(t, spec)
	if exit := f.wait(t, "m"); exit.LastLine != "line 2999" {
		t.Errorf("last line = %q", exit.LastLine)
	}
	var total int64
	logs, err := filepath.Glob(spec.Log + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range logs {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > spec.LogLimit {
			t.Errorf("%s has %d bytes, at most %d are allowed", filepath.Base(name), info.Size(), spec.LogLimit)
		}
		total += info.Size()
	}
	if len(logs) != 2 || total < spec.LogLimit {
		t.Errorf("%d logs with %d bytes, want 2 with at least %d", len(logs), total, spec.LogLimit)
	}
	// The end that is asked for may begin in the older file.
	if out := f.log(t, "m", spec.LogLimit); int64(len(out)) != spec.LogLimit || !strings.HasSuffix(out, "line 2998\nline 2999\n") {
		t.Errorf("Log returned %d bytes ending with %q", len(out), out[max(0, len(out)-30):])
	}
	if out := f.log(t, "m", 10); out != "line 2999\n" {
		t.Errorf("the last 10 bytes are %q", out)
	}
}

func testMemoryLimit(t *testing.T, f *fixture) {
	// The shell holds what it reads; tail's buffer is a descendant's memory.
	spec := f.spec("m", `echo up; head -c 400000000 /dev/zero | tail -c 399999999 | sleep 1000`)
	spec.Limits.Memory = 64 << 20
	f.start(t, spec)
	if exit := f.wait(t, "m"); !exit.OutOfMemory || exit.Signal != "killed" {
		t.Errorf("exit = %+v, want out of memory", exit)
	}
	spec = f.spec("n", `echo up; exec sleep 1000`)
	spec.Limits = atelier.Limits{Memory: 64 << 20, CPUs: 1}
	f.start(t, spec)
	f.says(t, "n", "up")
	if s, err := f.Status(f.ctx, "n"); err != nil || s.Phase != targets.Running {
		t.Errorf("status within the limit = %+v, %v", s, err)
	}
}

func testList(t *testing.T, f *fixture) {
	if list, err := f.List(f.ctx); err != nil || len(list) != 0 {
		t.Fatalf("List of nothing = %v, %v", list, err)
	}
	f.start(t, f.spec("a", "exec sleep 1000"))
	f.start(t, f.spec("b", "exit 1"))
	f.wait(t, "b")
	list, err := f.List(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]targets.Phase{}
	for _, s := range list {
		got[s.ID] = s.Phase
	}
	if len(got) != 2 || got["a"] != targets.Running || got["b"] != targets.Exited {
		t.Errorf("List = %v", got)
	}
}

func testWait(t *testing.T, f *fixture) {
	f.start(t, f.spec("m", "read x < "+filepath.Join(f.work, "gate")+"; exit 4")) // ends at once: no such file
	if exit := f.wait(t, "m"); exit.Code == 0 {
		t.Errorf("exit = %+v", exit)
	}
	f.start(t, f.spec("n", "exec sleep 1000"))
	ctx, cancel := context.WithTimeout(f.ctx, 30*time.Millisecond)
	defer cancel()
	if _, err := f.Wait(ctx, "n"); atelier.CodeOf(err) != atelier.Timeout {
		t.Errorf("Wait with a context that ends: %v, want code timeout", err)
	}
}

func testRemove(t *testing.T, f *fixture) {
	spec := f.spec("m", "echo hello; exec sleep 1000")
	spec.Socket = filepath.Join(f.work, "m.sock")
	f.start(t, spec)
	if err := os.WriteFile(spec.Socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Remove(f.ctx, "m"); atelier.CodeOf(err) != atelier.InUse {
		t.Fatalf("Remove of what runs: %v, want code in_use", err)
	}
	if err := f.Stop(f.ctx, "m", time.Second); err != nil {
		t.Fatal(err)
	}
	if err := f.Remove(f.ctx, "m"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{spec.Socket, spec.Log} {
		if _, err := os.Stat(name); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	if _, err := f.Status(f.ctx, "m"); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("Status after Remove: %v, want code not_found", err)
	}
	if err := f.Remove(f.ctx, "m"); err != nil {
		t.Errorf("a second Remove: %v", err)
	}
}

func testUnknown(t *testing.T, f *fixture) {
	_, statusErr := f.Status(f.ctx, "x")
	_, waitErr := f.Wait(f.ctx, "x")
	_, logErr := f.Log(f.ctx, "x", 10)
	for name, err := range map[string]error{"Status": statusErr, "Wait": waitErr, "Log": logErr, "Stop": f.Stop(f.ctx, "x", 0)} {
		if atelier.CodeOf(err) != atelier.NotFound {
			t.Errorf("%s: %v, want code not_found", name, err)
		}
	}
}

func testHostileIDs(t *testing.T, f *fixture) {
	for _, id := range []string{"", ".", "..", "../x", "/etc", "a/b", "a\x00b", "A", "ü", strings.Repeat("x", 201), ".hidden", "a b"} {
		_, statusErr := f.Status(f.ctx, id)
		spec := f.spec("m", "exit 0")
		spec.ID = id
		for name, err := range map[string]error{
			"Start": f.Start(f.ctx, spec), "Stop": f.Stop(f.ctx, id, 0),
			"Remove": f.Remove(f.ctx, id), "Status": statusErr,
		} {
			if atelier.CodeOf(err) != atelier.Invalid {
				t.Errorf("%s(%.20q): %v, want code invalid", name, id, err)
			}
		}
	}
}

func testConcurrent(t *testing.T, f *fixture) {
	const modules, callers = 4, 4
	var wg sync.WaitGroup
	for m := range modules {
		for range callers {
			wg.Go(func() {
				if err := f.Start(f.ctx, f.spec(fmt.Sprintf("m%d", m), "exec sleep 1000")); err != nil {
					t.Errorf("Start: %v", err)
				}
			})
		}
	}
	wg.Wait()
	list, err := f.List(f.ctx)
	if err != nil || len(list) != modules {
		t.Fatalf("List = %v, %v, want %d", list, err, modules)
	}
	for m := range modules {
		for range callers {
			wg.Go(func() {
				if err := f.Stop(f.ctx, fmt.Sprintf("m%d", m), time.Second); err != nil {
					t.Errorf("Stop: %v", err)
				}
			})
		}
	}
	wg.Wait()
}
