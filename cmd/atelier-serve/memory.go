package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// memoryOf returns how many bytes of memory a process holds that are nobody else's:
// anonymous and shared memory, as its shim counts them. 0 where the system does not say.
func memoryOf(pid int) int64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0
	}
	var kilobytes int64
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "RssAnon" && name != "RssShmem" {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64); err == nil {
			kilobytes += n
		}
	}
	return kilobytes << 10
}

// measurement is what a process says that --measure was given to.
type measurement struct {
	Memory int64 `json:"memory_bytes"`
}

// measure loads, warms and proves the model as a server would, says what that took and
// ends.
func measure(ctx context.Context, c config, log *slog.Logger) error {
	model, err := load(ctx, c, log)
	if err != nil {
		return err
	}
	return errors.Join(json.NewEncoder(os.Stdout).Encode(measurement{model.Health.Memory}), model.Close())
}

// How a process that measures is held to what memory there is.
const (
	measureLook = 10 * time.Millisecond
	maxMeasured = 64 << 10 // bytes of what it writes
)

// errTooMuch says that a model took more memory than there was.
var errTooMuch = errors.New("it takes too much memory")

// measured lets a process of its own load, warm and prove the model of a command line, and
// returns what memory it takes: a model that crashes, or takes more memory than there is,
// does so where it harms nobody. The process is ended when tooMuch says so of its memory;
// the error is errTooMuch then, and otherwise carries the exit code that says why.
func measured(ctx context.Context, args []string, tooMuch func(memory int64) bool) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The program's own file may have been replaced by an update.
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append(args, "--measure")...)
	cmd.Args[0] = os.Args[0]
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = os.Environ()
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &bounded{&out, maxMeasured}, &tail{&words, maxMeasured}
	if err := cmd.Start(); err != nil {
		return 0, &exitError{exitFailed, fmt.Errorf("the model cannot be tried in a process of its own: %w", err)}
	}
	ended := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		ticker := time.NewTicker(measureLook)
		defer ticker.Stop()
		for {
			select {
			case <-ended:
				return
			case <-ticker.C:
				if tooMuch(memoryOf(cmd.Process.Pid)) {
					cancel(errTooMuch)
					return
				}
			}
		}
	}()
	err := cmd.Wait()
	close(ended)
	<-watched
	if err != nil {
		return 0, howItEnded(ctx, err, words.String())
	}
	var m measurement
	if err := json.Unmarshal(out.Bytes(), &m); err != nil {
		return 0, &exitError{exitFailed, fmt.Errorf("the process that measured the model wrote %.100q: %w", out.String(), err)}
	}
	return m.Memory, nil
}

// howItEnded makes an error of how a process ended that tried a model.
func howItEnded(ctx context.Context, err error, words string) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return &exitError{exitFailed, fmt.Errorf("the process that tried the model: %w", err)}
	}
	words = strings.TrimSpace(words)
	last := words[strings.LastIndexByte(words, '\n')+1:]
	if code := exit.ExitCode(); code > 0 {
		return &exitError{code, errors.New(last)}
	}
	return &exitError{exitModel, fmt.Errorf("the process that tried the model ended with %v: %.500s", exit.ProcessState, last)}
}

// bounded takes what fits and refuses more.
type bounded struct {
	b    *bytes.Buffer
	most int
}

// Write implements io.Writer.
func (w *bounded) Write(p []byte) (int, error) {
	if w.b.Len()+len(p) > w.most {
		return 0, io.ErrShortWrite
	}
	return w.b.Write(p)
}

// tail keeps the end of what is written.
type tail struct {
	b    *bytes.Buffer
	most int
}

// Write implements io.Writer.
func (w *tail) Write(p []byte) (int, error) {
	w.b.Write(p)
	if over := w.b.Len() - w.most; over > 0 {
		w.b.Next(over)
	}
	return len(p), nil
}

// room is how a server's memory is shared out.
type room struct {
	limit int64 // 0 for none
	base  int64 // what the server takes without a model
	name  string
}

// fits returns an error where need does not fit beside what others take.
func (r *room) fits(model string, need int64, others []atelier.ServedModel, atLeast bool) error {
	if r.limit == 0 {
		return nil
	}
	free := r.free(others)
	if need <= free {
		return nil
	}
	words := ""
	if atLeast {
		words = "at least "
	}
	return &exitError{exitMemory, fmt.Errorf("%s takes %s%s of memory, and %s of the %s of server %s are left: %s",
		model, words, atelier.FormatBytes(need), atelier.FormatBytes(free), atelier.FormatBytes(r.limit), r.name, r.taken(others))}
}

func (r *room) free(others []atelier.ServedModel) int64 {
	free := r.limit - r.base
	for i := range others {
		free -= others[i].Memory
	}
	return max(free, 0)
}

// taken lists who takes what.
func (r *room) taken(others []atelier.ServedModel) string {
	words := []string{"the server itself takes " + atelier.FormatBytes(r.base)}
	for i := range others {
		words = append(words, fmt.Sprintf("%s:%s %s", others[i].Name, others[i].Version, atelier.FormatBytes(others[i].Memory)))
	}
	return strings.Join(words, ", ")
}
