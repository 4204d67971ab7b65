package build

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// command is a tool that the build runs.
type command struct {
	name string
	args []string
	dir  string
	out  io.Writer // takes the standard output besides the log; may be nil
}

// toolError says how a tool failed: with the line that matters, of all that it wrote.
type toolError struct {
	tool, line string
	err        error
}

func (e *toolError) Error() string {
	if e.line == "" {
		return fmt.Sprintf("%s failed: %v", e.tool, e.err)
	}
	return e.line
}

func (e *toolError) Unwrap() error { return e.err }

// run runs c to its end, with all that it writes in the log. When the build's context
// ends, c and what it started are killed.
func (b *build) run(c command) error {
	tool := filepath.Base(c.name)
	b.say("$ %s %s", tool, strings.Join(c.args, " "))
	cmd := exec.CommandContext(b.ctx, c.name, c.args...)
	cmd.Dir, cmd.Env = c.dir, cleanEnvironment(os.Environ())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	last := &tail{}
	// Standard output and error come by two goroutines where their writers differ.
	both := &serial{w: io.MultiWriter(b.log, last)}
	cmd.Stdout, cmd.Stderr = both, both
	if c.out != nil {
		cmd.Stdout = io.MultiWriter(both, c.out)
	}
	if err := cmd.Run(); err != nil {
		return &toolError{tool, last.line(), err}
	}
	return nil
}

// serial lets one writer write at a time.
type serial struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *serial) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

// cleanEnvironment takes away what would steer an interpreter away from its own
// directory, and adds what makes its work repeatable.
func cleanEnvironment(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, "PYTHON") && !strings.HasPrefix(e, "LD_") && !strings.HasPrefix(e, "PIP_TARGET=") && !strings.HasPrefix(e, "PIP_USER=") && !strings.HasPrefix(e, "VIRTUAL_ENV=") {
			out = append(out, e)
		}
	}
	return append(out, "PYTHONHASHSEED=0", "PYTHONDONTWRITEBYTECODE=1", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
}

// tailSize is how much of what a tool wrote last is looked at for the line that matters.
const tailSize = 64 << 10

// tail keeps what was written last.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 2*tailSize {
		t.b = append([]byte(nil), t.b[len(t.b)-tailSize:]...)
	}
	return len(p), nil
}

// line returns the line that matters: the last that says that it is an error, or else
// the last one.
func (t *tail) line() string {
	var last, wrong string
	for l := range bytes.Lines(t.b) {
		text := strings.TrimSpace(string(l))
		if text == "" {
			continue
		}
		last = text
		for _, mark := range []string{"ERROR: ", "E: ", "dpkg-deb: error: "} {
			if message, ok := strings.CutPrefix(text, mark); ok {
				wrong = message
			}
		}
	}
	if wrong == "" {
		wrong = last
	}
	return strings.ToValidUTF8(wrong[:min(len(wrong), maxLine)], "")
}

const maxLine = 500
