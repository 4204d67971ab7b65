package content_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

// sample returns n bytes that are the same for the same seed.
func sample(n int, seed uint64) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	b := make([]byte, n)
	r := rand.NewChaCha8(key)
	if _, err := r.Read(b); err != nil {
		panic(err)
	}
	return b
}

func open(t testing.TB, fsys durable.FS, opts ...content.Option) *content.Store {
	t.Helper()
	s, err := content.Open(fsys, "/content", opts...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantCode(t testing.TB, err error, code atelier.Code) {
	t.Helper()
	if atelier.CodeOf(err) != code {
		t.Fatalf("got error %v, want code %q", err, code)
	}
}

// put commits b through a Writer.
func put(t testing.TB, s *content.Store, b []byte) atelier.Digest {
	t.Helper()
	w, err := s.Writer("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	info, err := w.Commit("", -1)
	if err != nil {
		t.Fatal(err)
	}
	return info.Digest
}

// read returns the whole blob, nil where there is none.
func read(t testing.TB, s *content.Store, d atelier.Digest) []byte {
	t.Helper()
	b, err := s.Open(d)
	if atelier.CodeOf(err) == atelier.NotFound {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	if err := errors.Join(err, b.Close()); err != nil {
		t.Fatal(err)
	}
	return out
}

// files lists all files below the store, so that tests see what stays behind.
func files(t testing.TB, fsys durable.FS, dir string) (out []string) {
	t.Helper()
	list, err := fsys.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if p := filepath.Join(dir, e.Name()); e.IsDir() {
			out = append(out, files(t, fsys, p)...)
		} else {
			out = append(out, p)
		}
	}
	return out
}

func TestWriterCommitsByDigest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := content.Open(durable.OS{}, dir)
	if err != nil {
		t.Fatal(err)
	}
	data := sample(300_000, 1)
	want := atelier.DigestOf(data)
	w, err := s.Writer("")
	if err != nil {
		t.Fatal(err)
	}
	for rest := data; len(rest) > 0; {
		n := min(7001, len(rest))
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if has, err := s.Has(want); has || err != nil {
		t.Fatalf("visible before the commit: %v, %v", has, err)
	}
	info, err := w.Commit(want, int64(len(data)))
	if err != nil || info.Digest != want || info.Size != int64(len(data)) {
		t.Fatalf("got %+v, %v", info, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, s, want), data) {
		t.Fatal("the content changed")
	}
	list := files(t, durable.OS{}, dir)
	if len(list) != 1 {
		t.Fatalf("files: %v", list)
	}
	if st, err := os.Stat(list[0]); err != nil || st.Mode().Perm() != 0o444 {
		t.Fatalf("mode %v, %v; want read-only", st.Mode(), err)
	}
	if put(t, s, data) != want || len(files(t, durable.OS{}, dir)) != 1 {
		t.Fatal("the same content is there twice")
	}
	if err := s.Verify(t.Context(), want); err != nil {
		t.Fatal(err)
	}
}

func TestWrongContentLeavesNothing(t *testing.T) {
	t.Parallel()
	data := sample(1000, 2)
	for name, c := range map[string]struct {
		digest atelier.Digest
		size   int64
	}{
		"digest": {atelier.DigestOf([]byte("other")), -1},
		"size":   {atelier.DigestOf(data), 999},
	} {
		disk := durabletest.NewDisk()
		s := open(t, disk)
		w, err := s.Writer("upload-1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		_, err = w.Commit(c.digest, c.size)
		wantCode(t, err, atelier.Corrupt)
		if left := files(t, disk, "/content"); len(left) > 0 {
			t.Fatalf("%s: %v stayed", name, left)
		}
		if _, err := w.Write(data); err == nil {
			t.Fatalf("%s: a writer that ended took bytes", name)
		}
	}
}

func TestWriterResumesAfterRestart(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	data := sample(50_000, 3)
	s := open(t, disk, content.WithCheckpoint(10_000, time.Hour))
	w, err := s.Writer("upload-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Writer("upload-1"); atelier.CodeOf(err) != atelier.InUse {
		t.Fatalf("two writers of one upload: %v", err)
	}
	for at := 0; at < 25_000; at += 1000 {
		if _, err := w.Write(data[at : at+1000]); err != nil {
			t.Fatal(err)
		}
	}
	disk.Restart(nil) // without Close: what the last checkpoint covered is left
	s = open(t, disk)
	if w, err = s.Writer("upload-1"); err != nil {
		t.Fatal(err)
	}
	if w.Offset() != 20_000 {
		t.Fatalf("resumes at %d, want 20000", w.Offset())
	}
	if _, err := w.Write(data[20_000:30_000]); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	disk.Restart(nil)
	s = open(t, disk)
	if w, err = s.Writer("upload-1"); err != nil {
		t.Fatal(err)
	}
	if w.Offset() != 30_000 {
		t.Fatalf("resumes at %d after Close, want 30000", w.Offset())
	}
	if _, err := w.Write(data[30_000:]); err != nil {
		t.Fatal(err)
	}
	info, err := w.Commit("", -1)
	if err != nil || info.Digest != atelier.DigestOf(data) || !bytes.Equal(read(t, s, info.Digest), data) {
		t.Fatalf("got %+v, %v", info, err)
	}
	if _, err := s.Writer("../etc"); atelier.CodeOf(err) != atelier.Invalid {
		t.Fatalf("a path was taken as a name: %v", err)
	}
}

// survives runs do on fresh disks, cutting the power at every step in several
// ways, and after each cut lets check look at what is there after the restart.
// done says whether do had returned nil before the power went.
func survives(t *testing.T, do func(*durabletest.Disk) error, check func(disk *durabletest.Disk, done bool) error) {
	t.Helper()
	for n := 1; ; n++ {
		whole := false
		for seed := range uint64(6) {
			disk := durabletest.NewDisk()
			disk.CutAt(n)
			err := do(disk)
			whole = err == nil
			var rng *rand.Rand
			if seed > 0 {
				rng = rand.New(rand.NewPCG(seed, uint64(n)))
			}
			disk.Restart(rng)
			if err := check(disk, whole); err != nil {
				t.Fatalf("cut at step %d, seed %d: %v", n, seed, err)
			}
		}
		if whole {
			if n < 10 {
				t.Fatalf("only %d steps were seen", n)
			}
			return
		}
	}
}

// intact returns an error where a blob is visible that is not what it should be,
// or is missing although it was committed.
func intact(t *testing.T, s *content.Store, d atelier.Digest, data []byte, done bool) error {
	t.Helper()
	got := read(t, s, d)
	if got != nil && !bytes.Equal(got, data) {
		return errors.New("visible, and not what was written")
	}
	if got == nil && done {
		return errors.New("committed, and lost")
	}
	return nil
}

func TestWriterSurvivesAPowerCutAtEveryStep(t *testing.T) {
	t.Parallel()
	data := sample(6000, 4)
	d := atelier.DigestOf(data)
	upload := func(disk *durabletest.Disk) error {
		s, err := content.Open(disk, "/content", content.WithCheckpoint(2000, time.Hour))
		if err != nil {
			return err
		}
		w, err := s.Writer("up")
		if err != nil {
			return err
		}
		for w.Offset() < int64(len(data)) {
			at := w.Offset()
			if _, err := w.Write(data[at:min(at+1000, int64(len(data)))]); err != nil {
				return err
			}
		}
		_, err = w.Commit("", -1) // no digest is given: what resumed must be right by itself
		return err
	}
	survives(t, upload, func(disk *durabletest.Disk, done bool) error {
		if err := intact(t, open(t, disk), d, data, done); err != nil {
			return err
		}
		if err := upload(disk); err != nil {
			return err
		}
		n := 0
		s := open(t, disk)
		err := s.Walk(func(content.Info) error { n++; return nil })
		if err == nil && n != 1 {
			err = errors.New("more than the one content is there")
		}
		return errors.Join(err, intact(t, s, d, data, true))
	})
}

const piece = 1000

func pieces(n int) (out content.Ranges) {
	for at := 0; at < n; at += piece {
		out = append(out, content.Range{Start: int64(at), End: int64(min(at+piece, n))})
	}
	return out
}

// fill writes what the ingest misses, in an order of its own, and returns how many
// bytes that were.
func fill(in *content.Ingest, data []byte, most int) (wrote int64, err error) {
	all := pieces(len(data))
	for i := range all {
		r := all[(i*7+3)%len(all)]
		if in.Has(r) || most == 0 {
			continue
		}
		most--
		p := data[r.Start:r.End]
		if _, err := in.WriteAt(p, r.Start); err != nil {
			return wrote, err
		}
		if err := in.Accept(r, sha256.Sum256(p)); err != nil {
			return wrote, err
		}
		wrote += r.Len()
	}
	return wrote, nil
}

func TestIngestSurvivesAPowerCutAtEveryStep(t *testing.T) {
	t.Parallel()
	data := sample(10*piece+17, 5)
	d := atelier.DigestOf(data)
	fetch := func(disk *durabletest.Disk) error {
		s, err := content.Open(disk, "/content", content.WithCheckpoint(2*piece, time.Hour))
		if err != nil {
			return err
		}
		in, err := s.Ingest(d, int64(len(data)))
		if atelier.CodeOf(err) == atelier.Exists {
			return s.Keep(d)
		}
		if err != nil {
			return err
		}
		if _, err := fill(in, data, 5); err != nil {
			return err
		}
		if err := in.Close(); err != nil {
			return err
		}
		if in, err = s.Ingest(d, int64(len(data))); err != nil {
			return err
		}
		if _, err := fill(in, data, -1); err != nil {
			return err
		}
		_, err = in.Commit(context.Background())
		return err
	}
	survives(t, fetch, func(disk *durabletest.Disk, done bool) error {
		if err := intact(t, open(t, disk), d, data, done); err != nil {
			return err
		}
		// A false claim of the record would make this Corrupt.
		if err := fetch(disk); err != nil {
			return err
		}
		s := open(t, disk)
		if left := files(t, disk, "/content/ingest"); len(left) > 0 {
			return errors.New("left behind: " + left[0])
		}
		return intact(t, s, d, data, true)
	})
}

func TestIngestFailsAtEveryStepWithAnErrorAndGoesOn(t *testing.T) {
	t.Parallel()
	data := sample(10*piece, 6)
	d := atelier.DigestOf(data)
	for n := 1; ; n++ {
		disk := durabletest.NewDisk()
		s := open(t, disk, content.WithCheckpoint(2*piece, time.Hour))
		fault := errors.New("fault")
		disk.FailAt(n, fault)
		attempt := func() error {
			in, err := s.Ingest(d, int64(len(data)))
			if atelier.CodeOf(err) == atelier.Exists {
				return nil
			}
			if err != nil {
				return err
			}
			if _, err := fill(in, data, -1); err != nil {
				return errors.Join(err, in.Close())
			}
			_, err = in.Commit(t.Context())
			return errors.Join(err, in.Close())
		}
		err := attempt()
		if err != nil && !errors.Is(err, fault) {
			t.Fatalf("step %d: %v", n, err)
		}
		if err := intact(t, s, d, data, false); err != nil {
			t.Fatalf("step %d: %v", n, err)
		}
		failed := err != nil
		if err := attempt(); err != nil {
			t.Fatalf("step %d: the second attempt: %v", n, err)
		}
		if err := intact(t, s, d, data, true); err != nil {
			t.Fatalf("step %d: %v", n, err)
		}
		if !failed {
			if n < 15 {
				t.Fatalf("only %d steps were seen", n)
			}
			return
		}
	}
}

func TestIngestResumesWhereItStopped(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	data := sample(20*piece, 7)
	d := atelier.DigestOf(data)
	s := open(t, disk)
	in, err := s.Ingest(d, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ingest(d, int64(len(data))); atelier.CodeOf(err) != atelier.InUse {
		t.Fatalf("two ingests of one content: %v", err)
	}
	wantCode(t, s.Abort(d), atelier.InUse)
	wrote, err := fill(in, data, 12)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	disk.Restart(nil)
	s = open(t, disk)
	if in, err = s.Ingest(d, int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if in.Done() != wrote {
		t.Fatalf("%d bytes are left of %d", in.Done(), wrote)
	}
	_, err = in.Commit(t.Context())
	wantCode(t, err, atelier.Conflict)
	rest, err := fill(in, data, -1)
	if err != nil || wrote+rest != int64(len(data)) {
		t.Fatalf("wrote %d and %d of %d bytes, %v", wrote, rest, len(data), err)
	}
	if _, err := in.WriteAt([]byte("x"), 5); atelier.CodeOf(err) != atelier.Conflict {
		t.Fatalf("accepted bytes were written over: %v", err)
	}
	if _, err := in.WriteAt([]byte("x"), int64(len(data))); atelier.CodeOf(err) != atelier.Invalid {
		t.Fatalf("bytes past the end were taken: %v", err)
	}
	if _, err := in.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ingest(d, int64(len(data))); atelier.CodeOf(err) != atelier.Exists {
		t.Fatalf("got %v, want Exists", err)
	}
}

func TestIngestNeverCommitsWrongContent(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	data := sample(3*piece, 8)
	d := atelier.DigestOf([]byte("something else"))
	s := open(t, disk)
	in, err := s.Ingest(d, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	r := content.Range{Start: 0, End: piece}
	if _, err := in.WriteAt(data[:piece], 0); err != nil {
		t.Fatal(err)
	}
	wantCode(t, in.Accept(r, sha256.Sum256([]byte("no"))), atelier.Corrupt)
	if in.Has(r) || in.Done() != 0 {
		t.Fatal("wrong bytes were accepted")
	}
	if _, err := fill(in, data, -1); err != nil {
		t.Fatal(err)
	}
	_, err = in.Commit(t.Context())
	wantCode(t, err, atelier.Corrupt)
	if left := files(t, disk, "/content"); len(left) > 0 {
		t.Fatalf("%v stayed", left)
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	s := open(t, disk)
	disk.SetSpace(5000)
	if free, err := s.Free(); err != nil || free != 5000 {
		t.Fatalf("free: %d, %v", free, err)
	}
	data := sample(6000, 9)
	_, err := s.Ingest(atelier.DigestOf(data), int64(len(data)))
	wantCode(t, err, atelier.NoSpace)
	w, err := s.Writer("")
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(data)
	wantCode(t, err, atelier.NoSpace)
	_, err = w.Commit("", -1)
	wantCode(t, err, atelier.NoSpace)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.AbortStale(0); err != nil {
		t.Fatal(err)
	}
	if free, err := s.Free(); err != nil || free != 5000 {
		t.Fatalf("the failed uploads hold space: %d free, %v", free, err)
	}
}

func TestAbortStaleDropsOldIngestsOnly(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	now := time.Now()
	s := open(t, disk, content.WithClock(func() time.Time { return now }))
	data := sample(5*piece, 10)
	begin := func(data []byte) *content.Ingest {
		in, err := s.Ingest(atelier.DigestOf(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fill(in, data, 2); err != nil {
			t.Fatal(err)
		}
		return in
	}
	if err := begin(data).Close(); err != nil {
		t.Fatal(err)
	}
	held := begin(data[1:])
	now = now.Add(time.Hour)
	if err := s.AbortStale(2 * time.Hour); err != nil {
		t.Fatal(err)
	}
	if n := len(files(t, disk, "/content/ingest")); n != 4 {
		t.Fatalf("%d files are left, want 4", n)
	}
	if err := s.AbortStale(time.Minute); err != nil {
		t.Fatal(err)
	}
	if n := len(files(t, disk, "/content/ingest")); n != 2 {
		t.Fatalf("%d files are left, want the 2 of the open ingest", n)
	}
	if _, err := fill(held, data[1:], -1); err != nil {
		t.Fatal(err)
	}
	if _, err := held.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := content.Open(durable.OS{}, filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	data := sample(100, 11)
	d := put(t, s, data)
	path := filepath.Join(dir, "model.onnx")
	if err := s.Link(d, path); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.Link(d, path), atelier.Exists)
	wantCode(t, s.Link(atelier.DigestOf(nil), path+"2"), atelier.NotFound)
	wantCode(t, s.Link("sha256:../../etc/passwd", path+"2"), atelier.Invalid)
	if err := s.Delete(d); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(d); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("the link went with the blob: %v", err)
	}
}

func TestVerifySeesRot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := content.Open(durable.OS{}, dir)
	if err != nil {
		t.Fatal(err)
	}
	d := put(t, s, sample(100_000, 12))
	path := files(t, durable.OS{}, dir)[0]
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte{1, 2, 3}, 70_000)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.Verify(t.Context(), d), atelier.Corrupt)
}

// stream gives n bytes without holding them.
type stream struct {
	n   int64
	rng *rand.ChaCha8
}

func (s *stream) Read(p []byte) (int, error) {
	if s.n == 0 {
		return 0, io.EOF
	}
	n, err := s.rng.Read(p[:min(int64(len(p)), s.n)])
	s.n -= int64(n)
	return n, err
}

// Not parallel: it counts what the whole process allocates.
func TestLargeContentNeedsConstantMemory(t *testing.T) {
	const size = 300 << 20
	s, err := content.Open(durable.OS{}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	w, err := s.Writer("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, &stream{size, rand.NewChaCha8([32]byte{})}); err != nil {
		t.Fatal(err)
	}
	info, err := w.Commit("", size)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), info.Digest); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Fatalf("%d bytes were allocated for %d bytes of content", n, int64(size))
	}
}

func TestLinkToAnotherFileSystemSaysSo(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	s := open(t, disk)
	d := put(t, s, sample(100, 13))
	disk.FailAt(1, syscall.EXDEV)
	wantCode(t, s.Link(d, "/model.onnx"), atelier.Unsupported)
}

func TestAbortDropsWhatCameIn(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	s := open(t, disk)
	data := sample(5*piece, 14)
	in, err := s.Ingest(atelier.DigestOf(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fill(in, data, 2); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds nothing, and that is fine
		if err := s.Abort(in.Digest()); err != nil {
			t.Fatal(err)
		}
	}
	if left := files(t, disk, "/content"); len(left) > 0 {
		t.Fatalf("%v stayed", left)
	}
}
