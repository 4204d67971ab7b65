// Package boot starts programs in the background, for the demo, the end-to-end
// tests and the benchmarks: real processes, their output in files, waited for by
// condition and ended for sure. It knows nothing of what the programs are.
package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Program is a program in the background. It may be started again after it has
// ended. Its methods are safe for concurrent use.
type Program struct {
	Path string
	Args []string
	Log  string // takes standard output and error, appended

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
}

// Start starts the program in a session of its own, so that it outlives the
// terminal; whoever starts it ends it.
func (p *Program) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(p.Path, p.Args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := errors.Join(cmd.Start(), log.Close()); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended stands in its log
		close(exited)
	}()
	p.cmd, p.exited = cmd, exited
	return nil
}

// Name is the program's name, without its directory.
func (p *Program) Name() string { return filepath.Base(p.Path) }

// PID is the program's process id, 0 before its first start.
func (p *Program) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Signal sends a signal to the program.
func (p *Program) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return nil
	}
	return p.cmd.Process.Signal(sig)
}

// Stop sends a signal and waits until the program has ended. Where it does not
// within patience it is made to write its goroutines into its log, and an error
// says so. A program that does not run is stopped already.
func (p *Program) Stop(sig syscall.Signal, patience time.Duration) error {
	exited := p.Exited()
	select {
	case <-exited:
		return nil
	default:
	}
	if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-exited:
		return nil
	case <-time.After(patience):
	}
	err := fmt.Errorf("%s did not end within %s of signal %q", p.Name(), patience, sig)
	if sigErr := p.Signal(syscall.SIGQUIT); sigErr != nil && !errors.Is(sigErr, os.ErrProcessDone) {
		return errors.Join(err, sigErr)
	}
	<-exited
	return err
}

// Exited returns a channel that is closed when the program has ended, or was
// never started.
func (p *Program) Exited() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exited == nil {
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	return p.exited
}

// Output returns what the program has written since its first start.
func (p *Program) Output() string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Tail returns the last lines of the program's output.
func (p *Program) Tail(lines int) string {
	all := strings.Split(strings.TrimSpace(p.Output()), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Says waits until a line of the program's output contains text, and returns it.
func (p *Program) Says(ctx context.Context, text string) (string, error) {
	var found string
	err := Eventually(ctx, time.Minute, func() error {
		for line := range strings.SplitSeq(p.Output(), "\n") {
			if strings.Contains(line, text) {
				found = strings.TrimSpace(line)
				return nil
			}
		}
		select {
		case <-p.Exited():
			return Hopeless{fmt.Errorf("%s ended by itself:\n%s", p.Name(), p.Tail(25))}
		default:
			return fmt.Errorf("%s does not say %q", p.Name(), text)
		}
	})
	return found, err
}

// Hopeless is an error that ends Eventually at once.
type Hopeless struct{ error }

// Unwrap returns what is hopeless.
func (h Hopeless) Unwrap() error { return h.error }

// Eventually tries until it succeeds, patience is over, ctx ends or the error is
// Hopeless; it returns the last error.
func Eventually(ctx context.Context, patience time.Duration, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := try()
		if err == nil || errors.As(err, new(Hopeless)) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up after %s: %w", patience, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// FreeAddress returns a loopback address whose port was free a moment ago. It is
// one of those that the system gives to nobody by itself, neither to outgoing
// connections nor to who listens on port 0 (from 32768 on, ip(7)), so that a
// program can be stopped and started again on it.
func FreeAddress() (string, error) {
	const low, high, tries = 10_000, 32_000, 100
	var err error
	for range tries {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", low+rand.IntN(high-low))); err == nil {
			return l.Addr().String(), l.Close()
		}
	}
	return "", fmt.Errorf("no free port was found in %d tries: %w", tries, err)
}

// EndAll ends every Atelier program that was started with a path below dir among
// its arguments: gateways, shims and model servers outlive their agents by
// design. It asks them first and then makes them.
func EndAll(ctx context.Context, dir string) error { return endAll(ctx, dir, 3*time.Second) }

// CutAll ends them as a power cut does, without asking.
func CutAll(ctx context.Context, dir string) error { return endAll(ctx, dir, 0) }

func endAll(ctx context.Context, dir string, patience time.Duration) error {
	began := time.Now()
	asked := map[int]bool{}
	return Eventually(ctx, 20*time.Second, func() error {
		pids, err := Processes(dir)
		if err != nil {
			return Hopeless{err}
		}
		for _, pid := range pids {
			sig := syscall.SIGTERM
			if time.Since(began) > patience {
				sig = syscall.SIGKILL
			} else if asked[pid] {
				continue
			}
			asked[pid] = true
			if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
				return Hopeless{err}
			}
		}
		if len(pids) > 0 {
			return fmt.Errorf("%d programs of %s are left", len(pids), dir)
		}
		return nil
	})
}

// Processes lists the processes of programs named atelier-…, or as names say,
// whose arguments name a path below dir.
func Processes(dir string, names ...string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// Reading the arguments of a process that hangs in the kernel may hang too;
		// its name can always be read. See proc(5).
		comm, err := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		if err == nil && !strings.HasPrefix(string(comm), "atelier-") {
			continue
		}
		var cmdline []byte
		if err == nil {
			cmdline, err = os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		program, args, _ := strings.Cut(string(cmdline), "\x00")
		ours := len(names) == 0 || slices.Contains(names, filepath.Base(program))
		if ours && strings.Contains(args, dir+"/") {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Kill sends SIGKILL to every Atelier program that was started with a path below
// dir among its arguments, or to those of the given names only, and returns how
// many it found: call it until it finds none.
func Kill(dir string, names ...string) (found int, err error) {
	pids, err := Processes(dir, names...)
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return len(pids), err
		}
	}
	return len(pids), err
}
