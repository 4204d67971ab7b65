package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// documented writes a version of the digits classifier that carries text, in the
// field of ONNX that describes the model, and returns its path and digest.
func (w *world) documented(version int, text []byte) (string, atelier.Digest) {
	w.t.Helper()
	b, err := os.ReadFile(digits(version))
	if err != nil {
		w.t.Fatal(err)
	}
	b = binary.AppendUvarint(append(b, 6<<3|2), uint64(len(text)))
	b = append(b, text...)
	path := filepath.Join(w.dir, fmt.Sprintf("digits-%d.onnx", time.Now().UnixNano()))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path, atelier.DigestOf(b)
}

// came waits until a device serves a version, and returns how its files came.
func (w *world) came(d *device, version int) (s struct {
	Version  int
	Way      string
	Size     int64 `json:"size_bytes"`
	Received int64 `json:"received_bytes"`
}) {
	w.t.Helper()
	eventually(w.t, 90*time.Second, func() error {
		var shown struct {
			Devices []struct {
				DeviceName string `json:"device_name"`
				Version    int
				Way        string
				Size       int64 `json:"size_bytes"`
				Received   int64 `json:"received_bytes"`
			} `json:"device_statuses"`
		}
		w.asked(&shown, "deployment", "show", "digits")
		for _, on := range shown.Devices {
			if on.DeviceName == d.name && on.Version == version {
				s.Version, s.Way, s.Size, s.Received = on.Version, on.Way, on.Size, on.Received
				return nil
			}
		}
		return fmt.Errorf("%s does not serve version %d: %+v", d.name, version, shown)
	})
	return s
}

// made waits until the hub has made a difference to the content.
func (w *world) made(target atelier.Digest) {
	w.t.Helper()
	eventually(w.t, 60*time.Second, func() error {
		b, err := os.ReadFile(filepath.Join(w.dir, "hub", "differences", "index.json"))
		if err == nil && !bytes.Contains(b, []byte(target)) {
			err = fmt.Errorf("there is no difference to %s: %s", target, b)
		}
		return err
	})
}

// A new version that differs little costs little on the wire, on every device that has
// the one before. Where the hub's difference is damaged, the version comes all the same.
func TestSmallChangeCostsLittle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	text := make([]byte, 1_500_000)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(text)
	text = []byte(hex.EncodeToString(text))
	first, _ := w.documented(1, text)
	w.atelier("model", "register", "digits", first)
	one, two := w.join("one", "site=a"), w.join("two", "site=a")
	w.atelier("deploy", "digits:1", "--to", "site=a")
	for _, d := range []*device{one, two} {
		w.came(d, 1)
	}

	copy(text[len(text)/2:], strings.Repeat("a change ", 100))
	second, digest := w.documented(1, text)
	w.atelier("model", "register", "digits", second)
	w.made(digest)
	w.atelier("deploy", "digits:2")
	e := w.endpoint("digits")
	for _, d := range []*device{one, two} {
		c := w.came(d, 2)
		if c.Way != "difference" || c.Received == 0 || c.Received > 8<<10 {
			t.Errorf("version 2 came to %s as %+v", d.name, c)
		}
		if a := e.infer(t, d, 1); a.version != "2" {
			t.Errorf("version %s answers on %s", a.version, d.name)
		}
	}
	t.Logf("version 2 cost %+v", w.came(one, 2))

	copy(text[len(text)/3:], strings.Repeat("one more ", 100))
	third, digest := w.documented(1, text)
	w.atelier("model", "register", "digits", third)
	w.made(digest)
	w.damageDifferences()
	w.atelier("deploy", "digits:3")
	for _, d := range []*device{one, two} {
		c := w.came(d, 3)
		if c.Received > 2*int64(len(text)) {
			t.Errorf("version 3 came to %s as %+v", d.name, c)
		}
		if a := e.infer(t, d, 1); a.version != "3" {
			t.Errorf("version %s answers on %s", a.version, d.name)
		}
		if left, err := os.ReadDir(filepath.Join(d.state(), "content", "ingest")); err != nil || len(left) > 0 {
			t.Errorf("%v is left of what came, %v", left, err)
		}
	}
	if out := w.hub.Output(); !strings.Contains(out, "DigestMismatch") {
		t.Errorf("the hub does not say that its difference is damaged: %s", out)
	}
}

// damageDifferences changes a byte in each difference on the hub's disk.
func (w *world) damageDifferences() {
	w.t.Helper()
	damaged := 0
	err := filepath.WalkDir(filepath.Join(w.dir, "hub", "differences", "blobs"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.Chmod(path, 0o600)
		}
		if err != nil {
			return err
		}
		b[len(b)/2] ^= 1
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		damaged++
		_, err = f.Write(b)
		return errors.Join(err, f.Close())
	})
	if err != nil || damaged == 0 {
		w.t.Fatalf("%d differences were damaged, %v", damaged, err)
	}
}
