package main

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
	"syscall"
	"time"
)

// program is one of the built programs, running in the background.
type program struct {
	name    string
	args    []string
	log     string // its standard output and error
	address string
	cmd     *exec.Cmd
	exited  chan struct{}
}

// show prints a command the way one would type it.
func (d *demo) show(name string, args ...string) {
	words := []string{name}
	for _, a := range args {
		a = strings.ReplaceAll(a, d.root+"/", "")
		if strings.ContainsAny(a, " {}()[]$*\"") {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	fmt.Printf("\x1b[36m$ %s\x1b[0m\n", strings.Join(words, " "))
}

// atelier runs the command line and shows what it prints.
func (d *demo) atelier(ctx context.Context, args ...string) error {
	_, err := d.command(ctx, true, "atelier", args...)
	return err
}

// capture runs the command line and returns its standard output.
func (d *demo) capture(ctx context.Context, args ...string) ([]byte, error) {
	return d.command(ctx, false, "atelier", args...)
}

func (d *demo) command(ctx context.Context, print bool, name string, args ...string) ([]byte, error) {
	d.show(name, args...)
	return d.execute(ctx, print, name, args...)
}

// quietly is capture without showing the command, for questions that are asked
// again and again.
func (d *demo) quietly(ctx context.Context, args ...string) ([]byte, error) {
	return d.execute(ctx, false, "atelier", append(args, "--quiet")...)
}

func (d *demo) execute(ctx context.Context, print bool, name string, args ...string) ([]byte, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(d.root, "bin", name), args...)
	cmd.Env = append(os.Environ(), "ATELIER_CONFIG="+d.config())
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if print {
		cmd.Stdout = os.Stdout
	}
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w", name, args[0], err)
	}
	return out.Bytes(), nil
}

// start starts a program in the background, its output in a log file.
func (d *demo) start(p *program) error {
	d.show(p.name, append(p.args, "&")...)
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	p.cmd = exec.Command(filepath.Join(d.root, "bin", p.name), p.args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // KEEP=1 leaves it running
	if err := errors.Join(p.cmd.Start(), log.Close()); err != nil {
		return err
	}
	p.exited = make(chan struct{})
	go func() {
		_ = p.cmd.Wait() // how it ended stands in its log
		close(p.exited)
	}()
	return nil
}

// stop ends a program and waits until it has ended.
func (d *demo) stop(p *program, sig syscall.Signal) error {
	names := map[syscall.Signal]string{syscall.SIGTERM: "TERM", syscall.SIGKILL: "KILL"}
	d.show("kill", "-"+names[sig], strconv.Itoa(p.cmd.Process.Pid), "  # "+p.name)
	if err := p.cmd.Process.Signal(sig); err != nil {
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-time.After(20 * time.Second):
		return fmt.Errorf("%s does not end", p.name)
	}
}

// tail prints the end of a program's log.
func (p *program) tail() {
	if p == nil {
		return
	}
	b, err := os.ReadFile(p.log)
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	fmt.Fprintf(os.Stderr, "\nThe end of %s:\n", p.log)
	for _, line := range lines[max(0, len(lines)-25):] {
		fmt.Fprintln(os.Stderr, "  "+line)
	}
}

// logged waits until a line of the program's log contains text, and returns it.
func (p *program) logged(ctx context.Context, text string) (string, error) {
	var found string
	err := eventually(ctx, 30*time.Second, func() error {
		b, err := os.ReadFile(p.log)
		if err != nil {
			return err
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			if strings.Contains(line, text) {
				found = strings.TrimSpace(line)
				return nil
			}
		}
		select {
		case <-p.exited:
			return errStop{fmt.Errorf("%s ended by itself", p.name)}
		default:
			return fmt.Errorf("%s does not say %q", p.name, text)
		}
	})
	return found, err
}

// errStop ends eventually at once.
type errStop struct{ error }

// eventually tries until it succeeds, time is up or an errStop comes.
func eventually(ctx context.Context, patience time.Duration, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := try()
		var stop errStop
		if err == nil || errors.As(err, &stop) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up after %s: %w", patience, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// freeAddress returns a loopback address whose port was free a moment ago.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// endAll ends every process whose command line names a path below dir: hub,
// agents, and the gateways, shims and model servers that outlive their agents by
// design. It asks first and makes them end after a while.
func endAll(dir string) error {
	for try := range 50 {
		pids, err := processesOf(dir)
		if err != nil || len(pids) == 0 {
			return err
		}
		sig := syscall.SIGTERM
		if try >= 30 {
			sig = syscall.SIGKILL
		}
		if try == 0 || try >= 30 {
			for _, pid := range pids {
				if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
					return err
				}
			}
		}
		time.Sleep(100 * time.Millisecond) // between two looks at the process table, which nobody announces changes of
	}
	return fmt.Errorf("processes of %s do not end", dir)
}

// processesOf lists the processes whose arguments name a path below dir, this
// one and its parents (which merely may) left out.
func processesOf(dir string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		args := strings.Split(string(cmdline), "\x00")
		if !strings.HasPrefix(filepath.Base(args[0]), "atelier-") {
			continue
		}
		if strings.Contains(string(cmdline), dir+"/") {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
