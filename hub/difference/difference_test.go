package difference

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/content/delta"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

// world is a hub's contents on one disk and its cache of differences on another, so
// that faults meet only the latter.
type world struct {
	t        *testing.T
	contents *content.Store
	disk     *durabletest.Disk
	opts     Options
	now      time.Time
	real     bool // encode and decode, which is slow
	size     int  // of differences, where they are not real
}

func newWorld(t *testing.T) *world {
	t.Helper()
	contents, err := content.Open(durabletest.NewDisk(), "/content")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, contents: contents, disk: durabletest.NewDisk(), size: 2000, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	w.opts = Options{FS: w.disk, Dir: "/differences", Contents: contents, Now: func() time.Time {
		w.now = w.now.Add(time.Second)
		return w.now
	}}
	return w
}

func (w *world) add(b []byte) atelier.Digest {
	w.t.Helper()
	in, err := w.contents.Writer("")
	if err == nil {
		_, err = in.Write(b)
	}
	var info content.Info
	if err == nil {
		info, err = in.Commit("", -1)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return info.Digest
}

// open opens the cache; run lets it work until the returned function is called.
func (w *world) open() *Cache {
	w.t.Helper()
	c, err := w.tryOpen()
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) tryOpen() (*Cache, error) {
	c, err := Open(w.opts)
	if err == nil && !w.real {
		c.encode, c.decode = w.encode, w.decode
	}
	return c, err
}

// encode makes what only names its target, and has w.size bytes.
func (w *world) encode(_ context.Context, out io.Writer, target delta.File, _ []delta.File, o delta.Options) (delta.Result, error) {
	if int64(w.size) > o.MaxSize {
		return delta.Result{}, atelier.Errorf(atelier.TooLarge, "more than %d bytes", o.MaxSize)
	}
	b := make([]byte, w.size)
	copy(b, target.Digest)
	_, err := out.Write(b)
	return delta.Result{Size: int64(w.size), Methods: map[string]int64{"FP32": target.Size}}, err
}

// decode gives what the hub has of the target that a difference names.
func (w *world) decode(_ context.Context, out io.Writer, difference io.Reader, _ int64, _ func(atelier.Digest) (io.ReaderAt, int64, error)) error {
	b, err := io.ReadAll(difference)
	if err != nil {
		return err
	}
	blob, err := w.contents.Open(atelier.Digest(b[:len(atelier.DigestOf(nil))]))
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.NewSectionReader(blob, 0, blob.Size()))
	return errors.Join(err, blob.Close())
}

func run(t *testing.T, c *Cache) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	return sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
}

// get returns the bytes of a difference, waiting until it is made; nil for none.
func get(t *testing.T, c *Cache, target, base atelier.Digest) []byte {
	t.Helper()
	for {
		d, ready := c.Find(target, base)
		if d != nil {
			b, err := io.ReadAll(io.NewSectionReader(d.Blob, 0, d.Blob.Size()))
			if err := errors.Join(err, d.Blob.Close()); err != nil {
				t.Fatal(err)
			}
			if atelier.DigestOf(b) != d.Digest {
				t.Fatal("a difference is not what its digest says")
			}
			return b
		}
		if ready == nil {
			return nil
		}
		select {
		case <-ready:
		case <-t.Context().Done():
			t.Fatal("no difference came")
		}
	}
}

func sample(n int, seed uint64) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0] = byte(seed)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

func edited(b []byte, at, n int) []byte {
	b = slices.Clone(b)
	copy(b[at:], sample(n, 99))
	return b
}

func apply(t *testing.T, difference, base, target []byte) {
	t.Helper()
	var out bytes.Buffer
	err := delta.Decode(t.Context(), &out, bytes.NewReader(difference), int64(len(target)), func(atelier.Digest) (io.ReaderAt, int64, error) {
		return bytes.NewReader(base), int64(len(base)), nil
	})
	if err != nil || !bytes.Equal(out.Bytes(), target) {
		t.Fatalf("the difference brings something else, %v", err)
	}
}

