package containerd

import (
	"archive/tar"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/containerdtest"
	"github.com/atelier-edge/atelier/targets"
)

// FuzzLayer unpacks what may be a layer: whatever it is, nothing may be written outside of
// where it belongs, and only what the configuration names is accepted.
func FuzzLayer(f *testing.F) {
	for _, entries := range [][]containerdtest.Entry{
		{containerdtest.File("bin/app", []byte("program"))},
		{containerdtest.File("../out", []byte("x"))},
		{
			{Header: tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "../..", Mode: 0o777}},
			containerdtest.File("link/out", []byte("x")),
		},
		{containerdtest.File("a/.wh..wh..opq", nil), containerdtest.File(".wh.b", nil)},
	} {
		for _, compress := range []bool{false, true} {
			layer, err := containerdtest.Pack(compress, entries...)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(layer.Packed)
		}
	}
	f.Fuzz(func(t *testing.T, packed []byte) {
		dir := t.TempDir()
		path, root := filepath.Join(dir, "layer"), filepath.Join(dir, "a", "b", "root")
		if err := os.MkdirAll(root, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, packed, 0o600); err != nil {
			t.Fatal(err)
		}
		img := targets.Image{Reference: "test:1"}
		layer := targets.Blob{Path: path, Digest: atelier.DigestOf(packed), Size: int64(len(packed))}
		err := apply(t.Context(), &img, layer, digest.FromBytes([]byte("another")), root, 0)
		if atelier.CodeOf(err) != atelier.Corrupt {
			t.Errorf("a layer that is not what its image says: %v", err)
		}
		for _, outside := range []struct {
			dir  string
			most int
		}{{dir, 2}, {filepath.Join(dir, "a"), 1}, {filepath.Join(dir, "a", "b"), 1}} {
			entries, err := os.ReadDir(outside.dir)
			if err != nil || len(entries) > outside.most {
				t.Errorf("%s holds %v, %v", outside.dir, entries, err)
			}
		}
	})
}

// FuzzImage reads what may be an image's manifest and configuration.
func FuzzImage(f *testing.F) {
	layer, err := containerdtest.Pack(true, containerdtest.File("app", []byte("program")))
	if err != nil {
		f.Fatal(err)
	}
	img, err := containerdtest.Build("", containerdtest.Config{Entrypoint: []string{"/app"}}, layer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(img.Manifest, img.Config)
	f.Add([]byte(`{"layers":[{}]}`), []byte(`{"rootfs":{"diff_ids":["sha256:"]}}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		dir := t.TempDir()
		put := func(b []byte) targets.Blob {
			path := filepath.Join(dir, atelier.DigestOf(b).Hex())
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			return targets.Blob{Path: path, Digest: atelier.DigestOf(b), Size: int64(len(b))}
		}
		in := targets.Image{Reference: "test:1", Manifest: put(manifest), Config: put(config), Layers: []targets.Blob{put(layer.Packed)}}
		read, err := readImage(&in)
		if err == nil && len(read.config.RootFS.DiffIDs) != 1 {
			t.Errorf("an image with one layer was read with %d", len(read.config.RootFS.DiffIDs))
		}
	})
}
