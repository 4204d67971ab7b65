package sbom

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	atelier "github.com/atelier-edge/atelier"
)

func archive(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func add(t testing.TB, c *Contents, layer []byte) {
	t.Helper()
	if err := c.AddLayer(t.Context(), bytes.NewReader(layer), int64(len(layer))); err != nil {
		t.Fatal(err)
	}
}

// names lists what was found, as "kind name version arch distro".
func names(c *Contents) string {
	var b strings.Builder
	for _, p := range c.Packages() {
		fmt.Fprintf(&b, "%s\n", strings.TrimSpace(strings.Join([]string{string(p.Kind), p.Name, p.Version, p.Arch, p.Distro}, " ")))
	}
	return b.String()
}

const status = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\nDescription: a library\n with lines\n\n" +
	"Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: bash\nStatus: install ok installed\nVersion: 5.2\nArchitecture: amd64\n"

func numpy(version string) string {
	return "Metadata-Version: 2.4\nName: numpy\nVersion: " + version + "\n\nName: not-a-header\n"
}

// Layers lie over each other: later ones replace and hide what is below.
func TestLayers(t *testing.T) {
	t.Parallel()
	var c Contents
	add(t, &c, zipped(t, archive(t, "./etc/os-release", "NAME=x\nID=\"debian\"\n", "./var/lib/dpkg/status", status)))
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	add(t, &c, z.EncodeAll(archive(t, "env/numpy-1.dist-info/METADATA", numpy("1"), "env/old/x-1.egg-info/PKG-INFO", "Name: x\nVersion: 1\n",
		"env/b/b-1.dist-info/METADATA", "Name: b\nVersion: 1\n"), nil))
	if got, want := names(&c), "debian bash 5.2 amd64 debian\ndebian libc6 2.36-9 amd64 debian\npython b 1\npython numpy 1\npython x 1\n"; got != want {
		t.Fatalf("found is\n%swant\n%s", got, want)
	}
	add(t, &c, archive(t, "env/.wh.numpy-1.dist-info", "", "env/numpy-2.dist-info/METADATA", numpy("2"), "env/old/.wh..wh..opq", "", "env/old/y-1.dist-info/METADATA", "Name: y\nVersion: 1\n"))
	if got, want := names(&c), "debian bash 5.2 amd64 debian\ndebian libc6 2.36-9 amd64 debian\npython b 1\npython numpy 2\npython y 1\n"; got != want {
		t.Errorf("after the third layer found is\n%swant\n%s", got, want)
	}
	// A later status replaces the whole of the one before.
	add(t, &c, archive(t, "var/lib/dpkg/status", "Package: libc6\nStatus: install ok installed\nVersion: 3\nArchitecture: amd64\n", "env/.wh.b", ""))
	if got, want := names(&c), "debian libc6 3 amd64 debian\npython numpy 2\npython y 1\n"; got != want {
		t.Errorf("after the fourth layer found is\n%swant\n%s", got, want)
	}
	var other Contents
	add(t, &other, archive(t, "lib/apk/db/installed", "C:Q1\nP:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\n\nP:busybox\nV:1.36\nA:x86_64\nL:GPL-2.0-only\n",
		"var/lib/dpkg/status.d/base", "Package: base-files\nVersion: 12\nArchitecture: arm64\n", "var/lib/dpkg/status.d/base.md5sums", "Package: no\n"))
	if got, want := names(&other), "alpine busybox 1.36 x86_64 alpine\nalpine musl 1.2.4-r2 x86_64 alpine\ndebian base-files 12 arm64 debian\n"; got != want {
		t.Errorf("found is\n%swant\n%s", got, want)
	}
}

func TestHostileLayers(t *testing.T) {
	t.Parallel()
	fails := func(what string, code atelier.Code, layer []byte) {
		t.Helper()
		var c Contents
		if err := c.AddLayer(t.Context(), bytes.NewReader(layer), int64(len(layer))); atelier.CodeOf(err) != code {
			t.Errorf("%s: %v, want %s", what, err, code)
		}
	}
	fails("no archive", atelier.Invalid, []byte(strings.Repeat("x", 1024)))
	whole := zipped(t, archive(t, "a", strings.Repeat("a", 9000), "env/numpy-1.dist-info/METADATA", numpy("1")))
	fails("cut", atelier.Invalid, whole[:len(whole)-20])
	fails("a record of 2 MiB", atelier.TooLarge, archive(t, "a-1.dist-info/METADATA", strings.Repeat("x", 2<<20)))
	b := bound{ctx: t.Context(), from: strings.NewReader(strings.Repeat("a", 1000)), left: 999}
	if _, err := b.Read(make([]byte, 1000)); atelier.CodeOf(err) != atelier.TooLarge {
		t.Errorf("what unpacks to too much: %v", err)
	}
	var c Contents
	add(t, &c, archive(t, "../../../etc/x-1.dist-info/METADATA", "Name: climbs\nVersion: 1\n", "/abs-1.dist-info/METADATA", "Version: 1\n"))
	if got := names(&c); got != "python climbs 1\n" {
		t.Errorf("found is %q", got)
	}
}

func TestLicenses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ expression, text, classifier, want string }{
		{"MIT", "whatever", "", "MIT"},
		{"mit and (apache-2.0 or BSD-3-Clause)", "", "", "MIT AND (Apache-2.0 OR BSD-3-Clause)"},
		{"", "Apache License 2.0", "", "Apache-2.0"},
		{"", "", "License :: OSI Approved :: BSD License", "LicenseRef-1"},
		{"", "", "License :: OSI Approved :: MIT License", "MIT"},
		{"", "UNKNOWN", "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0"},
		{"", "a text\nof our own", "", "LicenseRef-1"},
		{"MIT AND", "", "", "LicenseRef-1"},
		{"MIT)", "", "", "LicenseRef-1"},
		{"Apache-2.0 WITH LLVM-exception", "", "", "LicenseRef-1"},
		{"", "", "", noAssertion},
	} {
		w := writer{licenses: map[string]string{}}
		if got := w.license(licenseOf(c.expression, c.text, []string{c.classifier})); got != c.want {
			t.Errorf("%+v gives %q", c, got)
		}
	}
}