func TestMakesOnceAndKeeps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.real = true
	old := sample(10_000, 1)
	now := edited(old, 1000, 500)
	target, base := w.add(now), w.add(old)
	c := w.open()
	stop := run(t, c)
	d := get(t, c, target, base)
	apply(t, d, old, now)
	if len(d) > 2000 {
		t.Errorf("the difference has %d bytes", len(d))
	}
	for range 3 {
		get(t, c, target, base)
	}
	if s := c.Stats(); s.Made != 1 || s.Found != 4 || s.Kept != 1 || s.Bytes != int64(len(d)) {
		t.Errorf("%+v", s)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	w.disk.Restart(nil)
	c = w.open() // nothing runs: it is there
	if got := get(t, c, target, base); !bytes.Equal(got, d) {
		t.Error("the difference is not there after a restart")
	}
	if s := c.Stats(); s.Made != 0 || s.Kept != 1 {
		t.Errorf("after a restart: %+v", s)
	}
}

func TestWhatSavesLittleIsDroppedAndRemembered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.size = 19_001
	target, base, small := w.add(sample(20_000, 1)), w.add(sample(20_000, 2)), w.add([]byte("small"))
	c := w.open()
	stop := run(t, c)
	for range 2 {
		for _, b := range []atelier.Digest{base, ""} {
			if d := get(t, c, target, b); d != nil {
				t.Errorf("%d bytes for content that nothing is known of", len(d))
			}
		}
		if d := get(t, c, small, ""); d != nil {
			t.Errorf("%d bytes for 5", len(d))
		}
	}
	if s := c.Stats(); s.Useless != 3 || s.Made != 0 || s.Kept != 0 {
		t.Errorf("%+v", s)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	c = w.open()
	if d, ready := c.Find(target, base); d != nil || ready != nil {
		t.Error("it is tried again after a restart")
	}
}

// While a difference is made, it is known how it will come out.
func TestExpects(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	target, base, other := w.add(sample(20_000, 1)), w.add(sample(20_000, 2)), w.add(sample(20_000, 3))
	c := w.open()
	began, estimate, end := make(chan struct{}), make(chan struct{}), make(chan struct{})
	estimated := make(chan struct{})
	c.encode = func(_ context.Context, out io.Writer, _ delta.File, _ []delta.File, o delta.Options) (delta.Result, error) {
		close(began)
		<-estimate
		o.Expect(delta.Estimate{Size: 300, Methods: map[string]int64{"FP32": 10_000_000}, Coding: time.Hour})
		close(estimated)
		<-end
		return delta.Result{}, atelier.Errorf(atelier.TooLarge, "it is no use")
	}
	_, ready := c.Find(target, base)
	c.Prepare(other, base)
	if e, making := c.Expect(target, base); making {
		t.Errorf("%+v of one that waits for its turn", e)
	}
	defer run(t, c)()
	<-began
	if e, making := c.Expect(target, base); !making || e.Known || e.For <= 0 {
		t.Errorf("%+v before there is an estimate", e)
	}
	if _, making := c.Expect(other, base); making {
		t.Error("two are made at once")
	}
	close(estimate)
	<-estimated
	e, making := c.Expect(target, base)
	if !making || !e.Known || e.Size != 300 || e.Decoding != time.Second || e.Rest <= time.Hour || e.Rest >= 2*time.Hour {
		t.Errorf("%+v", e)
	}
	c.encode = w.encode // of the other one
	close(end)
	<-ready
	if _, making := c.Expect(target, base); making {
		t.Error("one that was given up is still made")
	}
}

func TestCompressesWithoutABase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.real = true
	now := bytes.Repeat([]byte("weights "), 1_000)
	target := w.add(now)
	c := w.open()
	defer run(t, c)()
	d := get(t, c, target, "")
	apply(t, d, nil, now)
	if len(d) > 1000 {
		t.Errorf("%d bytes", len(d))
	}
}

func TestTheLeastUsedGoesFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	old := sample(20_000, 1)
	base := w.add(old)
	var targets []atelier.Digest
	for i := range 4 {
		targets = append(targets, w.add(edited(old, 4_000*i, 2_000)))
	}
	w.opts.Limit = 7_000
	c := w.open()
	defer run(t, c)()
	for i, target := range targets {
		if get(t, c, target, base) == nil {
			t.Fatal("there is no difference")
		}
		if i > 0 {
			get(t, c, targets[0], base) // used again and again
		}
	}
	s := c.Stats()
	if s.Bytes > w.opts.Limit || s.Kept != 3 || s.Made != 4 {
		t.Fatalf("%+v", s)
	}
	if d, _ := c.Find(targets[0], base); d == nil {
		t.Error("the one that was used most is gone")
	} else if err := d.Blob.Close(); err != nil {
		t.Error(err)
	}
	if d, ready := c.Find(targets[1], base); d != nil || ready == nil {
		t.Error("the one that was used least is there")
	}
}

func TestDamagedDifferenceIsMadeAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	old := sample(20_000, 1)
	now := edited(old, 1000, 500)
	target, base := w.add(now), w.add(old)
	c := w.open()
	defer run(t, c)()
	want := get(t, c, target, base)
	d, _ := c.Find(target, base)
	d.Spoiled()
	d.Spoiled() // of two devices
	if err := d.Blob.Close(); err != nil {
		t.Fatal(err)
	}
	if got := get(t, c, target, base); !bytes.Equal(got, want) || c.Stats().Made != 2 {
		t.Errorf("%d bytes, %+v", len(got), c.Stats())
	}
}

// A damaged copy of a base or target in the hub's store shows before a difference is given.
func TestDamagedContentGivesNoDifference(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	disk := durabletest.NewDisk()
	var err error
	if w.contents, err = content.Open(disk, "/content"); err != nil {
		t.Fatal(err)
	}
	w.opts.Contents = w.contents
	old := sample(20_000, 1)
	target, base := w.add(edited(old, 1000, 500)), w.add(old)
	path := "/content/blobs/sha256/" + target.Hex()[:2] + "/" + target.Hex()
	f, err := disk.OpenFile(path, os.O_RDONLY, 0)
	if err == nil {
		err = errors.Join(f.Chmod(0o600), f.Close())
	}
	if err == nil {
		f, err = disk.OpenFile(path, os.O_RDWR, 0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte("x"), 10_000)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	c := w.open()
	defer run(t, c)()
	if d := get(t, c, target, base); d != nil {
		t.Errorf("a difference of %d bytes to damaged content", len(d))
	}
	if s := c.Stats(); s.Failed != 1 || s.Kept != 0 {
		t.Errorf("%+v", s)
	}
}

// The disk fails, or the power goes, at each step of making and evicting; what is
// given afterwards is right, and nothing is left that nobody names.
func TestFaultsAtEveryStep(t *testing.T) {
	t.Parallel()
	old := sample(4_500, 1)
	first, second := old[:4_300], old[:4_200] // small ones are made and decoded quickly
	for name, fault := range map[string]func(d *durabletest.Disk, n int){
		"power cut": func(d *durabletest.Disk, n int) { d.CutAt(n) },
		"failure":   func(d *durabletest.Disk, n int) { d.FailAt(n, syscall.EIO) },
		"full disk": func(d *durabletest.Disk, n int) { d.FailAt(n, syscall.ENOSPC) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 1; ; n++ {
				w := newWorld(t)
				w.opts.Limit = int64(w.size) * 3 / 2 // one of both
				targets := map[atelier.Digest][]byte{w.add(first): first, w.add(second): second}
				base := w.add(old)
				fault(w.disk, n)
				begun := w.disk.Operations()
				work := func() error {
					c, err := w.tryOpen()
					if err != nil {
						return err
					}
					stop := run(t, c)
					for target, now := range targets {
						if d := get(t, c, target, base); d != nil && !bytes.HasPrefix(d, []byte(atelier.DigestOf(now))) {
							t.Errorf("step %d: a difference is of another content", n)
						}
					}
					return stop()
				}
				err := work()
				steps := w.disk.Operations() - begun
				if name == "power cut" {
					w.disk.Restart(rand.New(rand.NewPCG(uint64(n), 7)))
				}
				w.disk.FailAt(1<<40, nil) // no fault after that one
				if err := work(); err != nil {
					t.Fatalf("step %d: %v", n, err)
				}
				c := w.open()
				if s := c.Stats(); s.Kept > 1 || s.Bytes > w.opts.Limit {
					t.Fatalf("step %d: %+v", n, s)
				}
				kept := 0
				if err := c.store.Walk(func(content.Info) error { kept++; return nil }); err != nil || kept != c.Stats().Kept {
					t.Fatalf("step %d: %d differences lie there, %d are named, %v", n, kept, c.Stats().Kept, err)
				}
				left, err2 := w.disk.ReadDir("/differences/ingest")
				if err2 != nil || len(left) > 0 {
					t.Fatalf("step %d: %v is left, %v", n, left, err2)
				}
				if n > steps && err == nil {
					if n < 20 {
						t.Fatalf("only %d steps were seen", n)
					}
					return
				}
			}
		})
	}
}

