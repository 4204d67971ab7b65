package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAirGap brings a new version to a device that does not reach its hub.
func TestAirGap(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	w.atelier("model", "register", "digits", digits(1))
	d := w.join("island")
	w.atelier("deploy", "digits:1", "--device", "island")
	e := w.endpoint("digits")
	e.infer(t, d, 1)

	// While the device is away, the hub learns of version 2, and bundles are made.
	d.agent.signal(t, syscall.SIGTERM)
	before := filepath.Join(w.dir, "before.tar")
	w.atelier("bundle", "export", "digits", "--to", before)
	w.atelier("model", "register", "digits", digits(2))
	w.atelier("deploy", "digits:2", "--no-wait")
	whole, small := filepath.Join(w.dir, "whole.tar"), filepath.Join(w.dir, "small")
	w.atelier("bundle", "export", "digits", "--to", whole)
	w.atelier("bundle", "export", "--device", "island", "--since-device", "island", "--to", small)
	if all, few := sizeOf(t, whole), sizeOf(t, small); few > all/4 {
		t.Errorf("the bundle without what the device has takes %d bytes, the whole one %d", few, all)
	}
	if media := manifestOf(t, small); !strings.Contains(media, "application/vnd.atelier.difference.v1") {
		t.Errorf("the model does not come as a difference: %s", media)
	}
	w.hub.signal(t, syscall.SIGTERM)

	// A copy that is under way is left alone; when it is done the version is there.
	d.agent.start(t)
	in := filepath.Join(d.state(), "bundles")
	eventually(t, 30*time.Second, func() error { _, err := os.Stat(in); return err })
	halfway := filepath.Join(in, "small", "index.json")
	copyTree(t, small, filepath.Join(in, "small"), "index.json")
	d.says(t, "small: incomplete")
	copyFile(t, filepath.Join(small, "index.json"), halfway)
	load := e.load(t, d)
	load.untilVersion(t, "2")
	if failed := load.stop(); len(failed) > 0 {
		t.Errorf("%d requests failed, the first: %v", len(failed), failed[0])
	}
	d.says(t, "small: imported")
	eventually(t, 30*time.Second, func() error { _, err := os.Stat(filepath.Join(in, "done", "small", "index.json")); return err })

	// The same content once more changes nothing, and an older state is refused.
	if out, errOut, err := d.runs("import", whole); err != nil || !strings.Contains(out, "was held already, 0 B") {
		t.Errorf("import again: %v\n%s%s", err, out, errOut)
	}
	if _, errOut, err := d.runs("import", before); exitCode(err) != 4 || !strings.Contains(errOut, "Replayed") {
		t.Errorf("import of an older state: %v\n%s", err, errOut)
	}

	// Back on the network, the hub sees what it wanted.
	w.startHub()
	w.connected(d)
	eventually(t, 60*time.Second, func() error {
		if out := w.atelier("why", "island"); !strings.Contains(out, "is as desired.") {
			return fmt.Errorf("why: %s", out)
		}
		return nil
	})
}

// TestAirGapWithoutAnAgent imports while no agent runs.
func TestAirGapWithoutAnAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	w.atelier("model", "register", "digits", digits(2))
	d := w.join("island")
	w.join("other")
	w.atelier("deploy", "digits", "--device", "other")
	e := w.endpoint("digits")
	d.agent.signal(t, syscall.SIGTERM)
	foreign := filepath.Join(w.dir, "other.tar")
	w.atelier("bundle", "export", "--device", "other", "--to", foreign)
	w.atelier("deploy", "digits", "--device", "island", "--no-wait")
	name := filepath.Join(w.dir, "b.tar")
	w.atelier("bundle", "export", "digits", "--device", "island", "--to", name)
	w.hub.signal(t, syscall.SIGTERM)
	if _, errOut, err := d.runs("import", foreign); exitCode(err) != 4 || !strings.Contains(errOut, "NotForDevice") {
		t.Errorf("import of another device's bundle: %v\n%s", err, errOut)
	}
	if out, errOut, err := d.runs("import", name); err != nil || !strings.Contains(out, "is saved") {
		t.Fatalf("import: %v\n%s%s", err, out, errOut)
	}
	d.agent.start(t)
	eventually(t, 60*time.Second, func() error { _, err := e.try(d, 1); return err })
	w.startHub()
	w.connected(d)
}

// says waits until the status of the device's agent contains text.
func (d *device) says(t *testing.T, text string) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		out, errOut, err := d.runs("status")
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("the status says nothing of %q:\n%s%s", text, out, errOut)
		}
		return err
	})
}

func sizeOf(t *testing.T, path string) (sum int64) {
	t.Helper()
	err := filepath.Walk(path, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// manifestOf returns the manifest of the bundle in a directory.
func manifestOf(t *testing.T, dir string) string {
	t.Helper()
	var index struct{ Manifests []struct{ Digest string } }
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err == nil {
		err = json.Unmarshal(b, &index)
	}
	if err != nil || len(index.Manifests) == 0 {
		t.Fatalf("%v: %s", err, b)
	}
	b, err = os.ReadFile(filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(index.Manifests[0].Digest, "sha256:")))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// copyTree copies a directory without the files that are named.
func copyTree(t *testing.T, from, to string, without ...string) {
	t.Helper()
	err := filepath.Walk(from, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		for _, name := range without {
			if rel == name {
				return nil
			}
		}
		if info.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		copyFile(t, path, filepath.Join(to, rel))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(to)
	if err == nil {
		if _, err = io.Copy(out, in); err == nil {
			err = out.Close()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}
