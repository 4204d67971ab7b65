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

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
)

// counted counts how often it is read.
type counted struct {
	memory
	reads *atomic.Int64
}

func (c counted) ReadAt(p []byte, off int64) (int, error) {
	c.reads.Add(1)
	return c.memory.ReadAt(p, off)
}

func chunked(t *testing.T, b []byte, length int64) planFrame {
	t.Helper()
	p, err := makePlan(t.Context(), planKey{atelier.DigestOf(b), wayWhole, length}, memory{bytes.NewReader(b)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestBlocksAreSharedAndRight(t *testing.T) {
	t.Parallel()
	const length = 1000
	whole := sample(20*length+77, 1)
	plan := chunked(t, whole, length)
	for _, most := range []int64{3 * length, 100 * length} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			t.Parallel()
			var reads atomic.Int64
			blob := counted{memory{bytes.NewReader(whole)}, &reads}
			c := newBlockCache(most)
			var wg sync.WaitGroup
			for worker := range uint64(8) {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(worker, 1))
					p := make([]byte, length)
					for range 500 {
						k := plan.chunks[rng.IntN(len(plan.chunks))]
						off := rng.Int64N(k.Len())
						p := p[:1+rng.Int64N(k.Len()-off)]
						p, err := c.append(p[:0], len(p), atelier.DigestOf(whole), blob, k, off)
						if err != nil {
							t.Error(err)
							return
						}
						if !bytes.Equal(p, whole[k.Start+off:][:len(p)]) {
							t.Errorf("wrong bytes at %d of chunk %d", off, k.Start)
							return
						}
					}
				})
			}
			wg.Wait()
			if c.bytes > most {
				t.Errorf("%d bytes are held", c.bytes)
			}
			if n := reads.Load(); most > int64(len(whole)) && n != int64(len(plan.chunks)) {
				t.Errorf("%d chunks were read %d times", len(plan.chunks), n)
			}
		})
	}
}

func TestDamagedBlockIsNotSentAndNotKept(t *testing.T) {
	t.Parallel()
	good := sample(5000, 2)
	plan := chunked(t, good, 1000)
	bad := slices.Clone(good)
	bad[2500] ^= 1
	c := newBlockCache(1 << 20)
	k := plan.chunks[2]
	p, err := c.append(nil, 100, "d", memory{bytes.NewReader(bad)}, k, 0)
	wantCode(t, err, atelier.Corrupt)
	if len(p) > 0 {
		t.Error("bytes of a damaged chunk were given")
	}
	if p, err := c.append(nil, 100, "d", memory{bytes.NewReader(good)}, k, 0); err != nil || !bytes.Equal(p, good[2000:2100]) {
		t.Errorf("after it was mended: %v", err)
	}
}

// Content that many pull at about the same time is read once for its plan, and once
// more for all of them; whoever comes to a chunk that rotted meanwhile is told.
func TestReadOnceForMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := sample(2*smallestChunk, 3)
		w := start(t, c)
		w.sopts.Cache = 64 << 20
		var reads atomic.Int64
		w.open = func(context.Context, string, atelier.Digest) (Blob, error) {
			return counted{memory{bytes.NewReader(c)}, &reads}, nil
		}
		w.startSender()
		if err := w.fetch(c); err != nil {
			t.Fatal(err)
		}
		const plan = 2 * smallestChunk / planBuffer
		for peer := range 5 {
			s, id := w.sender, uint64(peer+1)
			s.Handle(fmt.Sprint(peer), mustOpen(t, id, c, DefaultMaxFrame))
			synctest.Wait()
			s.Handle(fmt.Sprint(peer), encodeWant(id, wantFrame{round: 1, credit: int64(len(c)), ranges: ranges(len(c))}))
			synctest.Wait()
		}
		if n := reads.Load(); n != plan+2 {
			t.Errorf("the content was read in %d pieces, %d of them for the plan", n, plan)
		}
		if w.down.sent() != 6*int64(len(c)) {
			t.Errorf("%d bytes were sent", w.down.sent())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		c := sample(2*smallestChunk, 4)
		w := start(t, c)
		w.sopts.Cache = 64 << 20
		w.open = func(context.Context, string, atelier.Digest) (Blob, error) {
			return &rot{memory: memory{bytes.NewReader(c)}, at: smallestChunk + 5, times: 100}, nil
		}
		w.startSender()
		wantCode(t, w.fetch(c), atelier.Corrupt)
		if w.down.sent() > smallestChunk {
			t.Errorf("%d bytes were sent, some of them of the damaged chunk", w.down.sent())
		}
	})
}

func ranges(size int) content.Ranges { return content.Ranges{{End: int64(size)}} }
