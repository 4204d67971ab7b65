// Package containerd runs modules as containers, by containerd and runc.
//
// An instance is a container of containerd's, in a namespace of its own there; nothing else of
// what containerd has is looked at or touched. Its image comes from the agent's content
// store: layers are unpacked from there into containerd's snapshots, under a lease, checked
// against their digests and bounded in size; the container holds them from then on, and
// containerd collects them when the last one goes. There is no copy of the packed layers.
//
// A container has a root file system that it cannot write to, no capabilities, no way to new
// privileges, containerd's default seccomp profile, its own process, IPC, mount, host-name and
// network namespaces, and control groups with the limits of its spec. It may write to /tmp and
// /run, which are memory. What listens on its port is reached by a Unix socket; see keep.
//
// Containers outlive the driver, the agent and containerd: their shims hold them. A Target made
// anew over the same directory finds every instance again. After a reboot it tells that they
// ended, and Start makes them anew from what is on the disk.
//
// Only programs of their own import this package: containerd's client is large.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/targets"
	"github.com/atelier-edge/atelier/targets/containerd/keep"
	"github.com/atelier-edge/atelier/targets/logfile"
)

// Kind is the kind's name.
const Kind = atelier.TargetContainerd

// runtimeName is containerd's name for runc with a shim that outlives it.
const runtimeName = "io.containerd.runc.v2"

// Times of the target.
const (
	pollInterval = 50 * time.Millisecond
	memoryEvery  = 500 * time.Millisecond // how often Wait looks whether the memory limit was met
	stubborn     = 20 * time.Second       // how long a container may take to go once it is killed
	startWithin  = time.Minute            // how long a container may take until its module was started
	leaseFor     = 24 * time.Hour         // an interrupted Start leaves nothing for longer
)

// Options say what a Target works with.
type Options struct {
	// Dir keeps what is known of the instances; Run holds what a reboot may take.
	Dir, Run string
	// Address is containerd's socket.
	Address string
	// Namespace is containerd's, and this target's alone.
	Namespace string
	// Snapshotter is containerd's; "" takes overlayfs where it works, and native otherwise.
	Snapshotter string
	// Keep is the path of atelier-keep.
	Keep string
	// Private are directories of the device that no container may be shown.
	Private []string
	// Reserve is how many bytes of the disk stay free.
	Reserve int64
	Log     *slog.Logger
}

// Target implements targets.Target and targets.Prober.
type Target struct {
	opts    Options
	dir     string
	client  *containerd.Client
	reserve int64

	snapshotter string
	unpacking   sync.Mutex

	mu    sync.Mutex
	ready bool                   // containerd was asked for a snapshotter, and tidied
	owed  []leases.Lease         // that could not be ended when their Start was over
	locks map[string]*sync.Mutex // per instance
}

var (
	_ targets.Target = (*Target)(nil)
	_ targets.Prober = (*Target)(nil)
)

// New returns a target. containerd need not run yet. Close ends the connection to it;
// containers stay.
func New(opts Options) (*Target, error) {
	for _, dir := range []string{opts.Dir, opts.Run, filepath.Join(opts.Run, "mounts")} {
		if !filepath.IsAbs(dir) {
			return nil, atelier.Errorf(atelier.Invalid, "the directory %q is not an absolute path", dir)
		}
		if err := durable.MkdirAll(durable.OS{}, dir, 0o700); err != nil {
			return nil, err
		}
	}
	if err := identifiers.Validate(opts.Namespace); err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "the namespace of containerd's: %w", err)
	}
	client, err := containerd.New(opts.Address, containerd.WithDefaultNamespace(opts.Namespace))
	if err != nil {
		return nil, explain(err, "connect to containerd")
	}
	return &Target{opts: opts, dir: opts.Dir, client: client, reserve: opts.Reserve, snapshotter: opts.Snapshotter, locks: map[string]*sync.Mutex{}}, nil
}

// Close ends the connection to containerd.
func (t *Target) Close() error { return t.client.Close() }

// Kind implements targets.Target.
func (t *Target) Kind() string { return Kind }

