package build

import (
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// glibcParts are the libraries of the device's own that an environment relies on: the
// C library with its parts, and the dynamic loader.
var glibcParts = map[string]bool{
	"libc.so.6": true, "libm.so.6": true, "libpthread.so.0": true, "libdl.so.2": true, "librt.so.1": true, "libutil.so.1": true,
	"libresolv.so.2": true, "libnsl.so.1": true, "libanl.so.1": true, "ld-linux-x86-64.so.2": true, "ld-linux-aarch64.so.1": true,
}

// eachELF calls fn for every program and library of this machine's format below dir.
func eachELF(dir string, fn func(path string, f *elf.File) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := elf.Open(path)
		var other *elf.FormatError
		if errors.As(err, &other) || err != nil && isShort(path) {
			return nil
		}
		if err != nil {
			return err
		}
		return errors.Join(fn(path, f), f.Close())
	})
}

// isShort reports whether a file is too short to be a program.
func isShort(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Size() < 64
}

// gather copies into lib the libraries that programs below dir need, and those that
// these need, from the first of the directories that has them. It returns the files
// whose library is in none, each with one that it lacks. What brings its own libraries
// (wheels do) is not looked at: it lies below dir only later.
func gather(lib, dir string, from []string) (missing map[string]string, err error) {
	missing = map[string]string{}
	for again := true; again; {
		again = false
		err := eachELF(dir, func(path string, f *elf.File) error {
			names, err := f.ImportedLibraries()
			if err != nil {
				return err
			}
			for _, name := range names {
				if _, err := os.Stat(filepath.Join(lib, name)); glibcParts[name] || err == nil {
					continue
				}
				found := false
				for _, d := range from {
					err := copyFile(filepath.Join(d, name), filepath.Join(lib, name))
					if errors.Is(err, fs.ErrNotExist) {
						continue
					}
					if err != nil {
						return err
					}
					found, again = true, true
					break
				}
				if !found {
					missing[path] = name
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	// Nothing of the system's needs these, and wheels may.
	for _, name := range []string{"libstdc++.so.6", "libgcc_s.so.1"} {
		for _, d := range from {
			if err := copyFile(filepath.Join(d, name), filepath.Join(lib, name)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
				return nil, err
			}
		}
	}
	return missing, nil
}

// libraryDirs are the directories of libraries in a system that was unpacked.
func libraryDirs(system string) []string {
	var dirs []string
	for _, pattern := range []string{"usr/lib/*-linux-gnu*", "lib/*-linux-gnu*", "usr/lib", "lib"} {
		found, err := filepath.Glob(filepath.Join(system, pattern))
		if err == nil { // the patterns are well formed
			dirs = append(dirs, found...)
		}
	}
	return dirs
}

// needsGlibc returns the newest version of glibc that anything below dir needs.
func needsGlibc(dir string) (string, error) {
	var major, minor int
	err := eachELF(dir, func(_ string, f *elf.File) error {
		needs, err := f.DynamicVersionNeeds()
		if err != nil {
			return nil //nolint:nilerr // a file without the table needs no version
		}
		for _, n := range needs {
			for _, v := range n.Needs {
				version, ok := strings.CutPrefix(v.Dep, "GLIBC_")
				a, b, _ := strings.Cut(version, ".")
				b, _, _ = strings.Cut(b, ".")
				x, errX := strconv.Atoi(a)
				y, errY := strconv.Atoi(b)
				if ok && errX == nil && errY == nil && (x > major || x == major && y > minor) {
					major, minor = x, y
				}
			}
		}
		return nil
	})
	if err != nil || major == 0 {
		return "", err
	}
	return strconv.Itoa(major) + "." + strconv.Itoa(minor), nil
}
