package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/fetch"
	"github.com/atelier-edge/atelier/targets"
)

// step is one idempotent step on the way to a ready module.
type step struct {
	state atelier.ModuleState
	do    func(i *instance, ctx context.Context) error
}

// steps are done in order, all of them each time.
var steps = []step{
	{atelier.Pending, (*instance).check},
	{atelier.Fetching, (*instance).fetch},
	{atelier.Preparing, (*instance).prepare},
	{atelier.Starting, (*instance).start},
	{atelier.Proving, (*instance).prove},
}

// bringUp does the steps. When it returns nil the module is ready.
func (i *instance) bringUp(ctx context.Context) error {
	if i.runs(ctx) { // since before the agent started
		i.stand()
		return nil
	}
	for _, s := range steps {
		i.set(s.state, atelier.Because(atelier.ReasonInProgress, ""))
		if err := s.do(i, ctx); err != nil {
			return err
		}
	}
	i.stand()
	return nil
}

// stand notes that the module is ready.
func (i *instance) stand() {
	i.progress(i.snapshot().Size)
	i.set(atelier.Standby, atelier.Because(atelier.ReasonWaiting, "the module is ready and waits for its route"))
}

// runs reports whether the module runs and is ready already.
func (i *instance) runs(ctx context.Context) bool {
	if i.target == nil {
		return false
	}
	s, err := i.target.Status(ctx, i.id)
	return err == nil && s.Phase == targets.Running && i.probe(ctx) == nil
}

// check finds out what can never work here.
func (i *instance) check(context.Context) error {
	final := func(r atelier.Reason, format string, args ...any) error {
		return &refusal{atelier.Because(r, fmt.Sprintf(format, args...)), true}
	}
	if i.target == nil {
		return final(atelier.ReasonUnsupportedFeature, "this agent has no target of kind %q", i.module.Target)
	}
	if i.module.Image != nil {
		return i.checkImage()
	}
	switch v := i.module.Model.Variant; {
	case v.Kind != atelier.VariantONNX && !v.InPython():
		return final(atelier.ReasonVariantMissing, "this agent cannot run a variant of kind %q", v.Kind)
	case v.Kind == atelier.VariantONNX && i.module.Runtime == nil:
		return final(atelier.ReasonRuntimeMissing, "the desired state names no runtime for the variant")
	case v.InPython() && v.Environment == nil:
		return final(atelier.ReasonRuntimeMissing, "the desired state names no environment for the variant")
	}
	return nil
}

func (i *instance) fetch(ctx context.Context) error {
	return i.runner.opts.Fetcher.Fetch(ctx, i.module.Content(), i.progress)
}

// The directories within a rollout's directory.
const (
	modelDir   = "model"
	runtimeDir = "runtime"
	logFile    = "module.log"
)

// prepare lays the files out. They are further names of the content store's
// files: nothing is copied, and an interrupted layout is simply completed. An
// environment is unpacked, which is the one thing that takes space a second time.
func (i *instance) prepare(ctx context.Context) error {
	layout := map[string][]atelier.File{modelDir: i.module.Model.Variant.Files}
	if i.module.Image != nil {
		if err := i.verifyImage(); err != nil {
			return err
		}
		layout[""] = i.module.Image.Files() // their paths begin with image/
	}
	if i.module.Runtime != nil && !shared(&i.module) {
		layout[runtimeDir] = i.module.Runtime.Files
	}
	for sub, files := range layout {
		if err := i.layOut(ctx, filepath.Join(i.dir(), sub), files); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(i.runner.opts.Run, 0o700); err != nil {
		return err
	}
	return i.unpack(ctx)
}

// layOut gives files their names below dir.
func (i *instance) layOut(ctx context.Context, dir string, files []atelier.File) error {
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := filepath.Join(dir, filepath.FromSlash(f.Path))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("lay out %s: %w", f.Path, err)
		}
		if err := i.link(f, path); err != nil {
			return fmt.Errorf("lay out %s: %w", f.Path, err)
		}
	}
	return nil
}

