package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store/sqlite"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

// fixture is a registry over a real database, and a content store on a disk that
// faults can be injected into.
type fixture struct {
	*Registry
	t    *testing.T
	disk *durabletest.Disk
	ws   string

	mu  sync.Mutex
	now time.Time
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, disk: durabletest.NewDisk(), now: time.Now()}
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "hub.db"), sqlite.WithClock(f.clock))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	blobs, err := content.Open(f.disk, "/content", content.WithClock(f.clock))
	if err != nil {
		t.Fatal(err)
	}
	f.Registry = New(Config{Store: db, Content: blobs, Log: slog.New(slog.DiscardHandler), Now: f.clock, MaxBlob: 1 << 20})
	f.disk.SetSpace(1 << 30)
	f.ws = f.workspace("lab")
	return f
}

func (f *fixture) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// pass moves the clock.
func (f *fixture) pass(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
}

func (f *fixture) workspace(name string) string {
	f.t.Helper()
	w, err := f.CreateWorkspace(f.t.Context(), atelier.Workspace{Meta: atelier.Meta{Name: name}}, "")
	if err != nil {
		f.t.Fatal(err)
	}
	return w.ID
}

func (f *fixture) upload(ws string, b []byte) atelier.Digest {
	f.t.Helper()
	blob, err := f.Upload(f.t.Context(), ws, bytes.NewReader(b), "", int64(len(b)))
	if err != nil {
		f.t.Fatal(err)
	}
	return atelier.Digest(blob.Name)
}

// file uploads content and names it.
func (f *fixture) file(ws, path string, b []byte) atelier.File {
	f.t.Helper()
	return atelier.File{Path: path, Digest: f.upload(ws, b), Size: int64(len(b))}
}

func (f *fixture) register(ws, model string, files ...atelier.File) atelier.Version {
	f.t.Helper()
	v, err := f.Register(f.t.Context(), ws, model, NewVersion{Files: files})
	if err != nil {
		f.t.Fatal(err)
	}
	return v
}

