package build

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	form "github.com/atelier-edge/atelier/internal/environment"
	"github.com/atelier-edge/atelier/packaging/environment"
)

// definition is one of the interpreter that the machine's Debian has.
func definition(t *testing.T, requirements ...string) environment.Definition {
	t.Helper()
	d, err := environment.New(debianPython(t), requirements)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// debianPython returns the version of the machine's Debian's Python.
func debianPython(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("apt-cache", "depends", "python3-minimal").Output()
	if err != nil && os.Getenv("CI") == "" {
		t.Skipf("not on a Debian: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(out), "python3.")
	minor, _, _ := strings.Cut(rest, "-")
	if !found {
		t.Fatalf("apt-cache told %q", out)
	}
	return "3." + minor
}

// TestBuildAndRunElsewhere builds an environment with numpy by the real tools, twice,
// with the same bytes; then it runs one of them moved to another directory, in a root
// file system that holds nothing but it and the C library.
func TestBuildAndRunElsewhere(t *testing.T) {
	t.Parallel()
	d := definition(t, "idna==3.7", "numpy==1.26.4")
	var tars [2][]byte
	var result Result
	for i := range tars {
		var err error
		result, err = Environment(t.Context(), d, t.TempDir(), t.Output())
		if err != nil {
			t.Fatal(err)
		}
		if tars[i], err = os.ReadFile(result.Tar); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(tars[0], tars[1]) {
		t.Error("two builds of the same definition differ")
	}
	if strings.Join(result.Packages, " ") != "idna==3.7 numpy==1.26.4" || !strings.HasPrefix(result.NeedsGlibc, "2.") {
		t.Errorf("packages %q, glibc %q", result.Packages, result.NeedsGlibc)
	}

	jail := t.TempDir()
	moved := filepath.Join(jail, "srv/somewhere/else")
	if err := os.MkdirAll(filepath.Dir(moved), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := form.Unpack(t.Context(), bytes.NewReader(tars[0]), moved); err != nil {
		t.Fatal(err)
	}
	const script = `
import sys, ssl, sqlite3, ctypes, hashlib, multiprocessing, numpy, idna
print(sys.prefix, numpy.__file__.startswith(sys.prefix), int((numpy.ones((50, 50)) @ numpy.ones((50, 50)))[0, 0]), idna.encode("bücher.example"))
import os
others = []
for at, dirs, files in os.walk("/"):
    dirs[:] = [d for d in dirs if os.path.join(at, d) not in ("/proc", "/srv/somewhere")]
    others += [n for n in dirs + files if "python" in n]
print(len(others))`
	for _, library := range []string{"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1"} {
		copyGlibc(t, jail, library)
	}
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("a root file system of its own takes root")
		}
		t.Skip("a root file system of its own takes root")
	}
	// $ORIGIN is found out through /proc, which every device has.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	run := exec.CommandContext(ctx, "unshare", "--kill-child", "--mount", "--pid", "--fork", "sh", "-c",
		`mkdir proc && mount -t proc proc proc && exec chroot . /srv/somewhere/else/bin/python3 -I -c "$SCRIPT"`)
	run.Dir, run.Env = jail, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SCRIPT=" + script}
	out, err := run.CombinedOutput()
	want := "/srv/somewhere/else True 50 b'xn--bcher-kva.example'\n0\n"
	if err != nil || string(out) != want {
		t.Fatalf("%v: got\n%s\nwant\n%s", err, out, want)
	}
}

// copyGlibc copies a part of the machine's C library to its place in the jail, where
// the machine has it.
func copyGlibc(t *testing.T, jail, library string) {
	t.Helper()
	for _, dir := range []string{"", "/lib/x86_64-linux-gnu/", "/lib/aarch64-linux-gnu/"} {
		if (dir == "") != filepath.IsAbs(library) {
			continue
		}
		err := os.MkdirAll(filepath.Dir(filepath.Join(jail, dir, library)), 0o755)
		if err == nil {
			err = copyFile(dir+library, filepath.Join(jail, dir, library))
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// TestFailures sees that a build that cannot work ends with the line that matters, and
// that its log tells the rest.
func TestFailures(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		definition environment.Definition
		want       string
	}{
		"no such version": {definition(t, "idna==0.0.9999"), "No matching distribution found for idna==0.0.9999"},
		"no interpreter":  {environment.Definition{Python: "3.99"}, "python3.99-minimal"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			_, err := Environment(t.Context(), c.definition, t.TempDir(), &log)
			var e *atelier.Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || e.Remedy == "" {
				t.Errorf("got %v", err)
			}
			lines := strings.Split(strings.TrimSpace(log.String()), "\n")
			if last := lines[len(lines)-1]; !strings.HasPrefix(last, "FAILED: ") || !strings.Contains(last, c.want) {
				t.Errorf("the log ends with %q", last)
			}
		})
	}
}

// TestCancel sees that a build ends with its context, and what it runs with it.
func TestCancel(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	log := &stopper{stop: cancel}
	_, err := Environment(ctx, definition(t, "numpy"), t.TempDir(), log)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// stopper ends the build when pip has begun.
type stopper struct{ stop func() }

func (s *stopper) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("Collecting")) || bytes.Contains(p, []byte("Looking in")) {
		s.stop()
	}
	return len(p), nil
}
