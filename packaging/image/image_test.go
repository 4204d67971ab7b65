package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/environment"
)

// contents are files by their digests.
type contents map[atelier.Digest][]byte

func (c contents) file(path, text string) atelier.File {
	d := atelier.DigestOf([]byte(text))
	c[d] = []byte(text)
	return atelier.File{Path: path, Digest: d, Size: int64(len(text))}
}

func (c contents) open(f atelier.File) (io.ReadCloser, error) {
	b, ok := c[f.Digest]
	if !ok {
		return nil, fmt.Errorf("no content %s", f.Digest)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// write makes a layer.
func (c contents) write(t testing.TB, l *atelier.Layer) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteLayer(t.Context(), &b, l, c.open); err != nil {
		t.Fatal(err)
	}
	l.Digest, l.DiffID, l.Size = atelier.DigestOf(b.Bytes()), atelier.DigestOf(b.Bytes()), int64(b.Len())
	return b.Bytes()
}

// entries lists a tar file's: name, mode and content.
func entries(t testing.TB, b []byte) []string {
	t.Helper()
	var all []string
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.Unix() != 0 {
			t.Errorf("%s belongs to %d:%d (%q), and is of %s", h.Name, h.Uid, h.Gid, h.Uname, h.ModTime)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s %o %s%s", h.Name, h.Mode, text, h.Linkname))
	}
}

func TestLayersOfAVersion(t *testing.T) {
	t.Parallel()
	c := contents{}
	large := strings.Repeat("w", ownLayer)
	files := []atelier.File{c.file("b/score.py", "code"), c.file("model.onnx", large), c.file("b/small.json", "{}"), c.file("a.txt", "a")}
	layers := ModelLayers(files)
	var got []string
	for i := range layers {
		text := c.write(t, &layers[i])
		for _, e := range entries(t, text) {
			got = append(got, string(layers[i].Kind)+" "+strings.ReplaceAll(e, large, "…"))
		}
	}
	want := []string{
		"model models/ 755 ", "model models/model.onnx 644 …",
		"model models/ 755 ", "model models/a.txt 644 a", "model models/b/ 755 ", "model models/b/small.json 644 {}",
		"code models/ 755 ", "code models/b/ 755 ", "code models/b/score.py 644 code",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the layers are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	slices.Reverse(files)
	again := ModelLayers(files)
	for i := range again {
		c.write(t, &again[i])
		if again[i].Digest != layers[i].Digest || again[i].Recipe != layers[i].Recipe {
			t.Errorf("layer %d depends on the order of the files", i)
		}
	}
	server := ServerLayer(ServerDir, []atelier.File{c.file("atelier-serve", "binary")})
	if got := entries(t, c.write(t, &server)); got[len(got)-1] != "opt/atelier/server/atelier-serve 755 binary" {
		t.Errorf("the server's layer is %q", got)
	}
	var many []atelier.File
	for i := range maxOwnLayers + 9 {
		many = append(many, atelier.File{Path: fmt.Sprint("part-", i), Digest: atelier.DigestOf(nil), Size: ownLayer + int64(i)})
	}
	if n := len(ModelLayers(many)); n != maxOwnLayers+1 {
		t.Errorf("%d large files make %d layers", len(many), n)
	}
}

func TestLayersRefuse(t *testing.T) {
	t.Parallel()
	c := contents{}
	good := c.file("model.onnx", "model")
	lies := good
	lies.Size++
	short := good
	short.Size--
	at := func(path string) atelier.File { f := good; f.Path = path; return f }
	for name, files := range map[string][]atelier.File{
		"climbs": {at("../etc/passwd")}, "climbs within": {at("a/../../b")}, "absolute": {at("/etc/passwd")}, "empty": {at("")}, "control": {at("a\x00b")},
		"backslash": {at(`..\b`)}, "twice": {good, good}, "file and directory": {at("a"), at("a/b")}, "larger than said": {short}, "smaller than said": {lies}, "none": {},
	} {
		l := newLayer(atelier.LayerModel, ModelDir, files...)
		err := WriteLayer(t.Context(), io.Discard, &l, c.open)
		if code := atelier.CodeOf(err); code != atelier.Invalid && code != atelier.Corrupt {
			t.Errorf("%s: %v", name, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	l := newLayer(atelier.LayerModel, ModelDir, good)
	if err := WriteLayer(ended, io.Discard, &l, c.open); !errors.Is(err, context.Canceled) {
		t.Errorf("it goes on without anybody who wants it: %v", err)
	}
}

// zeros is a file of any size that takes no room.
type zeros int64

func (z *zeros) Read(p []byte) (int, error) {
	n := min(int64(len(p)), int64(*z))
	if n == 0 {
		return 0, io.EOF
	}
	*z -= zeros(n)
	clear(p[:n])
	return int(n), nil
}

// TestLargeFilesPassThrough sees that memory does not grow with files, and that sizes
// beyond what old tar files can say are right.
func TestLargeFilesPassThrough(t *testing.T) {
	t.Parallel()
	const size = 9 << 30
	l := newLayer(atelier.LayerModel, ModelDir, atelier.File{Path: "model.bin", Size: size})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := counting{most: 512 << 20, full: cancel}
	err := WriteLayer(ctx, &n, &l, func(f atelier.File) (io.ReadCloser, error) {
		z := zeros(f.Size)
		return io.NopCloser(&z), nil
	})
	runtime.ReadMemStats(&after)
	if !errors.Is(err, context.Canceled) || n.n < n.most {
		t.Fatalf("it ended after %d bytes: %v", n.n, err)
	}
	h, err := tar.NewReader(bytes.NewReader(n.head)).Next() // models/
	if err != nil || h.Typeflag != tar.TypeDir {
		t.Fatal(h, err)
	}
	r := tar.NewReader(bytes.NewReader(n.head[512:]))
	if h, err := r.Next(); err != nil || h.Size != size {
		t.Errorf("the file is said to be %+v: %v", h, err)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
		t.Errorf("%s were allocated for %s", atelier.FormatBytes(int64(grown)), atelier.FormatBytes(n.n))
	}
}

// counting counts bytes, keeps the first, and calls full once enough came.
type counting struct {
	n, most int64
	head    []byte
	full    func()
}

func (c *counting) Write(p []byte) (int, error) {
	if c.n += int64(len(p)); len(c.head) < 8192 {
		c.head = append(c.head, p[:min(len(p), 8192)]...)
	}
	if c.n >= c.most {
		c.full()
	}
	return len(p), nil
}

func TestEnvironmentLayer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for path, text := range map[string]string{"bin/python3.11": "python", "lib/a.py": "pass"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("python3.11", filepath.Join(dir, "bin", "python3")), os.Chmod(filepath.Join(dir, "lib/a.py"), 0o600)); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	if err := environment.Pack(&packed, dir); err != nil {
		t.Fatal(err)
	}
	c := contents{}
	l := EnvironmentLayer(c.file("environment.tar", packed.String()))
	got := entries(t, c.write(t, &l))
	want := []string{
		"opt/ 755 ", "opt/atelier/ 755 ", "opt/atelier/environment/ 755 ", "opt/atelier/environment/bin/ 755 ", "opt/atelier/environment/bin/python3 777 python3.11",
		"opt/atelier/environment/bin/python3.11 755 python", "opt/atelier/environment/lib/ 755 ", "opt/atelier/environment/lib/a.py 644 pass",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the layer is\n%s", strings.Join(got, "\n"))
	}
	hostile := EnvironmentLayer(c.file("environment.tar", string(c.write(t, &l))[:700]))
	if err := WriteLayer(t.Context(), io.Discard, &hostile, c.open); atelier.CodeOf(err) != atelier.Corrupt {
		t.Errorf("an environment that is cut off is taken: %v", err)
	}
}

// made is a package with one image on a base, of a model with the text.
func made(t testing.TB, c contents, model string) *atelier.Package {
	t.Helper()
	files := []atelier.File{c.file("model.onnx", model), c.file("labels.json", "[]"), c.file("score.py", "pass"), c.file("README.md", "# model")}
	p := &atelier.Package{
		Package: "digits", Tag: "2", Model: "digits", Version: 2, VersionDigest: atelier.DigestOf([]byte(model)), Kind: atelier.VariantONNX,
		Inputs: atelier.DigestOf([]byte("inputs of " + model)),
	}
	img := atelier.PackageImage{Arch: "amd64", Command: []string{"/opt/atelier/server/atelier-serve", "--name", "digits"}}
	base := atelier.Layer{Kind: atelier.LayerBase, MediaType: MediaTypeLayer + "+gzip", Digest: atelier.DigestOf([]byte("zipped")), DiffID: atelier.DigestOf([]byte("base")), Size: 6}
	img.Layers = append(img.Layers, base, ServerLayer(ServerDir, []atelier.File{c.file("atelier-serve", "binary")}))
	img.Layers = append(img.Layers, ModelLayers(files)...)
	for i := range img.Layers {
		if img.Layers[i].Recipe != "" {
			c.write(t, &img.Layers[i])
		}
	}
	config, err := Config(p, &img, []byte(`{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin","A=1","HOME=/root"],"Entrypoint":["sh"],"User":"root"}}`))
	if err != nil {
		t.Fatal(err)
	}
	c[atelier.DigestOf(config)] = config
	img.Config = &atelier.Descriptor{MediaType: MediaTypeConfig, Digest: atelier.DigestOf(config), Size: int64(len(config))}
	manifest, err := Manifest(p, &img)
	if err != nil {
		t.Fatal(err)
	}
	c[atelier.DigestOf(manifest)] = manifest
	img.Manifest = &atelier.Descriptor{MediaType: MediaTypeManifest, Digest: atelier.DigestOf(manifest), Size: int64(len(manifest))}
	p.Images = []atelier.PackageImage{img}
	return p
}

// TestSameInputsSameDigest also sees that another model changes nothing but its own
// layer, configuration and manifest.
func TestSameInputsSameDigest(t *testing.T) {
	t.Parallel()
	c := contents{}
	first, second, other := made(t, c, "one"), made(t, contents{}, "one"), made(t, c, "two")
	if first.Images[0].Manifest.Digest != second.Images[0].Manifest.Digest {
		t.Error("the same inputs gave two digests")
	}
	a, b := first.Images[0], other.Images[0]
	if a.Manifest.Digest == b.Manifest.Digest || a.Config.Digest == b.Config.Digest || len(a.Layers) != len(b.Layers) {
		t.Error("two models have one image")
	}
	for i := range a.Layers {
		if same := a.Layers[i].Digest == b.Layers[i].Digest; same == (a.Layers[i].Kind == atelier.LayerModel) {
			t.Errorf("layer %d, of the kind %s, is the same: %t", i, a.Layers[i].Kind, same)
		}
	}

	var config ocispec.Image
	if err := json.Unmarshal(c[a.Config.Digest], &config); err != nil {
		t.Fatal(err)
	}
	if got := config.Config; got.User != User || !slices.Equal(got.Entrypoint, a.Command) || !slices.Equal(got.Cmd, listen) ||
		!slices.Equal(got.Env, []string{"PATH=/bin", "A=1", "HOME=/tmp", "LANG=C.UTF-8", "AZUREML_MODEL_DIR=/models"}) {
		t.Errorf("the configuration is %+v", got)
	}
	if len(config.RootFS.DiffIDs) != len(a.Layers) || len(config.History) != len(a.Layers) || string(config.RootFS.DiffIDs[0]) != string(a.Layers[0].DiffID) {
		t.Errorf("its layers are %v", config.RootFS)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(c[a.Manifest.Digest], &m); err != nil {
		t.Fatal(err)
	}
	model := m.Layers[slices.IndexFunc(m.Layers, func(d ocispec.Descriptor) bool { return d.Annotations[AnnotationLayer] == "model" })]
	var files []atelier.File
	if err := json.Unmarshal([]byte(model.Annotations[AnnotationFiles]), &files); err != nil || model.Annotations[AnnotationPath] != "/models" ||
		!slices.ContainsFunc(files, func(f atelier.File) bool { return f == c.file("model.onnx", "one") }) {
		t.Errorf("the model's layer is described as %v: %v", model.Annotations, err)
	}
}

func TestModelPack(t *testing.T) {
	t.Parallel()
	c := contents{}
	files := []atelier.File{c.file("weights.bin", "weights"), c.file("config.json", "{}"), c.file("README.md", "#"), c.file("score.py", "pass")}
	config, manifest, err := ModelPack("digits", 2, atelier.DigestOf(nil), atelier.VariantONNX, files)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(files)
	config2, manifest2, _ := ModelPack("digits", 2, atelier.DigestOf(nil), atelier.VariantONNX, files)
	if !bytes.Equal(config, config2) || !bytes.Equal(manifest, manifest2) {
		t.Error("the artifact depends on the order of files")
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	if m.ArtifactType != "application/vnd.cncf.model.manifest.v1+json" || m.Config.MediaType != "application/vnd.cncf.model.config.v1+json" {
		t.Errorf("the manifest is %s", manifest)
	}
	var got []string
	for _, l := range m.Layers {
		if l.Annotations["org.cncf.model.filepath"] != l.Annotations[ocispec.AnnotationTitle] || c[atelier.Digest(l.Digest)] == nil {
			t.Errorf("a layer is %+v", l)
		}
		got = append(got, l.Annotations["org.cncf.model.filepath"]+" "+l.MediaType)
	}
	want := []string{
		"README.md application/vnd.cncf.model.doc.v1.raw", "config.json application/vnd.cncf.model.weight.config.v1.raw",
		"score.py application/vnd.cncf.model.code.v1.raw", "weights.bin application/vnd.cncf.model.weight.v1.raw",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the layers are %q", got)
	}
}

func TestCommands(t *testing.T) {
	t.Parallel()
	golden := atelier.File{Path: atelier.GoldenPath}
	for _, c := range []struct {
		serve Serve
		want  string
	}{
		{Serve{Variant: atelier.Variant{Kind: atelier.VariantONNX, Entry: "m.onnx", Files: []atelier.File{golden}}, Runtime: "lib.so", Settings: atelier.ServingSettings{MaxBatch: 4}},
			"--model /models/m.onnx --runtime /opt/atelier/runtime/lib.so --golden /models/golden.json --max-batch 4"},
		{Serve{Variant: atelier.Variant{Kind: atelier.VariantPython, Entry: "a/score.py"}}, "--model-dir /models --script /models/a/score.py --python /opt/atelier/environment/bin/python3"},
		{Serve{Variant: atelier.Variant{Kind: atelier.VariantONNX, Entry: "m.onnx", Files: []atelier.File{golden}}, Script: "s.py"}, "--model-dir /models --script /code/s.py --python /opt/atelier/environment/bin/python3"},
		{Serve{Variant: atelier.Variant{Kind: atelier.VariantMLflow, Entry: "x/MLmodel"}}, "--mlflow /models/x --python /opt/atelier/environment/bin/python3"},
		{Serve{Variant: atelier.Variant{Kind: atelier.VariantPickle, Entry: "m.pkl"}}, "--pickle /models/m.pkl --python /opt/atelier/environment/bin/python3"},
	} {
		c.serve.Model, c.serve.Version, c.serve.Server = "digits", 2, "atelier-serve"
		if got, want := strings.Join(c.serve.Command(), " "), "/opt/atelier/server/atelier-serve --name digits --version 2 "+c.want; got != want {
			t.Errorf("the command is\n%s, want\n%s", got, want)
		}
	}
}

// FuzzParseConfig sees that no configuration of a base, which strangers wrote, upsets
// what is made of it.
func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin","=",""]},"rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("a", 64) + `"]}}`))
	f.Add([]byte(`{"architecture":"","os":"windows"}`))
	f.Add([]byte(`{"os":"linux","architecture":"arm64","created":"never"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		img := &atelier.PackageImage{Arch: "amd64"}
		_, err := ParseConfig(b)
		config, errConfig := Config(&atelier.Package{}, img, b)
		if (err == nil) != (errConfig == nil) {
			t.Fatalf("read: %v, made: %v", err, errConfig)
		}
		if err == nil {
			if _, err := ParseConfig(config); err != nil {
				t.Errorf("what was made cannot be read: %v", err)
			}
		}
	})
}
