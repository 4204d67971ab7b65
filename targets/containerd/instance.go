package containerd

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/targets"
	"github.com/atelier-edge/atelier/targets/containerd/keep"
	"github.com/atelier-edge/atelier/targets/logfile"
)

// The files of an instance's directory. spec.json is written before anything is made, and
// exit.json when it is known how the instance ended; Start removes it.
const (
	specFile    = "spec.json"
	exitFile    = "exit.json"
	hostsFile   = "hosts"   // the container's /etc/hosts
	startedFile = "started" // the named pipe on which keep.Init speaks
)

// format is the form of spec.json and exit.json.
const format = 1

// ended is what exit.json holds.
type ended struct {
	Started time.Time    `json:"started"`
	Exit    targets.Exit `json:"exit"`
}

// instance is the directory of one instance.
type instance string

func (i instance) path(name string) string { return filepath.Join(string(i), name) }

func (i instance) read(name string, v any) error {
	b, err := durable.ReadFile(durable.OS{}, i.path(name))
	if err != nil {
		return err
	}
	return durable.Decode(b, i.path(name), format, v)
}

func (i instance) write(name string, v any) error {
	b, err := durable.Encode(format, v)
	if err != nil {
		return err
	}
	return durable.WriteFile(durable.OS{}, i.path(name), b, 0o600)
}

// prepare writes what keep.Hold, keep.Init and the container need.
func (i instance) prepare(spec *targets.Spec, network string) error {
	plan := keep.Plan{Log: spec.Log, LogLimit: spec.LogLimit, Network: network}
	if port := spec.Container.Settings.Port; port != 0 && spec.Socket != "" {
		plan.Socket, plan.Port = spec.Socket, port
	}
	b, err := durable.Encode(keep.Format, plan)
	if err == nil {
		err = durable.WriteFile(durable.OS{}, i.path(keep.PlanFile), b, 0o600)
	}
	if err == nil {
		err = os.WriteFile(i.path(hostsFile), []byte("127.0.0.1 localhost\n::1 localhost\n"), 0o644)
	}
	if err != nil {
		return err
	}
	// Whoever the container runs as may write to it; nothing is in it but a word.
	if err := unix.Mkfifo(i.path(startedFile), 0o622); err != nil && !errors.Is(err, unix.EEXIST) {
		return durable.Explain(err, "make the pipe "+i.path(startedFile))
	}
	return durable.Explain(os.Chmod(i.path(startedFile), 0o622), "open the pipe "+i.path(startedFile)) // whatever the umask
}

// logPatience bounds how long the rest of a container's log may take to be written.
const logPatience = 5 * time.Second

// lastLine returns the last line of the log, once keep.Hold has written all of it.
func (i instance) lastLine(spec *targets.Spec) string {
	if f, err := os.Open(i.path(keep.PlanFile)); err == nil {
		defer f.Close()
		for begin := time.Now(); unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil && time.Since(begin) < logPatience; {
			time.Sleep(5 * time.Millisecond)
		}
	}
	return logfile.LastLine(spec.Log)
}

// remove deletes what Start made.
func (i instance) remove(spec *targets.Spec) error {
	if spec != nil {
		for _, made := range []string{spec.Socket, spec.Log, spec.Log + logfile.Older} {
			if made == "" {
				continue
			}
			if err := os.Remove(made); err != nil && !errors.Is(err, os.ErrNotExist) {
				return durable.Explain(err, "remove "+made)
			}
		}
	}
	return durable.Explain(os.RemoveAll(string(i)), "remove "+string(i))
}

func isNotFound(err error) bool { return atelier.CodeOf(err) == atelier.NotFound }