// in returns ctx for requests to containerd.
func (t *Target) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, t.opts.Namespace)
}

// instance returns the directory of an instance, or why it cannot have one.
func (t *Target) instance(id string) (instance, error) {
	if err := targets.CheckID(id); err != nil {
		return "", err
	}
	if err := identifiers.Validate(id); err != nil {
		return "", atelier.Errorf(atelier.Invalid, "module id %.80q cannot name a container: %w", id, err).WithField("id")
	}
	return instance(filepath.Join(t.dir, id)), nil
}

// lock takes the lock of an instance and returns what gives it back.
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

// settle finds out, once, what containerd offers, and removes what an interrupted driver left.
func (t *Target) settle(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx = t.in(ctx)
	if t.ready {
		for len(t.owed) > 0 {
			if err := t.client.LeasesService().Delete(ctx, t.owed[0]); err != nil && !errdefs.IsNotFound(err) {
				return explain(err, "end a lease")
			}
			t.owed = t.owed[1:]
		}
		return nil
	}
	if t.snapshotter == "" {
		_, err := t.client.SnapshotService("overlayfs").Stat(ctx, "none")
		switch {
		case errdefs.IsNotFound(err):
			t.snapshotter = "overlayfs"
		case errdefs.IsUnavailable(err) || ctx.Err() != nil:
			return explain(err, "ask containerd for its snapshotters")
		default:
			t.snapshotter = "native"
		}
	}
	if err := mount.SetTempMountLocation(filepath.Join(t.opts.Run, "mounts")); err != nil {
		return atelier.Errorf(atelier.Internal, "make a directory for mounts: %w", err)
	}
	if _, err := mount.CleanupTempMounts(0); err != nil {
		return atelier.Errorf(atelier.Internal, "unmount what an interrupted driver left: %w", err)
	}
	left, err := t.client.LeasesService().List(ctx)
	if err != nil {
		return explain(err, "list leases")
	}
	for _, l := range left {
		if err := t.client.LeasesService().Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
			return explain(err, "end a lease")
		}
	}
	t.ready = true
	return nil
}

// Start implements targets.Target.
func (t *Target) Start(ctx context.Context, spec targets.Spec) error {
	if err := spec.Check(); err != nil {
		return err
	}
	inst, err := t.instance(spec.ID)
	if err != nil {
		return err
	}
	if spec.Container == nil {
		return atelier.Errorf(atelier.Invalid, "module %s has no image, and target %s runs nothing else", spec.ID, Kind).WithField("container")
	}
	if err := t.settle(ctx); err != nil {
		return err
	}
	defer t.lock(spec.ID)()
	ctx = t.in(ctx)
	switch s, err := t.status(ctx, inst, spec.ID); {
	case err == nil && s.Phase == targets.Running:
		return nil
	case err != nil && !startable(err):
		return err
	}
	if err := t.clear(ctx, spec.ID); err != nil {
		return err
	}
	if err := durable.MkdirAll(durable.OS{}, string(inst), 0o700); err != nil {
		return err
	}
	if err := inst.write(specFile, &spec); err != nil {
		return err
	}
	if err := durable.Remove(durable.OS{}, inst.path(exitFile)); err != nil {
		return err
	}
	if err := t.create(ctx, inst, &spec); err != nil {
		return errors.Join(err, t.undo(ctx, inst, spec.ID))
	}
	return nil
}

// undo removes what a Start left that failed. It is not known then.
func (t *Target) undo(ctx context.Context, inst instance, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stubborn)
	defer cancel()
	if err := t.clear(ctx, id); err != nil {
		t.opts.Log.Warn("what a failed start left is removed later", "module", id, "error", err)
		return nil // Remove and the next Start do it
	}
	return inst.remove(nil)
}

