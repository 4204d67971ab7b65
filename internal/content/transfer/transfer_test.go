package transfer

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

func TestFetchOfEverySize(t *testing.T) {
	t.Parallel()
	const frame = DefaultMaxFrame - dataHeader
	for _, size := range []int{0, 1, frame - 1, frame, frame + 1, smallestChunk, smallestChunk + 1, 3*smallestChunk + 12345} {
		synctest.Test(t, func(t *testing.T) {
			c := sample(size, 1)
			w := start(t, c)
			var told []int64
			_, err := w.recv.Fetch(t.Context(), fileOf(c), nil, func(done int64) { told = append(told, done) })
			if err != nil {
				t.Fatalf("size %d: %v", size, err)
			}
			w.check(c, true)
			if w.down.sent() != int64(size) {
				t.Fatalf("size %d: %d bytes were sent", size, w.down.sent())
			}
			if n := len(told); n == 0 || told[n-1] != int64(size) || !slices.IsSorted(told) {
				t.Fatalf("size %d: progress %v", size, told)
			}
			if err := w.fetch(c); err != nil || w.down.sent() != int64(size) {
				t.Fatalf("what was there was fetched again: %v", err)
			}
			synctest.Wait()
			if n := w.sender.Active(); n != 0 {
				t.Fatalf("the sender still knows of %d transfers", n)
			}
		})
	}
}

// faulty returns a fault for a line that treats each frame badly with chance p.
func faulty(rng *rand.Rand, p float64, kinds ...string) func(int, []byte) [][]byte {
	var mu sync.Mutex
	var late [][]byte
	return func(_ int, f []byte) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		out := late
		late = nil
		if rng.Float64() >= p {
			return append([][]byte{f}, out...)
		}
		switch kinds[rng.IntN(len(kinds))] {
		case "drop":
		case "double":
			out = append(out, f, f)
		case "reorder":
			late = [][]byte{f} // after the next one
		case "damage":
			f = slices.Clone(f)
			f[rng.IntN(len(f))] ^= byte(1 + rng.IntN(255))
			out = append(out, f)
		case "cut":
			out = append(out, f[:rng.IntN(len(f))])
		}
		return out
	}
}

func TestContentArrivesOverBadLines(t *testing.T) {
	t.Parallel()
	all := []string{"drop", "double", "reorder", "damage", "cut"}
	c := sample(2*smallestChunk+1000, 2)
	for _, kinds := range append([][]string{all}, split(all)...) {
		for _, p := range []float64{0.02, 0.2, 0.5} {
			for seed := range uint64(2) {
				t.Run(fmt.Sprintf("%v/%v/%d", kinds, p, seed), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						w := start(t, c)
						w.down.latency, w.up.latency = 20*time.Millisecond, 20*time.Millisecond
						w.down.fault = faulty(rand.New(rand.NewPCG(seed, 1)), p, kinds...)
						w.up.fault = faulty(rand.New(rand.NewPCG(seed, 2)), p, kinds...)
						if err := w.fetch(c); err != nil {
							t.Fatal(err)
						}
						if most := int64(float64(len(c)) * (1.5 + 3*p)); w.down.sent() > most {
							t.Fatalf("%d bytes were sent for %d", w.down.sent(), len(c))
						}
					})
				})
			}
		}
	}
}

func split(all []string) (out [][]string) {
	for _, s := range all {
		out = append(out, []string{s})
	}
	return out
}

// smallWindow is that of interrupted fetches: small, so that it shows if more than what
// was on its way comes again.
const smallWindow = 256 << 10

// interrupted fetches content while interrupt happens at the n-th frame that the sender
// sends, for every n, and checks how much had to be sent again and how long it took.
func interrupted(t *testing.T, extra int64, longest time.Duration, interrupt func(w *world)) {
	c := sample(4*smallestChunk+1000, 3)
	for n := 1; ; n++ {
		happened := false
		synctest.Test(t, func(t *testing.T) {
			w := start(t, c)
			w.ropts.Window = smallWindow
			w.startReceiver()
			w.down.latency, w.up.latency = 5*time.Millisecond, 5*time.Millisecond
			at := make(chan struct{})
			w.down.fault = func(i int, f []byte) [][]byte {
				if i == n {
					close(at)
				}
				return [][]byte{f}
			}
			done := make(chan error, 1)
			fetch := func() {
				w.mu.Lock()
				r := w.recv
				w.mu.Unlock()
				_, err := r.Fetch(t.Context(), fileOf(c), nil, nil)
				done <- err
			}
			go fetch()
			select {
			case <-at:
				happened = true
				interrupt(w)
			case err := <-done:
				done <- err
			}
			err := <-done
			if happened && err != nil { // the receiver was interrupted: once more
				go fetch()
				err = <-done
			}
			if err != nil {
				t.Fatalf("frame %d: %v", n, err)
			}
			w.check(c, true)
			if w.down.sent() > int64(len(c))+extra {
				t.Fatalf("frame %d: %d bytes were sent for %d", n, w.down.sent(), len(c))
			}
			if took := time.Since(epoch); took > longest {
				t.Fatalf("frame %d: it took %v", n, took)
			}
		})
		if t.Failed() {
			return
		}
		if !happened {
			if n < 35 {
				t.Fatalf("only %d frames were seen", n)
			}
			return
		}
	}
}

