package transfer

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
)

// flood gives a Sender that is full of hostile frames a chance to show how much
// it holds, opens and sends.
type flood struct {
	w      *world
	opened atomic.Int64
	closed atomic.Int64
}

type countedBlob struct {
	Blob
	closed *atomic.Int64
}

func (b countedBlob) Close() error {
	b.closed.Add(1)
	return b.Blob.Close()
}

func newFlood(t *testing.T, c []byte) *flood {
	f := &flood{w: start(t, c)}
	open := f.w.open
	f.w.open = func(ctx context.Context, p string, d atelier.Digest) (Blob, error) {
		b, err := open(ctx, p, d)
		if err != nil {
			return nil, err
		}
		f.opened.Add(1)
		return countedBlob{b, &f.closed}, nil
	}
	f.w.down.deliver = func([]byte) {}
	return f
}

func mustOpen(t *testing.T, id uint64, c []byte, maxFrame int) []byte {
	t.Helper()
	b, err := encodeOpen(id, openFrame{digest: atelier.DigestOf(c), maxFrame: maxFrame, ways: []way{wayWhole}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSenderBoundsItsTransfers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(1000, 1)
		f := newFlood(t, c)
		f.w.sopts = SenderOptions{Transfers: 20, PerPeer: 4}
		f.w.startSender()
		s := f.w.sender
		for id := range uint64(5000) {
			s.Handle("hostile", mustOpen(t, id, c, DefaultMaxFrame))
			if id%3 == 0 {
				s.Handle("hostile", encodeCancel(id))
			}
			if id%100 == 0 {
				synctest.Wait()
			}
			if n := s.Active(); n > 4 {
				t.Fatalf("%d transfers of one peer", n)
			}
		}
		synctest.Wait()
		for peer := range 100 {
			s.Handle(string(rune('a'+peer)), mustOpen(t, 1, c, DefaultMaxFrame))
		}
		synctest.Wait()
		if n := s.Active(); n > 20 {
			t.Fatalf("%d transfers", n)
		}
		if n := f.opened.Load() - f.closed.Load(); n > 20 {
			t.Fatalf("%d blobs are open", n)
		}
		if s.Handle("late", mustOpen(t, 1, c, DefaultMaxFrame)); s.Active() > 20 {
			t.Fatal("one more found room")
		}
		time.Sleep(5 * time.Minute)
		if n := s.Active(); n != 0 {
			t.Fatalf("%d idle transfers are remembered", n)
		}
		if f.opened.Load() != f.closed.Load() {
			t.Fatalf("%d of %d blobs were closed", f.closed.Load(), f.opened.Load())
		}
	})
}

func TestSenderSendsNoMoreThanItsWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(4*smallestChunk, 2)
		f := newFlood(t, c)
		f.w.sopts = SenderOptions{Window: 300_000}
		f.w.startSender()
		s := f.w.sender
		s.Handle("hostile", mustOpen(t, 1, c, DefaultMaxFrame))
		synctest.Wait()
		all := content.Ranges{{Start: 0, End: int64(len(c))}}
		for range 100 { // the same want again gives nothing more, beyond one window each
			before := f.w.down.sent()
			s.Handle("hostile", encodeWant(1, wantFrame{round: 1, credit: 1 << 60, ranges: all}))
			synctest.Wait()
			if n := f.w.down.sent() - before; n > 300_000+DefaultMaxFrame {
				t.Fatalf("one want made the sender send %d bytes", n)
			}
		}
		if f.w.down.sent() != int64(len(c)) {
			t.Fatalf("%d bytes were sent in one round of %d", f.w.down.sent(), len(c))
		}
		// Ranges past the end, and an old round, give nothing.
		s.Handle("hostile", encodeWant(1, wantFrame{round: 2, credit: 1 << 60, ranges: content.Ranges{{Start: 5, End: int64(len(c)) + 1}}}))
		s.Handle("hostile", encodeWant(1, wantFrame{round: 0, credit: 1 << 60, ranges: all}))
		synctest.Wait()
		if f.w.down.sent() != int64(len(c)) {
			t.Fatal("a senseless want was answered")
		}
	})
}

func TestSenderDropsARevokedPeer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(10*smallestChunk, 3)
		w := start(t, c)
		w.down.rate = 1 << 20
		var revoked atomic.Bool
		open := w.open
		w.open = func(ctx context.Context, p string, d atelier.Digest) (Blob, error) {
			if revoked.Load() {
				return nil, atelier.Errorf(atelier.Forbidden, "the device was revoked")
			}
			return open(ctx, p, d)
		}
		done := make(chan error)
		go func() { done <- w.fetch(c) }()
		time.Sleep(2 * time.Second)
		revoked.Store(true)
		w.sender.Drop("device")
		wantCode(t, <-done, atelier.Forbidden)
		if w.down.sent() > 6*smallestChunk {
			t.Fatalf("%d bytes were sent", w.down.sent())
		}
	})
}

func TestMeterCountsWhatIsSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(3*smallestChunk, 4)
		w := start(t, c)
		var metered atomic.Int64
		w.sopts.Meter = func(peer string, d atelier.Digest, way string, n int) {
			if peer != "device" || way != WayWhole || d != atelier.DigestOf(c) {
				t.Errorf("metered %s of %s", d, peer)
			}
			metered.Add(int64(n))
		}
		w.startSender()
		if err := w.fetch(c); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if metered.Load() != int64(len(c)) {
			t.Fatalf("%d bytes were metered", metered.Load())
		}
	})
}

// Frames of every kind with random fields, for a transfer that is really going on,
// to both halves: content arrives or an error says why, and nothing else happens.
func TestRandomFrames(t *testing.T) {
	t.Parallel()
	c := sample(2*smallestChunk+99, 5)
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 3))
			w := start(t, c)
			w.down.latency = time.Millisecond
			noise := func(k kind, id uint64, size int64) []byte {
				n := func() int64 { return rng.Int64N(size + 1) }
				switch k {
				case kindPlan:
					return mustPlan(id, planFrame{way: way(rng.IntN(3)), size: n(), chunks: make([]chunk, 1), recipe: recipe{difference: atelier.DigestOf(nil)}})
				case kindWant:
					a, b := n(), n()
					return encodeWant(id, wantFrame{round: rng.Uint32N(5), credit: n(), ranges: content.Ranges{{Start: a, End: b}}})
				case kindData:
					b, err := encodeData(id, dataFrame{round: rng.Uint32N(9), sent: n(), chunk: rng.IntN(4), offset: n()}, func(b []byte) ([]byte, error) { return append(b, make([]byte, 1+rng.IntN(1000))...), nil })
					if err != nil {
						t.Fatal(err)
					}
					return b
				case kindGone:
					return encodeGone(id, goneFrame{})
				}
				return encodeCancel(id)
			}
			var mu sync.Mutex // guards rng
			w.down.fault = func(_ int, f []byte) [][]byte {
				mu.Lock()
				defer mu.Unlock()
				id := idOf(f)
				if rng.IntN(4) > 0 {
					return [][]byte{f}
				}
				return [][]byte{f, noise([]kind{kindPlan, kindGone, kindData, kindOpen}[rng.IntN(4)], id, int64(len(c)))}
			}
			w.up.fault = func(_ int, f []byte) [][]byte {
				mu.Lock()
				defer mu.Unlock()
				id := idOf(f)
				return [][]byte{noise([]kind{kindWant, kindCancel, kindPlan}[rng.IntN(3)], id, int64(len(c))), f}
			}
			err := w.fetch(c)
			if code := atelier.CodeOf(err); code != "" && code != atelier.Corrupt && code != atelier.Unsupported {
				t.Fatalf("seed %d: %v", seed, err)
			}
		})
	}
}

func idOf(frame []byte) uint64 {
	_, id, _, _ := unseal(frame, 1<<30)
	return id
}

func TestBusySenderIsAskedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(1000, 6)
		w := start(t, c)
		w.sopts = SenderOptions{Transfers: 1}
		w.startSender()
		w.sender.Handle("other", mustOpen(t, 1, c, DefaultMaxFrame))
		synctest.Wait()
		if err := w.fetch(c); err != nil { // waits until the other is idle for too long
			t.Fatal(err)
		}
		if took := time.Since(epoch); took < time.Minute {
			t.Fatalf("there was room after %v already", took)
		}
	})
}

// failing is a blob that cannot be read any more after its plan was made.
type failing struct{ memory }

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if len(p) != 64<<10 { // not the plan's reading
		return 0, errors.New("the disk is broken")
	}
	return f.memory.ReadAt(p, off)
}

func TestSenderThatCannotReadSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(smallestChunk, 7)
		w := start(t, c)
		w.open = func(context.Context, string, atelier.Digest) (Blob, error) {
			return failing{memory{bytes.NewReader(c)}}, nil
		}
		wantCode(t, w.fetch(c), atelier.Internal)
		synctest.Wait()
		if n := w.sender.Active(); n != 0 {
			t.Fatalf("%d transfers are left", n)
		}
	})
}

// A connection that takes no frame for a while is as one that loses them.
func TestSendingFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(3*smallestChunk, 8)
		w := start(t, c)
		w.down.latency, w.up.latency = 10*time.Millisecond, 10*time.Millisecond
		w.up.broken = [2]time.Duration{0, 5 * time.Second}
		// In the middle of the data, and for long enough to be asked again.
		w.down.broken = [2]time.Duration{8*time.Second + 45*time.Millisecond, 20 * time.Second}
		if err := w.fetch(c); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(epoch); took < 20*time.Second || took > time.Minute {
			t.Fatalf("it took %v", took)
		}
		if w.down.sent() != int64(len(c)) {
			t.Fatalf("%d bytes were sent for %d", w.down.sent(), len(c))
		}
	})
}