func (f *fixture) collect() {
	f.t.Helper()
	if err := f.Collect(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) has(d atelier.Digest) bool {
	f.t.Helper()
	has, err := f.content.Has(d)
	if err != nil {
		f.t.Fatal(err)
	}
	return has
}

func wants(t *testing.T, what string, err error, code atelier.Code) {
	t.Helper()
	if atelier.CodeOf(err) != code {
		t.Errorf("%s: got %v, want code %q", what, err, code)
	}
}

// model is an ONNX model with one output; external names a file that holds
// weights, and n makes it differ from others.
func model(n int, external string, size int) []byte {
	sub := func(b []byte, num protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
	}
	number := func(b []byte, num protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
	}
	graph := sub(nil, 12, sub(sub(nil, 1, []byte("y")), 2, sub(nil, 1, number(nil, 1, 1))))
	if external != "" {
		tensor := sub(nil, 8, []byte("w"))
		tensor = sub(tensor, 13, sub(sub(nil, 1, []byte("location")), 2, []byte(external)))
		tensor = sub(tensor, 13, sub(sub(nil, 1, []byte("length")), 2, fmt.Append(nil, size)))
		graph = sub(graph, 5, number(tensor, 14, 1))
	}
	return sub(sub(number(nil, 1, 8), 2, fmt.Append(nil, "test ", n)), 7, graph)
}

func TestUpload(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	body := []byte("content")
	d := atelier.DigestOf(body)
	cut := io.MultiReader(bytes.NewReader(body), iotest.ErrReader(errors.New("the line went dead")))
	for name, c := range map[string]struct {
		from io.Reader
		want atelier.Digest
		size int64
		code atelier.Code
	}{
		"breaks off":      {cut, "", -1, atelier.Invalid},
		"other digest":    {bytes.NewReader(body), atelier.DigestOf(nil), -1, atelier.Invalid},
		"bad digest":      {bytes.NewReader(body), "sha256:zz", -1, atelier.Invalid},
		"too short":       {bytes.NewReader(body), "", 100, atelier.Invalid},
		"too long":        {bytes.NewReader(body), "", 2, atelier.Invalid},
		"too large, told": {bytes.NewReader(body), "", 1<<20 + 1, atelier.TooLarge},
		"too large":       {bytes.NewReader(make([]byte, 1<<20+1)), "", -1, atelier.TooLarge},
	} {
		_, err := f.Upload(ctx, f.ws, c.from, c.want, c.size)
		wants(t, name, err, c.code)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := f.Upload(gone, f.ws, bytes.NewReader(body), "", -1); err == nil {
		t.Error("an upload outlived its context")
	}
	f.disk.SetSpace(spareDisk / 2)
	_, err := f.Upload(ctx, f.ws, bytes.NewReader(body), "", -1)
	wants(t, "full disk", err, atelier.NoSpace)
	f.disk.SetSpace(1 << 30)
	if f.has(d) {
		t.Error("a failed upload left content")
	}
	if _, err := f.Blob(ctx, f.ws, d); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("a failed upload left a row: %v", err)
	}
	exact := make([]byte, 1<<20)
	if got := f.upload(f.ws, exact); got != atelier.DigestOf(exact) {
		t.Errorf("got %s", got)
	}
}

// TestUploadFaults breaks the disk at each step of an upload: where it fails, the
// workspace holds nothing, and the next try succeeds.
func TestUploadFaults(t *testing.T) {
	t.Parallel()
	body := []byte("content")
	d := atelier.DigestOf(body)
	f := newFixture(t)
	for n, reached := 1, true; reached; n++ {
		ws := f.workspace(fmt.Sprint("lab-", n))
		end := f.disk.Operations() + n
		f.disk.FailAt(n, errors.New("the disk is on fire"))
		_, err := f.Upload(t.Context(), ws, bytes.NewReader(body), "", int64(len(body)))
		reached = f.disk.Operations() >= end
		f.disk.FailAt(0, nil)
		_, rowErr := f.Blob(t.Context(), ws, d)
		switch {
		case reached && err == nil:
			t.Errorf("operation %d failed, and the upload did not", n)
		case !reached && (err != nil || rowErr != nil || !f.has(d)):
			t.Errorf("nothing failed before operation %d, and yet: %v, %v", n, err, rowErr)
		case reached && atelier.CodeOf(rowErr) != atelier.NotFound:
			t.Errorf("operation %d: the upload failed (%v) and left a row (%v)", n, err, rowErr)
		}
		f.upload(ws, body)
		if err := f.content.Delete(d); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUploadPowerCut cuts the power at each step of an upload: what a row says is
// there is on the disk afterwards, also where the same content was there before.
func TestUploadPowerCut(t *testing.T) {
	t.Parallel()
	for _, again := range []bool{false, true} {
		for n, reached := 1, true; reached; n++ {
			f := newFixture(t)
			body := []byte("content")
			if again {
				f.upload(f.workspace("before"), body)
			}
			end := f.disk.Operations() + n
			f.disk.CutAt(n)
			_, err := f.Upload(t.Context(), f.ws, bytes.NewReader(body), "", int64(len(body)))
			reached = f.disk.Operations() >= end
			f.disk.Restart(nil)
			if err != nil {
				if _, rowErr := f.Blob(t.Context(), f.ws, atelier.DigestOf(body)); atelier.CodeOf(rowErr) != atelier.NotFound {
					t.Errorf("operation %d: the upload failed (%v) and left a row (%v)", n, err, rowErr)
				}
				continue
			}
			blobs, err := content.Open(f.disk, "/content")
			if err != nil {
				t.Fatal(err)
			}
			if err := blobs.Verify(t.Context(), atelier.DigestOf(body)); err != nil {
				t.Errorf("operation %d: the upload was acknowledged, and did not survive: %v", n, err)
			}
		}
	}
}

// TestCollect goes through a day and a half of a hub: what is named stays, what
// nobody has named for a day goes, from each workspace for itself.
func TestCollect(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	other := f.workspace("other")
	kept := f.file(f.ws, "m.onnx", model(1, "", 0))
	f.register(f.ws, "kept", kept)
	deleted := f.file(f.ws, "m.onnx", model(2, "", 0))
	f.register(f.ws, "deleted", deleted)
	library := []byte("a library")
	_, err := f.RegisterRuntime(t.Context(), atelier.Runtime{
		Meta: atelier.Meta{Name: "rt"}, Version: "1", OS: "linux", Arch: "amd64", Entry: "lib.so",
		Files: []atelier.File{f.file("", "lib.so", library)},
	})
	if err != nil {
		t.Fatal(err)
	}
	unnamed := f.upload(f.ws, []byte("never named"))
	again := f.upload(f.ws, []byte("sent again"))
	shared := f.upload(f.ws, []byte("of two workspaces"))
	if err := f.DeleteModel(t.Context(), f.ws, "deleted", 0); err != nil {
		t.Fatal(err)
	}
	check := func(when string, want map[atelier.Digest]bool) {
		t.Helper()
		for d, want := range want {
			if f.has(d) != want {
				t.Errorf("%s: content %s is there: %v", when, d.Short(), !want)
			}
		}
	}
	holds := func(ws string, d atelier.Digest) bool {
		t.Helper()
		_, err := f.Blob(t.Context(), ws, d)
		if err != nil && atelier.CodeOf(err) != atelier.NotFound {
			t.Fatal(err)
		}
		return err == nil
	}

	f.pass(DefaultKeep - time.Second)
	f.upload(f.ws, []byte("sent again")) // its age begins again
	f.upload(other, []byte("of two workspaces"))
	f.collect()
	f.pass(condemnedAge - time.Second)
	for d, want := range map[atelier.Digest]bool{unnamed: true, again: true, shared: true, deleted.Digest: false} {
		if holds(f.ws, d) != want {
			t.Errorf("within a day: content %s is held: %v", d.Short(), !want)
		}
	}

	f.collect()                                                                      // a day is over: let go of, and condemned
	check("condemned", map[atelier.Digest]bool{unnamed: true, deleted.Digest: true}) // condemned for less than half an hour
	if holds(f.ws, shared) || holds(f.ws, unnamed) || holds(f.ws, deleted.Digest) {
		t.Error("the workspace still holds what it has not named for a day")
	}
	if !holds(other, shared) || !holds(f.ws, again) || !holds(f.ws, kept.Digest) {
		t.Error("content was let go of that was young, or named")
	}
	f.pass(condemnedAge)
	f.collect()
	check("deleted", map[atelier.Digest]bool{
		kept.Digest: true, atelier.DigestOf(library): true, again: true, shared: true,
		unnamed: false, deleted.Digest: false,
	})

	// What was condemned and is sent again stays.
	f.pass(DefaultKeep)
	f.collect()
	f.upload(f.ws, []byte("sent again"))
	f.pass(condemnedAge)
	f.collect()
	check("sent again", map[atelier.Digest]bool{again: true, shared: false, kept.Digest: true})
}

func TestExternalWeights(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	weights := f.file(f.ws, "net/weights.bin", make([]byte, 100))
	at := func(file atelier.File, path string) atelier.File { file.Path = path; return file }
	whole := f.file(f.ws, "net/m.onnx", model(1, "weights.bin", 100))
	long := f.file(f.ws, "net/m.onnx", model(1, "weights.bin", 101))
	up := f.file(f.ws, "net/m.onnx", model(1, "../weights.bin", 1))
	root := f.file(f.ws, "net/m.onnx", model(1, "/etc/passwd", 1))

	v := f.register(f.ws, "m", whole, weights)
	if v.Size != whole.Size+100 || v.Variants[0].Entry != "net/m.onnx" {
		t.Errorf("got %+v", v)
	}
	for name, files := range map[string][]atelier.File{
		"missing":    {whole},
		"elsewhere":  {whole, at(weights, "weights.bin")},
		"too short":  {long, weights},
		"up":         {up, weights},
		"outside":    {root, weights},
		"two models": {whole, at(whole, "b.onnx"), weights},
	} {
		_, err := f.Register(ctx, f.ws, "m", NewVersion{Files: files})
		wants(t, name, err, atelier.Invalid)
	}
}

// TestNumbers registers many versions at once: each gets its own number, and none is left out.
func TestNumbers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	file := f.file(f.ws, "m.onnx", model(1, "", 0))
	const n = 20
	numbers := make([]int, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			v, err := f.Register(t.Context(), f.ws, "m", NewVersion{Files: []atelier.File{file}})
			if err != nil {
				t.Error(err)
			}
			numbers[i] = v.Number
		})
	}
	wg.Wait()
	seen := map[int]bool{}
	for _, number := range numbers {
		if number < 1 || number > n || seen[number] {
			t.Errorf("numbers %v", numbers)
			break
		}
		seen[number] = true
	}
	m, err := f.Model(t.Context(), f.ws, "m")
	if err != nil || m.Latest != n || m.Next != n+1 {
		t.Errorf("%+v %v", m, err)
	}
}

