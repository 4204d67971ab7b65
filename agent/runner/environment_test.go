package runner

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/environment"
)

// packed returns an environment whose interpreter has the content.
func packed(t *testing.T, content string) []byte {
	t.Helper()
	dir := t.TempDir()
	err := os.Mkdir(filepath.Join(dir, "bin"), 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "bin", "python3"), []byte(content), 0o755)
	}
	var b bytes.Buffer
	if err = errors.Join(err, environment.Pack(&b, dir)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// scripted makes m a module that runs a script in an environment.
func (d *device) scripted(m atelier.Module, tar []byte) atelier.Module {
	artifact := atelier.File{Path: environment.ArtifactPath, Digest: atelier.DigestOf(tar), Size: int64(len(tar))}
	d.mu.Lock()
	d.contents[artifact.Digest] = tar
	d.mu.Unlock()
	m.Runtime = nil
	m.Model.Variant.Kind = atelier.VariantPython
	m.Model.Variant.Requires = atelier.Requirements{Arch: []string{"amd64"}}
	m.Model.Variant.Environment = &atelier.VariantEnvironment{ID: atelier.NewID(), Name: "sklearn", Number: 1, Python: "3.11", Artifact: artifact}
	return m
}

func (d *device) environments() []string {
	entries, err := os.ReadDir(filepath.Join(d.dir, "environments"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		d.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestEnvironments follows the directories of environments: one for all modules that
// run in it, there before they start, gone when nothing runs in it any more; also what a
// power cut left half made.
func TestEnvironments(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.memory.Store(100) // an environment is larger, and is not loaded whole
	tar, other := packed(t, "one"), packed(t, "two")
	left := filepath.Join(d.dir, "environments", atelier.DigestOf(tar).Hex()+".partial", "bin")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	d.start()
	a, b, c := d.scripted(d.module("a", "a"), tar), d.scripted(d.module("b", "b"), tar), d.scripted(d.module("c", "c"), other)
	d.desire(a, b, c)
	d.serves(a, b, c)
	one, two := atelier.DigestOf(tar).Hex(), atelier.DigestOf(other).Hex()
	want := []string{one, two}
	slices.Sort(want)
	if got := d.environments(); !slices.Equal(got, want) {
		t.Errorf("there are %q, want %q", got, want)
	}
	spec := d.runner.instances[a.Rollout].spec()
	python, script := slices.Index(spec.Command, "--python"), slices.Index(spec.Command, "--script")
	if python < 0 || script < 0 || slices.Contains(spec.Command, "--runtime") || slices.Contains(spec.Command, "--model") {
		t.Fatalf("it is started as %q", spec.Command)
	}
	if got, err := os.ReadFile(spec.Command[python+1]); err != nil || string(got) != "one" {
		t.Errorf("the interpreter is %q, %v", got, err)
	}
	if got, err := os.ReadFile(spec.Command[script+1]); err != nil || string(got) != "a" {
		t.Errorf("the script is %q, %v", got, err)
	}

	d.desire(b)
	d.serves(b)
	d.eventually("the environment that nothing runs in is gone", func() bool { return slices.Equal(d.environments(), []string{one}) })
	d.start() // the agent again, on what it left
	d.serves(b)
	d.desire()
	d.eventually("the last environment is gone", func() bool { return len(d.environments()) == 0 })
}

// TestBrokenEnvironment sees that what is no environment is refused with its reason,
// tried again, and leaves nothing.
func TestBrokenEnvironment(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	m := d.scripted(d.module("a", "a"), []byte("no tar file, whatever its name says"))
	d.desire(m)
	d.eventually("it says why", func() bool {
		s := d.status(m).Candidate
		return s != nil && s.State() == atelier.BackOff && s.Why().Reason() == atelier.ReasonDigestMismatch
	})
	if got := d.environments(); len(got) > 0 {
		t.Errorf("it left %q", got)
	}
}

// TestStagedEnvironment sees that an environment is unpacked before the switch.
func TestStagedEnvironment(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	m := d.scripted(d.module("a", "a"), packed(t, "one"))
	d.staged = []atelier.Module{m}
	d.desire()
	d.eventually("it is staged", func() bool {
		s := d.status(m).Staged
		return s != nil && s.State() == atelier.StagedState
	})
	if got := d.environments(); len(got) != 1 {
		t.Errorf("there are %q", got)
	}
	d.staged = nil
	d.desire()
	d.eventually("it is gone", func() bool { return len(d.environments()) == 0 })
}