// epoch is when the clocks of synctest begin.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func TestSenderRestartsAtEveryFrame(t *testing.T) {
	t.Parallel()
	// What was on its way is not lost here, but may be asked for twice.
	interrupted(t, 2*smallWindow, 10*time.Second, func(w *world) { w.startSender() })
}

func TestLineIsCutAtEveryFrame(t *testing.T) {
	t.Parallel()
	interrupted(t, 2*smallWindow, 11*time.Second, func(w *world) {
		var cut atomic.Bool
		cut.Store(true)
		lost := func(_ int, f []byte) [][]byte {
			if cut.Load() {
				return nil
			}
			return [][]byte{f}
		}
		w.down.setFault(lost)
		w.up.setFault(lost)
		time.Sleep(10 * time.Second)
		cut.Store(false)
		w.recv.Reconnected()
	})
}

func (l *line) setFault(fault func(int, []byte) [][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault = fault
}

func TestReceiverLosesPowerAtEveryFrame(t *testing.T) {
	t.Parallel()
	// Lost are the unfinished chunk and what was on its way.
	interrupted(t, smallestChunk+2*smallWindow, 10*time.Second, func(w *world) {
		w.disk.CutAt(1) // the next thing that Fetch does to the disk fails
		time.Sleep(time.Second)
		w.disk.Restart(nil)
		w.startReceiver()
	})
}

func TestCancelledFetchResumes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(10*smallestChunk, 4)
		w := start(t, c)
		w.down.rate = 1 << 20
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := w.recv.Fetch(ctx, fileOf(c), nil, nil)
		wantCode(t, err, atelier.Timeout)
		w.check(c, false)
		synctest.Wait()
		time.Sleep(3 * time.Second)
		if w.sender.Active() != 0 {
			t.Fatal("the sender was not told")
		}
		before := w.down.sent()
		if err := w.fetch(c); err != nil {
			t.Fatal(err)
		}
		again := w.down.sent() - before
		if again > 6*smallestChunk {
			t.Fatalf("%d bytes were sent after 5 s at 1 MiB/s of 10 MiB", again)
		}
	})
}

func TestSeveralFetchesAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var all [][]byte
		var sum int64
		for i := range 6 {
			c := sample((i+1)*300_000, uint64(10+i))
			all = append(all, c)
			sum += int64(len(c))
		}
		w := start(t, all...)
		w.down.latency = 10 * time.Millisecond
		var most atomic.Int64
		open := w.open
		w.open = func(ctx context.Context, p string, d atelier.Digest) (Blob, error) {
			w.recv.mu.Lock()
			most.Store(max(most.Load(), int64(len(w.recv.fetches))))
			w.recv.mu.Unlock()
			return open(ctx, p, d)
		}
		var wg sync.WaitGroup
		for _, c := range all {
			for range 2 { // everything twice at the same time
				wg.Go(func() {
					if err := w.fetch(c); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		if w.down.sent() != sum {
			t.Fatalf("%d bytes were sent for %d", w.down.sent(), sum)
		}
		if most.Load() > 2 {
			t.Fatalf("%d fetches were active at once", most.Load())
		}
	})
}

// rot gives a blob one wrong byte in some of its reads, after the plan was made.
type rot struct {
	memory
	at    int64
	mu    sync.Mutex
	reads int
	times int
}

func (r *rot) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.memory.ReadAt(p, off)
	r.mu.Lock()
	defer r.mu.Unlock()
	if off <= r.at && r.at < off+int64(n) {
		if r.reads++; r.reads > 1 && r.reads <= 1+r.times { // the first is the plan's
			p[r.at-off] ^= 1
		}
	}
	return n, err
}

