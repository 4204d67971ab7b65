package fetch

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/content/transfer"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

// hub is a Receiver that has contents of its own.
type hub struct {
	store *content.Store
	has   map[atelier.Digest][]byte
	err   error

	mu     sync.Mutex
	asked  []atelier.Digest
	bases  [][]atelier.Digest // that were offered with each
	active int
	most   int
	gate   chan struct{} // where not nil, each Receive waits for it
}

func (h *hub) Fetch(ctx context.Context, file atelier.File, bases []atelier.Digest, progress func(int64)) (transfer.Arrival, error) {
	d, size := file.Digest, file.Size
	h.mu.Lock()
	h.asked = append(h.asked, d)
	h.bases = append(h.bases, bases)
	h.active++
	h.most = max(h.most, h.active)
	h.mu.Unlock()
	defer func() { h.mu.Lock(); h.active--; h.mu.Unlock() }()
	if h.gate != nil {
		select {
		case <-h.gate:
		case <-ctx.Done():
			return transfer.Arrival{}, ctx.Err()
		}
	}
	if h.err != nil {
		return transfer.Arrival{}, h.err
	}
	progress(size / 2)
	w, err := h.store.Writer("")
	if err != nil {
		return transfer.Arrival{}, err
	}
	if _, err := w.Write(h.has[d]); err != nil {
		return transfer.Arrival{}, err
	}
	_, err = w.Commit(d, size)
	return transfer.Arrival{Way: transfer.WayWhole, Received: size}, err
}

func setup(t *testing.T, contents ...string) (*hub, *durabletest.Disk, []atelier.File) {
	t.Helper()
	disk := durabletest.NewDisk()
	disk.SetSpace(1 << 20)
	store, err := content.Open(disk, "/content")
	if err != nil {
		t.Fatal(err)
	}
	h := &hub{store: store, has: map[atelier.Digest][]byte{}}
	var files []atelier.File
	for _, c := range contents {
		d := atelier.DigestOf([]byte(c))
		h.has[d] = []byte(c)
		files = append(files, atelier.File{Path: c, Digest: d, Size: int64(len(c))})
	}
	return h, disk, files
}

func TestFetchesWhatIsMissingOnce(t *testing.T) {
	t.Parallel()
	h, _, files := setup(t, "one", "three", "one")
	f := New(h.store, h, Options{})
	var told []int64
	if err := f.Fetch(t.Context(), files, func(n int64) { told = append(told, n) }); err != nil {
		t.Fatal(err)
	}
	if len(h.asked) != 2 {
		t.Errorf("asked for %d contents, want 2", len(h.asked))
	}
	for i := 1; i < len(told); i++ {
		if told[i] < told[i-1] {
			t.Errorf("progress goes back: %v", told)
		}
	}
	if last := told[len(told)-1]; last != Size(files) || last != 8 {
		t.Errorf("progress ends at %d, the files have %d bytes", last, Size(files))
	}
	if err := f.Fetch(t.Context(), files, func(int64) {}); err != nil || len(h.asked) != 2 {
		t.Errorf("fetched again: %v, %d", err, len(h.asked))
	}
}

func TestPassesErrorsOn(t *testing.T) {
	t.Parallel()
	h, _, files := setup(t, "one")
	h.err = atelier.Errorf(atelier.NotFound, "gone")
	if err := New(h.store, h, Options{}).Fetch(t.Context(), files, func(int64) {}); !errors.Is(err, h.err) {
		t.Errorf("got %v", err)
	}
}

