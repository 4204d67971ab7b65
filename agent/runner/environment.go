package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/environment"
)

// Blob is content on the device, open for reading.
type Blob interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// environmentDir is where the environment with the digest is unpacked, once for all
// modules that run in it.
func (r *Runner) environmentDir(d atelier.Digest) string {
	return filepath.Join(r.opts.Environments, d.Hex())
}

// interpreter is the path of the interpreter of a module's environment.
func (i *instance) interpreter() string {
	return filepath.Join(i.runner.environmentDir(i.module.Model.Variant.Environment.Artifact.Digest), filepath.FromSlash(environment.Interpreter))
}

// unpack makes the directory of the module's environment, where it has one and nobody
// made it before. One is unpacked at a time: that is what a small device bears.
func (i *instance) unpack(ctx context.Context) error {
	e := i.module.Model.Variant.Environment
	if e == nil {
		return nil
	}
	r := i.runner
	r.unpacking.Lock()
	defer r.unpacking.Unlock()
	dir := r.environmentDir(e.Artifact.Digest)
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(r.opts.Environments, 0o755); err != nil {
		return fmt.Errorf("unpack the environment: %w", err)
	}
	blob, err := r.opts.Open(e.Artifact.Digest)
	if err != nil {
		return err
	}
	began := time.Now()
	err = environment.Unpack(ctx, environment.Reader(ctx, blob, blob.Size()), dir)
	if err = errors.Join(err, blob.Close()); err != nil {
		return err
	}
	i.log().Info("environment is unpacked", "environment", e.Name, "version", e.Number, "digest", e.Artifact.Digest, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// release lets the environment of an instance go that the device no longer has, unless
// others run in it.
func (r *Runner) release(i *instance) {
	if i.module.Model.Variant.Environment != nil {
		r.group.Go(r.collectEnvironments)
	}
}

// collectEvery is how often the directories of environments are looked at besides.
const collectEvery = time.Hour

// collectEnvironments removes the directories of environments that no module of the
// device's slots and of its desired state runs in, and what was left of broken attempts.
func (r *Runner) collectEnvironments() {
	r.unpacking.Lock()
	defer r.unpacking.Unlock()
	entries, err := os.ReadDir(r.opts.Environments)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			r.opts.Log.Warn("cannot see which environments are there", "error", err)
		}
		return
	}
	// Asked while none can be unpacked: a module that needs one is in a slot before.
	needed := map[string]bool{}
	for _, h := range r.Holdings() {
		for _, f := range h.Files {
			needed[f.Digest.Hex()] = true
		}
	}
	for _, e := range entries {
		if needed[e.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(r.opts.Environments, e.Name())); err != nil {
			r.opts.Log.Warn("cannot remove an environment that nothing runs in", "digest", e.Name(), "error", err)
			continue
		}
		r.opts.Log.Info("environment was removed: nothing runs in it", "digest", e.Name())
	}
}

// keepEnvironments collects now and then until ctx ends.
func (r *Runner) keepEnvironments(ctx context.Context) {
	for {
		r.collectEnvironments()
		if !sleep(ctx, collectEvery) {
			return
		}
	}
}
