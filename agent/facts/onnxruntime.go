package facts

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// What ONNX Runtime's published libraries need: they are built against glibc and
// load libstdc++ when they are loaded.
const (
	needsGlibcMajor = 2
	needsGlibcMinor = 28
	needsLibrary    = "libstdc++.so.6"
)

// loaders are the paths of glibc's dynamic loader, which the ABI of each
// architecture fixes; see https://sourceware.org/glibc/wiki/ABIList.
var loaders = map[string]string{
	"amd64": "lib64/ld-linux-x86-64.so.2",
	"arm64": "lib/ld-linux-aarch64.so.1",
}

// libraryDirs are searched after the ones that /etc/ld.so.conf names.
var libraryDirs = map[string][]string{
	"amd64": {"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib"},
	"arm64": {"lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib"},
}

// onnxRuntime says whether ONNX Runtime can be loaded on the device, and if not,
// in one sentence why.
func onnxRuntime(root fs.FS, goos, goarch string) atelier.RuntimeSupport {
	no := func(format string, args ...any) atelier.RuntimeSupport {
		return atelier.RuntimeSupport{Name: atelier.RuntimeONNX, Why: fmt.Sprintf(format, args...)}
	}
	loader, known := loaders[goarch]
	if goos != "linux" || !known {
		return no("ONNX Runtime is published for linux on amd64 and arm64, and this device is %s on %s.", goos, goarch)
	}
	if _, err := fs.Stat(root, loader); err != nil {
		if musl, err := fs.Glob(root, "lib/ld-musl-*.so.1"); err == nil && len(musl) > 0 {
			return no("The device's C library is musl, and ONNX Runtime needs glibc %d.%d.", needsGlibcMajor, needsGlibcMinor)
		}
		return no("The device has no glibc (there is no /%s), and ONNX Runtime needs glibc %d.%d.", loader, needsGlibcMajor, needsGlibcMinor)
	}
	dirs := append(configuredDirs(root), libraryDirs[goarch]...)
	libc, found := find(root, dirs, "libc.so.6")
	if !found {
		return no("The device has a dynamic loader but no libc.so.6 where it looks for libraries.")
	}
	major, minor, err := glibcVersion(root, libc)
	if err != nil {
		return no("The version of the device's C library cannot be read: %v.", err)
	}
	if major < needsGlibcMajor || major == needsGlibcMajor && minor < needsGlibcMinor {
		return no("The device has glibc %d.%d, and ONNX Runtime needs %d.%d.", major, minor, needsGlibcMajor, needsGlibcMinor)
	}
	if _, found := find(root, dirs, needsLibrary); !found {
		return no("The device has no %s, which ONNX Runtime needs; it is in the package libstdc++6 or libstdc++.", needsLibrary)
	}
	return atelier.RuntimeSupport{Name: atelier.RuntimeONNX, OK: true}
}

// glibc returns the version of the device's GNU C library, "" where it has none or it
// cannot be read.
func glibc(root fs.FS, goarch string) string {
	libc, found := find(root, append(configuredDirs(root), libraryDirs[goarch]...), "libc.so.6")
	if !found {
		return ""
	}
	major, minor, err := glibcVersion(root, libc)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%d.%d", major, minor)
}

func find(root fs.FS, dirs []string, name string) (string, bool) {
	for _, dir := range dirs {
		p := path.Join(dir, name)
		if info, err := fs.Stat(root, p); err == nil && info.Mode().IsRegular() {
			return p, true
		}
	}
	return "", false
}

// maxIncludes bounds how deep ld.so.conf may include other files.
const maxIncludes = 4

// configuredDirs returns the directories that /etc/ld.so.conf names; see ldconfig(8).
func configuredDirs(root fs.FS) []string {
	var dirs []string
	var read func(name string, depth int)
	read = func(name string, depth int) {
		b, err := fs.ReadFile(root, name)
		if err != nil || depth > maxIncludes {
			return // a system without the file looks in the usual places
		}
		for l := range strings.Lines(string(b)) {
			l, _, _ = strings.Cut(l, "#")
			fields := strings.Fields(l)
			switch {
			case len(fields) == 2 && fields[0] == "include":
				pattern := strings.TrimPrefix(fields[1], "/")
				if !strings.HasPrefix(fields[1], "/") {
					pattern = path.Join(path.Dir(name), fields[1])
				}
				included, err := fs.Glob(root, pattern)
				if err != nil {
					continue // a malformed pattern includes nothing
				}
				for _, f := range included {
					read(f, depth+1)
				}
			case len(fields) == 1 && strings.HasPrefix(fields[0], "/"):
				dirs = append(dirs, strings.TrimPrefix(path.Clean(fields[0]), "/"))
			}
		}
	}
	read("etc/ld.so.conf", 0)
	return dirs
}

// glibcBanner precedes the version in the text that glibc carries within itself
// and prints when it is executed, "… stable release version 2.36.".
const glibcBanner = "GNU C Library"

// maxLibc bounds how much of a C library is read, in bytes.
const maxLibc = 16 << 20

// glibcVersion finds glibc's version in its file, without executing it.
func glibcVersion(root fs.FS, name string) (major, minor int, err error) {
	f, err := root.Open(name)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = f.Close() }() // it was only read
	const overlap = 512              // more than the banner's line has
	buf := make([]byte, 64<<10)
	r := io.LimitReader(f, maxLibc)
	for kept := 0; ; {
		n, err := io.ReadFull(r, buf[kept:])
		have := buf[:kept+n]
		if major, minor, ok := parseBanner(have); ok {
			return major, minor, nil
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return 0, 0, fmt.Errorf("/%s does not say that it is glibc", name)
			}
			return 0, 0, err
		}
		kept = copy(buf, have[len(have)-overlap:])
	}
}

// parseBanner looks for glibc's banner in b.
func parseBanner(b []byte) (major, minor int, ok bool) {
	_, rest, found := bytes.Cut(b, []byte(glibcBanner))
	if !found {
		return 0, 0, false
	}
	text, _, _ := bytes.Cut(rest[:min(len(rest), 256)], []byte("\n"))
	_, version, found := bytes.Cut(text, []byte("release version "))
	if !found {
		return 0, 0, false
	}
	parts := strings.SplitN(string(version), ".", 3)
	if len(parts) < 2 {
		return 0, 0, false
	}
	major, err := strconv.Atoi(parts[0])
	if err != nil || major < 0 {
		return 0, 0, false
	}
	digits := strings.IndexFunc(parts[1], func(r rune) bool { return r < '0' || r > '9' })
	if digits >= 0 {
		parts[1] = parts[1][:digits]
	}
	minor, err = strconv.Atoi(parts[1])
	return major, minor, err == nil
}
