package packages

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/hub/registry"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/sqlite"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
)

// bench is packages over a real database and content store, with a workspace that has
// the parts for amd64.
type bench struct {
	*Packages
	t         testing.TB
	dir       string
	registry  *registry.Registry
	workspace string
	builds    []atelier.Package // that Built was called for
	failing   error             // what it returns
	mu        sync.Mutex
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir()}
	db, err := sqlite.Open(t.Context(), filepath.Join(b.dir, "hub.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	contents, err := content.Open(durable.OS{}, filepath.Join(b.dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	b.registry = registry.New(registry.Config{Store: db, Content: contents, Log: log})
	b.Packages = New(Config{
		Store: db, Content: contents, Images: images.New(images.Config{Store: db, Content: contents, Log: log}), Log: log,
		Built: func(_ context.Context, workspace string, p atelier.Package) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if workspace != b.workspace || p.Manifest == nil {
				t.Errorf("it was told of %+v in %s", p, workspace)
			}
			b.builds = append(b.builds, p)
			return b.failing
		},
	})
	b.workspace = b.newWorkspace("plant", atelier.ProviderBuiltin)
	for _, name := range []string{"onnxruntime", RuntimeServer} {
		f := b.upload("", name, "the program "+name)
		if _, err := b.registry.RegisterRuntime(b.as(), atelier.Runtime{Meta: atelier.Meta{Name: name}, Version: "1", OS: "linux", Arch: "amd64", Files: []atelier.File{f}, Entry: name}); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func (b *bench) as() context.Context {
	return access.WithPrincipal(b.t.Context(), access.Principal{Kind: access.System})
}

func (b *bench) newWorkspace(name, provider string) string {
	b.t.Helper()
	var w atelier.Workspace
	err := b.store.Update(b.t.Context(), store.By{Actor: "test"}, func(tx store.Tx) (err error) {
		w, err = catalog.Workspaces.Insert(tx, "", "", atelier.Workspace{Meta: atelier.Meta{Name: name}, Resources: []atelier.AssociatedResource{
			{Kind: atelier.ResourceRegistry, Provider: provider, Address: "https://registry.example/x"},
		}})
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return w.ID
}

func (b *bench) upload(workspace, path, text string) atelier.File {
	b.t.Helper()
	blob, err := b.registry.Upload(b.as(), workspace, strings.NewReader(text), "", int64(len(text)))
	if err != nil {
		b.t.Fatal(err)
	}
	return atelier.File{Path: path, Digest: atelier.Digest(blob.Name), Size: blob.Size}
}

// version registers a version of a model: a row is enough, since nothing is run.
func (b *bench) version(model, text string, more ...atelier.File) atelier.Version {
	b.t.Helper()
	files := append([]atelier.File{b.upload(b.workspace, "model.onnx", text)}, more...)
	var v atelier.Version
	err := b.store.Update(b.t.Context(), store.By{Actor: "test"}, func(tx store.Tx) error {
		m, err := catalog.Models.Find(tx, b.workspace, "", model)
		if atelier.CodeOf(err) == atelier.NotFound {
			m, err = catalog.Models.Insert(tx, b.workspace, "", atelier.Model{Meta: atelier.Meta{Name: model}, Next: 1})
		}
		if err != nil {
			return err
		}
		v, err = catalog.Versions.Insert(tx, b.workspace, m.ID, atelier.Version{
			Meta: atelier.Meta{Name: fmt.Sprint(m.Next)}, Model: model, ModelID: m.ID, Number: m.Next, Digest: atelier.DigestOf([]byte(text)),
			Variants: []atelier.Variant{{Kind: atelier.VariantONNX, Entry: "model.onnx", Files: files, Requires: atelier.Requirements{Runtime: atelier.RuntimeONNX}}},
		})
		if err != nil {
			return err
		}
		m.Latest, m.Next = m.Next, m.Next+1
		_, err = catalog.Models.Update(tx, b.workspace, m)
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// base adds a base of one layer for amd64.
func (b *bench) base(name, text string) atelier.Base {
	b.t.Helper()
	layer := b.upload(b.workspace, "layer", text)
	config := b.upload(b.workspace, "config", `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["`+string(layer.Digest)+`"]}}`)
	base, err := b.AddBase(b.as(), b.workspace, NewBase{Name: name, Images: []atelier.BaseImage{{
		Config: config, Layers: []atelier.Layer{{MediaType: "application/vnd.oci.image.layer.v1.tar", Digest: layer.Digest, Size: layer.Size}},
	}}})
	if err != nil {
		b.t.Fatal(err)
	}
	return base
}

// build creates a package and waits until it is over. Somebody must call Run.
func (b *bench) build(d Definition) atelier.Package {
	b.t.Helper()
	p, err := b.Create(b.as(), b.workspace, d)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.await(p)
}

func (b *bench) await(p atelier.Package) atelier.Package {
	b.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !p.State.Over(); <-time.After(5 * time.Millisecond) {
		var err error
		if p, err = b.Package(b.as(), b.workspace, p.ID); err != nil {
			b.t.Fatal(err)
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("the package is still %s: %s", p.State, p.Why.Message())
		}
	}
	return p
}

// run builds until the test, or stop, ends it.
func (b *bench) run() (stop func()) {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Run(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	b.t.Cleanup(stop)
	return stop
}

// TestOneResult lets several ask for the same package at once, before and after its
// build: there is one, and it was built once.
func TestOneResult(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.base("base", "root file system")
	b.version("digits", "model")
	var asking sync.WaitGroup
	got := make([]atelier.Package, 8)
	for i := range got {
		asking.Go(func() {
			var err error
			if got[i], err = b.Create(b.as(), b.workspace, Definition{Model: "digits"}); err != nil {
				t.Error(err)
			}
		})
	}
	asking.Wait()
	b.run()
	first := b.await(got[0])
	for _, p := range got {
		if p.ID != first.ID {
			t.Errorf("there are the packages %s and %s", p.ID, first.ID)
		}
	}
	again := b.build(Definition{Model: "digits", Version: "1", Arch: []string{"amd64"}})
	if again.ID != first.ID || len(b.builds) != 1 || first.State != atelier.BuildReady {
		t.Errorf("it was built %d times, and is %+v", len(b.builds), first)
	}
	if _, err := b.Create(b.as(), b.workspace, Definition{Model: "digits", Serving: atelier.ServingSettings{Threads: 3}}); atelier.CodeOf(err) != atelier.Exists {
		t.Errorf("another package of the same name: %v", err)
	}
	img, err := b.images.Image(b.as(), b.workspace, "digits", "1")
	if err != nil || img.Digest != string(first.Manifest.Digest) {
		t.Errorf("the registry has %+v: %v", img, err)
	}
	if img, err = b.images.Image(b.as(), b.workspace, "digits", "1"+atelier.ModelPackTag); err != nil || img.ArtifactType != "application/vnd.cncf.model.manifest.v1+json" {
		t.Errorf("the registry has %+v: %v", img, err)
	}
}

// TestAnotherModel sees what a change of the model alone makes: and that the file of a
// ModelPack artifact is the registered one.
func TestAnotherModel(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.base("base", "root file system")
	b.run()
	b.version("digits", "one")
	before := b.build(Definition{Model: "digits"})
	held := map[atelier.Digest]bool{}
	if err := b.content.Walk(func(i content.Info) error { held[i.Digest] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	v := b.version("digits", "two")
	after := b.build(Definition{Model: "digits"})
	var fresh []atelier.Digest
	if err := b.content.Walk(func(i content.Info) error {
		if !held[i.Digest] {
			fresh = append(fresh, i.Digest)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	img := after.Image("amd64")
	want := []atelier.Digest{
		v.Variants[0].Files[0].Digest, img.Layers[3].Digest, img.Config.Digest, img.Manifest.Digest, after.ModelPack.Config.Digest, after.ModelPack.Manifest.Digest,
	}
	slices.Sort(want)
	if slices.Sort(fresh); !slices.Equal(fresh, want) {
		t.Errorf("new content is %v, want %v", fresh, want)
	}
	for i, l := range before.Image("amd64").Layers {
		if same := l.Digest == img.Layers[i].Digest; same == (l.Kind == atelier.LayerModel) {
			t.Errorf("the layer %s is the same: %t", l.Kind, same)
		}
	}
	// Only what a package names can be read through it.
	for _, d := range append(after.Content(), "") {
		blob, err := b.OpenContent(b.as(), b.workspace, "digits:2", d)
		if (err == nil) != (d != "") {
			t.Errorf("%s: %v", d, err)
		}
		if err == nil {
			_ = blob.Close()
		}
	}
	if _, err := b.OpenContent(b.as(), b.workspace, "digits:2", before.Manifest.Digest); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("another package's manifest can be read: %v", err)
	}
	// A collection takes nothing that a package needs.
	if err := b.registry.Collect(b.as()); err != nil {
		t.Fatal(err)
	}
	for _, d := range after.Content() {
		if has, err := b.content.Has(d); err != nil || !has {
			t.Errorf("%s is gone: %v", d, err)
		}
	}
}

// TestBuildGoesOn ends the hub's builds in the middle; the next run ends them, and
// leaves no second copy.
func TestBuildGoesOn(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.base("base", "root file system")
	b.version("digits", strings.Repeat("model", 100_000))
	p, err := b.Create(b.as(), b.workspace, Definition{Model: "digits"})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		ctx, cancel := context.WithTimeout(access.WithPrincipal(t.Context(), access.Principal{Kind: access.System}), time.Millisecond)
		b.Run(ctx) // ended wherever it is
		cancel()
	}
	b.run()
	if p = b.await(p); p.State != atelier.BuildReady || p.Done != p.Total {
		t.Errorf("the package is %s: %s, %d of %d", p.State, p.Why.Message(), p.Done, p.Total)
	}
	b.failing = errors.New("the key is locked away")
	failed := b.build(Definition{Model: "digits", Tag: "b"})
	if failed.State != atelier.BuildFailed || failed.Why.Reason() != atelier.ReasonPackageFailed || !strings.Contains(failed.Why.Message(), "locked away") {
		t.Errorf("the package is %s: %s", failed.State, failed.Why.Message())
	}
	b.failing = nil
	if mended := b.build(Definition{Model: "digits", Tag: "b"}); mended.ID != failed.ID || mended.State != atelier.BuildReady {
		t.Errorf("the package is %s: %s", mended.State, mended.Why.Message())
	}
	if err := b.Delete(b.as(), b.workspace, "digits:b", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.images.Image(b.as(), b.workspace, "digits", "b"); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("the deleted package's image: %v", err)
	}
	// Labels name the tag, so that the image is another one; the artifact is the same one.
	if img, err := b.images.Image(b.as(), b.workspace, "digits", "1"+atelier.ModelPackTag); err != nil || len(img.Tags) != 1 {
		t.Errorf("the other package's artifact: %+v, %v", img, err)
	}
}

// TestOwnRegistry sees that the hub keeps no images for a workspace with a registry of
// its own, and the package's content all the same.
func TestOwnRegistry(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.workspace = b.newWorkspace("elsewhere", atelier.ProviderUser)
	b.base("base", "root file system")
	b.version("digits", "model")
	b.run()
	p := b.build(Definition{Model: "digits"})
	if _, err := b.images.Image(b.as(), b.workspace, "digits", "1"); atelier.CodeOf(err) != atelier.NotFound || p.State != atelier.BuildReady {
		t.Errorf("the package is %s (%s), its image: %v", p.State, p.Why.Message(), err)
	}
	blob, err := b.OpenContent(b.as(), b.workspace, "digits:1", p.Manifest.Digest)
	if err != nil {
		t.Fatal(err)
	}
	_ = blob.Close()
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if _, err := b.Create(b.as(), b.workspace, Definition{Model: "digits"}); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("without the model: %v", err)
	}
	b.version("digits", "model")
	code := b.upload(b.workspace, "score.py", "pass")
	at := func(path string) []atelier.File { f := code; f.Path = path; return []atelier.File{f} }
	none := func(path string) []atelier.File {
		return []atelier.File{{Path: path, Digest: atelier.DigestOf([]byte("nobody sent it")), Size: 14}}
	}
	one := Definition{Model: "digits"}
	if _, err := b.Create(b.as(), b.workspace, one); atelier.CodeOf(err) != atelier.Invalid || !strings.Contains(fmt.Sprint(err), "no base") {
		t.Errorf("without a base: %v", err)
	}
	b.base("one", "1")
	b.base("two", "2")
	if _, err := b.Create(b.as(), b.workspace, one); atelier.CodeOf(err) != atelier.Invalid || !strings.Contains(fmt.Sprint(err), "one, two") {
		t.Errorf("with two bases: %v", err)
	}
	for name, d := range map[string]Definition{
		"unknown architecture":        {Arch: []string{"vax"}},
		"architecture twice":          {Arch: []string{"amd64", "amd64"}},
		"no base for it":              {Arch: []string{"arm64"}},
		"unknown base":                {Base: "three"},
		"name that climbs":            {Name: "../x"},
		"name of no repository":       {Name: "a..b"},
		"tag that is none":            {Tag: "a/b"},
		"tag with a colon":            {Tag: "sha256:b"},
		"tag of an artifact":          {Tag: "1-modelpack"},
		"tag that is too long":        {Tag: strings.Repeat("t", 120)},
		"settings of no use":          {Serving: atelier.ServingSettings{Workers: 2}},
		"settings that cannot be":     {Serving: atelier.ServingSettings{Threads: -1}},
		"script without code":         {Script: "score.py", Environment: "e"},
		"code without a script":       {Code: at("score.py")},
		"environment for nothing":     {Environment: "e"},
		"script that is not there":    {Script: "other.py", Code: at("score.py"), Environment: "e"},
		"code that climbs":            {Script: "score.py", Code: append(at("score.py"), at("../score.py")...), Environment: "e"},
		"code twice":                  {Script: "score.py", Code: append(at("score.py"), at("score.py")...), Environment: "e"},
		"code that nobody sent":       {Script: "score.py", Code: none("score.py"), Environment: "e"},
		"environment that is unknown": {Script: "score.py", Code: at("score.py"), Environment: "e"},
	} {
		d.Model = "digits"
		if d.Base == "" {
			d.Base = "one"
		}
		if _, err := b.Create(b.as(), b.workspace, d); atelier.CodeOf(err) != atelier.Invalid && atelier.CodeOf(err) != atelier.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	var many []atelier.File
	for i := range maxFiles {
		f := code
		f.Path = fmt.Sprint("part-", i)
		many = append(many, f)
	}
	b.version("many", "model", many...)
	if _, err := b.Create(b.as(), b.workspace, Definition{Model: "many", Base: "one"}); atelier.CodeOf(err) != atelier.TooLarge {
		t.Errorf("more files than an artifact may have: %v", err)
	}
	other := b.newWorkspace("other", atelier.ProviderBuiltin)
	if _, err := b.Create(b.as(), other, Definition{Model: "digits", Base: "one"}); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("another workspace's model: %v", err)
	}
}

func TestBasesRefuse(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	layer := b.upload(b.workspace, "layer", "layer")
	config := func(text string) atelier.File { return b.upload(b.workspace, "config", text) }
	good := `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["` + string(layer.Digest) + `"]}}`
	image := func(c atelier.File, mediaType string, layers ...atelier.File) []atelier.BaseImage {
		img := atelier.BaseImage{Config: c}
		for _, l := range layers {
			img.Layers = append(img.Layers, atelier.Layer{MediaType: mediaType, Digest: l.Digest, Size: l.Size})
		}
		return []atelier.BaseImage{img}
	}
	const plain = "application/vnd.oci.image.layer.v1.tar"
	lies := layer
	lies.Size++
	for name, n := range map[string]NewBase{
		"none":                  {},
		"no JSON":               {Images: image(config("x"), plain, layer)},
		"for another system":    {Images: image(config(strings.ReplaceAll(good, "linux", "windows")), plain, layer)},
		"for another processor": {Images: image(config(strings.ReplaceAll(good, "amd64", "s390x")), plain, layer)},
		"no layers":             {Images: image(config(good), plain)},
		"more layers than said": {Images: image(config(good), plain, layer, layer)},
		"another layer":         {Images: image(config(strings.ReplaceAll(good, string(layer.Digest), string(atelier.DigestOf(nil)))), plain, layer)},
		"a lie about size":      {Images: image(config(good), plain, lies)},
		"no tar file":           {Images: image(config(good), "application/octet-stream", layer)},
		"nobody sent it":        {Images: image(config(good), plain, atelier.File{Digest: atelier.DigestOf([]byte("x")), Size: 1})},
		"too large a config":    {Images: image(config(good+strings.Repeat(" ", maxConfig)), plain, layer)},
		"twice":                 {Images: append(image(config(good), plain, layer), image(config(good), plain, layer)...)},
	} {
		n.Name = "base"
		if _, err := b.AddBase(b.as(), b.workspace, n); !slices.Contains([]atelier.Code{atelier.Invalid, atelier.Unsupported, atelier.TooLarge}, atelier.CodeOf(err)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	n := NewBase{Name: "base", Images: image(config(good), plain, layer)}
	first, err := b.AddBase(b.as(), b.workspace, n)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := b.AddBase(b.as(), b.workspace, n); err != nil || again.ID != first.ID {
		t.Errorf("the same base again: %+v, %v", again, err)
	}
	n.Images = image(config(good+" "), plain, layer)
	if _, err := b.AddBase(b.as(), b.workspace, n); atelier.CodeOf(err) != atelier.Exists {
		t.Errorf("another base of the same name: %v", err)
	}
	b.version("digits", "model")
	b.run()
	b.build(Definition{Model: "digits"})
	if err := b.DeleteBase(b.as(), b.workspace, "base", 0); atelier.CodeOf(err) != atelier.InUse {
		t.Errorf("a base that is stood on: %v", err)
	}
}

// TestLargeModel builds a package of a large file, with little memory.
func TestLargeModel(t *testing.T) {
	// Not in parallel: what others allocate would count.
	b := newBench(t)
	b.base("base", "root file system")
	const size = 192 << 20
	sum := sha256.New()
	blob, err := b.registry.Upload(b.as(), b.workspace, io.TeeReader(io.LimitReader(zeros{}, size), sum), "", size)
	if err != nil {
		t.Fatal(err)
	}
	b.version("large", "model", atelier.File{Path: "weights.bin", Digest: atelier.Digest(blob.Name), Size: size})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.run()
	p := b.build(Definition{Model: "large"})
	runtime.ReadMemStats(&after)
	if p.State != atelier.BuildReady {
		t.Fatalf("the package is %s: %s", p.State, p.Why.Message())
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > size/2 {
		t.Errorf("%s were allocated for %s", atelier.FormatBytes(int64(grown)), atelier.FormatBytes(size))
	}
	var manifest struct {
		Layers []struct{ Annotations map[string]string }
	}
	body, err := b.read(p.Manifest.Digest)
	if err != nil || json.NewDecoder(bytes.NewReader(body)).Decode(&manifest) != nil || len(manifest.Layers) != 5 {
		t.Errorf("the manifest is %s: %v", body, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