// Parts have ids of their own, also where their names differ in what ids cannot hold only.
func TestSPDXIds(t *testing.T) {
	t.Parallel()
	d := Document{Name: "a", Digest: "sha256:00", Created: time.Unix(0, 0), Creator: "test", Namespace: "https://example/a", Packages: []Package{
		{Kind: Python, Name: "a_b", Version: "1"}, {Kind: Python, Name: "a-b", Version: "1"}, {Kind: Model, Name: "\x00x\xff\n", Digest: "sha256:11", URI: "u"},
	}}
	b, err := d.SPDX()
	if err != nil {
		t.Fatal(err)
	}
	var out spdxDocument
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range out.Packages {
		if seen[p.ID] {
			t.Errorf("the id %s stands twice", p.ID)
		}
		seen[p.ID] = true
	}
	for _, r := range out.Relationships {
		if !seen[r.Related] {
			t.Errorf("a relationship names %s, which is not there", r.Related)
		}
	}
	if len(out.Packages) != 4 || out.Packages[3].Checksums[0].Value != "11" {
		t.Errorf("written is %s", b)
	}
}

// Whatever a layer holds, it is refused with a code, or what was found in it can be written down.
func FuzzLayer(f *testing.F) {
	plain := archive(f, "var/lib/dpkg/status", status, "a-1.dist-info/METADATA", numpy("1"), "etc/os-release", "ID=x", "lib/apk/db/installed", "P:a\nV:1\n", "a/.wh.b", "")
	for _, s := range [][]byte{nil, []byte("x"), plain, zipped(f, plain), {0x28, 0xb5, 0x2f, 0xfd}, {0x1f, 0x8b}} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, layer []byte) {
		var c Contents
		if err := c.AddLayer(t.Context(), bytes.NewReader(layer), int64(len(layer))); err != nil {
			if atelier.CodeOf(err) == "" {
				t.Errorf("%v has no code", err)
			}
			return
		}
		d := Document{Name: "a", Digest: "sha256:00", Created: time.Unix(0, 0), Packages: c.Packages()}
		b, err := d.SPDX()
		if err != nil || !json.Valid(b) {
			t.Errorf("%v: %s", err, b)
		}
	})
}

// What stands for a licence is an expression, a reference to a text, or nothing; and an
// expression stays what it is when it is read again.
func FuzzLicense(f *testing.F) {
	for _, s := range []string{"", "MIT", "MIT OR Apache-2.0", "(MIT", "mit and (isc or 0bsd+)", "GPL+", "()", "AND", "A licence"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := normal(s); got != "" && normal(got) != got {
			t.Errorf("%q becomes %q, and then %q", s, got, normal(got))
		}
		w := writer{licenses: map[string]string{}}
		if w.license(s) == "" {
			t.Errorf("%q has no licence", s)
		}
	})
}
