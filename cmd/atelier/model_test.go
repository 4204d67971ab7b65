package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

// tree makes files, and links where the content begins with "-> ".
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, isLink := strings.CutPrefix(content, "-> "); isLink {
			err = os.Symlink(to, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLinksWithinADirectoryAreFollowed(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"model/model.onnx": "m", "model/a/current.onnx": "-> ../model.onnx", "link": "-> model"})
	for _, p := range []string{filepath.Join(dir, "model"), filepath.Join(dir, "link")} {
		files, err := localFiles([]string{p})
		if err != nil {
			t.Fatal(err)
		}
		var paths []string
		for _, f := range files {
			paths = append(paths, f.file.Path)
			in, err := f.open()
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(in)
			if err != nil || string(b) != "m" || f.file.Size != 1 {
				t.Errorf("%s: %q, %d bytes, %v", &f, b, f.file.Size, err)
			}
			if err := in.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(paths, []string{"a/current.onnx", "model.onnx"}) {
			t.Errorf("%s: %v", p, paths)
		}
	}
	// What a person names is what they mean, wherever it leads.
	files, err := localFiles([]string{filepath.Join(dir, "model", "a", "current.onnx")})
	if err != nil || files[0].file.Path != "current.onnx" {
		t.Errorf("%v, %v", files, err)
	}
}

func TestLinksOutOfADirectoryAreRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ link, says, remedy string }{
		"up":             {"../secret", "is a link to ../secret", "cp -rL"},
		"absolute":       {"/etc/passwd", "is a link to /etc/passwd", "cp -rL"},
		"through a link": {"../up/secret", "is a link to ../up/secret", "cp -rL"},
		"a device":       {"/dev/zero", "is a link to /dev/zero", "cp -rL"},
		"dangling":       {"nowhere", "cannot be read", "one by one"},
	} {
		dir := tree(t, map[string]string{"secret": "s", "up": "-> .", "model/model.onnx": "m", "model/weights.bin": "-> " + c.link})
		_, err := localFiles([]string{filepath.Join(dir, "model")})
		var e *atelier.Error
		if !errors.As(err, &e) || e.Code != atelier.Invalid || !strings.Contains(e.Error(), c.says) || !strings.Contains(e.Remedy, c.remedy) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Between the list and the upload, a file may be replaced.
func TestAFileThatBecomesALinkIsNotRead(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"secret": "s", "model/model.onnx": "m"})
	files, err := localFiles([]string{filepath.Join(dir, "model")})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "model", "model.onnx")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../secret", path); err != nil {
		t.Fatal(err)
	}
	if in, err := files[0].open(); atelier.CodeOf(err) != atelier.Invalid {
		t.Errorf("it is read: %v, %v", in, err)
	}
}
