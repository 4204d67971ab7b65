// Package process runs modules as plain processes of the device.
//
// Each instance is held by a small program of its own, atelier-shim, which
// outlives the agent: a Target made anew over the same directory finds every
// instance again, its log, and how it ended. What runs is known from a lock that
// the shim holds, never from a process id alone.
//
// An instance gets a clean environment (PATH, HOME, LANG and its spec's Env), the
// null device as standard input and a process group of its own. Its memory limit
// is held by the shim, which looks every 100 ms at the anonymous and shared memory
// of the process and its descendants and kills the group when there is more; a
// process that is faster than that meets the kernel, which is told to prefer
// modules. Its processor limit is an affinity to that many processors, rounded up.
//
// Under systemd the agent's unit needs KillMode=process, or stopping the agent
// would stop the modules.
//
// The package knows nothing of models, endpoints or the hub.
package process

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/targets"
	"github.com/atelier-edge/atelier/targets/logfile"
)

// Kind is the kind's name.
const Kind = "process"

// pollInterval is how often Stop, and Wait where it cannot sleep, look whether an
// instance has ended.
const pollInterval = 50 * time.Millisecond

// stubborn is how long a shim may take to kill its process before it is killed itself.
const stubborn = 5 * time.Second

// Target implements targets.Target.
type Target struct {
	dir  string
	shim string

	mu    sync.Mutex
	locks map[string]*sync.Mutex // per instance: Start, Remove and settling take turns
	shims map[string]*exec.Cmd   // started by this Target and not yet reaped
}

var _ targets.Target = (*Target)(nil)

// New returns the target that keeps its instances in directories below dir, which
// it makes when it is missing, and holds them with the program shim (atelier-shim).
func New(dir, shim string) (*Target, error) {
	if !filepath.IsAbs(dir) || !filepath.IsAbs(shim) {
		return nil, atelier.Errorf(atelier.Invalid, "directory %q and shim %q must both be absolute paths", dir, shim)
	}
	if err := durable.MkdirAll(durable.OS{}, dir, 0o700); err != nil {
		return nil, err
	}
	return &Target{dir: dir, shim: shim, locks: map[string]*sync.Mutex{}, shims: map[string]*exec.Cmd{}}, nil
}

// Kind implements targets.Target.
func (t *Target) Kind() string { return Kind }

// Start implements targets.Target.
func (t *Target) Start(ctx context.Context, spec targets.Spec) error {
	if err := spec.Check(); err != nil {
		return err
	}
	defer t.lock(spec.ID)()
	inst := t.instance(spec.ID)
	s, err := t.settled(ctx, spec.ID)
	if err == nil && s.Phase == targets.Running {
		return nil
	}
	if err != nil && !startable(err) {
		return err
	}
	if err := durable.MkdirAll(durable.OS{}, string(inst), 0o700); err != nil {
		return err
	}
	if err := durable.Remove(durable.OS{}, inst.path(statusFile)); err != nil {
		return err
	}
	if err := inst.write(specFile, &spec); err != nil {
		return err
	}
	return t.startShim(inst, &spec)
}

// startShim starts the shim in a session of its own and returns when its process runs.
func (t *Target) startShim(inst instance, spec *targets.Spec) error {
	failed := func(err error) error {
		return atelier.Errorf(atelier.Internal, "cannot start the shim %s of module %s: %w", t.shim, spec.ID, err).
			WithRemedy("Check that atelier-shim is installed beside atelier-agent.")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return failed(err)
	}
	defer r.Close()
	shimErrors, err := os.OpenFile(inst.path(shimLog), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		_ = w.Close() // nothing was written
		return failed(err)
	}
	cmd := exec.Command(t.shim, string(inst))
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.Stdout, cmd.Stderr = w, shimErrors
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()          // the shim has its own
	_ = shimErrors.Close() // likewise
	if err != nil {
		return failed(err)
	}
	t.mu.Lock()
	t.shims[spec.ID] = cmd
	t.mu.Unlock()
	word, err := io.ReadAll(r) // until the shim closes it, running or ended
	if err != nil {
		return failed(err)
	}
	if string(word) == Ready {
		return nil
	}
	_ = cmd.Wait() // how it ended is in its log
	t.mu.Lock()
	delete(t.shims, spec.ID)
	t.mu.Unlock()
	why, err := os.ReadFile(inst.path(shimLog))
	if err != nil {
		return failed(err)
	}
	return atelier.Errorf(atelier.Invalid, "module %s was not started: %s", spec.ID, bytes.TrimSpace(why)).
		WithRemedy("Check that the program is there, may be executed and is made for this machine.")
}

