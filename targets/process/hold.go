package process

import (
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/targets"
	"github.com/atelier-edge/atelier/targets/logfile"
	"golang.org/x/sys/unix"
)

// The signals that a shim understands.
const (
	signalStop = syscall.SIGTERM // ask the process to end
	signalKill = syscall.SIGUSR1 // end it now
)

// drainTime is how long the shim goes on reading what an ended process has left
// in its pipe. Nobody can hold the pipe open longer: a helper that left the
// process group might.
const drainTime = time.Second

// memoryInterval is how often a process with a memory limit is looked at.
const memoryInterval = 100 * time.Millisecond

// oomScore makes the kernel, when the whole device runs out of memory, end
// modules before the agent, the gateway and the shims. See proc(5), oom_score_adj.
const oomScore = "500"

// Hold is what atelier-shim does: it runs the process that dir/spec.json
// describes, writes its output into the log, holds it to its limits and writes
// dir/status.json when it runs and when it has ended. ready is told once the
// process runs. Hold returns when the process has ended and that is on disk; it
// returns an error only when there was nothing to hold or the status could not be
// written.
//
// SIGTERM asks the process group to end, SIGUSR1 kills it. When the shim is
// killed the kernel kills the process too.
func Hold(dir string, ready func()) error {
	// The kernel ties the process's death to that of the thread which started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	inst := instance(dir)
	var spec targets.Spec
	if err := inst.read(specFile, &spec); err != nil {
		return err
	}
	if err := spec.Check(); err != nil {
		return err
	}
	free, err := inst.lock()
	if err != nil {
		return atelier.Errorf(atelier.Internal, "cannot lock %s: %w", dir, err)
	}
	if !free {
		return atelier.Errorf(atelier.Conflict, "module %s is held by another shim already", spec.ID)
	}
	adopt()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, signalStop, signalKill, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)

	h := &hold{spec: &spec, log: logfile.Open(spec.Log, spec.LogLimit), oomKills: oomKills()}
	defer h.log.Close()
	if err := h.start(); err != nil {
		exit := &targets.Exit{Time: time.Now().UTC(), Code: 127, LastLine: err.Error()}
		failed := state{Status: targets.Status{ID: spec.ID, Phase: targets.Exited, Started: exit.Time, Exit: exit}, BootID: bootID()}
		return errors.Join(err, inst.write(statusFile, &failed))
	}
	if err := inst.write(statusFile, &h.state); err != nil {
		h.signal(syscall.SIGKILL)
		h.wait(signals)
		return err
	}
	ready()
	h.state.Exit = h.wait(signals)
	h.state.Phase = targets.Exited
	return inst.write(statusFile, &h.state)
}

// hold is one process that is held.
type hold struct {
	spec     *targets.Spec
	log      *logfile.File
	cmd      *exec.Cmd
	output   *os.File      // our end of the process's output
	drained  chan struct{} // closed when output is read to its end
	state    state
	oomKills uint64 // of the kernel, before the process started
	killed   bool   // by us, on request
}

func (h *hold) start() error {
	r, w, err := os.Pipe()
	if err != nil {
		return atelier.Errorf(atelier.Internal, "cannot make a pipe: %w", err)
	}
	h.output = r
	h.cmd = exec.Command(h.spec.Command[0], h.spec.Command[1:]...)
	h.cmd.Dir = h.spec.Dir
	h.cmd.Env = append([]string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + h.spec.Dir, "LANG=C.UTF-8"}, h.spec.Env...)
	h.cmd.Stdout, h.cmd.Stderr = w, w
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	restrict(h.spec.Limits.CPUs)
	err = h.cmd.Start()
	_ = w.Close() // the process has its own; nothing was written to ours
	if err != nil {
		_ = r.Close()
		return atelier.Errorf(atelier.Invalid, "cannot start module %s: %w", h.spec.ID, err).
			WithRemedy("Check that the program is there, may be executed and is made for this machine.")
	}
	pid := h.cmd.Process.Pid
	// A process that is gone already has no ticks, and needs no score.
	ticks, _, _ := startTicks(pid)
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(oomScore), 0)
	h.state = state{
		Status: targets.Status{ID: h.spec.ID, Phase: targets.Running, PID: pid, Started: time.Now().UTC()},
		BootID: bootID(), StartTicks: ticks,
	}
	h.drained = make(chan struct{})
	go func() {
		defer close(h.drained)
		_, _ = io.CopyBuffer(onlyWriter{h.log}, onlyReader{r}, make([]byte, 8<<10)) // ends with the pipe or the deadline that wait sets
	}()
	return nil
}

