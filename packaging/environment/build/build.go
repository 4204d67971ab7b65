// Package build makes environments: an interpreter of its own that runs wherever its
// directory lies, the wheels that a definition requires, and the compiled form of their
// modules, packed so that the same content gives the same bytes. It runs the machine's
// package tools (apt, dpkg) and pip, with the machine's own configuration of both.
package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	form "github.com/atelier-edge/atelier/internal/environment"
	"github.com/atelier-edge/atelier/packaging/environment"
)

// Result is a built environment.
type Result struct {
	Tar        string   // path of the packed environment
	NeedsGlibc string   // the oldest glibc that it runs with, "" where it needs none
	Packages   []string // what was installed, as "name==version", sorted
}

// Environment builds d for this machine's architecture below work, an empty directory
// of the caller's, and writes into log what is done and what the tools say. The error
// holds the line that matters; the particulars are in the log.
func Environment(ctx context.Context, d environment.Definition, work string, log io.Writer) (Result, error) {
	b := &build{ctx: ctx, log: log, work: work, env: filepath.Join(work, "environment"), definition: d}
	var r Result
	for _, s := range []struct {
		what string
		do   func(*Result) error
	}{
		{"interpreter", b.interpreter},
		{"packages", b.packages},
		{"compiled modules", b.compile},
		{"check", b.check},
		{"artifact", b.pack},
	} {
		b.say("== %s", s.what)
		if err := s.do(&r); err != nil {
			if ctx.Err() != nil {
				err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
			b.say("FAILED: %v", err)
			return Result{}, err
		}
	}
	return r, nil
}

type build struct {
	ctx        context.Context
	log        io.Writer
	work, env  string
	definition environment.Definition
	pip        string // path of pip's wheel
	sites      string // where packages are installed, relative to env
}

// say writes a line into the log. A log that cannot be written ends no build.
func (b *build) say(format string, args ...any) { _, _ = fmt.Fprintf(b.log, format+"\n", args...) }

func (b *build) interpreter(*Result) error {
	d := debian{build: b}
	if err := d.lay(b.definition.Python); err != nil {
		return err
	}
	b.pip, b.sites = d.pip, debianSites
	// It must run before anything else is asked of it.
	out, err := b.python("-c", "import sys; print(sys.version)")
	if err != nil {
		return fmt.Errorf("the interpreter does not run where it was laid: %w", err)
	}
	b.say("Python %s", strings.TrimSpace(out))
	return nil
}

// python runs the environment's own interpreter and returns what it printed.
func (b *build) python(args ...string) (string, error) {
	var out bytes.Buffer
	err := b.run(command{
		name: filepath.Join(b.env, filepath.FromSlash(form.Interpreter)), args: append([]string{"-s"}, args...), dir: b.env, out: &out,
	})
	return out.String(), err
}

// packages installs the wheels. pip runs in the environment's interpreter, so that it
// looks for what fits that one.
func (b *build) packages(*Result) error {
	if len(b.definition.Requirements) == 0 {
		return nil
	}
	list := filepath.Join(b.work, "requirements.txt")
	if err := os.WriteFile(list, []byte(strings.Join(b.definition.Requirements, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	_, err := b.python(filepath.Join(b.pip, "pip"), "install", "--target", filepath.Join(b.env, b.sites),
		"--only-binary=:all:", "--no-compile", "--no-input", "--disable-pip-version-check", "--root-user-action=ignore",
		"--no-warn-script-location", "--progress-bar=off", "--cache-dir", filepath.Join(b.work, "pip"), "--requirement", list)
	if err != nil {
		e := atelier.Errorf(atelier.Invalid, "pip cannot install what is required: %w", err)
		return e.WithRemedy("Read the build's log. Taken are wheels for Python %s that run here; what is published as source only must be built into a wheel first, and put where the builder's pip finds it.", b.definition.Python)
	}
	return b.removeCommands()
}

// removeCommands removes the commands that packages bring: they begin with the path
// that the interpreter has on this machine. The records of what was installed, which
// hold their hashes, forget them.
func (b *build) removeCommands() error {
	sites := filepath.Join(b.env, b.sites)
	if err := os.RemoveAll(filepath.Join(sites, "bin")); err != nil {
		return err
	}
	records, err := filepath.Glob(filepath.Join(sites, "*.dist-info", "RECORD"))
	if err != nil {
		return err
	}
	for _, path := range records {
		old, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var kept []byte
		for line := range bytes.Lines(old) {
			if !bytes.HasPrefix(line, []byte("../")) {
				kept = append(kept, line...)
			}
		}
		if err := os.WriteFile(path, kept, 0o644); err != nil { //nolint:gosec // it is part of what all may read
			return err
		}
	}
	return nil
}

// compile compiles all modules, so that devices do not each time. The compiled files
// name their sources by paths relative to the environment, and are taken as they are
// whatever the sources' times: they are the same in each build, and true anywhere.
func (b *build) compile(*Result) error {
	_, err := b.python("-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "lib")
	var failed *toolError
	if errors.As(err, &failed) {
		b.say("Some modules are for other versions of Python and stay as they are.")
		return nil
	}
	return err
}

const listPackages = `
from importlib.metadata import distributions
print("\n".join(sorted({d.metadata["Name"] + "==" + d.version for d in distributions()}, key=str.lower)))
`

// check loads what an interpreter cannot do without, and finds out what is there.
func (b *build) check(r *Result) (err error) {
	if _, err := b.python("-c", "import asyncio, ctypes, hashlib, json, socket, ssl, sqlite3, zlib, lzma, bz2"); err != nil {
		return fmt.Errorf("the interpreter is not whole: %w", err)
	}
	out, err := b.python("-c", listPackages)
	if err != nil {
		return err
	}
	r.Packages = strings.Fields(out)
	slices.Sort(r.Packages)
	r.NeedsGlibc, err = needsGlibc(b.env)
	if err == nil {
		b.say("It needs glibc %s.", r.NeedsGlibc)
	}
	return err
}

func (b *build) pack(r *Result) (err error) {
	r.Tar = filepath.Join(b.work, form.ArtifactPath)
	f, err := os.Create(r.Tar)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := form.Pack(f, b.env); err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		b.say("%s", atelier.FormatBytes(info.Size()))
	}
	return err
}