// link gives a file's content its name in the layout, instead of what may be
// there: content that was damaged and fetched anew is another file.
func (i *instance) link(f atelier.File, path string) error {
	if linked, err := i.runner.opts.Linked(f.Digest, path); err != nil || linked {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return i.runner.opts.Link(f.Digest, path)
}

// spec says how the rollout's module is run; see docs/architecture.md for
// atelier-serve's command line.
func (i *instance) spec() targets.Spec {
	if i.module.Image != nil {
		return i.containerSpec()
	}
	m, dir, socket := &i.module, i.dir(), i.runner.socket(i.module.Rollout)
	command := []string{i.runner.program()}
	if m.Model.Variant.Kind == atelier.VariantONNX {
		command = append(command, "--runtime", filepath.Join(dir, runtimeDir, filepath.FromSlash(m.Runtime.Entry)))
	}
	command = append(command, i.args()...)
	var env []string
	if i.runner.opts.Env != nil {
		env = i.runner.opts.Env(m)
	}
	return targets.Spec{
		ID: i.id, Command: command, Env: env,
		Dir: dir, Socket: socket, Log: filepath.Join(dir, logFile), LogLimit: logLimit, Limits: m.Limits,
	}
}

// program is the model server's.
func (r *Runner) program() string { return filepath.Join(r.opts.Programs, "atelier-serve") }

// args are the model server's arguments for the rollout's model, without those of its
// runtime.
func (i *instance) args() []string {
	m, dir := &i.module, i.dir()
	command := []string{"--name", m.Model.Name, "--version", strconv.Itoa(m.Model.Version)}
	entry := filepath.Join(dir, modelDir, filepath.FromSlash(m.Model.Variant.Entry))
	switch m.Model.Variant.Kind {
	case atelier.VariantPython:
		command = append(command, "--model-dir", filepath.Join(dir, modelDir), "--script", entry, "--python", i.interpreter())
	case atelier.VariantMLflow:
		command = append(command, "--mlflow", filepath.Dir(entry), "--python", i.interpreter())
	case atelier.VariantPickle:
		command = append(command, "--pickle", entry, "--python", i.interpreter())
	default:
		command = append(command, "--model", entry)
	}
	if m.Model.Variant.HasGolden() {
		command = append(command, "--golden", filepath.Join(dir, modelDir, atelier.GoldenPath))
	}
	command = append(command, m.Serving.Flags()...)
	return append(command, "--listen", "unix:"+i.runner.socket(m.Rollout))
}

// start starts the module, or adopts one that runs already: a former agent's.
func (i *instance) start(ctx context.Context) error {
	if err := i.memory(); err != nil {
		return err
	}
	if shared(&i.module) {
		return i.startShared(ctx)
	}
	if err := i.target.Start(ctx, i.spec()); err != nil {
		return &startError{err}
	}
	return nil
}

// memory checks that the device can hold the module's files in its memory, which
// is the least that it takes. Of an environment a script loads what it wants.
func (i *instance) memory() error {
	files := i.module.Model.Variant.Files
	if i.module.Runtime != nil && !shared(&i.module) { // the server has it, perhaps already
		files = append(slices.Clone(files), i.module.Runtime.Files...)
	}
	need, free := fetch.Size(files), i.runner.opts.Memory()
	if free == 0 || need <= free {
		return nil
	}
	return &refusal{why: atelier.Because(atelier.ReasonMemoryShort, fmt.Sprintf("model and runtime take at least %s of memory, and %s is available on the device",
		atelier.FormatBytes(need), atelier.FormatBytes(free)))}
}

// prove waits until the module has loaded its model and is warm.
func (i *instance) prove(ctx context.Context) error {
	times := i.runner.opts.Times
	began := time.Now()
	for {
		err := i.probe(ctx)
		if err == nil {
			return nil
		}
		status, statusErr := i.target.Status(ctx, i.id)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case statusErr != nil:
			return statusErr
		case status.Phase == targets.Exited:
			return &exitError{exit: status.Exit, limit: i.module.Limits.Memory, foreign: i.module.Image != nil}
		case time.Since(began) > times.Load:
			return i.end(ctx, fmt.Errorf("it was not ready after %v: %w", times.Load, err))
		}
		// Small models are ready within a few hundredths of a second, and an endpoint
		// waits for them; large ones need not be asked that often.
		if !sleep(ctx, min(times.Poll, times.Poll/20+time.Since(began)/4)) {
			return ctx.Err()
		}
	}
}

// probeTimeout bounds one probe.
const probeTimeout = 10 * time.Second

func (i *instance) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if i.module.Image != nil {
		return i.probeContainer(ctx)
	}
	h, err := i.runner.opts.Ready(ctx, i.runner.socket(i.module.Rollout))
	if err == nil {
		i.mu.Lock()
		i.status.Provider, i.status.Memory, i.fallback = h.Provider, h.Memory, h.Fallback
		i.mu.Unlock()
	}
	return err
}

// missedProbes is how many probes in a row a serving module may leave unanswered.
const missedProbes = 3

// watch returns when the module has ended, or was ended because it no longer
// answers, with the reason.
func (i *instance) watch(ctx context.Context) error {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		status, err := i.target.Wait(waiting, i.id)
		if err == nil {
			err = &exitError{exit: status.Exit, limit: i.module.Limits.Memory, wasReady: true, foreign: i.module.Image != nil}
		}
		ended <- err
	}()
	// The goroutine ends with waiting, and ended has room for its last word.
	ticker := time.NewTicker(i.runner.opts.Times.Probe)
	defer ticker.Stop()
	for missed := 0; ; {
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
			err := i.probe(ctx)
			if err == nil {
				missed = 0
				continue
			}
			if missed++; missed == missedProbes && ctx.Err() == nil {
				return i.end(ctx, fmt.Errorf("it did not answer %d times in a row: %w", missed, err))
			}
		}
	}
}

// end ends a module that does not answer, so that it can be started again.
func (i *instance) end(ctx context.Context, cause error) error {
	if shared(&i.module) && i.unload(ctx) == nil {
		return &probeError{cause} // the others go on
	}
	if err := i.target.Stop(ctx, i.id, i.runner.opts.Times.Grace); err != nil {
		return errors.Join(err, cause)
	}
	return &probeError{cause}
}