func TestModulesTakeTurns(t *testing.T) {
	t.Parallel()
	h, _, files := setup(t, "a", "bb", "ccc", "dddd")
	h.gate = make(chan struct{})
	f := New(h.store, h, Options{})
	var wg sync.WaitGroup
	for _, file := range files {
		wg.Go(func() {
			if err := f.Fetch(t.Context(), []atelier.File{file}, func(int64) {}); err != nil {
				t.Error(err)
			}
		})
	}
	for range files {
		h.gate <- struct{}{}
	}
	wg.Wait()
	if h.most > 1 {
		t.Errorf("%d fetches at a time", h.most)
	}
	// One that waits for its turn lets go when it is told to.
	h.has[atelier.DigestOf([]byte("x"))] = []byte("x")
	late := []atelier.File{{Path: "x", Digest: atelier.DigestOf([]byte("x")), Size: 1}}
	f.turn.token <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Fetch(ctx, late, func(int64) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestDamagedContentIsFetchedAnew(t *testing.T) {
	t.Parallel()
	h, disk, files := setup(t, "one")
	none := func(int64) {}
	if err := New(h.store, h, Options{Log: slog.New(slog.DiscardHandler)}).Fetch(t.Context(), files, none); err != nil {
		t.Fatal(err)
	}
	hex := files[0].Digest.Hex()
	path := "/content/blobs/sha256/" + hex[:2] + "/" + hex
	if err := durable.WriteFile(disk, path, []byte("onE"), 0o400); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	f := New(h.store, h, Options{Log: slog.New(slog.NewTextHandler(&log, nil))}) // the agent starts again
	for range 2 {
		if err := f.Fetch(t.Context(), files, none); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.store.Verify(t.Context(), files[0].Digest); err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "DigestMismatch"); n != 1 || len(h.asked) != 2 {
		t.Errorf("asked for %v; the log says:\n%s", h.asked, &log)
	}
}

// TestImportGoesAroundTheHub: while a fetch waits for the hub, the same content
// comes another way, and the fetch goes on with it.
func TestImportGoesAroundTheHub(t *testing.T) {
	t.Parallel()
	h, _, files := setup(t, "one", "three")
	h.gate = make(chan struct{}) // the hub never answers
	f := New(h.store, h, Options{Holdings: func() []Holding { return nil }})
	waiting := make(chan error, 1)
	go func() { waiting <- f.Fetch(t.Context(), files, func(int64) {}) }()
	bring := func(_ context.Context, file atelier.File) error {
		w, err := h.store.Writer("")
		if err != nil {
			return err
		}
		if _, err = w.Write(h.has[file.Digest]); err == nil {
			_, err = w.Commit(file.Digest, file.Size)
		}
		return errors.Join(err, w.Close())
	}
	brought, err := f.Import(t.Context(), files, bring)
	if err != nil || brought != 8 {
		t.Fatalf("brought %d bytes: %v", brought, err)
	}
	if err := <-waiting; err != nil {
		t.Errorf("the fetch that waited: %v", err)
	}
	if brought, err := f.Import(t.Context(), files, bring); brought != 0 || err != nil {
		t.Errorf("again: %d bytes, %v", brought, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.waiting) != 0 {
		t.Errorf("%d still wait", len(f.waiting))
	}
}

// TestImportThatFailsLeavesTheOthersWaiting for the hub.
func TestImportThatFailsLeavesTheOthersWaiting(t *testing.T) {
	t.Parallel()
	h, _, files := setup(t, "one")
	h.gate = make(chan struct{})
	f := New(h.store, h, Options{Holdings: func() []Holding { return nil }})
	waiting := make(chan error, 1)
	go func() { waiting <- f.Fetch(t.Context(), files, func(int64) {}) }()
	broken := errors.New("the stick is broken")
	if _, err := f.Import(t.Context(), files, func(context.Context, atelier.File) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	close(h.gate)
	if err := <-waiting; err != nil {
		t.Error(err)
	}
}

// damage changes a byte of a content.
func damage(t *testing.T, disk *durabletest.Disk, d atelier.Digest) {
	t.Helper()
	path := "/content/blobs/sha256/" + d.Hex()[:2] + "/" + d.Hex()
	f, err := disk.OpenFile(path, os.O_RDONLY, 0)
	if err == nil {
		err = errors.Join(f.Chmod(0o600), f.Close())
	}
	if err == nil {
		f, err = disk.OpenFile(path, os.O_RDWR, 0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte("?"), 0)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// What may resemble a file is offered when it is what its digest says; what is damaged
// stays where it is, for whoever runs it.
func TestOffersSoundBases(t *testing.T) {
	t.Parallel()
	h, disk, files := setup(t, "base", "damaged", "gone", "new")
	for _, f := range files[:2] {
		w, err := h.store.Writer("")
		if err == nil {
			_, err = w.Write(h.has[f.Digest])
		}
		if err == nil {
			_, err = w.Commit(f.Digest, f.Size)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	damage(t, disk, files[1].Digest)
	var arrived []transfer.Arrival
	f := New(h.store, h, Options{
		Bases: func(file atelier.File) []atelier.Digest {
			if file != files[3] {
				t.Errorf("asked for bases of %s", file.Path)
			}
			return []atelier.Digest{files[2].Digest, files[0].Digest, files[1].Digest}
		},
		Arrived: func(_ atelier.File, a transfer.Arrival) { arrived = append(arrived, a) },
		Log:     slog.New(slog.DiscardHandler),
	})
	for range 2 {
		if err := f.Fetch(t.Context(), files[3:], func(int64) {}); err != nil {
			t.Fatal(err)
		}
		if err := h.store.Delete(files[3].Digest); err != nil {
			t.Fatal(err)
		}
	}
	for _, offered := range h.bases {
		if len(offered) != 1 || offered[0] != files[0].Digest {
			t.Errorf("offered %v", offered)
		}
	}
	if has, err := h.store.Has(files[1].Digest); !has || err != nil {
		t.Errorf("the damaged content is gone: %v", err)
	}
	if len(arrived) != 2 || arrived[0].Way != transfer.WayWhole {
		t.Errorf("told %+v", arrived)
	}
}

// TestPrefetchGivesWay: what is not needed yet waits for what is, also in the midst
// of its transfer, and goes on afterwards.
func TestPrefetchGivesWay(t *testing.T) {
	t.Parallel()
	h, _, files := setup(t, "later", "first", "second")
	h.gate = make(chan struct{})
	f := New(h.store, h, Options{Log: slog.New(slog.DiscardHandler)})
	nothing := func(int64) {}
	asked := func(n int) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for {
			h.mu.Lock()
			enough := len(h.asked) >= n
			h.mu.Unlock()
			if enough {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("asked %d times, never %d", len(h.asked), n)
			}
			time.Sleep(time.Millisecond) // the pause of a poll
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Prefetch(t.Context(), files[:1], nothing); err != nil {
			t.Error(err)
		}
	})
	asked(1)
	for _, file := range files[1:] {
		wg.Go(func() {
			if err := f.Fetch(t.Context(), []atelier.File{file}, nothing); err != nil {
				t.Error(err)
			}
		})
	}
	asked(2)
	for range files {
		h.gate <- struct{}{}
	}
	wg.Wait()
	if later := files[0].Digest; h.asked[0] != later || h.asked[3] != later || h.most > 1 {
		t.Errorf("asked in the order %v, %d at a time", h.asked, h.most)
	}
	// One that may go no further lets go of its loan.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	late := []atelier.File{{Path: "x", Digest: atelier.DigestOf([]byte("x")), Size: 1}}
	if err := f.Prefetch(ctx, late, nothing); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if has, err := f.here(t.Context(), files, nothing); err != nil || !has {
		t.Errorf("not all is here: %v", err)
	}
	if err := f.Fetch(t.Context(), files, nothing); err != nil {
		t.Error(err)
	}
}
