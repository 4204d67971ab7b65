package containerdtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// Entry is a file of a layer.
type Entry struct {
	Header tar.Header
	Data   []byte
}

// File is a program or file of a layer.
func File(name string, data []byte) Entry {
	return Entry{tar.Header{Name: name, Mode: 0o755, Size: int64(len(data)), Typeflag: tar.TypeReg}, data}
}

// Layer is a layer of an image.
type Layer struct {
	Packed    []byte
	MediaType string
	DiffID    atelier.Digest // of what it unpacks to
}

// Pack makes a layer of entries, with their directories.
func Pack(compress bool, entries ...Entry) (Layer, error) {
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	made := map[string]bool{"": true, ".": true, "/": true}
	for _, e := range entries {
		for dir := path.Dir(e.Header.Name); !made[dir] && !strings.HasPrefix(dir, ".."); dir = path.Dir(dir) {
			made[dir] = true
			if err := w.WriteHeader(&tar.Header{Name: dir + "/", Mode: 0o755, Typeflag: tar.TypeDir}); err != nil {
				return Layer{}, err
			}
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			return Layer{}, err
		}
		if _, err := w.Write(e.Data); err != nil {
			return Layer{}, err
		}
	}
	if err := w.Close(); err != nil {
		return Layer{}, err
	}
	layer := Layer{Packed: plain.Bytes(), MediaType: "application/vnd.oci.image.layer.v1.tar", DiffID: atelier.DigestOf(plain.Bytes())}
	if !compress {
		return layer, nil
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(plain.Bytes()); err != nil {
		return layer, err
	}
	if err := z.Close(); err != nil {
		return layer, err
	}
	layer.Packed, layer.MediaType = packed.Bytes(), layer.MediaType+"+gzip"
	return layer, nil
}

// Programs returns programs of this machine with the libraries that they need, and /bin/sh
// among them, as a layer.
func Programs(names ...string) (Layer, error) {
	files := map[string]bool{}
	var entries []Entry
	add := func(file, as string) error {
		if files[as] {
			return nil
		}
		files[as] = true
		data, err := os.ReadFile(file)
		entries = append(entries, File(strings.TrimPrefix(as, "/"), data))
		return err
	}
	for _, name := range append([]string{"sh"}, names...) {
		file, err := exec.LookPath(name)
		if err != nil {
			return Layer{}, err
		}
		if file, err = filepath.EvalSymlinks(file); err != nil {
			return Layer{}, err
		}
		if err := add(file, "/bin/"+name); err != nil {
			return Layer{}, err
		}
		out, err := exec.Command("ldd", file).Output()
		if err != nil {
			return Layer{}, fmt.Errorf("ldd %s: %w", file, err)
		}
		for line := range strings.Lines(string(out)) {
			fields := strings.Fields(line)
			i := slices.IndexFunc(fields, func(f string) bool { return strings.HasPrefix(f, "/") })
			if i < 0 {
				continue
			}
			if err := add(fields[i], fields[i]); err != nil {
				return Layer{}, err
			}
		}
	}
	return Pack(true, entries...)
}

// Image is an image of one platform.
type Image struct {
	Manifest, Config []byte
	Layers           []Layer
}

// Config is what an image says of itself.
type Config struct {
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Cmd        []string `json:"Cmd,omitempty"`
	Env        []string `json:"Env,omitempty"`
	User       string   `json:"User,omitempty"`
	WorkingDir string   `json:"WorkingDir,omitempty"`
}

// Build makes an image for an architecture, "" for this machine's.
func Build(arch string, config Config, layers ...Layer) (img Image, err error) {
	if arch == "" {
		arch = runtime.GOARCH
	}
	diffs := []atelier.Digest{}
	descriptors := []map[string]any{}
	for _, l := range layers {
		diffs = append(diffs, l.DiffID)
		descriptors = append(descriptors, map[string]any{"mediaType": l.MediaType, "digest": atelier.DigestOf(l.Packed), "size": len(l.Packed)})
	}
	img.Layers = layers
	img.Config, err = json.Marshal(map[string]any{
		"architecture": arch, "os": "linux", "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		return img, err
	}
	img.Manifest, err = json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": atelier.DigestOf(img.Config), "size": len(img.Config)},
		"layers": descriptors,
	})
	return img, err
}

// Blobs returns all content of the image.
func (i *Image) Blobs() [][]byte {
	blobs := [][]byte{i.Manifest, i.Config}
	for _, l := range i.Layers {
		blobs = append(blobs, l.Packed)
	}
	return blobs
}

// WriteLayout writes the image as an OCI layout, with a tag, into dir.
func (i *Image) WriteLayout(dir, tag string) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	for _, b := range i.Blobs() {
		if err := os.WriteFile(filepath.Join(blobs, atelier.DigestOf(b).Hex()), b, 0o600); err != nil {
			return err
		}
	}
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"manifests": []any{map[string]any{
			"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": atelier.DigestOf(i.Manifest), "size": len(i.Manifest),
			"annotations": map[string]string{"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": tag},
			"platform":    map[string]string{"os": "linux", "architecture": runtime.GOARCH},
		}},
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), index, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600)
}

// Tar writes a layout as a tar archive, as 'ctr images import' takes it.
func Tar(layout string, w io.Writer) error {
	t := tar.NewWriter(w)
	if err := t.AddFS(os.DirFS(layout)); err != nil {
		return err
	}
	return t.Close()
}