// create makes the container and starts it.
func (t *Target) create(ctx context.Context, inst instance, spec *targets.Spec) error {
	read, err := readImage(&spec.Container.Image)
	if err != nil {
		return err
	}
	lease, err := t.client.LeasesService().Create(ctx, leases.WithID(spec.ID+"-"+atelier.NewID()), leases.WithExpiration(leaseFor))
	if err != nil {
		return explain(err, "make a lease")
	}
	defer func() {
		// Of what is not held by a container then nothing stays.
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), stubborn)
		defer cancel()
		err := t.client.LeasesService().Delete(bounded, lease)
		if err != nil && !errdefs.IsNotFound(err) {
			t.opts.Log.Warn("a lease is ended when containerd is there again", "lease", lease.ID, "error", err)
			t.mu.Lock()
			t.owed = append(t.owed, lease)
			t.mu.Unlock()
		}
	}()
	leased := leases.WithLease(ctx, lease.ID)
	parent, err := t.unpack(leased, &spec.Container.Image, read)
	if err != nil {
		return err
	}
	if _, err := t.client.SnapshotService(t.snapshotter).Prepare(leased, spec.ID, parent); err != nil {
		return explain(err, "prepare the root file system of "+spec.ID)
	}
	network := ""
	if spec.Container.Settings.Network != atelier.NetworkHost {
		network = t.network(spec.ID)
	}
	if err := inst.prepare(spec, network); err != nil {
		return err
	}
	options, err := t.options(inst, spec, read, network)
	if err != nil {
		return err
	}
	container, err := t.client.NewContainer(leased, spec.ID, containerd.WithSnapshotter(t.snapshotter), containerd.WithSnapshot(spec.ID),
		containerd.WithRuntime(runtimeName, nil), containerd.WithNewSpec(options...))
	if err != nil {
		return explain(err, "make the container "+spec.ID)
	}
	return t.launch(ctx, inst, spec, container)
}

// network is the file that stands for an instance's network.
func (t *Target) network(id string) string { return filepath.Join(t.opts.Run, "networks", id) }

// startable reports whether err, of status, leaves room for a fresh start.
func startable(err error) bool {
	code := atelier.CodeOf(err)
	return code == atelier.NotFound || code == atelier.Corrupt
}

// clear removes what containerd has of an instance that does not run.
func (t *Target) clear(ctx context.Context, id string) error {
	container, err := t.client.LoadContainer(ctx, id)
	if err == nil {
		task, taskErr := container.Task(ctx, nil)
		if taskErr == nil {
			_, taskErr = task.Delete(ctx, containerd.WithProcessKill)
		}
		if taskErr != nil && !errdefs.IsNotFound(taskErr) {
			return explain(taskErr, "remove the task of "+id)
		}
		err = container.Delete(ctx)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return explain(err, "remove the container "+id)
	}
	err = t.client.SnapshotService(t.snapshotter).Remove(ctx, id)
	if err != nil && !errdefs.IsNotFound(err) {
		return explain(err, "remove the root file system of "+id)
	}
	if err := keep.RemoveNetwork(t.network(id)); err != nil {
		return atelier.Errorf(atelier.Internal, "remove the network of %s: %w", id, err)
	}
	return nil
}

// Stop implements targets.Target.
func (t *Target) Stop(ctx context.Context, id string, grace time.Duration) error {
	asked, killed := false, false
	begin := time.Now()
	for {
		s, err := t.Status(ctx, id)
		if err != nil || s.Phase == targets.Exited {
			return timeout(ctx, id, err)
		}
		passed := time.Since(begin)
		switch {
		case passed >= grace && !killed:
			killed = true
			err = t.signal(ctx, id, syscall.SIGKILL)
		case passed < grace && !asked:
			asked = true
			err = t.signal(ctx, id, syscall.SIGTERM)
		case passed >= grace+stubborn:
			return atelier.Errorf(atelier.Timeout, "module %s was killed %v ago and still runs", id, (passed - grace).Round(time.Second)).
				WithRemedy("Look at containerd's log on the device; a process that waits for a broken disk or driver cannot be killed.")
		}
		if err == nil {
			err = pause(ctx, min(pollInterval, 5*time.Millisecond+passed/4))
		}
		if err != nil {
			return timeout(ctx, id, err)
		}
	}
}

