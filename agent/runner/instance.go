package runner

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/fetch"
	"github.com/atelier-edge/atelier/internal/content/transfer"
	"github.com/atelier-edge/atelier/targets"
)

// instance carries one rollout through its life. One goroutine (live) does the
// work; the rest of the runner reads its status and tells it to retire.
type instance struct {
	runner *Runner
	module atelier.Module
	id     string
	target targets.Target // nil where the agent has none of the kind

	retired chan struct{} // closed when it shall leave
	once    sync.Once

	told atelier.Reason // of the last failure; the working goroutine's own

	mu       sync.Mutex
	status   atelier.SlotStatus
	fallback string // what the module says of providers that were preferred
	ready    bool
	gone     bool
}

func newInstance(r *Runner, m atelier.Module) *instance {
	i := &instance{runner: r, module: m, id: instanceID(&m), target: r.targets[m.Target], retired: make(chan struct{})}
	i.status = blank(&m)
	return i
}

// instanceID names a rollout's instance in its target: that of its server where it is
// one of several models.
func instanceID(m *atelier.Module) string {
	if shared(m) {
		return serverID(m)
	}
	return m.Deployment + "-" + m.Rollout
}

// blank is the status of a rollout with which nothing was done yet.
func blank(m *atelier.Module) atelier.SlotStatus {
	return atelier.SlotStatus{
		Rollout: m.Rollout, Model: m.Model.Name, Version: m.Model.Version, Digest: m.Model.Digest,
		Standing: atelier.Stand(atelier.Pending, atelier.Because(atelier.ReasonInProgress, "")),
		Size:     fetch.Size(m.Content()), Since: time.Now().UTC(),
	}
}

// socket is where the rollout's module listens. Rollout ids are unique, and the
// path of a Unix socket is short of room.
func (r *Runner) socket(rollout string) string { return filepath.Join(r.opts.Run, rollout+".sock") }

// dir is the directory of the rollout's files.
func (i *instance) dir() string {
	return filepath.Join(i.runner.opts.Modules, i.module.Deployment, i.module.Rollout)
}

// retire tells the instance to leave: to finish what it has, stop, and remove
// what it left on the device.
func (i *instance) retire() { i.once.Do(func() { close(i.retired) }) }

func (i *instance) isRetired() bool {
	select {
	case <-i.retired:
		return true
	default:
		return false
	}
}

func (i *instance) fellBack() string { i.mu.Lock(); defer i.mu.Unlock(); return i.fallback }

func (i *instance) isReady() bool { i.mu.Lock(); defer i.mu.Unlock(); return i.ready }
func (i *instance) isGone() bool  { i.mu.Lock(); defer i.mu.Unlock(); return i.gone }

func (i *instance) snapshot() atelier.SlotStatus {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.status
}

// set notes where the instance stands.
func (i *instance) set(s atelier.ModuleState, why atelier.Why) {
	i.mu.Lock()
	if i.status.State() != s {
		i.status.Since = time.Now().UTC()
	}
	i.status.Standing = atelier.Stand(s, why)
	ready := s == atelier.Standby
	turned := ready != i.ready
	i.ready = ready
	i.mu.Unlock()
	i.runner.opts.Changed()
	if ready || turned {
		i.runner.Wake() // it may be promoted now, or must lose its share
	}
}

func (i *instance) progress(done int64) {
	i.mu.Lock()
	i.status.Fetched = done
	i.mu.Unlock()
	i.runner.opts.Progressed()
}

// live carries the instance until it has left or leave ends; then the module
// goes on running without the agent.
// arrived notes what a file cost on the wire. A difference is worth telling, also
// beside files that came whole.
func (i *instance) arrived(way string, received int64) {
	i.mu.Lock()
	i.status.Received += received
	if way == transfer.WayDifference || i.status.Way == "" {
		i.status.Way = way
	}
	i.mu.Unlock()
	i.runner.opts.Changed()
}

func (i *instance) live(leave context.Context) {
	serving, cancel := context.WithCancel(leave)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if !i.isRetired() { // after a restart of the agent it may be from the start
			i.serve(serving)
		}
	}()
	select {
	case <-i.retired:
		cancel()
	case <-leave.Done():
	}
	<-done
	if leave.Err() != nil {
		return
	}
	if i.depart(leave) {
		i.mu.Lock()
		i.gone = true
		i.mu.Unlock()
		i.runner.Wake()
	}
}

// serve does the steps, watches the module, and does them again after a pause
// whenever something failed, until ctx ends.
func (i *instance) serve(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		err := i.bringUp(ctx)
		if err == nil {
			i.log().Info("module is ready")
			began := time.Now()
			err = i.watch(ctx)
			if ctx.Err() == nil {
				i.countRestart()
			}
			if time.Since(began) >= i.runner.opts.Times.Settled {
				failures = 0
			}
		}
		failures++
		if !i.failed(ctx, err, failures) {
			return
		}
	}
}

// failed says why an attempt did not work, the given number in a row, and waits
// until it is time for the next; false where there is none.
func (i *instance) failed(ctx context.Context, err error, failures int) bool {
	if ctx.Err() != nil {
		return false
	}
	why, final := i.explain(err, failures)
	if final {
		i.log().Error("module cannot run here", "why", why)
		i.set(atelier.Refused, why)
		<-ctx.Done()
		return false
	}
	times := i.runner.opts.Times
	pause := backoff(times.Retry, times.RetryMost, failures)
	level := slog.LevelWarn
	if why.Reason() == atelier.ReasonNoSpace {
		pause = min(pause, times.Space)
		if i.told == atelier.ReasonNoSpace {
			level = slog.LevelDebug // each look at a disk that is still full
		}
	}
	i.told = why.Reason()
	i.log().Log(ctx, level, "module failed", "why", why, "retry_in", pause.Round(time.Millisecond))
	i.set(atelier.BackOff, why)
	return sleep(ctx, pause)
}

func (i *instance) log() *slog.Logger {
	return i.runner.opts.Log.With("module", i.module.Name, "rollout", i.module.Rollout)
}

func (i *instance) countRestart() {
	i.mu.Lock()
	i.status.Restarts++
	i.mu.Unlock()
}

// sleep waits, or returns false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