// Ready is what atelier-shim writes to its standard output, before it closes it,
// once its process runs.
const Ready = "ready\n"

// Stop implements targets.Target.
func (t *Target) Stop(ctx context.Context, id string, grace time.Duration) error {
	if err := targets.CheckID(id); err != nil {
		return err
	}
	asked, killed := false, false
	begin := time.Now()
	for {
		unlock := t.lock(id)
		s, err := t.status(id)
		unlock()
		if err != nil || s.Phase == targets.Exited {
			return err
		}
		switch passed := time.Since(begin); {
		case passed >= grace+stubborn:
			err = t.signalShim(id, syscall.SIGKILL)
		case passed >= grace && !killed:
			killed = true
			err = t.signalShim(id, signalKill)
		case !asked:
			asked = true
			err = t.signalShim(id, signalStop)
		}
		if err != nil {
			return err
		}
		if err := pause(ctx, min(pollInterval, 5*time.Millisecond+time.Since(begin)/4)); err != nil {
			return atelier.Errorf(atelier.Timeout, "gave up waiting until module %s ended: %w", id, err)
		}
	}
}

// signalShim sends sig to the shim that holds id, if there is one. os.Process
// holds on to the process itself where the kernel can (pidfd), so that asking
// for the holder again rules out another process under the same number.
func (t *Target) signalShim(id string, sig syscall.Signal) error {
	pid, err := t.instance(id).holder()
	if err != nil || pid == 0 {
		return err
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return nil // it has just ended
	}
	defer func() { _ = p.Release() }() // it gives up a descriptor
	if again, err := t.instance(id).holder(); err != nil || again != pid {
		return err
	}
	if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return atelier.Errorf(atelier.Internal, "cannot signal the shim of module %s: %w", id, err)
	}
	return nil
}

// Remove implements targets.Target.
func (t *Target) Remove(ctx context.Context, id string) error {
	if err := targets.CheckID(id); err != nil {
		return err
	}
	defer t.lock(id)()
	inst := t.instance(id)
	s, err := t.settled(ctx, id)
	if err == nil && s.Phase == targets.Running {
		return atelier.Errorf(atelier.InUse, "module %s still runs", id).WithRemedy("Stop it first.")
	}
	if err != nil && !startable(err) {
		return err
	}
	var spec targets.Spec
	if err := inst.read(specFile, &spec); err == nil && spec.Check() == nil {
		for _, made := range []string{spec.Socket, spec.Log, spec.Log + logfile.Older} {
			if made == "" {
				continue
			}
			if err := os.Remove(made); err != nil && !errors.Is(err, os.ErrNotExist) {
				return durable.Explain(err, "remove "+made)
			}
		}
	}
	return durable.Explain(os.RemoveAll(string(inst)), "remove "+string(inst))
}

// Status implements targets.Target.
func (t *Target) Status(_ context.Context, id string) (targets.Status, error) {
	if err := targets.CheckID(id); err != nil {
		return targets.Status{}, err
	}
	defer t.lock(id)()
	return t.status(id)
}

