package containerd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/targets"
	"github.com/atelier-edge/atelier/targets/containerd/keep"
)

// temporary is how much a container may write to /tmp, which is memory of its own.
const temporary = "size=67108864"

// defaultPath is the PATH of a container whose image has none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// options say what containerd's specification of the container becomes.
func (t *Target) options(inst instance, spec *targets.Spec, read *image, network string) ([]oci.SpecOpts, error) {
	c := spec.Container
	run, err := commandOf(spec, read)
	if err != nil {
		return nil, err
	}
	mounts, err := t.mounts(inst, spec)
	if err != nil {
		return nil, err
	}
	processes := c.Settings.Processes
	if processes == 0 {
		processes = atelier.DefaultProcesses
	}
	options := []oci.SpecOpts{
		oci.WithProcessArgs(append([]string{keep.ProgramInside, "init"}, run.args...)...),
		oci.WithProcessCwd(run.dir),
		with(func(s *oci.Spec) { s.Process.Env = run.env }),
		oci.WithHostname("module"),
		oci.WithRootFSReadonly(),
		oci.WithCapabilities(nil),
		oci.WithNoNewPrivileges,
		oci.WithCgroup(t.group(spec.ID)),
		oci.WithMounts(mounts),
		with(func(s *oci.Spec) {
			devices := s.Linux.Resources.Devices
			s.Linux.Resources = resources(spec, processes)
			s.Linux.Resources.Devices = devices
			s.Process.Rlimits = nil // the default's 1024 files are too few for a server
		}),
	}
	if network == "" {
		options = append(options, oci.WithHostNamespace(specs.NetworkNamespace), oci.WithHostResolvconf)
	} else {
		options = append(options, oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: network}))
	}
	for _, d := range c.Settings.Devices {
		if _, err := os.Stat(d); err != nil {
			return nil, atelier.Errorf(atelier.Invalid, "the deployment names %s, which is not on this device", d).WithField("container.devices").
				WithRemedy("Connect it and load its driver, or deploy without --device-node %s.", d)
		}
		options = append(options, oci.WithDevices(d, d, "rwm"))
	}
	if run.user != "" {
		options = append(options, oci.WithUser(run.user))
	}
	// Last, since it looks at the capabilities.
	return append(options, seccomp.WithDefaultProfile()), nil
}

// with changes a specification.
func with(change func(*oci.Spec)) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		change(s)
		return nil
	}
}

// command is what a container runs.
type command struct {
	args []string
	env  []string
	dir  string
	user string
}

// commandOf works out what is run: what the spec says, or what the image says with the
// deployment's changes.
func commandOf(spec *targets.Spec, read *image) (command, error) {
	c, set := read.config.Config, &spec.Container.Settings
	env := map[string]string{"PATH": defaultPath}
	put := func(all []string) {
		for _, e := range all {
			name, value, _ := strings.Cut(e, "=")
			env[name] = value
		}
	}
	put(c.Env)
	run := command{args: spec.Command, dir: spec.Dir}
	if spec.Container.OwnCommand {
		env["HOME"] = "/tmp" // the one place that a module may write to
		entrypoint, args := c.Entrypoint, c.Cmd
		if len(set.Entrypoint) > 0 {
			entrypoint, args = set.Entrypoint, nil // the image's arguments are for its own
		}
		if len(set.Args) > 0 {
			args = set.Args
		}
		run = command{args: slices.Concat(entrypoint, args), dir: c.WorkingDir, user: c.User}
		if run.dir == "" {
			run.dir = "/"
		}
	} else {
		env["HOME"] = spec.Dir
	}
	if set.Port != 0 {
		env["PORT"] = strconv.Itoa(set.Port)
	}
	put(spec.Env)
	put(set.Env)
	for _, name := range slices.Sorted(maps.Keys(env)) {
		run.env = append(run.env, name+"="+env[name])
	}
	if len(run.args) == 0 {
		return run, atelier.Errorf(atelier.Invalid, "the image %s says not what to run", spec.Container.Image.Reference).WithField("container.entrypoint").
			WithRemedy("Deploy it with --entrypoint, or build it with ENTRYPOINT or CMD.")
	}
	return run, nil
}

// mounts returns what the container sees besides its image.
func (t *Target) mounts(inst instance, spec *targets.Spec) ([]specs.Mount, error) {
	bind := func(from, to string, options ...string) specs.Mount {
		return specs.Mount{Type: "bind", Source: from, Destination: to, Options: append([]string{"rbind", "nosuid"}, options...)}
	}
	mounts := []specs.Mount{
		{Type: "tmpfs", Source: "tmpfs", Destination: "/tmp", Options: []string{"nosuid", "nodev", "mode=1777", temporary}},
		bind(t.opts.Keep, keep.ProgramInside, "ro", "nodev"),
		bind(inst.path(startedFile), keep.StartedInside, "rw", "nodev", "noexec"),
		bind(inst.path(hostsFile), "/etc/hosts", "ro", "nodev", "noexec"),
	}
	for _, m := range spec.Container.Settings.Mounts {
		source, err := filepath.EvalSymlinks(m.Source)
		if err != nil {
			return nil, atelier.Errorf(atelier.Invalid, "the deployment mounts %s, which is not on this device", m.Source).WithField("container.mounts").
				WithRemedy("Make it on the device, or deploy without the mount.")
		}
		// A module that may write somewhere could lead the next start's mount to anywhere by a link.
		if source != filepath.Clean(m.Source) {
			return nil, atelier.Errorf(atelier.Forbidden, "the deployment mounts %s, which links lead to %s", m.Source, source).WithField("container.mounts").
				WithRemedy("Name %s itself.", source)
		}
		for _, private := range t.opts.Private {
			if real, err := filepath.EvalSymlinks(private); err == nil {
				private = real
			} else if !errors.Is(err, fs.ErrNotExist) {
				return nil, failed(err, "look at "+private)
			}
			if within(source, private) || within(private, source) {
				return nil, atelier.Errorf(atelier.Forbidden, "the deployment mounts %s, and %s is the device's own", m.Source, private).WithField("container.mounts").
					WithRemedy("Mount another directory.")
			}
		}
		mounts = append(mounts, mountOf(bind, source, m))
	}
	for _, m := range spec.Container.Mounts {
		mounts = append(mounts, mountOf(bind, m.Source, m))
	}
	return mounts, nil
}

