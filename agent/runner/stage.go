package runner

import (
	"context"
	"slices"

	atelier "github.com/atelier-edge/atelier"
)

// stage lets an instance fetch for each module that the desired state stages, and
// ends those that it stages no more: they were switched to, replaced or taken back.
// Nothing of it is written down, since the desired state is. The caller holds r.mu.
func (r *Runner) stage() {
	desired := r.opts.Store.Desired()
	if desired == nil {
		return
	}
	wanted := map[string]bool{}
	for i := range desired.Staged {
		m := &desired.Staged[i]
		wanted[m.Rollout] = true
		s := r.staged[m.Rollout]
		if s != nil && slices.Equal(s.module.Content(), m.Content()) {
			continue
		}
		if s != nil {
			s.retire()
		}
		s = newInstance(r, *m)
		r.staged[m.Rollout] = s
		r.group.Go(func() { s.hold(r.leave) })
	}
	for rollout, s := range r.staged {
		if !wanted[rollout] {
			s.retire()
			delete(r.staged, rollout)
			r.release(s)
		}
	}
}

// hold brings onto the device what the module needs and starts nothing. It tries
// until that has worked, the instance is retired, or leave ends.
func (i *instance) hold(leave context.Context) {
	ctx, cancel := context.WithCancel(leave)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-i.retired:
			cancel()
		case <-stop:
		}
	}()
	for failures := 1; ; failures++ {
		err := i.check(ctx)
		if err == nil {
			i.set(atelier.Fetching, atelier.Because(atelier.ReasonInProgress, ""))
			err = i.runner.opts.Fetcher.Prefetch(ctx, i.module.Content(), i.progress)
		}
		if err == nil {
			err = i.unpack(ctx) // so that the switch takes no longer than a start
		}
		if err == nil {
			i.set(atelier.StagedState, atelier.Because(atelier.ReasonWaiting, "all of it is on the device and waits for the switch"))
			return
		}
		if !i.failed(ctx, err, failures) {
			return
		}
	}
}

// withStaged adds what is staged to the list of modules. The caller holds r.mu.
func (r *Runner) withStaged(list []atelier.ModuleStatus) []atelier.ModuleStatus {
	for _, s := range r.staged {
		m := &s.module
		at := slices.IndexFunc(list, func(l atelier.ModuleStatus) bool { return l.Deployment == m.Deployment })
		if at < 0 {
			at = len(list)
			list = append(list, atelier.ModuleStatus{Deployment: m.Deployment, Name: m.Name})
		}
		status := s.snapshot()
		list[at].Staged = &status
	}
	return list
}