// status returns the status of id and writes it down when it ended unseen. The
// caller has id's lock.
func (t *Target) status(id string) (targets.Status, error) {
	inst := t.instance(id)
	unknown := atelier.Errorf(atelier.NotFound, "no module %s is known to target %s", id, Kind)
	holder, err := inst.holder()
	if err != nil {
		return targets.Status{}, durable.Explain(err, "look at "+string(inst))
	}
	if holder == 0 {
		t.reap(id)
	}
	var s state
	// Read after asking for the holder: a shim writes before it lets go.
	if err := inst.read(statusFile, &s); err != nil {
		if atelier.CodeOf(err) == atelier.NotFound {
			return targets.Status{}, unknown
		}
		return targets.Status{}, err
	}
	if holder == 0 && s.Phase == targets.Running {
		var spec targets.Spec
		if err := inst.read(specFile, &spec); err != nil {
			return targets.Status{}, err
		}
		if err := inst.settle(&s, &spec); err != nil {
			return targets.Status{}, err
		}
	}
	return s.Status, nil
}

// settled returns the status of id when its shim is not about to begin or to
// end: the instance runs, or there is no shim. The caller has id's lock.
func (t *Target) settled(ctx context.Context, id string) (targets.Status, error) {
	for begin := time.Now(); ; {
		holder, err := t.instance(id).holder()
		if err != nil {
			return targets.Status{}, durable.Explain(err, "look at "+string(t.instance(id)))
		}
		s, err := t.status(id)
		if holder == 0 || err == nil && s.Phase == targets.Running {
			return s, err
		}
		if time.Since(begin) > stubborn {
			return s, atelier.Errorf(atelier.Conflict, "the shim of module %s, process %d, neither runs its module nor ends", id, holder).
				WithRemedy("Kill that process.")
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return s, atelier.Errorf(atelier.Timeout, "gave up waiting for the shim of module %s: %w", id, err)
		}
	}
}

// startable reports whether err, of status, leaves room for a fresh start: the
// instance was never started, or its files are torn.
func startable(err error) bool {
	code := atelier.CodeOf(err)
	return code == atelier.NotFound || code == atelier.Corrupt
}

// List implements targets.Target.
func (t *Target) List(ctx context.Context) ([]targets.Status, error) {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return nil, durable.Explain(err, "list "+t.dir)
	}
	list := []targets.Status{}
	for _, e := range entries {
		if !e.IsDir() || targets.CheckID(e.Name()) != nil {
			continue
		}
		s, err := t.Status(ctx, e.Name())
		if err == nil {
			list = append(list, s)
		} else if !startable(err) {
			return nil, err
		}
	}
	return list, nil
}

// Log implements targets.Target.
func (t *Target) Log(_ context.Context, id string, max int64) (io.ReadCloser, error) {
	if err := targets.CheckID(id); err != nil {
		return nil, err
	}
	defer t.lock(id)()
	if _, err := t.status(id); err != nil {
		return nil, err
	}
	var spec targets.Spec
	if err := t.instance(id).read(specFile, &spec); err != nil {
		return nil, err
	}
	r, err := logfile.OpenTail(spec.Log, max)
	return r, durable.Explain(err, "read "+spec.Log)
}

func (t *Target) instance(id string) instance { return instance(filepath.Join(t.dir, id)) }

// lock takes the lock of instance id and returns what gives it back.
func (t *Target) lock(id string) (unlock func()) {
	t.mu.Lock()
	l := t.locks[id]
	if l == nil {
		l = &sync.Mutex{}
		t.locks[id] = l
	}
	t.mu.Unlock()
	l.Lock()
	return l.Unlock
}

// reap takes in the shim of id where this Target started it. The shim has ended.
func (t *Target) reap(id string) {
	t.mu.Lock()
	cmd := t.shims[id]
	delete(t.shims, id)
	t.mu.Unlock()
	if cmd != nil {
		_ = cmd.Wait() // how the process ended is in status.json
	}
}

// pause waits for d, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