// onlyReader and onlyWriter hide what would make io.CopyBuffer ignore its buffer.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// signal sends s to the process and its helpers. The process is reaped only
// after the last signal, so that its number cannot have become another's.
func (h *hold) signal(s syscall.Signal) { _ = syscall.Kill(-h.cmd.Process.Pid, s) }

// wait returns how the process ended.
func (h *hold) wait(signals <-chan os.Signal) *targets.Exit {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var info unix.Siginfo
		for errors.Is(unix.Waitid(unix.P_PID, h.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil), syscall.EINTR) {
		}
	}()
	var memory <-chan time.Time
	if h.spec.Limits.Memory > 0 {
		ticker := time.NewTicker(memoryInterval)
		defer ticker.Stop()
		memory = ticker.C
	}
	children := make(chan os.Signal, 1) // one stands for all that ended
	signal.Notify(children, syscall.SIGCHLD)
	defer signal.Stop(children)
	// The kernel's list of children may skip some while others of them end (proc(5)).
	again := time.NewTimer(lookAgain)
	defer again.Stop()
	outOfMemory := false
	for running := true; running; {
		select {
		case <-children:
			bury(h.cmd.Process.Pid)
			again.Reset(lookAgain)
		case <-again.C:
			bury(h.cmd.Process.Pid)
		case s := <-signals:
			if s == signalKill {
				h.killed = true
				h.signal(syscall.SIGKILL)
			} else {
				h.signal(syscall.SIGTERM)
			}
		case <-memory:
			if treeMemory(h.cmd.Process.Pid) > h.spec.Limits.Memory {
				outOfMemory = true
				h.signal(syscall.SIGKILL)
			}
		case <-ended:
			running = false
		}
	}
	h.signal(syscall.SIGKILL) // helpers that it left behind
	_ = h.cmd.Wait()          // its error only repeats the ProcessState
	killOrphans()             // those that left the group
	_ = h.output.SetReadDeadline(time.Now().Add(drainTime))
	<-h.drained
	_ = h.output.Close()

	exit := &targets.Exit{Time: time.Now().UTC(), Code: h.cmd.ProcessState.ExitCode(), LastLine: h.log.LastLine()}
	if ws, ok := h.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		exit.Signal = signalName(ws.Signal())
		// The kernel does not tell whom it ended for want of memory; that it did
		// so to somebody while our process was killed is good evidence.
		killed := ws.Signal() == syscall.SIGKILL
		exit.OutOfMemory = killed && (outOfMemory || oomKills() > h.oomKills && !h.killed)
	}
	return exit
}

// restrict lets this thread, and what it starts, use so many processors only:
// the next whole number, chosen so that modules spread out. 0 is no limit.
func restrict(cpus float64) {
	var all unix.CPUSet
	if cpus <= 0 || unix.SchedGetaffinity(0, &all) != nil {
		return
	}
	want, count := int(math.Ceil(cpus)), all.Count()
	if want >= count {
		return
	}
	var some unix.CPUSet
	skip := os.Getpid() % count
	for turn := range 2 {
		seen := 0
		for cpu := 0; seen < count; cpu++ {
			if !all.IsSet(cpu) {
				continue
			}
			seen++
			if (seen > skip) == (turn == 0) && some.Count() < want {
				some.Set(cpu)
			}
		}
	}
	_ = unix.SchedSetaffinity(0, &some) // a limit that the kernel refuses is none
}
