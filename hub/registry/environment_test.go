package registry

import (
	"context"
	"slices"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

func (f *fixture) environment(n NewEnvironment) atelier.Environment {
	f.t.Helper()
	if len(n.Arch) == 0 {
		n.Arch = []string{"amd64"}
	}
	e, err := f.CreateEnvironment(f.t.Context(), f.ws, n)
	if err != nil {
		f.t.Fatal(err)
	}
	return e
}

func (f *fixture) claim(e atelier.Environment, builder string) string {
	f.t.Helper()
	claimed, err := f.ClaimBuild(f.t.Context(), f.ws, e.ID, "amd64", builder)
	if err != nil {
		f.t.Fatal(err)
	}
	b := claimed.Build("amd64")
	if b.State != atelier.BuildRunning || b.Lease == "" || b.Builder != builder || b.Why.Reason() != atelier.ReasonInProgress {
		f.t.Fatalf("claimed: %+v", b)
	}
	return b.Lease
}

// ready is a result with an artifact and a log.
func (f *fixture) ready(content string) BuildResult {
	artifact, log := f.file(f.ws, "environment.tar", []byte(content)), f.file(f.ws, "build.log", []byte("log of "+content))
	return BuildResult{Artifact: &artifact, Log: &log, NeedsGlibc: "2.35", Packages: []string{"numpy==1.26.4"}}
}

func (f *fixture) waiting() (ids []string) {
	f.t.Helper()
	all, err := f.Builds(f.t.Context(), f.ws, "amd64")
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range all {
		ids = append(ids, e.ID)
	}
	return ids
}

// TestEnvironmentIsBuiltOnce follows two environments of the same definition: one is
// built, both are ready, and a third one is at once.
func TestEnvironmentIsBuiltOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	first := f.environment(NewEnvironment{Name: "a", Requirements: "numpy==1.26.4\nIdna"})
	second := f.environment(NewEnvironment{Name: "b", Conda: "dependencies:\n- python=3.11\n- pip:\n  - idna # the same\n  - NumPy == 1.26.4"})
	if first.Number != 1 || first.Digest != second.Digest || first.Builds[0].Hash != second.Builds[0].Hash || first.Builds[0].State != atelier.BuildPending {
		t.Fatalf("%+v\n%+v", first, second)
	}
	if got := f.waiting(); !slices.Equal(got, []string{first.ID, second.ID}) {
		t.Errorf("waiting: %q", got)
	}
	lease := f.claim(first, "one")
	_, err := f.ClaimBuild(ctx, f.ws, first.ID, "amd64", "two")
	wants(t, "a second claim", err, atelier.Conflict)
	_, err = f.ClaimBuild(ctx, f.ws, first.ID, "arm64", "two")
	wants(t, "a claim of what was not asked for", err, atelier.NotFound)
	if _, err := f.FinishBuild(ctx, f.ws, first.ID, "amd64", lease, f.ready("tar")); err != nil {
		t.Fatal(err)
	}
	third := f.environment(NewEnvironment{Name: "a", Requirements: "idna\nnumpy==1.26.4", Arch: []string{"amd64", "arm64"}})
	for _, ref := range []string{"a:1", "b", third.ID} {
		e, err := f.Environment(ctx, f.ws, ref)
		if err != nil {
			t.Fatal(err)
		}
		if b := e.Build("amd64"); b.State != atelier.BuildReady || b.Artifact == nil || b.Log == nil || b.Lease != "" || b.NeedsGlibc != "2.35" {
			t.Errorf("%s: %+v", ref, b)
		}
	}
	if e, err := f.Environment(ctx, f.ws, "a"); err != nil || e.ID != third.ID || e.Number != 2 || e.Build("arm64").State != atelier.BuildPending {
		t.Errorf("the newest is %+v, %v", e, err)
	}
	if got := f.waiting(); len(got) > 0 {
		t.Errorf("waiting: %q", got)
	}
	log, err := f.OpenBuildLog(ctx, f.ws, "b", "")
	if err != nil {
		t.Fatal(err)
	}
	text := make([]byte, log.Size())
	if _, err := log.ReadAt(text, 0); err != nil || string(text) != "log of tar" || log.Close() != nil {
		t.Errorf("the log is %q, %v", text, err)
	}
}

