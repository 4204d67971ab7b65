package facts

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
)

// libc is a C library of a version, large enough to be read in several parts.
func libc(version string) *fstest.MapFile {
	filler := strings.Repeat("\x7fELF and so on ", 9000)
	return &fstest.MapFile{Data: []byte(filler + "GNU C Library (Debian GLIBC " + version + "-9) stable release version " + version + ".\nCopyright" + filler)}
}

func TestONNXRuntime(t *testing.T) {
	t.Parallel()
	empty := &fstest.MapFile{Data: []byte("x")}
	debian := func(change func(fstest.MapFS)) fstest.MapFS {
		root := fstest.MapFS{
			"lib64/ld-linux-x86-64.so.2":               empty,
			"usr/lib/x86_64-linux-gnu/libc.so.6":       libc("2.36"),
			"usr/lib/x86_64-linux-gnu/libstdc++.so.6":  empty,
			"lib/ld-linux-aarch64.so.1":                empty,
			"usr/lib/aarch64-linux-gnu/libc.so.6":      libc("2.28"),
			"usr/lib/aarch64-linux-gnu/libstdc++.so.6": empty,
		}
		if change != nil {
			change(root)
		}
		return root
	}
	for name, c := range map[string]struct {
		root     fstest.MapFS
		os, arch string
		why      string // "" where it can run
	}{
		"debian amd64": {debian(nil), "linux", "amd64", ""},
		"oldest arm64": {debian(nil), "linux", "arm64", ""},
		"darwin":       {debian(nil), "darwin", "arm64", "darwin on arm64"},
		"riscv":        {debian(nil), "linux", "riscv64", "linux on riscv64"},
		"musl":         {fstest.MapFS{"lib/ld-musl-x86_64.so.1": empty}, "linux", "amd64", "musl"},
		"nothing":      {fstest.MapFS{}, "linux", "amd64", "no glibc"},
		"old":          {debian(func(r fstest.MapFS) { r["usr/lib/x86_64-linux-gnu/libc.so.6"] = libc("2.27") }), "linux", "amd64", "glibc 2.27"},
		"major 3":      {debian(func(r fstest.MapFS) { r["usr/lib/x86_64-linux-gnu/libc.so.6"] = libc("3.1") }), "linux", "amd64", ""},
		"odd libc":     {debian(func(r fstest.MapFS) { r["usr/lib/x86_64-linux-gnu/libc.so.6"] = empty }), "linux", "amd64", "does not say"},
		"no libc":      {debian(func(r fstest.MapFS) { delete(r, "usr/lib/x86_64-linux-gnu/libc.so.6") }), "linux", "amd64", "no libc.so.6"},
		"no libstdc++": {debian(func(r fstest.MapFS) { delete(r, "usr/lib/x86_64-linux-gnu/libstdc++.so.6") }), "linux", "amd64", "no libstdc++"},
		"configured": {debian(func(r fstest.MapFS) {
			delete(r, "usr/lib/x86_64-linux-gnu/libstdc++.so.6")
			r["etc/ld.so.conf"] = &fstest.MapFile{Data: []byte("include ld.so.conf.d/*.conf\ninclude /etc/ld.so.conf\n")}
			r["etc/ld.so.conf.d/x.conf"] = &fstest.MapFile{Data: []byte("# comment\n/opt/gcc/lib64 # here\n")}
			r["opt/gcc/lib64/libstdc++.so.6"] = empty
		}), "linux", "amd64", ""},
	} {
		got := onnxRuntime(c.root, c.os, c.arch)
		if got.OK != (c.why == "") || !strings.Contains(got.Why, c.why) || got.Name != "onnxruntime" {
			t.Errorf("%s: got %+v, expected why to hold %q", name, got, c.why)
		}
		if !got.OK && (!strings.HasSuffix(got.Why, ".") || strings.Count(got.Why, "\n") > 0) {
			t.Errorf("%s: %q is not a sentence", name, got.Why)
		}
	}
}

func TestReadThisMachine(t *testing.T) {
	t.Parallel()
	f := Read(Options{Root: os.DirFS("/"), Targets: []string{"process"}})
	if f.OS != runtime.GOOS || f.Arch != runtime.GOARCH || f.CPUs < 1 || len(f.Targets) != 1 || len(f.Runtimes) != 1 {
		t.Errorf("got %+v", f)
	}
	if runtime.GOOS == "linux" && (f.Kernel == "" || f.Memory < 1<<20) {
		t.Errorf("kernel %q, memory %d", f.Kernel, f.Memory)
	}
	t.Logf("%+v", f)
}

func FuzzParseBanner(f *testing.F) {
	f.Add([]byte("GNU C Library (x) stable release version 2.36.\n"))
	f.Add([]byte("GNU C Library release version "))
	f.Fuzz(func(t *testing.T, b []byte) {
		if major, minor, ok := parseBanner(b); ok && (major < 0 || minor < 0) {
			t.Errorf("version %d.%d", major, minor)
		}
	})
}
