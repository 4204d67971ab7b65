package registry

import (
	"context"
	"fmt"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	form "github.com/atelier-edge/atelier/internal/environment"
)

const (
	// BuildLease is how long a claim of a build lasts unless it is renewed.
	BuildLease = 90 * time.Second
	// maxAttempts is how many builders may be lost over one build: one that takes more
	// memory than they have would go round for ever.
	maxAttempts = 5
	maxPackages = 5000
	maxPackage  = 256 // bytes of "name==version"
)

// BuildResult is what came of a build: an artifact, or a failure.
type BuildResult struct {
	Artifact   *atelier.File // uploaded before, as the log
	NeedsGlibc string
	Packages   []string
	Log        *atelier.File
	Failure    string // the line that matters; "" where there is an artifact
	Remedy     string // what to do about the failure; "" for what is always true
}

// claimable reports whether a builder may take a build at now.
func claimable(b *atelier.Build, now time.Time) bool {
	return b.State == atelier.BuildPending || b.State == atelier.BuildRunning && b.LeaseEnds != nil && b.LeaseEnds.Before(now)
}

// Builds returns environments of a workspace with a build for an architecture that
// waits for a builder, at most 100, the oldest first.
func (r *Registry) Builds(ctx context.Context, workspace, arch string) ([]atelier.Environment, error) {
	waiting := []atelier.Environment{}
	err := r.store.View(ctx, func(tx store.Tx) error {
		found, err := catalog.Environments.List(tx, store.Query{Workspace: workspace, Rel: catalog.RelUnbuilt, To: arch, Limit: 100})
		for _, e := range found {
			if b := e.Build(arch); b != nil && claimable(b, r.now()) {
				waiting = append(waiting, e)
			}
		}
		return err
	})
	return waiting, err
}

// build applies edit to an environment's build for an architecture.
func (r *Registry) build(ctx context.Context, workspace, ref, arch string, edit func(tx store.Tx, e *atelier.Environment, b *atelier.Build) error) (e atelier.Environment, err error) {
	err = r.update(ctx, func(tx store.Tx) error {
		if e, err = findEnvironment(tx, workspace, ref); err != nil {
			return err
		}
		b := e.Build(arch)
		if b == nil {
			return atelier.Errorf(atelier.NotFound, "%s:%d is not to be built for %.40q", e.Environment, e.Number, arch)
		}
		if err := edit(tx, &e, b); err != nil {
			return err
		}
		e, err = catalog.Environments.Update(tx, workspace, e)
		return err
	})
	return e, err
}

// ClaimBuild gives a build to a builder for BuildLease. Conflict where another has it,
// or it is over. One over which too many builders were lost fails.
func (r *Registry) ClaimBuild(ctx context.Context, workspace, ref, arch, builder string) (atelier.Environment, error) {
	if err := atelier.CheckName("builder", builder); err != nil {
		return atelier.Environment{}, err
	}
	return r.build(ctx, workspace, ref, arch, func(tx store.Tx, e *atelier.Environment, b *atelier.Build) error {
		now := r.now().UTC()
		if !claimable(b, now) {
			return atelier.Errorf(atelier.Conflict, "the build of %s:%d for %s is %s, by builder %q", e.Environment, e.Number, arch, b.State, b.Builder)
		}
		if err := adopt(tx, workspace, b); err != nil || b.State == atelier.BuildReady {
			return err
		}
		if b.Attempts >= maxAttempts {
			b.State, b.Finished, b.Lease, b.LeaseEnds = atelier.BuildFailed, &now, "", nil
			b.Why = atelier.Because(atelier.ReasonBuilderLost, fmt.Sprintf("%d builders claimed it and were not heard of again; the last was %s", b.Attempts, b.Builder))
			return nil
		}
		ends := now.Add(BuildLease)
		b.State, b.Builder, b.Lease, b.Started, b.LeaseEnds = atelier.BuildRunning, builder, atelier.NewID(), &now, &ends
		b.Attempts++
		b.Why = atelier.Because(atelier.ReasonInProgress, fmt.Sprintf("builder %s works on it", builder))
		return nil
	})
}

// holds checks that a lease is the present one of a build.
func holds(e *atelier.Environment, b *atelier.Build, lease string) error {
	if b.State == atelier.BuildRunning && lease != "" && b.Lease == lease {
		return nil
	}
	return atelier.Errorf(atelier.Stale, "the build of %s:%d for %s is no longer the builder's: its lease ended, and it is %s now", e.Environment, e.Number, b.Arch, b.State).
		WithRemedy("Nothing is to be done: another builder has taken it, or will.")
}

