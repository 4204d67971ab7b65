package runner

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/targets"
)

// withoutGateway is how many times its patience a departing rollout waits for a
// gateway that does not answer: its requests, if there are any, cannot be counted.
const withoutGateway = 4

// depart drains the module, stops it and removes what it left. It tries again
// until that has worked, or ctx ends; then it returns false.
func (i *instance) depart(ctx context.Context) bool {
	log := i.runner.opts.Log.With("module", i.module.Name, "rollout", i.module.Rollout)
	i.set(atelier.Draining, atelier.Because(atelier.ReasonSuperseded, "it finishes the requests that it has"))
	i.drain(ctx)
	times := i.runner.opts.Times
	for failures := 1; ctx.Err() == nil; failures++ {
		err := i.remove(ctx)
		if err == nil {
			i.set(atelier.Stopped, atelier.Because(atelier.ReasonSuperseded, ""))
			log.Info("module was stopped and removed")
			return true
		}
		log.Warn("module could not be removed", "error", err)
		if !sleep(ctx, backoff(times.Retry, times.RetryMost, failures)) {
			break
		}
	}
	return false
}

// drain returns when the gateway sends the rollout nothing more and all of its
// requests are answered, or when patience ends.
func (i *instance) drain(ctx context.Context) {
	times := i.runner.opts.Times
	began := time.Now()
	var routedAway time.Time // since when the gateway sends it nothing
	for ctx.Err() == nil {
		switch busy, away, err := i.busy(ctx); {
		case err == nil && away && !busy:
			return
		case err == nil && away && routedAway.IsZero():
			routedAway = time.Now()
		}
		if !routedAway.IsZero() && time.Since(routedAway) > times.Patience {
			return
		}
		if time.Since(began) > withoutGateway*times.Patience {
			return
		}
		if !sleep(ctx, times.Poll) {
			return
		}
	}
}

// busy asks the gateway whether it sends requests to the rollout no more, and
// whether some are still under way.
func (i *instance) busy(ctx context.Context) (busy, away bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, gatewayTimeout)
	defer cancel()
	r := i.runner
	r.mu.Lock()
	table := r.slots.RouteTable
	r.mu.Unlock()
	if routesTo(table, i.module.Rollout) {
		return true, false, nil // the table without it is not made yet
	}
	status, err := r.opts.Gateway.Status(ctx)
	if err != nil {
		return false, false, err
	}
	for _, c := range status.Counters {
		busy = busy || c.Rollout == i.module.Rollout && c.InFlight > 0
	}
	return busy, status.Sequence >= table.Sequence, nil
}

// remove stops the instance and removes its files. What is not there is removed
// already.
func (i *instance) remove(ctx context.Context) error {
	switch {
	case i.target == nil:
	case shared(&i.module):
		if err := i.removeShared(ctx); err != nil {
			return err
		}
	default:
		if err := end(ctx, i.target, i.id, i.runner.opts.Times.Grace); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(i.dir()); err != nil {
		return err
	}
	// The deployment's directory goes with its last rollout.
	if err := os.Remove(filepath.Dir(i.dir())); err != nil && !errors.Is(err, os.ErrNotExist) && !notEmpty(filepath.Dir(i.dir())) {
		return err
	}
	return nil
}

func notEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) > 0
}

// end stops and removes an instance, where there is one.
func end(ctx context.Context, t targets.Target, id string, grace time.Duration) error {
	if err := t.Stop(ctx, id, grace); err != nil && atelier.CodeOf(err) != atelier.NotFound {
		return err
	}
	if err := t.Remove(ctx, id); err != nil && atelier.CodeOf(err) != atelier.NotFound {
		return err
	}
	return nil
}

// sweep ends instances that no slot knows: the state directory was replaced
// while they ran. It removes their files, too.
func (r *Runner) sweep(ctx context.Context) {
	known := map[string]bool{}
	for _, record := range r.slots.Modules {
		for _, slot := range record.All() {
			known[instanceID(&slot.Module)] = true
		}
	}
	for _, t := range r.opts.Targets {
		list, err := t.List(ctx)
		if err != nil {
			r.opts.Log.Warn("cannot list what runs", "target", t.Kind(), "error", err)
			continue
		}
		for _, s := range list {
			deployment, rollout, ok := strings.Cut(s.ID, "-")
			dir := filepath.Join(r.opts.Modules, deployment, rollout)
			switch {
			case isServerID(s.ID):
				dir = r.serverDir(s.ID)
				if r.wants(s.ID, nil) {
					continue
				}
			case known[s.ID] || !ok || !atelier.IsID(deployment) || !atelier.IsID(rollout):
				continue
			}
			r.opts.Log.Warn("ending a module that nothing here knows", "target", t.Kind(), "id", s.ID)
			r.group.Go(func() {
				err := end(ctx, t, s.ID, r.opts.Times.Grace)
				if err == nil {
					err = os.RemoveAll(dir)
				}
				if err != nil && ctx.Err() == nil {
					r.opts.Log.Warn("cannot end it", "id", s.ID, "error", err)
				}
			})
		}
	}
}
