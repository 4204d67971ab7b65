package fetch

import (
	"context"
	"log/slog"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
)

// smallDisk is a real directory on a disk of which the test says how much is free
// beside what the store takes.
type smallDisk struct {
	durable.OS
	free atomic.Int64
}

func (d *smallDisk) Free(string) (int64, error) { return d.free.Load(), nil }

// holdings makes Options whose Holdings are the ones given.
func holdings(p Policy, all ...Holding) Options {
	return Options{
		Log: slog.New(slog.DiscardHandler), Policy: func() Policy { return p }, Holdings: func() []Holding { return all },
	}
}

func holding(version int, files ...atelier.File) Holding {
	return Holding{Model: "digits", Version: version, Files: files}
}

func previous(h Holding) Holding {
	h.Previous = true
	return h
}

func freeOf(t *testing.T, h *hub) int64 {
	t.Helper()
	free, err := h.store.Free()
	if err != nil {
		t.Fatal(err)
	}
	return free
}

func fetchAll(t *testing.T, f *Fetcher, files ...atelier.File) {
	t.Helper()
	if err := f.Fetch(t.Context(), files, func(int64) {}); err != nil {
		t.Fatal(err)
	}
}

// holds checks which of files are in the store.
func (h *hub) holds(t *testing.T, files map[string]atelier.File, want map[string]bool) {
	t.Helper()
	for name, there := range want {
		if has, err := h.store.Has(files[name].Digest); err != nil || has != there {
			t.Errorf("%s is there: %v, %v; expected %v", name, has, err, there)
		}
	}
}

func TestSaysExactlyHowMuchSpaceIsMissing(t *testing.T) {
	t.Parallel()
	h, _, files := setup(t, strings.Repeat("x", 1000))
	f := New(h.store, h, holdings(Policy{Reserve: freeOf(t, h) - 900}))
	err := f.Fetch(t.Context(), files, func(int64) {})
	if atelier.CodeOf(err) != atelier.NoSpace || !strings.HasPrefix(err.Error(), "needs 1000 B, 1.0 MiB free (1023.1 KiB of it kept in reserve)") {
		t.Errorf("got %v", err)
	}
	if why := atelier.BecauseOf(atelier.ReasonNoSpace, err); !strings.Contains(why.Remedy(), "Free at least 100 B on the device") {
		t.Errorf("the remedy is %q", why.Remedy())
	}
	if len(h.asked) != 0 {
		t.Error("it began all the same")
	}
}