// RenewBuild lets a claim last for another BuildLease. Stale where it is no longer the
// builder's.
func (r *Registry) RenewBuild(ctx context.Context, workspace, ref, arch, lease string) error {
	return r.update(ctx, func(tx store.Tx) error {
		e, err := findEnvironment(tx, workspace, ref)
		if err != nil {
			return err
		}
		b := e.Build(arch)
		if b == nil {
			return atelier.Errorf(atelier.NotFound, "%s:%d is not to be built for %.40q", e.Environment, e.Number, arch)
		}
		if err := holds(&e, b, lease); err != nil {
			return err
		}
		ends := r.now().UTC().Add(BuildLease)
		b.LeaseEnds = &ends
		return catalog.Environments.Record(tx, workspace, e) // nobody needs an event of it
	})
}

// FinishBuild takes what came of a build from the builder that holds its lease. Builds
// of the same hash that still wait are over with it, where it is ready.
func (r *Registry) FinishBuild(ctx context.Context, workspace, ref, arch, lease string, result BuildResult) (atelier.Environment, error) {
	if err := checkResult(&result); err != nil {
		return atelier.Environment{}, err
	}
	return r.build(ctx, workspace, ref, arch, func(tx store.Tx, e *atelier.Environment, b *atelier.Build) error {
		if err := holds(e, b, lease); err != nil {
			return err
		}
		var files []atelier.File
		for _, f := range []*atelier.File{result.Artifact, result.Log} {
			if f != nil {
				files = append(files, *f)
			}
		}
		if err := r.checkFiles(tx, workspace, files); err != nil {
			return err
		}
		now := r.now().UTC()
		b.Lease, b.LeaseEnds, b.Finished, b.Log = "", nil, &now, result.Log
		if result.Artifact == nil {
			b.State, b.Why = atelier.BuildFailed, atelier.Because(atelier.ReasonBuildFailed, result.Failure)
			if result.Remedy != "" {
				b.Why = b.Why.WithRemedy(result.Remedy)
			}
			return nil
		}
		b.State, b.Why = atelier.BuildReady, atelier.Because(atelier.ReasonAsDesired, "")
		b.Artifact, b.NeedsGlibc, b.Packages = result.Artifact, result.NeedsGlibc, result.Packages
		return share(tx, workspace, e.ID, *b)
	})
}

// share gives a ready build to those of other environments that wait for the same.
func share(tx store.Tx, workspace, except string, ready atelier.Build) error {
	waiting, err := catalog.Environments.List(tx, store.Query{Workspace: workspace, Rel: catalog.RelUnbuilt, To: ready.Arch, Limit: 1000})
	if err != nil {
		return err
	}
	for _, e := range waiting {
		b := e.Build(ready.Arch)
		if e.ID == except || b == nil || b.Hash != ready.Hash || b.State != atelier.BuildPending {
			continue
		}
		*b = ready
		if _, err := catalog.Environments.Update(tx, workspace, e); err != nil {
			return err
		}
	}
	return nil
}

// checkResult checks what a builder says, and gives its files their names.
func checkResult(r *BuildResult) error {
	if (r.Artifact == nil) == (r.Failure == "") {
		return atelier.Errorf(atelier.Invalid, "a build ends with an artifact or with a failure, and with one of them only").WithField("artifact")
	}
	const most = 2000
	r.Failure, r.Remedy = r.Failure[:min(len(r.Failure), most)], r.Remedy[:min(len(r.Remedy), most)]
	for name, f := range map[string]*atelier.File{form.ArtifactPath: r.Artifact, "build.log": r.Log} {
		if f == nil {
			continue
		}
		f.Path = name
		if _, err := atelier.ParseDigest(string(f.Digest)); err != nil {
			return err
		}
	}
	if len(r.Packages) > maxPackages {
		return atelier.Errorf(atelier.TooLarge, "%d packages are named; at most %d are taken", len(r.Packages), maxPackages).WithField("packages")
	}
	for _, p := range r.Packages {
		if p == "" || len(p) > maxPackage {
			return atelier.Errorf(atelier.Invalid, "the package %.80q has no name, or one longer than %d bytes", p, maxPackage).WithField("packages")
		}
	}
	return checkGlibc(r.NeedsGlibc)
}
