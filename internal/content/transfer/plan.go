package transfer

import (
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"sync"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
)

// smallestChunk is the length of chunks of content that has few of them.
const smallestChunk = 1 << 20

// planBuffer is how much of content is read and hashed in one go to plan its transfer.
const planBuffer = 256 << 10

// chunkLength returns how long the chunks of content of size bytes are, so that
// its plan fits into a frame of maxFrame bytes. Lengths are powers of two, so
// that few different ones exist whatever frames peers ask for.
func chunkLength(size int64, maxFrame int) int64 {
	most := int64(min(MaxChunks, (maxFrame-planHeader)/planEntry))
	length := int64(smallestChunk)
	for (size+length-1)/length > most {
		length *= 2
	}
	return length
}

// makePlan reads content through once. It returns Corrupt where the content is not
// what its digest says: better known now than after it was sent.
func makePlan(ctx context.Context, key planKey, blob Blob) (planFrame, error) {
	d, length := key.digest, key.length
	p := planFrame{way: key.way, size: blob.Size()}
	whole := sha256.New()
	buf := make([]byte, planBuffer)
	for at := int64(0); at < p.size; {
		if err := ctx.Err(); err != nil {
			return planFrame{}, err
		}
		c := chunk{Range: content.Range{Start: at, End: min(at+length, p.size)}}
		if c.Len() > 1<<32-1 {
			return planFrame{}, atelier.Errorf(atelier.TooLarge, "content of %d bytes is more than a plan can hold", p.size)
		}
		h := sha256.New()
		if err := hashRange(h, whole, blob, c.Range, buf); err != nil {
			return planFrame{}, atelier.Errorf(atelier.Internal, "cannot read content %s: %w", d, err)
		}
		h.Sum(c.sum[:0])
		p.chunks = append(p.chunks, c)
		at = c.End
	}
	if got := atelier.DigestFrom(whole); got != d {
		return planFrame{}, atelier.Errorf(atelier.Corrupt, "the sender's copy of %s is damaged: its digest is %s", d, got)
	}
	return p, nil
}

// hashRange adds r to both sums, at the same time: devices wait for a plan.
func hashRange(a, b hash.Hash, from io.ReaderAt, r content.Range, buf []byte) error {
	var other sync.WaitGroup
	for at := r.Start; at < r.End; {
		p := buf[:min(int64(len(buf)), r.End-at)]
		if err := readFull(from, p, at); err != nil {
			return err
		}
		other.Go(func() { a.Write(p) })
		b.Write(p)
		other.Wait()
		at += int64(len(p))
	}
	return nil
}

// readFull reads len(p) bytes at off. That the content ends right there is no error.
func readFull(from io.ReaderAt, p []byte, off int64) error {
	n, err := from.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// planned is content that a plan is made of before anybody asks.
type planned struct {
	digest atelier.Digest
	blob   Blob
}

// Prepare begins to make the plan of content that will be asked for, so that the first
// peer need not wait for it, and closes blob, now or later. Where other contents are
// waiting already it does nothing else.
func (s *Sender) Prepare(d atelier.Digest, blob Blob) error {
	select {
	case s.early <- planned{d, blob}:
		return nil
	default:
		return blob.Close()
	}
}

// prepare makes those plans, one at a time, until ctx ends.
func (s *Sender) prepare(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			for len(s.early) > 0 {
				_ = (<-s.early).blob.Close() // nobody needs it any more
			}
			return
		case p := <-s.early:
			_, err := s.plan(ctx, planKey{p.digest, wayWhole, chunkLength(p.blob.Size(), s.opts.MaxFrame)}, p.blob)
			if err = errors.Join(err, p.blob.Close()); err != nil && ctx.Err() == nil {
				s.opts.Log.Warn("the transfer of content cannot be planned; whoever asks for it is told why", "digest", p.digest, "error", err)
			}
		}
	}
}

// planCache keeps the plans of content that was sent lately: making one means to
// read all of it. It is bounded in plans, each of them at most 72 KiB.
type planCache struct {
	mu    sync.Mutex
	plans map[planKey]*list.Element // of *cachedPlan
	order list.List                 // the latest used first
	most  int
}

type planKey struct {
	digest atelier.Digest // of what comes: content, or a difference
	way    way
	length int64 // of the chunks
}

type cachedPlan struct {
	key   planKey
	ready chan struct{} // closed when plan and err are there
	plan  planFrame
	err   error
}

func newPlanCache(most int) *planCache {
	return &planCache{plans: map[planKey]*list.Element{}, most: most}
}

// get returns the plan of key, which build makes if it is not there. What several
// ask for at once is made once; a failure is not kept.
func (c *planCache) get(ctx context.Context, key planKey, build func() (planFrame, error)) (planFrame, error) {
	c.mu.Lock()
	if e, ok := c.plans[key]; ok {
		c.order.MoveToFront(e)
		c.mu.Unlock()
		p := e.Value.(*cachedPlan)
		select {
		case <-p.ready:
			return p.plan, p.err
		case <-ctx.Done():
			return planFrame{}, ctx.Err()
		}
	}
	p := &cachedPlan{key: key, ready: make(chan struct{})}
	e := c.order.PushFront(p)
	c.plans[key] = e
	if c.order.Len() > c.most {
		c.remove(c.order.Back())
	}
	c.mu.Unlock()

	p.plan, p.err = build()
	close(p.ready)
	if p.err != nil {
		c.mu.Lock()
		if c.plans[key] == e {
			c.remove(e)
		}
		c.mu.Unlock()
	}
	return p.plan, p.err
}

func (c *planCache) remove(e *list.Element) {
	c.order.Remove(e)
	delete(c.plans, e.Value.(*cachedPlan).key)
}