func TestDamagedChunkIsFetchedAgainAndThenFails(t *testing.T) {
	t.Parallel()
	c := sample(2*smallestChunk, 5)
	for times, code := range map[int]atelier.Code{1: "", 2: "", 3: atelier.Corrupt} {
		synctest.Test(t, func(t *testing.T) {
			w := start(t, c)
			w.open = func(context.Context, string, atelier.Digest) (Blob, error) {
				return &rot{memory: memory{bytes.NewReader(c)}, at: smallestChunk + 5, times: times}, nil
			}
			wantCode(t, w.fetch(c), code)
			extra := min(times, 2) * smallestChunk
			if w.down.sent() != int64(len(c)+extra) {
				t.Fatalf("%d wrong: %d bytes were sent for %d", times, w.down.sent(), len(c))
			}
		})
	}
}

func TestSenderNoticesItsOwnDamage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(2*smallestChunk, 6)
		w := start(t)
		w.open = func(context.Context, string, atelier.Digest) (Blob, error) {
			bad := slices.Clone(c)
			bad[100] ^= 1
			return memory{bytes.NewReader(bad)}, nil
		}
		wantCode(t, w.fetch(c), atelier.Corrupt)
		if w.down.sent() != 0 {
			t.Fatalf("%d bytes were sent", w.down.sent())
		}
	})
}

// liar answers as a sender that claims lie to be the content of d.
func liar(w *world, lie []byte) func([]byte) {
	blob := memory{bytes.NewReader(lie)}
	plan, err := makePlan(w.t.Context(), planKey{atelier.DigestOf(lie), wayWhole, smallestChunk}, blob)
	if err != nil {
		w.t.Fatal(err)
	}
	ready := make(chan *outgoing, 1)
	var t *outgoing
	return func(f []byte) {
		k, id, body, _ := unseal(f, DefaultMaxFrame)
		switch k {
		case kindOpen:
			t = &outgoing{id: id, maxFrame: DefaultMaxFrame, ahead: 1 << 30, blob: blob, plan: plan}
			_ = w.down.send(mustPlan(id, plan))
		case kindWant:
			if want, ok := decodeWant(body); ok {
				t.want(want, ready)
			}
			for {
				b, n, err := t.frame()
				if n == 0 || err != nil {
					break
				}
				_ = w.down.send(b)
			}
		}
	}
}

// A sender that lies consistently is found out by the digest of the whole.
func TestLyingSender(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(2*smallestChunk, 7)
		lie := sample(2*smallestChunk, 8)
		w := start(t)
		w.up.deliver = liar(w, lie)
		wantCode(t, w.fetch(c), atelier.Corrupt)
		if w.down.sent() != 2*int64(len(c)) {
			t.Fatalf("%d bytes were sent, want all of them twice", w.down.sent())
		}
		in, err := w.store.Ingest(atelier.DigestOf(c), int64(len(c)))
		if err != nil || in.Done() != 0 {
			t.Fatalf("%d wrong bytes stayed, %v", in.Done(), err)
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, code := range []atelier.Code{atelier.NotFound, atelier.Forbidden, atelier.Internal} {
		synctest.Test(t, func(t *testing.T) {
			w := start(t)
			w.open = func(context.Context, string, atelier.Digest) (Blob, error) {
				return nil, atelier.Errorf(code, "secret particulars")
			}
			err := w.fetch(sample(10, 9))
			wantCode(t, err, code)
			if code == atelier.Internal && bytes.Contains([]byte(err.Error()), []byte("secret")) {
				t.Fatal("an internal error's particulars were told to the peer")
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // not now is no refusal
		c := sample(10, 9)
		w := start(t, c)
		open, tries := w.open, 0
		w.open = func(ctx context.Context, p string, d atelier.Digest) (Blob, error) {
			if tries++; tries <= 5 {
				return nil, atelier.Errorf(atelier.Unavailable, "later")
			}
			return open(ctx, p, d)
		}
		if err := w.fetch(c); err != nil {
			t.Fatal(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		c := sample(100, 9)
		w := start(t, c)
		f := fileOf(c)
		f.Size = 99
		_, err := w.recv.Fetch(t.Context(), f, nil, nil)
		wantCode(t, err, atelier.Corrupt)
		w.disk.SetSpace(50)
		wantCode(t, w.fetch(c), atelier.NoSpace)
	})
}

// A slow line, where one frame takes longer than the usual patience: nothing may
// be sent twice.
func TestSlowLine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(3*smallestChunk, 10)
		w := start(t, c)
		w.down.rate, w.down.latency, w.up.latency = 20_000, 300*time.Millisecond, 300*time.Millisecond
		if err := w.fetch(c); err != nil {
			t.Fatal(err)
		}
		if most := int64(len(c)); w.down.sent() > most {
			t.Fatalf("%d bytes were sent for %d", w.down.sent(), len(c))
		}
		if took, best := time.Since(epoch), time.Duration(len(c)/20_000)*time.Second; took > best*12/10 {
			t.Fatalf("took %v, the line needs %v", took, best)
		}
	})
}

// A peer that is busy with many others sends what it is asked for in bursts with long
// silences between them. Asking again would make it send everything twice, and be
// busier: what came late tells the receiver to be patient.
func TestBusyPeerIsNotAskedTwice(t *testing.T) {
	t.Parallel()
	for _, stall := range []time.Duration{3 * time.Second, 7 * time.Second} {
		t.Run(stall.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := sample(8*smallestChunk, 12)
				w := start(t, c)
				w.down.rate, w.down.latency, w.up.latency, w.down.stalls = 10<<20, 5*time.Millisecond, 5*time.Millisecond, stall
				if err := w.fetch(c); err != nil {
					t.Fatal(err)
				}
				// Before it knows better it asks for two frames, now and then.
				if most := int64(len(c)) + 6*DefaultMaxFrame; w.down.sent() > most {
					t.Errorf("%d bytes were sent for %d, in %s", w.down.sent(), len(c), time.Since(epoch))
				}
			})
		})
	}
}

