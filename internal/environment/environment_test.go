package environment

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// tree makes files of a map from path to content; "->x" is a link to x.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for path, content := range files {
		at := filepath.Join(dir, path)
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		if err == nil {
			if to, link := strings.CutPrefix(content, "->"); link {
				err = os.Symlink(to, at)
			} else {
				err = os.WriteFile(at, []byte(content), 0o755)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func pack(t testing.TB, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Pack(&b, dir); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var sample = map[string]string{
	"bin/python3.11": "elf", "bin/python3": "->python3.11", "lib/a/b.py": "x = 1", "lib/a.py": "", "lib/" + strings.Repeat("long/", 30) + "name.py": "y",
	"lib/up": "->../bin/python3",
}

// TestPackUnpack sees that the same files give the same bytes, whatever their times,
// and that what was unpacked packs to the same again.
func TestPackUnpack(t *testing.T) {
	t.Parallel()
	first := tree(t, sample)
	packed := pack(t, first)
	second := tree(t, sample)
	if err := os.Chtimes(filepath.Join(second, "lib/a.py"), time.Now(), time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(packed, pack(t, second)) {
		t.Error("the same files were packed differently")
	}
	dir := filepath.Join(t.TempDir(), "env")
	if err := Unpack(t.Context(), bytes.NewReader(packed), dir); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(packed, pack(t, dir)) {
		t.Error("what was unpacked is not what was packed")
	}
	info, err := os.Stat(filepath.Join(dir, "bin/python3"))
	if err != nil || info.Mode().Perm() != 0o555 {
		t.Error(info, err)
	}
	if left, _ := filepath.Glob(dir + partial + "*"); len(left) > 0 {
		t.Error(left)
	}
	if err := Unpack(t.Context(), bytes.NewReader(packed), dir); err == nil {
		t.Error("unpacked over what is there")
	}
}

func TestPackRefuses(t *testing.T) {
	t.Parallel()
	for _, to := range []string{"/etc/passwd", "../../x", "../..", "a/../../.."} {
		dir := tree(t, map[string]string{"lib/link": "->" + to})
		if err := Pack(&bytes.Buffer{}, dir); atelier.CodeOf(err) != atelier.Invalid && atelier.CodeOf(err) != atelier.Corrupt {
			t.Errorf("a link to %s: %v", to, err)
		}
	}
}

// entry is one entry of a hostile tar file.
type entry struct {
	name, link string
	kind       byte
}

func hostile(t testing.TB, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: 0o644}
		if e.kind == tar.TypeReg {
			h.Size = 1
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if e.kind == tar.TypeReg {
			if _, err := w.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestUnpackRefuses sees that hostile files make nothing at all.
func TestUnpackRefuses(t *testing.T) {
	t.Parallel()
	for name, entries := range map[string][]entry{
		"above":               {{"../x", "", tar.TypeReg}},
		"absolute":            {{"/tmp/x", "", tar.TypeReg}},
		"in between":          {{"a/", "", tar.TypeDir}, {"a/../../x", "", tar.TypeReg}},
		"dot":                 {{"./x", "", tar.TypeReg}},
		"backslash":           {{`a\..\x`, "", tar.TypeReg}},
		"link out":            {{"a", "../x", tar.TypeSymlink}},
		"absolute link":       {{"a", "/etc", tar.TypeSymlink}},
		"through a link out":  {{"a", "..", tar.TypeSymlink}, {"a/x", "", tar.TypeReg}},
		"hard link":           {{"a", "", tar.TypeReg}, {"b", "a", tar.TypeLink}},
		"device":              {{"a", "", tar.TypeChar}},
		"pipe":                {{"a", "", tar.TypeFifo}},
		"twice":               {{"a", "", tar.TypeReg}, {"a", "", tar.TypeReg}},
		"below a file":        {{"a", "", tar.TypeReg}, {"a/b", "", tar.TypeReg}},
		"no directory":        {{"a/b", "", tar.TypeReg}},
		"through two links":   {{"d/", "", tar.TypeDir}, {"d/e", "..", tar.TypeSymlink}, {"f", "d/e", tar.TypeSymlink}, {"f/g", "", tar.TypeReg}, {"f/g", "", tar.TypeReg}},
		"links to each other": {{"a", "b", tar.TypeSymlink}, {"b", "a", tar.TypeSymlink}, {"a/x", "", tar.TypeReg}},
		"link that climbs":    {{"d/", "", tar.TypeDir}, {"d/s", "..", tar.TypeSymlink}, {"t", "d/s/../x", tar.TypeSymlink}},
		"too deep":            {{strings.Repeat("a/", maxDepth) + "x", "", tar.TypeReg}},
	} {
		outer := t.TempDir()
		dir := filepath.Join(outer, "env")
		err := Unpack(t.Context(), bytes.NewReader(hostile(t, entries)), dir)
		if code := atelier.CodeOf(err); code != atelier.Corrupt && code != atelier.TooLarge {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadDir(outer); len(left) > 0 {
			t.Errorf("%s left %v", name, left)
		}
		err = Place(t.Context(), io.Discard, bytes.NewReader(hostile(t, entries)), "opt/env")
		if code := atelier.CodeOf(err); code != atelier.Corrupt && code != atelier.TooLarge {
			t.Errorf("%s, to be placed: %v", name, err)
		}
	}
}

// FuzzUnpack reads what may be anything: it makes a directory that packs again, or
// nothing; and nothing beside it.
func FuzzUnpack(f *testing.F) {
	f.Add(pack(f, tree(f, map[string]string{"bin/python3": "->python3.11", "bin/python3.11": "x"})))
	f.Add(hostile(f, []entry{{"a", "..", tar.TypeSymlink}, {"a/x", "", tar.TypeReg}}))
	f.Add(hostile(f, []entry{{"a/", "", tar.TypeDir}, {"a/b", "c", tar.TypeSymlink}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "env")
		err := unpack(t.Context(), bytes.NewReader(b), dir, func(string) error { return nil })
		left, readErr := os.ReadDir(outer)
		if readErr != nil {
			t.Fatal(readErr)
		}
		if err != nil {
			if len(left) > 0 {
				t.Fatalf("%v left %v", err, left)
			}
			return
		}
		if len(left) != 1 || left[0].Name() != "env" {
			t.Fatalf("it made %v", left)
		}
		err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error { return err })
		if err != nil {
			t.Fatal(err)
		}
		pack(t, dir)
	})
}

// TestPlace sees that a placed environment is the same one, below its directory, and the
// same bytes each time.
func TestPlace(t *testing.T) {
	t.Parallel()
	packed := pack(t, tree(t, sample))
	var once, twice bytes.Buffer
	for _, b := range []*bytes.Buffer{&once, &twice} {
		if err := Place(t.Context(), b, bytes.NewReader(packed), "opt/env"); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(once.Bytes(), twice.Bytes()) {
		t.Error("it was placed twice, with different bytes")
	}
	dir := filepath.Join(t.TempDir(), "placed")
	if err := Unpack(t.Context(), &once, dir); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(pack(t, filepath.Join(dir, "opt", "env")), packed) {
		t.Error("what was placed is another environment")
	}
	for _, bad := range []string{"", "/opt", "../opt", "a//b"} {
		if err := Place(t.Context(), io.Discard, bytes.NewReader(packed), bad); err == nil {
			t.Errorf("it can be placed at %q", bad)
		}
	}
}

// FuzzPlace reads what may be anything: what it writes lies below the directory.
func FuzzPlace(f *testing.F) {
	f.Add(pack(f, tree(f, map[string]string{"bin/python3": "->python3.11", "bin/python3.11": "x"})))
	f.Add(hostile(f, []entry{{"a", "..", tar.TypeSymlink}, {"a/x", "", tar.TypeReg}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		if Place(t.Context(), &out, bytes.NewReader(b), "at") != nil {
			return
		}
		for r := tar.NewReader(&out); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(h.Name, "at/") || strings.Contains(h.Name+"/", "/../") || filepath.IsAbs(h.Linkname) {
				t.Errorf("it wrote %q, which leads to %q", h.Name, h.Linkname)
			}
		}
	})
}