func mountOf(bind func(from, to string, options ...string) specs.Mount, source string, m atelier.ContainerMount) specs.Mount {
	mode := "rro" // what is mounted below it too
	if m.Writable {
		mode = "rw"
	}
	return bind(source, m.Target, mode, "nodev")
}

// within reports whether path is dir or lies below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// launch starts the container's task and returns when its module was started.
func (t *Target) launch(ctx context.Context, inst instance, spec *targets.Spec, container containerd.Container) error {
	// Open for both directions, so that it neither waits nor ends before keep.Init has spoken.
	pipe, err := os.OpenFile(inst.path(startedFile), os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return failed(err, "open the pipe of "+spec.ID)
	}
	defer pipe.Close()
	task, err := container.NewTask(ctx, cio.BinaryIO(t.opts.Keep, map[string]string{"hold": string(inst)}))
	for begin := time.Now(); errdefs.IsAlreadyExists(err) && time.Since(begin) < stubborn && ctx.Err() == nil; {
		// containerd is still about to clean up after a shim that was killed.
		_ = pause(ctx, pollInterval) // looked at above
		task, err = container.NewTask(ctx, cio.BinaryIO(t.opts.Keep, map[string]string{"hold": string(inst)}))
	}
	if err != nil {
		return refused(spec, err)
	}
	ended, err := task.Wait(ctx)
	if err == nil {
		err = task.Start(ctx)
	}
	if err != nil {
		return refused(spec, err)
	}
	word := make(chan string, 1)
	go func() { // until the pipe is closed, at the latest
		line, _ := bufio.NewReaderSize(pipe, keep.MaxWord+1).ReadSlice('\n') // what there is counts
		word <- strings.TrimSuffix(string(line), "\n")
	}()
	timer := time.NewTimer(startWithin)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return atelier.Errorf(atelier.Timeout, "gave up starting module %s: %w", spec.ID, ctx.Err())
	case <-timer.C:
		return atelier.Errorf(atelier.Timeout, "module %s was not started within %v", spec.ID, startWithin)
	case line := <-word:
		return said(spec, line)
	case <-ended:
		// The pipe may hold a word all the same.
		if err := pipe.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return failed(err, "read the pipe of "+spec.ID)
		}
		return said(spec, <-word)
	}
}

// said returns what keep.Init's word means.
func said(spec *targets.Spec, line string) error {
	if line == keep.Started {
		return nil
	}
	why, ok := strings.CutPrefix(line, keep.Failed)
	if !ok {
		why = "it ended before it began"
	}
	return atelier.Errorf(atelier.Invalid, "module %s was not started: %s", spec.ID, why).
		WithRemedy("Check that the image %s has the program, and is made for this machine.", spec.Container.Image.Reference)
}

// refused says that runc did not make the container.
func refused(spec *targets.Spec, err error) error {
	e := explain(err, fmt.Sprintf("start the container of module %s", spec.ID))
	var known *atelier.Error
	if errors.As(e, &known) && known.Code == atelier.Internal {
		return atelier.Errorf(atelier.Invalid, "the container of module %s cannot be made: %w", spec.ID, err).
			WithRemedy("Check the mounts, devices and user of the deployment and of the image.")
	}
	return e
}

func failed(err error, doing string) error {
	return atelier.Errorf(atelier.Internal, "%s: %w", doing, err)
}

// probeGrace is how long a probe's command may take to go once it was given up.
const probeGrace = 5 * time.Second

// Probe implements targets.Prober.
func (t *Target) Probe(ctx context.Context, id string, words []string) error {
	if _, err := t.instance(id); err != nil {
		return err
	}
	ctx = t.in(ctx)
	container, err := t.client.LoadContainer(ctx, id)
	if err != nil {
		return explain(err, "find the container "+id)
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		return explain(err, "find the task of "+id)
	}
	spec, err := container.Spec(ctx)
	if err != nil {
		return explain(err, "read the container "+id)
	}
	process := *spec.Process
	process.Args, process.Terminal = words, false
	exec, err := task.Exec(ctx, "probe-"+atelier.NewID(), &process, cio.NullIO)
	if err != nil {
		return explain(err, "probe "+id)
	}
	defer func() {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeGrace)
		defer cancel()
		if _, err := exec.Delete(bounded, containerd.WithProcessKill); err != nil {
			t.opts.Log.Debug("a probe is removed with its container", "module", id, "error", err)
		}
	}()
	ended, err := exec.Wait(ctx)
	if err == nil {
		err = exec.Start(ctx)
	}
	if err != nil {
		return atelier.Errorf(atelier.Conflict, "the probe's command %q cannot be run: %w", words[0], err)
	}
	select {
	case <-ctx.Done():
		return atelier.Errorf(atelier.Timeout, "the probe's command %q did not end: %w", words[0], ctx.Err())
	case status := <-ended:
		if err := status.Error(); err != nil {
			return explain(err, "probe "+id)
		}
		if code := status.ExitCode(); code != 0 {
			return atelier.Errorf(atelier.Conflict, "the probe's command %q ended with exit code %d", words[0], code)
		}
		return nil
	}
}
