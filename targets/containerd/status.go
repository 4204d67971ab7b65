package containerd

import (
	"context"
	"errors"
	"path"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/targets"
	"github.com/atelier-edge/atelier/targets/containerd/keep"
)

// Status implements targets.Target.
func (t *Target) Status(ctx context.Context, id string) (targets.Status, error) {
	inst, err := t.instance(id)
	if err != nil {
		return targets.Status{}, err
	}
	if err := t.settle(ctx); err != nil {
		return targets.Status{}, err
	}
	defer t.lock(id)()
	return t.status(t.in(ctx), inst, id)
}

// status returns the status of an instance, and writes down how it ended where nobody has seen
// that before. The caller has the instance's lock.
func (t *Target) status(ctx context.Context, inst instance, id string) (targets.Status, error) {
	var spec targets.Spec
	if err := inst.read(specFile, &spec); err != nil {
		if isNotFound(err) {
			err = unknown(id)
		}
		return targets.Status{}, err
	}
	var e ended
	if err := inst.read(exitFile, &e); err == nil {
		return targets.Status{ID: id, Phase: targets.Exited, Started: e.Started, Exit: &e.Exit}, nil
	} else if !isNotFound(err) {
		return targets.Status{}, err
	}
	s := targets.Status{ID: id, Phase: targets.Running}
	container, err := t.client.LoadContainer(ctx, id)
	if errdefs.IsNotFound(err) {
		return t.lost(inst, &spec, s) // containerd was set up anew
	}
	if err != nil {
		return s, explain(err, "find the container "+id)
	}
	info, err := container.Info(ctx, containerd.WithoutRefreshedMetadata)
	if err != nil {
		return s, explain(err, "read the container "+id)
	}
	s.Started = info.CreatedAt
	task, err := container.Task(ctx, nil)
	if errdefs.IsNotFound(err) {
		return t.lost(inst, &spec, s) // the device was started anew, or the shim was killed
	}
	if err != nil {
		return s, explain(err, "find the task of "+id)
	}
	is, err := task.Status(ctx)
	if errdefs.IsNotFound(err) {
		return t.lost(inst, &spec, s)
	}
	if err != nil {
		return s, explain(err, "ask for the task of "+id)
	}
	switch is.Status {
	case containerd.Stopped:
		return t.exited(ctx, inst, &spec, s, task, is)
	case containerd.Created: // by a driver that was killed before it started it
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			return s, explain(err, "remove the task of "+id)
		}
		return t.lost(inst, &spec, s)
	}
	s.PID = int(task.Pid())
	if spec.Limits.Memory > 0 && outOfMemory(t.group(id)) {
		// The kernel killed one of its processes; half a module is none.
		if err := task.Kill(ctx, syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			return s, explain(err, "end "+id)
		}
	}
	return s, nil
}

// group is the control group of an instance.
func (t *Target) group(id string) string { return path.Join("/", t.opts.Namespace, id) }

// exited writes down how a task ended, and removes it.
func (t *Target) exited(ctx context.Context, inst instance, spec *targets.Spec, s targets.Status, task containerd.Task, is containerd.Status) (targets.Status, error) {
	exit := exitOf(is)
	exit.OutOfMemory = outOfMemory(t.group(spec.ID))
	if exit.OutOfMemory {
		exit.Code, exit.Signal = -1, syscall.SIGKILL.String()
	}
	// Written before the task goes: nobody else knows it then.
	if err := inst.write(exitFile, ended{s.Started, exit}); err != nil {
		return s, err
	}
	if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
		t.opts.Log.Warn("a task that has ended is removed later", "module", spec.ID, "error", err)
	}
	return t.closed(inst, spec, s, exit)
}

// lost writes down that an instance ended and nobody knows how.
func (t *Target) lost(inst instance, spec *targets.Spec, s targets.Status) (targets.Status, error) {
	return t.closed(inst, spec, s, targets.Exit{Time: time.Now().UTC(), Code: -1, Signal: syscall.SIGKILL.String(), OutOfMemory: outOfMemory(t.group(spec.ID))})
}

// closed writes down how an instance ended, with its last words.
func (t *Target) closed(inst instance, spec *targets.Spec, s targets.Status, exit targets.Exit) (targets.Status, error) {
	exit.LastLine = inst.lastLine(spec)
	if err := inst.write(exitFile, ended{s.Started, exit}); err != nil {
		return s, err
	}
	if err := keep.RemoveNetwork(t.network(spec.ID)); err != nil {
		t.opts.Log.Warn("the network of a module that has ended is removed later", "module", spec.ID, "error", err)
	}
	s.Phase, s.Exit, s.PID = targets.Exited, &exit, 0
	return s, nil
}

// exitOf returns how a task ended. keep.Init, and runc, tell a signal as a shell does.
func exitOf(is containerd.Status) targets.Exit {
	exit := targets.Exit{Time: is.ExitTime.UTC(), Code: int(is.ExitStatus)}
	if n := int(is.ExitStatus) - keep.SignalExit; n > 0 && n < 32 {
		exit.Code, exit.Signal = -1, syscall.Signal(n).String()
	}
	return exit
}

// Wait implements targets.Target. It goes on while containerd is away.
func (t *Target) Wait(ctx context.Context, id string) (targets.Status, error) {
	for {
		s, err := t.Status(ctx, id)
		switch {
		case ctx.Err() != nil:
			return s, atelier.Errorf(atelier.Timeout, "gave up waiting for module %s: %w", id, ctx.Err())
		case err == nil && s.Phase == targets.Exited:
			return s, nil
		case err != nil && atelier.CodeOf(err) != atelier.Unavailable && atelier.CodeOf(err) != atelier.Timeout:
			return s, err
		}
		t.awaitChange(ctx, id)
	}
}

// awaitChange returns when an instance may have ended, and now and then.
func (t *Target) awaitChange(ctx context.Context, id string) {
	bounded, cancel := context.WithTimeout(t.in(ctx), memoryEvery)
	defer cancel()
	container, err := t.client.LoadContainer(bounded, id)
	if err != nil {
		_ = pause(bounded, pollInterval) // Wait looks at ctx
		return
	}
	task, err := container.Task(bounded, nil)
	if err != nil {
		_ = pause(bounded, pollInterval) // likewise
		return
	}
	ended, err := task.Wait(bounded)
	if err != nil {
		_ = pause(bounded, pollInterval) // likewise
		return
	}
	if status := <-ended; status.Error() != nil && !errors.Is(status.Error(), context.DeadlineExceeded) {
		_ = pause(bounded, pollInterval) // likewise
	}
}