// What a busy connection does not take is sent a moment later, each byte once, and
// nobody has to ask for it again.
func TestBusyConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(5*smallestChunk+77, 13)
		w := start(t, c)
		w.down.busy = 3
		if err := w.fetch(c); err != nil {
			t.Fatal(err)
		}
		w.check(c, true)
		if w.down.sent() != int64(len(c)) {
			t.Errorf("%d bytes were sent for %d", w.down.sent(), len(c))
		}
		if took, most := time.Since(epoch), 2*time.Second; took > most {
			t.Errorf("it took %s, which is more than %s: somebody waited to be asked", took, most)
		}
	})
}

// A long, fast line is filled within a few round trips.
func TestLongFastLine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(30*smallestChunk, 11)
		w := start(t, c)
		w.down.rate, w.down.latency, w.up.latency = 10<<20, 100*time.Millisecond, 100*time.Millisecond
		if err := w.fetch(c); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(epoch); took > 5500*time.Millisecond {
			t.Fatalf("30 MiB at 10 MiB/s took %v", took)
		}
		if w.down.sent() != int64(len(c)) {
			t.Fatalf("%d bytes were sent for %d", w.down.sent(), len(c))
		}
	})
}

// A frame that is lost on the way is asked for as soon as the round is over,
// without waiting until patience ends.
func TestOneLostFrameCostsNoWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(2*smallestChunk, 12)
		w := start(t, c)
		w.down.latency, w.up.latency = 10*time.Millisecond, 10*time.Millisecond
		w.down.fault = func(n int, f []byte) [][]byte {
			if n == 7 {
				return nil
			}
			return [][]byte{f}
		}
		if err := w.fetch(c); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(epoch); took > time.Second {
			t.Fatalf("it took %v", took)
		}
		if most := int64(len(c) + DefaultMaxFrame); w.down.sent() > most {
			t.Fatalf("%d bytes were sent for %d", w.down.sent(), len(c))
		}
	})
}

// A plan that was made before is not made when a peer asks, and a blob that cannot wait
// is closed at once.
func TestPreparedPlan(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(2*smallestChunk, 3)
		w := start(t, c)
		var read, closed atomic.Int64
		blob := func() Blob { return counting{memory{bytes.NewReader(c)}, &read, &closed} }
		if err := w.sender.Prepare(atelier.DigestOf(c), blob()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if read.Load() != int64(len(c)) || closed.Load() != 1 {
			t.Fatalf("%d bytes were read, closed %d times", read.Load(), closed.Load())
		}
		w.open = func(context.Context, string, atelier.Digest) (Blob, error) { return blob(), nil }
		if err := w.fetch(c); err != nil {
			t.Fatal(err)
		}
		if read.Load() != int64(2*len(c)) {
			t.Errorf("%d bytes were read to plan and send %d", read.Load(), len(c))
		}

		w.stop()
		closed.Store(0)
		s := NewSender(SenderOptions{}) // nothing runs
		for range planners + 1 {
			if err := s.Prepare(atelier.DigestOf(c), blob()); err != nil {
				t.Fatal(err)
			}
		}
		if closed.Load() != 1 {
			t.Errorf("%d of %d blobs were closed, of which one found no room", closed.Load(), planners+1)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s.prepare(ctx)
		if closed.Load() < planners {
			t.Errorf("%d blobs were closed", closed.Load())
		}
	})
}

// counting counts the bytes that are read, and how often it is closed.
type counting struct {
	memory
	read, closed *atomic.Int64
}

func (c counting) ReadAt(p []byte, at int64) (int, error) {
	n, err := c.memory.ReadAt(p, at)
	c.read.Add(int64(n))
	return n, err
}

func (c counting) Close() error {
	c.closed.Add(1)
	return nil
}