// TestLostBuilders sees that the build of a builder that died is another's, that the
// first one's late word counts for nothing, and that this does not go on for ever.
func TestLostBuilders(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	e := f.environment(NewEnvironment{Name: "a"})
	lost := f.claim(e, "one")
	f.pass(BuildLease - time.Second)
	if err := f.RenewBuild(ctx, f.ws, e.ID, "amd64", lost); err != nil {
		t.Fatal(err)
	}
	f.pass(BuildLease - time.Second)
	_, err := f.ClaimBuild(ctx, f.ws, e.ID, "amd64", "two")
	wants(t, "a claim of what is held", err, atelier.Conflict)
	f.pass(2 * time.Second)
	if got := f.waiting(); !slices.Equal(got, []string{e.ID}) {
		t.Errorf("waiting: %q", got)
	}
	lease := f.claim(e, "two")
	wants(t, "a late renewal", f.RenewBuild(ctx, f.ws, e.ID, "amd64", lost), atelier.Stale)
	_, err = f.FinishBuild(ctx, f.ws, e.ID, "amd64", lost, f.ready("late"))
	wants(t, "a late result", err, atelier.Stale)
	if err := f.RenewBuild(ctx, f.ws, e.ID, "amd64", lease); err != nil {
		t.Error(err)
	}
	for range maxAttempts - 2 {
		f.pass(BuildLease + time.Second)
		f.claim(e, "three")
	}
	f.pass(BuildLease + time.Second)
	last, err := f.ClaimBuild(ctx, f.ws, e.ID, "amd64", "four")
	if b := last.Build("amd64"); err != nil || b.State != atelier.BuildFailed || b.Why.Reason() != atelier.ReasonBuilderLost {
		t.Errorf("%+v, %v", b, err)
	}
}

// TestFailedBuild sees that a failure keeps its line, its remedy and its log, is not
// taken for a result of the same definition later, and cannot be registered with.
func TestFailedBuild(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	e := f.environment(NewEnvironment{Name: "a", Requirements: "no-such-package"})
	files := []atelier.File{f.file(f.ws, "score.py", []byte("def run(data): ..."))}
	script := NewVersion{Kind: atelier.VariantPython, Entry: "score.py", Environment: "a", Files: files}
	_, err := f.Register(ctx, f.ws, "m", script)
	wants(t, "registered before it is built", err, atelier.Conflict)
	lease := f.claim(e, "one")
	log := f.file(f.ws, "build.log", []byte("…"))
	for name, r := range map[string]BuildResult{
		"nothing":        {},
		"both":           {Failure: "x", Artifact: &log},
		"foreign":        {Artifact: &atelier.File{Digest: atelier.DigestOf([]byte("elsewhere")), Size: 1}},
		"no glibc":       {Artifact: &log, NeedsGlibc: "new"},
		"nameless":       {Artifact: &log, Packages: []string{""}},
		"another length": {Artifact: &atelier.File{Digest: log.Digest, Size: log.Size + 1}},
	} {
		_, err := f.FinishBuild(ctx, f.ws, e.ID, "amd64", lease, r)
		wants(t, name, err, atelier.Invalid)
	}
	done, err := f.FinishBuild(ctx, f.ws, e.ID, "amd64", lease, BuildResult{Failure: "No matching distribution found", Log: &log})
	b := done.Build("amd64")
	if err != nil || b.State != atelier.BuildFailed || b.Why.Reason() != atelier.ReasonBuildFailed || b.Why.Message() != "No matching distribution found" || b.Log == nil {
		t.Fatalf("%+v, %v", b, err)
	}
	_, err = f.Register(ctx, f.ws, "m", script)
	wants(t, "registered with what failed", err, atelier.Invalid)
	if again := f.environment(NewEnvironment{Name: "a", Requirements: "no-such-package"}); again.Builds[0].State != atelier.BuildPending {
		t.Errorf("a failure was taken over: %+v", again.Builds[0])
	}
}