// TestNamesWhatCouldBeFreed: the way back stays by policy, also on a full disk, and
// whoever reads the reason learns what giving it up would bring.
func TestNamesWhatCouldBeFreed(t *testing.T) {
	t.Parallel()
	part := strings.Repeat
	h, _, files := setup(t, part("3", 300), part("4", 100), part("5", 200), part("6", 1000), part("r", 50))
	three, four, five, six, runtime := files[0], files[1], files[2], files[3], files[4]
	have := []Holding{previous(holding(4, four, runtime)), previous(holding(3, three, runtime)), holding(5, five, runtime), holding(6, six, runtime)}
	before := New(h.store, h, holdings(Policy{KeepPrevious: true}, have...))
	fetchAll(t, before, three, four, five, runtime)

	full := Policy{Reserve: freeOf(t, h) - 700, KeepPrevious: true}
	err := New(h.store, h, holdings(full, have...)).Fetch(t.Context(), []atelier.File{six, runtime}, func(int64) {})
	if atelier.CodeOf(err) != atelier.NoSpace || !strings.Contains(err.Error(), "400 B can be freed by removing versions 3 and 4 of digits") {
		t.Fatalf("got %v", err)
	}
	if why := atelier.BecauseOf(atelier.ReasonNoSpace, err); !strings.Contains(why.Remedy(), "disk.keep_previous = false") {
		t.Errorf("the remedy is %q", why.Remedy())
	}
	for _, file := range []atelier.File{three, four, five, runtime} {
		if has, err := h.store.Has(file.Digest); err != nil || !has {
			t.Errorf("%.3s… is gone: %v", file.Path, err)
		}
	}

	// Where it would not be enough, nobody is told to give it up.
	fuller := Policy{Reserve: freeOf(t, h) - 100, KeepPrevious: true}
	err = New(h.store, h, holdings(fuller, have...)).Fetch(t.Context(), []atelier.File{six, runtime}, func(int64) {})
	if why := atelier.BecauseOf(atelier.ReasonNoSpace, err); strings.Contains(why.Remedy(), "keep_previous") || !strings.Contains(err.Error(), "400 B") {
		t.Errorf("got %v; the remedy is %q", err, why.Remedy())
	}

	// Given up, both go, and what is in use stays.
	full.KeepPrevious = false
	if err := New(h.store, h, holdings(full, have...)).Fetch(t.Context(), []atelier.File{six, runtime}, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[atelier.File]bool{three: false, four: false, five: true, six: true, runtime: true} {
		if has, err := h.store.Has(file.Digest); err != nil || has != want {
			t.Errorf("%.3s… is there: %v, %v; expected %v", file.Path, has, err, want)
		}
	}
}

// TestTellsWhatIsStored: a hub that plans learns what is there, and what of it would go.
func TestTellsWhatIsStored(t *testing.T) {
	t.Parallel()
	h, _, files := setup(t, strings.Repeat("unneeded", 100), strings.Repeat("kept", 100), strings.Repeat("new", 100))
	old, kept, fresh := files[0], files[1], files[2]
	fetchAll(t, New(h.store, h, holdings(Policy{})), old, kept, fresh)
	for _, keeps := range []bool{true, false} {
		f := New(h.store, h, holdings(Policy{Reserve: 7, KeepPrevious: keeps}, previous(holding(1, kept)), holding(2, fresh)))
		want := atelier.Storage{Reserve: 7, KeepsPrevious: keeps, Content: []atelier.Stored{
			{Digest: old.Digest, Size: old.Size, Unneeded: true},
			{Digest: kept.Digest, Size: kept.Size, Unneeded: !keeps},
			{Digest: fresh.Digest, Size: fresh.Size},
		}}
		if got, err := f.Storage(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

// TestFullDiskGivesUpWhatNothingNeeds: content that is only kept for a while must
// not keep new content out.
func TestFullDiskGivesUpWhatNothingNeeds(t *testing.T) {
	t.Parallel()
	h, _, files := setup(t, strings.Repeat("old", 400), strings.Repeat("kept", 300), strings.Repeat("new", 400))
	old, kept, fresh := files[0], files[1], files[2]
	fetchAll(t, New(h.store, h, holdings(Policy{})), old, kept)
	full := Policy{Reserve: freeOf(t, h) - 100, Keep: time.Hour, KeepPrevious: true}
	o, freed := holdings(full, previous(holding(1, kept)), holding(2, fresh)), 0
	o.Freed = func() { freed++ }
	fetchAll(t, New(h.store, h, o), fresh)
	if freed != 1 {
		t.Errorf("content was freed, and that was told %d times", freed)
	}
	for file, want := range map[atelier.File]bool{old: false, kept: true, fresh: true} {
		if has, err := h.store.Has(file.Digest); err != nil || has != want {
			t.Errorf("%.6s… is there: %v, %v; expected %v", file.Path, has, err, want)
		}
	}
}

// TestWhatCameInPartCounts: what is there of a content that did not come to its end
// needs no space again; what is there of one that nothing needs goes when space is short.
func TestWhatCameInPartCounts(t *testing.T) {
	t.Parallel()
	disk := &smallDisk{}
	disk.free.Store(1 << 20)
	store, err := content.Open(disk, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := &hub{store: store, has: map[atelier.Digest][]byte{}}
	begin := func(text string, arrived int64) atelier.File {
		t.Helper()
		f := atelier.File{Path: text[:1], Digest: atelier.DigestOf([]byte(text)), Size: int64(len(text))}
		h.has[f.Digest] = []byte(text)
		in, err := store.Ingest(f.Digest, f.Size)
		if err != nil {
			t.Fatal(err)
		}
		part := []byte(text)[:arrived]
		if _, err := in.WriteAt(part, 0); err != nil {
			t.Fatal(err)
		}
		sum, err := atelier.DigestOf(part).Sum()
		if err != nil {
			t.Fatal(err)
		}
		if err := in.Accept(content.Range{Start: 0, End: arrived}, sum); err != nil {
			t.Fatal(err)
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		return f
	}
	wanted, dropped := begin(strings.Repeat("w", 1000), 600), begin(strings.Repeat("d", 1000), 500)
	f := New(store, h, holdings(Policy{Keep: time.Hour}, holding(2, wanted)))

	disk.free.Store(300)
	err = f.Fetch(t.Context(), []atelier.File{wanted}, func(int64) {})
	if atelier.CodeOf(err) != atelier.NoSpace || !strings.HasPrefix(err.Error(), "needs 400 B, 300 B free") {
		t.Fatalf("got %v", err)
	}
	for file, want := range map[atelier.File]int64{wanted: 600, dropped: 0} {
		if n, err := store.Arrived(file.Digest, file.Size); err != nil || n != want {
			t.Errorf("%d bytes of %s have arrived, %v; expected %d", n, file.Path, err, want)
		}
	}
	disk.free.Store(400)
	if err := f.room([]atelier.File{wanted}); err != nil {
		t.Errorf("what is missing fits: %v", err)
	}
}

func TestCollectKeepsWhatIsNeeded(t *testing.T) {
	t.Parallel()
	disk := &smallDisk{}
	disk.free.Store(1 << 20)
	now := time.Now()
	store, err := content.Open(disk, t.TempDir(), content.WithClock(func() time.Time { return now }))
	if err != nil {
		t.Fatal(err)
	}
	h := &hub{store: store, has: map[atelier.Digest][]byte{}}
	files := map[string]atelier.File{}
	for _, name := range []string{"runs", "way back", "old"} {
		d := atelier.DigestOf([]byte(name))
		h.has[d] = []byte(name)
		files[name] = atelier.File{Path: name, Digest: d, Size: int64(len(name))}
	}
	policy := Policy{Keep: time.Hour, KeepPrevious: true}
	f := New(store, h, Options{
		Policy:   func() Policy { return policy },
		Holdings: func() []Holding { return []Holding{holding(3, files["runs"]), previous(holding(2, files["way back"]))} },
	})
	fetchAll(t, f, files["runs"], files["way back"], files["old"])
	pass := func(want map[string]bool) {
		t.Helper()
		if err := f.collect(context.WithoutCancel(t.Context()), policy.Keep); err != nil {
			t.Fatal(err)
		}
		h.holds(t, files, want)
		now = now.Add(policy.Keep + time.Minute)
	}
	pass(map[string]bool{"runs": true, "way back": true, "old": true}) // condemned, and kept for a while
	pass(map[string]bool{"runs": true, "way back": true, "old": false})
	policy.KeepPrevious = false
	pass(map[string]bool{"runs": true, "way back": true})
	pass(map[string]bool{"runs": true, "way back": false})
}
