package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
	"github.com/atelier-edge/atelier/packaging/environment"
	"github.com/atelier-edge/atelier/packaging/environment/build"
)

// options say what a builder serves and where it works.
type options struct {
	hub, name, work, arch string
	poll, limit           time.Duration
	once                  bool
	client                *client.Client
	log                   *slog.Logger
}

// run claims and makes builds, one at a time, until ctx ends. A hub that cannot be
// reached is asked again.
func run(ctx context.Context, o options) error {
	if _, err := o.client.Info(ctx); err != nil {
		return err // wrong from the start: nothing is gained by waiting
	}
	o.log.Info("atelier-builder runs", "version", version, "hub", o.hub, "name", o.name, "arch", o.arch)
	ticker := time.NewTicker(o.poll)
	defer ticker.Stop()
	for {
		did, err := round(ctx, o)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && o.once:
			return err
		case err != nil:
			o.log.Warn("cannot ask for builds; it is tried again", "error", err)
		case !did && o.once:
			return nil
		case did:
			continue // there may be more
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// round makes the first build that waits in any workspace, where there is one.
func round(ctx context.Context, o options) (did bool, err error) {
	for w, err := range o.client.Workspaces(ctx) {
		if err != nil {
			return false, err
		}
		waiting, err := o.client.Builds(ctx, w.ID, o.arch)
		if err != nil {
			return false, err
		}
		for _, e := range waiting {
			claimed, err := o.client.ClaimBuild(ctx, w.ID, e.ID, o.arch, o.name)
			if code := atelier.CodeOf(err); code == atelier.Conflict || code == atelier.NotFound {
				continue // another was faster, or it was deleted
			}
			if err != nil {
				return false, err
			}
			if b := claimed.Build(o.arch); b != nil && b.State == atelier.BuildRunning {
				return true, one(ctx, o, w.ID, claimed, b.Lease)
			}
		}
	}
	return false, nil
}

// renewEvery is how often a claim is renewed; the hub lets it last three times that.
const renewEvery = 30 * time.Second

// one makes a claimed build and tells the hub what came of it. A claim that is lost, and
// a builder that is told to end, end the build; another builder takes it then.
func one(ctx context.Context, o options, workspace string, e atelier.Environment, lease string) (err error) {
	log := o.log.With("environment", e.Environment, "version", e.Number, "hash", e.Build(o.arch).Hash.Short())
	work, err := os.MkdirTemp(o.work, "atelier-builder-*")
	if err != nil {
		return atelier.Errorf(atelier.Internal, "make a directory to work in: %w", err).WithRemedy("Choose one that can be written with --work.")
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	file, err := os.Create(filepath.Join(work, "build.log"))
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // it is read before, and goes with its directory
	building, cancel := context.WithTimeoutCause(ctx, o.limit, atelier.Errorf(atelier.Timeout, "the build took more than %s", o.limit))
	defer cancel()
	held, lost := context.WithCancelCause(building)
	renewing := make(chan struct{})
	go func() {
		defer close(renewing)
		renew(held, lost, o, workspace, e.ID, lease)
	}()
	log.Info("building")
	began := time.Now()
	result, failure := build.Environment(held, environment.Definition{Python: e.Python, Requirements: e.Requirements}, work, &bounded{w: file, left: maxLog})
	defer func() {
		lost(nil)
		<-renewing
	}()
	if errors.Is(context.Cause(held), errLost) || ctx.Err() != nil {
		log.Warn("the build is given up", "error", context.Cause(held))
		return nil
	}
	out := client.BuildResult{Lease: lease, NeedsGlibc: result.NeedsGlibc, Packages: result.Packages}
	if failure != nil {
		out.Failure = failure.Error()
		var known *atelier.Error
		if errors.As(failure, &known) {
			out.Remedy = known.Remedy
		}
	} else if out.Artifact, err = upload(ctx, o, workspace, result.Tar); err != nil {
		return err
	}
	if out.Log, err = upload(ctx, o, workspace, file.Name()); err != nil {
		return err
	}
	if _, err := o.client.FinishBuild(ctx, workspace, e.ID, o.arch, out); err != nil {
		return err
	}
	log.Info("build is over", "failure", out.Failure, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

var errLost = errors.New("the claim is lost")

// renew keeps a claim until ctx ends, or calls lost when it is another's.
func renew(ctx context.Context, lost context.CancelCauseFunc, o options, workspace, id, lease string) {
	ticker := time.NewTicker(renewEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := o.client.RenewBuild(ctx, workspace, id, o.arch, lease)
		if code := atelier.CodeOf(err); code == atelier.Stale || code == atelier.NotFound {
			lost(errors.Join(errLost, err))
			return
		}
	}
}

// upload sends a file into the workspace, where that does not hold its content yet.
func upload(ctx context.Context, o options, workspace, path string) (_ *atelier.File, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	hash := sha256.New()
	size, err := io.Copy(hash, f)
	if err != nil {
		return nil, err
	}
	d := atelier.DigestFrom(hash)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	// Content that is there already is sent again: that lets its age begin anew, so that
	// it is not collected before the build names it.
	// Exactly what was hashed, and without a Close: the client would close the file.
	if _, err := o.client.UploadBlob(ctx, workspace, io.LimitReader(f, size), size, d); err != nil {
		return nil, err
	}
	return &atelier.File{Path: filepath.Base(path), Digest: d, Size: size}, nil
}

// maxLog bounds a build's log in bytes.
const maxLog = 8 << 20

// bounded writes no more than left bytes, and says where it leaves off. What matters
// of a failure is told besides.
type bounded struct {
	w    io.Writer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left <= 0 {
		return len(p), nil
	}
	if len(p) > b.left {
		if _, err := b.w.Write(append(p[:b.left:b.left], "\n[the log is cut here]\n"...)); err != nil {
			return 0, err
		}
		b.left = 0
		return len(p), nil
	}
	b.left -= len(p)
	return b.w.Write(p)
}