func TestUnreadableIndex(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"damaged": `{"format":1,"entries":[`, "newer": `{"format":9}`, "empty": "", "senseless": `{"entries":[null,{"target":"x","difference":"y","size_bytes":-5}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			old := sample(20_000, 1)
			target, base := w.add(edited(old, 1000, 500)), w.add(old)
			c := w.open()
			stop := run(t, c)
			get(t, c, target, base)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			f, err := w.disk.OpenFile("/differences/index.json", os.O_WRONLY|os.O_TRUNC, 0o600)
			if err == nil {
				_, err = f.Write([]byte(text))
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			c = w.open()
			if s := c.Stats(); s.Kept != 0 {
				t.Errorf("%+v", s)
			}
			defer run(t, c)()
			if get(t, c, target, base) == nil {
				t.Error("it is not made again")
			}
		})
	}
}

// A difference that failed for lack of space is not begun anew by each device that
// asks, and is made when there was time to free some.
func TestFailuresRest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	base, target := w.add(bytes.Repeat([]byte("old"), 10000)), w.add(bytes.Repeat([]byte("new"), 10000))
	c := w.open()
	stop := run(t, c)
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	w.disk.SetSpace(1 << 20)
	if d, ready := c.Find(target, base); d != nil || ready == nil {
		t.Fatalf("the difference is there already, or is not made: %v", d)
	} else {
		<-ready
	}
	for range 3 {
		if d, ready := c.Find(target, base); d != nil || ready != nil {
			t.Fatalf("after it failed: %v, being made: %t, expected was neither", d, ready != nil)
		}
	}
	if n := c.Stats().Failed; n != 1 {
		t.Errorf("it failed %d times, expected was once", n)
	}
	w.disk.SetSpace(1 << 40)
	c.mu.Lock()
	w.now = w.now.Add(tryAgain)
	c.mu.Unlock()
	_, ready := c.Find(target, base)
	if ready == nil {
		t.Fatal("it is not tried again")
	}
	<-ready
	d, _ := c.Find(target, base)
	if d == nil {
		t.Fatal("with space it is still not made")
	}
	if err := d.Blob.Close(); err != nil {
		t.Error(err)
	}
}

func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open() // nothing runs
	name := func(i int) atelier.Digest { return atelier.DigestOf([]byte(fmt.Sprint(i))) }
	for i := range 2 * maxJobs {
		c.Prepare(name(i), name(-i))
	}
	if len(c.jobs) != maxJobs {
		t.Errorf("%d are waited for", len(c.jobs))
	}
	if d, ready := c.Find(name(-1), name(1)); d != nil || ready != nil {
		t.Error("one more found room")
	}
	// Those that somebody waits for come first.
	if _, ready := c.Find(name(100), name(-100)); ready == nil {
		t.Error("one that is being made is not waited for")
	}
	if j := c.next(); j.pair.Target != name(100) {
		t.Errorf("%+v is next", j)
	}
	stop := run(t, c)
	_, ready := c.Find(name(100), name(-100))
	if ready != nil {
		<-ready // it cannot be made: there is no such content
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if len(c.jobs) != 0 {
		t.Errorf("%d are still waited for", len(c.jobs))
	}
	if !strings.HasPrefix(string(name(1)), "sha256:") {
		t.Error("a digest has another form")
	}
}