// TestRegisterScript registers a script in an environment of two architectures.
func TestRegisterScript(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	e := f.environment(NewEnvironment{Name: "a"})
	if _, err := f.FinishBuild(ctx, f.ws, e.ID, "amd64", f.claim(e, "one"), f.ready("tar")); err != nil {
		t.Fatal(err)
	}
	files := []atelier.File{f.file(f.ws, "score.py", []byte("def run(data): ...")), f.file(f.ws, "model.joblib", []byte("model"))}
	script := NewVersion{Kind: atelier.VariantPython, Entry: "score.py", Environment: "a:1", Files: files}
	v, err := f.Register(ctx, f.ws, "m", script)
	if err != nil {
		t.Fatal(err)
	}
	variant := v.Variants[0]
	if len(v.Variants) != 1 || variant.Environment == nil || variant.Environment.ID != e.ID || variant.Requires.Runtime != "" ||
		!slices.Equal(variant.Requires.Arch, []string{"amd64"}) || len(variant.Content()) != 3 || v.Size != 5+18+3 {
		t.Errorf("%+v", v)
	}
	wants(t, "deleted in use", f.DeleteEnvironment(ctx, f.ws, "a:1", 0), atelier.InUse)
	for name, n := range map[string]NewVersion{
		"no environment":    {Kind: atelier.VariantPython, Entry: "score.py", Files: files},
		"no script":         {Kind: atelier.VariantPython, Environment: "a", Files: files},
		"another script":    {Kind: atelier.VariantPython, Environment: "a", Entry: "other.py", Files: files},
		"not python":        {Kind: atelier.VariantPython, Environment: "a", Entry: "model.joblib", Files: files},
		"onnx in something": {Environment: "a", Files: files},
	} {
		_, err := f.Register(ctx, f.ws, "m", n)
		wants(t, name, err, atelier.Invalid)
	}
	script.Environment = "b"
	_, err = f.Register(ctx, f.ws, "m", script)
	wants(t, "unknown environment", err, atelier.NotFound)

	// What a version needs stays, and what it needed goes with it.
	f.pass(2 * DefaultKeep)
	for range 2 {
		if err := f.Collect(context.WithoutCancel(ctx)); err != nil {
			t.Fatal(err)
		}
		f.pass(time.Hour)
	}
	if _, err := f.OpenBlob(ctx, f.ws, variant.Environment.Artifact.Digest); err != nil {
		t.Errorf("the artifact is gone: %v", err)
	}
	if err := f.DeleteVersion(ctx, f.ws, "m", "1", 0); err != nil {
		t.Fatal(err)
	}
	if err := f.DeleteEnvironment(ctx, f.ws, "a", 0); err != nil {
		t.Fatal(err)
	}
	_, err = f.Environment(ctx, f.ws, "a")
	wants(t, "deleted", err, atelier.NotFound)
}

// TestRefusedEnvironments sees that wrong definitions are refused by their field.
func TestRefusedEnvironments(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for name, n := range map[string]NewEnvironment{
		"name":         {Name: "No Name", Arch: []string{"amd64"}},
		"option":       {Name: "a", Arch: []string{"amd64"}, Requirements: "-e ."},
		"both":         {Name: "a", Arch: []string{"amd64"}, Requirements: "idna", Conda: "dependencies: []"},
		"python":       {Name: "a", Arch: []string{"amd64"}, Python: "2.7"},
		"other python": {Name: "a", Arch: []string{"amd64"}, Python: "3.12", Conda: "dependencies: [python=3.11]"},
		"no arch":      {Name: "a"},
		"arch":         {Name: "a", Arch: []string{"vax"}},
		"arch twice":   {Name: "a", Arch: []string{"amd64", "amd64"}},
	} {
		_, err := f.CreateEnvironment(t.Context(), f.ws, n)
		wants(t, name, err, atelier.Invalid)
	}
}
