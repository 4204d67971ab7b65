// Package containerdtest runs a containerd of the tests' own, with private root, state and
// socket, and makes images for it of what is on the machine. Nothing of what else runs there is
// touched.
package containerdtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Daemon is a containerd.
type Daemon struct {
	Dir     string // holds all that it has
	Address string // its socket
	cmd     *exec.Cmd
	log     bytes.Buffer
}

// Missing says why containerd cannot be run on this machine, "" where it can.
func Missing() string {
	if os.Getuid() != 0 {
		return "containerd needs root"
	}
	for _, program := range []string{"containerd", "runc", "containerd-shim-runc-v2"} {
		if find(program) == "" {
			return program + " is not installed"
		}
	}
	return ""
}

// find returns the path of a program, also of those that are for root.
func find(program string) string {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		path := filepath.Join(dir, program)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
			return path
		}
	}
	return ""
}

// Need skips the test where there is no containerd; with CI=true it fails.
func Need(t testing.TB) {
	t.Helper()
	why := Missing()
	switch {
	case why == "":
	case os.Getenv("CI") != "":
		t.Fatal(why)
	default:
		t.Skip(why + "; see scripts/install-test-tools")
	}
}

// New starts a containerd for the test, and ends it, with all that it runs, afterwards.
func New(t testing.TB) *Daemon {
	t.Helper()
	Need(t)
	// Short, since sockets lie below; and not of the test's own, since what is mounted below must
	// go first.
	dir, err := os.MkdirTemp("", "ctrd")
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{Dir: dir, Address: filepath.Join(dir, "c.sock")}
	t.Cleanup(func() {
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("containerd says:\n%s", tail(d.log.String(), 8<<10))
		}
	})
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// Start starts it, after the first time on what it had.
func (d *Daemon) Start(ctx context.Context) error {
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\n"+
		"disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \"io.containerd.tracing.processor.v1.otlp\"]\n[grpc]\naddress = %q\n",
		filepath.Join(d.Dir, "root"), filepath.Join(d.Dir, "state"), d.Address)
	file := filepath.Join(d.Dir, "config.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	d.cmd = exec.Command(find("containerd"), "--config", file)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	d.cmd.WaitDelay = time.Second // its shims hold its outputs
	if err := d.cmd.Start(); err != nil {
		return err
	}
	for begin := time.Now(); ; {
		out, err := d.Ctr(ctx, "version")
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Since(begin) > 2*time.Minute {
			return fmt.Errorf("containerd does not answer: %w\n%s\n%s", err, out, tail(d.log.String(), 4<<10))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Ctr runs containerd's own command line.
func (d *Daemon) Ctr(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, find("ctr"), append([]string{"-a", d.Address}, args...)...).CombinedOutput()
	return string(out), err
}

// Stop ends it; containers go on.
func (d *Daemon) Stop() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	_ = d.cmd.Wait()                          // likewise
	d.cmd = nil
}

// Kill ends it as a crash does.
func (d *Daemon) Kill() {
	_ = d.cmd.Process.Kill() // it may have ended
	_ = d.cmd.Wait()         // likewise
	d.cmd = nil
}

// Reboot ends containerd, and all that a reboot of the machine ends: shims, what they run, and
// what lies in memory. Start brings containerd back.
func (d *Daemon) Reboot() error {
	d.Stop()
	if err := d.killAll(); err != nil {
		return err
	}
	if err := Unmount(d.Dir); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(d.Dir, "state"))
}

// Remove ends everything and deletes it.
func (d *Daemon) Remove() error {
	d.Stop()
	return errors.Join(d.killAll(), Unmount(d.Dir), os.RemoveAll(d.Dir))
}

// killAll kills the shims of this containerd, and what they hold: it names them by its address.
func (d *Daemon) killAll() error {
	for begin := time.Now(); ; {
		found := false
		for _, pid := range processes() {
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err != nil || !bytes.Contains(line, []byte("containerd-shim")) || !bytes.Contains(line, []byte(d.Address)) {
				continue
			}
			found = true
			for _, child := range processes() {
				if parentOf(child) == pid {
					_ = syscall.Kill(child, syscall.SIGKILL) // it may have ended
				}
			}
			_ = syscall.Kill(pid, syscall.SIGKILL) // likewise
		}
		if !found {
			return nil
		}
		if time.Since(begin) > 30*time.Second {
			return fmt.Errorf("a shim of %s cannot be killed", d.Address)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func processes() (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscanf(e.Name(), "%d", &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func parentOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	var state string
	var parent int
	if _, err := fmt.Sscanf(rest, "%s %d", &state, &parent); err != nil {
		return 0
	}
	return parent
}

// Unmount unmounts what is mounted below a directory, the innermost first.
func Unmount(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	for i := len(points) - 1; i >= 0; i-- {
		if err := unix.Unmount(points[i], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", points[i], err)
		}
	}
	return nil
}