// timeout says that a wait was given up where ctx has ended.
func timeout(ctx context.Context, id string, err error) error {
	if err != nil && ctx.Err() != nil {
		return atelier.Errorf(atelier.Timeout, "gave up waiting until module %s ended: %w", id, ctx.Err())
	}
	return err
}

// signal sends a signal to an instance's first process, which passes it on.
func (t *Target) signal(ctx context.Context, id string, sig syscall.Signal) error {
	defer t.lock(id)()
	// Whoever gives up waiting must not cut runc short, which sends it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.in(ctx)), stubborn)
	defer cancel()
	container, err := t.client.LoadContainer(ctx, id)
	if err != nil {
		return ignoreGone(explain(err, "find the container "+id))
	}
	task, err := container.Task(ctx, nil)
	if err == nil {
		err = task.Kill(ctx, sig)
	}
	if err != nil {
		return ignoreGone(explain(err, "signal the container "+id))
	}
	return nil
}

func ignoreGone(err error) error {
	if isNotFound(err) {
		return nil
	}
	return err
}

// Remove implements targets.Target.
func (t *Target) Remove(ctx context.Context, id string) error {
	inst, err := t.instance(id)
	if err != nil {
		return err
	}
	if err := t.settle(ctx); err != nil {
		return err
	}
	defer t.lock(id)()
	ctx = t.in(ctx)
	s, err := t.status(ctx, inst, id)
	if err == nil && s.Phase == targets.Running {
		return atelier.Errorf(atelier.InUse, "module %s still runs", id).WithRemedy("Stop it first.")
	}
	if err != nil && !startable(err) {
		return err
	}
	if err := t.clear(ctx, id); err != nil {
		return err
	}
	var spec *targets.Spec
	var known targets.Spec
	if inst.read(specFile, &known) == nil && known.Check() == nil {
		spec = &known
	}
	return inst.remove(spec)
}

// List implements targets.Target.
func (t *Target) List(ctx context.Context) ([]targets.Status, error) {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return nil, durable.Explain(err, "list "+t.dir)
	}
	list := []targets.Status{}
	for _, e := range entries {
		if _, err := t.instance(e.Name()); err != nil || !e.IsDir() {
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
	inst, err := t.instance(id)
	if err != nil {
		return nil, err
	}
	var spec targets.Spec
	if err := inst.read(specFile, &spec); err != nil {
		if isNotFound(err) {
			err = unknown(id)
		}
		return nil, err
	}
	r, err := logfile.OpenTail(spec.Log, max)
	return r, durable.Explain(err, "read "+spec.Log)
}

func unknown(id string) error {
	return atelier.Errorf(atelier.NotFound, "no module %s is known to target %s", id, Kind)
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

// hold adds a snapshot to the lease of ctx.
func (t *Target) hold(ctx context.Context, snapshot string) error {
	id, ok := leases.FromContext(ctx)
	if !ok {
		return nil
	}
	err := t.client.LeasesService().AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: snapshot, Type: "snapshots/" + t.snapshotter})
	return explain(err, "hold a layer")
}

// explain turns an error of containerd's into one of ours.
func explain(err error, doing string) error {
	if err == nil {
		return nil
	}
	var known *atelier.Error
	if errors.As(err, &known) {
		return err
	}
	code := atelier.Internal
	remedy := "Look at containerd's log on the device: 'journalctl -u containerd'."
	switch {
	case errdefs.IsNotFound(err):
		code = atelier.NotFound
	case errdefs.IsUnavailable(err):
		code, remedy = atelier.Unavailable, "Start containerd on the device: 'systemctl start containerd'. Containers that run go on without it."
	case errors.Is(err, syscall.ENOSPC):
		code, remedy = atelier.NoSpace, "Make room on the device."
	case errdefs.IsCanceled(err), errdefs.IsDeadlineExceeded(err), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		code, remedy = atelier.Timeout, ""
	}
	e := atelier.Errorf(code, "%s: %w", doing, fmt.Errorf("%w", err))
	if remedy != "" {
		return e.WithRemedy("%s", remedy)
	}
	return e
}