// TestDigest pins the form of the manifest: another one would give every version
// another digest.
func TestDigest(t *testing.T) {
	t.Parallel()
	got, err := digestOf([]atelier.Variant{{
		Kind: "onnx", Entry: "m.onnx", Requires: atelier.Requirements{Runtime: "onnxruntime"},
		Files:     []atelier.File{{Path: "m.onnx", Digest: atelier.DigestOf([]byte("m")), Size: 1}},
		Signature: &atelier.Signature{Inputs: []atelier.TensorSpec{{Name: "not part of it"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := atelier.DigestOf([]byte(`{"format":"atelier.version/1","variants":[{"kind":"onnx","entry":"m.onnx","files":[{"path":"m.onnx",` +
		`"digest":"sha256:62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5a","size":1}],"requires":{"runtime":"onnxruntime","arch":[]}}]}`))
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestLostContent tells plainly when the storage has lost what a version names.
func TestLostContent(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	file := f.file(f.ws, "m.onnx", model(1, "", 0))
	f.register(f.ws, "m", file)
	if err := f.content.Delete(file.Digest); err != nil {
		t.Fatal(err)
	}
	_, _, err := f.OpenFile(t.Context(), f.ws, "m", Latest, "", "m.onnx")
	wants(t, "open", err, atelier.Corrupt)
	_, err = f.Register(t.Context(), f.ws, "m", NewVersion{Files: []atelier.File{file}})
	wants(t, "register", err, atelier.Corrupt)
}

func TestDeleteWorkspace(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	d := f.upload(f.ws, []byte("left behind"))
	if err := f.Registry.DeleteWorkspace(t.Context(), f.ws, 0); err != nil {
		t.Fatal(err)
	}
	f.collect()
	f.pass(condemnedAge + time.Second)
	f.collect()
	if f.has(d) {
		t.Error("the content of a deleted workspace stays")
	}
	wants(t, "delete again", f.Registry.DeleteWorkspace(t.Context(), f.ws, 0), atelier.NotFound)
}

// TestRun ends with its context.
func TestRun(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		f.Run(ctx)
		close(done)
	}()
	cancel()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Run goes on")
	}
}
