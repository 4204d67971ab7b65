package build

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// debianSites is where Debian's interpreter looks for packages, relative to its prefix.
const debianSites = "lib/python3/dist-packages"

// debian lays out the interpreter of the machine's Debian, or of what descends from
// it: downloaded and verified by apt, unpacked without being installed. See ADR 120.
type debian struct {
	*build
	pip string // path of pip's wheel
}

// leftOut are packages that come with the interpreter and stay behind: the C library is
// the device's, and the modules that need the others (nis, dbm, readline) serve nobody
// who scores.
var leftOut = []string{"libc6", "libdb5.3", "libdb5.3t64", "libnsl2", "libtirpc3", "libtirpc3t64", "libreadline8", "libreadline8t64"}

func (d *debian) lay(version string) error {
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return atelier.Errorf(atelier.Unsupported, "this machine has no %s, and interpreters come out of Debian's packages", tool).
				WithRemedy("Run atelier-builder on Debian or Ubuntu, or in a container of one.")
		}
	}
	main := []string{"python" + version + "-minimal", "libpython" + version + "-minimal", "libpython" + version + "-stdlib"}
	libraries, err := d.dependencies(main)
	if err != nil {
		return err
	}
	// Wheels may rely on the C++ library of the system; devices need not have one.
	libraries = append(libraries, "libstdc++6", "libgcc-s1")
	system, tools := filepath.Join(d.work, "system"), filepath.Join(d.work, "tools")
	if err := d.unpack(append(main, libraries...), system, []string{pipPackage, patchPackage}, tools); err != nil {
		return err
	}
	wheels, err := filepath.Glob(filepath.Join(tools, "usr/share/python-wheels/pip-*.whl"))
	if err != nil || len(wheels) == 0 {
		return atelier.Errorf(atelier.Unsupported, "the package python3-pip-whl brought no wheel of pip")
	}
	d.pip = wheels[0]
	if err := d.copyInterpreter(version, system); err != nil {
		return err
	}
	missing, err := gather(filepath.Join(d.env, "lib"), d.env, libraryDirs(system))
	if err != nil {
		return err
	}
	for path, library := range missing {
		d.say("%s is left out: it needs %s", filepath.Base(path), library)
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if err := d.copyLicences(system); err != nil {
		return err
	}
	// The interpreter finds its libraries beside itself, and so does all that it loads.
	return d.run(command{
		name: filepath.Join(tools, "usr/bin/patchelf"), args: []string{"--force-rpath", "--set-rpath", "$ORIGIN/../lib", filepath.Join(d.env, "bin", "python"+version)},
	})
}

// The packages of the tools that the build needs beside the interpreter.
const (
	pipPackage   = "python3-pip-whl"
	patchPackage = "patchelf"
)

// dependencies returns the libraries that packages depend on.
func (d *debian) dependencies(packages []string) ([]string, error) {
	var out bytes.Buffer
	// One call for all: apt reads the lists of its whole archive for each.
	if err := d.run(command{name: "apt-cache", args: append([]string{"depends", "--important"}, packages...), out: &out}); err != nil {
		return nil, noInterpreter(packages[0], err)
	}
	if !strings.Contains(out.String(), "Depends: ") {
		return nil, noInterpreter(packages[0], errors.New("its archive lists none"))
	}
	var libraries []string
	for line := range strings.Lines(out.String()) {
		kind, name, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if (kind == "Depends" || kind == "PreDepends") && (strings.HasPrefix(name, "lib") || strings.HasPrefix(name, "zlib")) &&
			!slices.Contains(leftOut, name) && !slices.Contains(packages, name) && !slices.Contains(libraries, name) {
			libraries = append(libraries, name)
		}
	}
	return libraries, nil
}

func noInterpreter(pkg string, err error) error {
	return atelier.Errorf(atelier.Unsupported, "this builder has no %s: %w", pkg, err).
		WithRemedy("Ask for the version of Python that the builder's Debian has ('apt-cache policy python3' tells), run a builder on a Debian that has this one, or let 'apt-get update' fetch its lists.")
}

// unpack downloads packages and unpacks those of the system below one directory, those
// of the tools below another.
func (d *debian) unpack(system []string, systemDir string, tools []string, toolsDir string) error {
	debs := filepath.Join(d.work, "debs")
	for _, p := range []string{debs, systemDir, toolsDir} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			return err
		}
	}
	// apt verifies what it downloads against the signed lists. It drops root for that,
	// and then could not write here.
	args := slices.Concat([]string{"download", "--quiet=2", "-o", "APT::Sandbox::User=root"}, system, tools)
	if err := d.run(command{name: "apt-get", args: args, dir: debs}); err != nil {
		return atelier.Errorf(atelier.Unavailable, "the interpreter's packages cannot be downloaded: %w", err).
			WithRemedy("Let the builder's machine reach its package archive, and run 'apt-get update' there.")
	}
	all, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range all {
		dir := systemDir
		if name, _, _ := strings.Cut(filepath.Base(deb), "_"); slices.Contains(tools, name) {
			dir = toolsDir
		}
		if err := d.run(command{name: "dpkg-deb", args: []string{"--extract", deb, dir}}); err != nil {
			return err
		}
	}
	return nil
}

// unwanted are parts of the standard library that serve tests and installations.
var unwanted = []string{
	"EXTERNALLY-MANAGED", "sitecustomize.py", "test", "idlelib", "ensurepip", "turtledemo", "tkinter", "lib2to3", "__pycache__",
}

func (d *debian) copyInterpreter(version, system string) error {
	name := "python" + version
	if err := os.MkdirAll(filepath.Join(d.env, "bin"), 0o755); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(system, "usr/bin", name), filepath.Join(d.env, "bin", name)); err != nil {
		return err
	}
	if err := os.Symlink(name, filepath.Join(d.env, "bin/python3")); err != nil {
		return err
	}
	from, to := filepath.Join(system, "usr/lib", name), filepath.Join(d.env, "lib", name)
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if slices.Contains(unwanted, e.Name()) || strings.HasPrefix(e.Name(), "_test") || strings.HasPrefix(e.Name(), "_xxtest") || strings.HasPrefix(e.Name(), "xxlimited") {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		return copyFile(path, filepath.Join(to, rel))
	})
	if err != nil {
		return err
	}
	return os.MkdirAll(filepath.Join(d.env, debianSites), 0o755)
}

// copyLicences keeps the terms under which each package may be passed on.
func (d *debian) copyLicences(system string) error {
	all, err := filepath.Glob(filepath.Join(system, "usr/share/doc/*/copyright"))
	if err != nil {
		return err
	}
	for _, from := range all {
		to := filepath.Join(d.env, "share/doc", filepath.Base(filepath.Dir(from)), "copyright")
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := copyFile(from, to); err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies what a path leads to, with the right to execute it.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644|info.Mode()&0o111)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}
