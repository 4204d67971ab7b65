package content_test

import (
	"bytes"
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

func TestAbortUnneededLeavesWhatIsNeeded(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	now := time.Now()
	s := open(t, disk, content.WithClock(func() time.Time { return now }))
	arrived := func(data []byte) int64 {
		t.Helper()
		n, err := s.Arrived(atelier.DigestOf(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	needed, other := sample(5*piece, 11), sample(5*piece, 12)
	for _, data := range [][]byte{needed, other} {
		if n := arrived(data); n != 0 {
			t.Fatalf("%d bytes have arrived of what was never begun", n)
		}
		in, err := s.Ingest(atelier.DigestOf(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fill(in, data, 2); err != nil {
			t.Fatal(err)
		}
		done := in.Done()
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		if n := arrived(data); n != done || n == 0 {
			t.Fatalf("%d bytes have arrived, the ingest had accepted %d", n, done)
		}
	}
	if n, err := s.Arrived(atelier.DigestOf(needed), 1); err != nil || n != 0 {
		t.Errorf("%d bytes have arrived of content of another size, %v", n, err)
	}
	pass := func() {
		t.Helper()
		now = now.Add(time.Hour)
		if err := s.AbortUnneeded(90*time.Minute, func(d atelier.Digest) bool { return d == atelier.DigestOf(needed) }); err != nil {
			t.Fatal(err)
		}
	}
	if pass(); arrived(other) == 0 {
		t.Error("it was dropped too early")
	}
	if pass(); arrived(other) != 0 || arrived(needed) == 0 {
		t.Errorf("%d bytes are left of what nobody needs, %d of what is needed", arrived(other), arrived(needed))
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
