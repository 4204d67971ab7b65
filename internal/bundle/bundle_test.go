package bundle

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/trust"
)

// sample lays out a bundle with a state and the contents, and returns who signed it.
func sample(t testing.TB, contents ...string) (*Layout, trust.KeySet) {
	t.Helper()
	key, err := trust.NewHubKey()
	if err != nil {
		t.Fatal(err)
	}
	signer, err := trust.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	state := State([]byte(`{"payload":"","payloadType":"x","signatures":[]}`))
	c := Config{
		Workspace: atelier.NewID(), WorkspaceName: "plant", Created: time.Unix(1_700_000_000, 0),
		Devices: []Device{{ID: atelier.NewID(), Name: "press", State: state.Digest}},
	}
	layers := []Source{state}
	for _, text := range contents {
		f := atelier.File{Path: "model.onnx", Digest: atelier.DigestOf([]byte(text)), Size: int64(len(text))}
		c.Files = append(c.Files, File{File: f, MediaType: TypeContent})
		layers = append(layers, Content(f, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }))
	}
	l, err := Build(c, layers, func(payloadType string, payload []byte) ([]byte, error) {
		return trust.Sign(payloadType, payload, signer)
	})
	if err != nil {
		t.Fatal(err)
	}
	return l, trust.NewKeySet(signer.Public())
}

func tarOf(t testing.TB, l *Layout) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := l.WriteTar(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpacked writes a bundle as a directory.
func unpacked(t testing.TB, raw []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		var b []byte
		if err == nil {
			b, err = io.ReadAll(r)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, h.Name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestReadsWhatItWrites(t *testing.T) {
	t.Parallel()
	l, keys := sample(t, "one", "", strings.Repeat("two", 1000))
	raw := tarOf(t, l)
	if size, err := l.TarSize(); err != nil || size != int64(len(raw)) {
		t.Errorf("TarSize says %d, WriteTar wrote %d: %v", size, len(raw), err)
	}
	file := filepath.Join(t.TempDir(), "b.tar")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, unpacked(t, raw)} {
		b, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		err = b.Verify(func(envelope []byte) (string, []byte, error) { return trust.Open(envelope, keys) })
		if err = errors.Join(err, b.Complete()); err != nil {
			t.Error(err)
		}
		if b.Digest() != l.Digest || b.Config().WorkspaceName != "plant" || len(b.Config().Files) != 3 {
			t.Errorf("%s with %+v", b.Digest(), b.Config())
		}
		layer, err := b.Layer(atelier.DigestOf([]byte("one")))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(layer); string(got) != "one" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if _, err := b.Layer(atelier.DigestOf([]byte("three"))); err == nil {
			t.Error("there is a layer that is none")
		}
		if _, err := b.Read(atelier.DigestOf([]byte("one")), 2); WhyOf(err).Reason() != atelier.ReasonBundleInvalid {
			t.Errorf("more than the limit was read: %v", err)
		}
		if err := errors.Join(layer.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestMembersWithADot: 'tar -cf x.tar .' writes names so.
func TestMembersWithADot(t *testing.T) {
	t.Parallel()
	l, _ := sample(t, "one")
	dir := unpacked(t, tarOf(t, l))
	file := filepath.Join(t.TempDir(), "b.tar")
	if out, err := exec.Command("tar", "-C", dir, "-cf", file, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Complete(), b.Close()); err != nil {
		t.Error(err)
	}
}

func TestContentThatIsShorterThanSaid(t *testing.T) {
	t.Parallel()
	l, _ := sample(t, "one")
	for i := range l.files {
		if l.files[i].MediaType == TypeContent {
			l.files[i].Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("o")), nil }
		}
	}
	if err := l.WriteTar(t.Context(), io.Discard); atelier.CodeOf(err) != atelier.Corrupt {
		t.Errorf("got %v", err)
	}
}

func TestTooManyDevicesForOneBundle(t *testing.T) {
	t.Parallel()
	c := Config{Workspace: atelier.NewID()}
	for range 10_000 {
		c.Devices = append(c.Devices, Device{ID: atelier.NewID(), Name: "a-device-with-a-name"})
	}
	_, err := Build(c, nil, nil)
	if atelier.CodeOf(err) != atelier.TooLarge {
		t.Errorf("got %v", err)
	}
}

// FuzzOpen reads tar files, and the three documents of a directory.
func FuzzOpen(f *testing.F) {
	l, _ := sample(f, "one")
	raw := tarOf(f, l)
	f.Add(raw)
	f.Add(raw[:len(raw)/2])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(t.TempDir(), "b.tar")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := Open(path)
		if err != nil {
			if WhyOf(err).Reason() == "" || WhyOf(err).Message() == "" {
				t.Errorf("no reason for %v", err)
			}
			return
		}
		defer func() { _ = b.Close() }()
		if b.Complete() != nil {
			return
		}
		for d := range b.layers {
			if r, err := b.Layer(d); err == nil {
				_, _ = io.Copy(io.Discard, r)
				_ = r.Close()
			}
		}
	})
}

// FuzzDocuments decodes what describes a bundle.
func FuzzDocuments(f *testing.F) {
	l, _ := sample(f, "one")
	for _, file := range l.files {
		r, err := file.Open()
		if err != nil {
			f.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m manifest
		if decode("a manifest", raw, &m) == nil && m.check() == nil {
			for _, l := range append(m.Layers, m.Config) {
				if _, err := atelier.ParseDigest(string(l.Digest)); err != nil || l.Size < 0 {
					t.Errorf("a layer %+v passed", l)
				}
			}
		}
		var c Config
		if decode("a config", raw, &c) == nil && c.check() == nil {
			for _, d := range c.Devices {
				if !atelier.IsID(d.ID) {
					t.Errorf("device %+v passed", d)
				}
			}
		}
		var i index
		_ = decode("an index", raw, &i)
	})
}
