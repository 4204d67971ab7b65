package transfer

import (
	"slices"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
)

// outgoing is one transfer of a Sender: what its peer wants of it now.
type outgoing struct {
	peer     string
	id       uint64
	digest   atelier.Digest
	ways     []way
	bases    []atelier.Digest
	rate     uint64 // bytes a second that came to the peer lately
	has      uint64 // bytes of the content that it had then
	maxFrame int
	ahead    int64 // most bytes to send beyond what was sent when the want came

	done    chan struct{} // closed when it was dropped
	blocks  *blockCache   // where chunks are looked for first; may be nil
	spoiled func()        // called where a difference is found damaged; may be nil

	mu      sync.Mutex
	asked   bool // waits in the queue of opens, or is being opened
	queued  bool // waits in the queue of ready transfers, or is being sent
	closed  bool
	blob    Blob      // nil until opened
	plan    planFrame // set with blob, then left as it is
	used    time.Time
	round   uint32
	ranges  content.Ranges // of the round; shortened as they are sent
	total   int64          // bytes of the round's ranges
	sent    int64          // of them
	allowed int64          // how many may be sent
	at      int            // index of the chunk that was sent last
	paced   bool           // the peer has a budget, of which
	paid    int            // bytes of content were taken for the next frame
	parked  *time.Timer    // ends a wait for the peer's budget; nil before the first

	// The last frame, which belongs to whoever sends.
	last      dataFrame
	lastBytes int64
}

func newOutgoing(peer string, id uint64, o openFrame, opts SenderOptions) *outgoing {
	return &outgoing{
		peer: peer, id: id, digest: o.digest, ways: o.ways, bases: o.bases, rate: o.rate, has: o.has, done: make(chan struct{}),
		maxFrame: min(o.maxFrame, opts.MaxFrame), ahead: opts.Window, used: time.Now(),
	}
}

func (t *outgoing) lastUse() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.used
}

// enqueueOpen puts t into the queue of opens unless it is there.
func (t *outgoing) enqueueOpen(queue chan<- *outgoing) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used = time.Now()
	if t.asked {
		return true
	}
	select {
	case queue <- t:
		t.asked = true
		return true
	default:
		return false
	}
}

// waiting reports whether t waits to be opened or is being opened.
func (t *outgoing) waiting() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.asked
}

// open calls build unless t has its blob and plan, and returns the plan; nil where
// t was dropped, or is to wait for what build says.
func (t *outgoing) open(build func() (Blob, planFrame, *Pending, error)) (*planFrame, *Pending, error) {
	t.mu.Lock()
	settled, closed := t.blob != nil, t.closed
	t.mu.Unlock()
	// An open that comes while the plan is made, or waited for, is answered by it.
	waits := false
	defer func() {
		if !waits {
			t.answered()
		}
	}()
	switch {
	case closed:
		return nil, nil, nil
	case settled:
		return &t.plan, nil, nil
	case !slices.Contains(t.ways, wayWhole):
		return nil, nil, atelier.Errorf(atelier.Unsupported, "none of the ways %v is one that the sender knows", t.ways)
	}
	blob, plan, pending, err := build()
	if err != nil || blob == nil {
		waits = err == nil
		return nil, pending, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, nil, blob.Close()
	}
	t.plan, t.blob, t.used = plan, blob, time.Now()
	return &t.plan, pending, nil
}

// lacks returns how many of size bytes the peer had not when it opened t.
func (t *outgoing) lacks(size int64) int64 {
	return size - int64(min(t.has, uint64(size)))
}

// missing returns how many bytes are still to be sent, of what the peer wanted last.
func (t *outgoing) missing() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.round == 0 {
		return t.lacks(t.plan.size)
	}
	return t.total - t.sent
}

func (t *outgoing) answered() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked = false
}

// want takes in what the peer misses. Of wants of the same round the highest
// credit counts, wants of older rounds are late.
func (t *outgoing) want(w wantFrame, ready chan<- *outgoing) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.blob == nil || t.closed || w.round < t.round {
		return
	}
	t.used = time.Now()
	if w.round > t.round {
		if len(w.ranges) > 0 && w.ranges[len(w.ranges)-1].End > t.plan.size {
			return
		}
		t.round, t.ranges, t.total, t.sent, t.allowed, t.at = w.round, w.ranges, w.ranges.Bytes(), 0, 0, 0
	}
	t.allowed = max(t.allowed, min(w.credit, t.total, t.sent+t.ahead))
	t.enqueue(ready)
}

// enqueue puts t into the queue if it has something to send. t.mu is held.
func (t *outgoing) enqueue(ready chan<- *outgoing) {
	if t.queued || t.closed || t.sent >= t.allowed {
		return
	}
	select {
	case ready <- t:
		t.queued = true
	default: // cannot be, and if it were, the peer asks again
	}
}

// yield ends a turn of sending.
func (t *outgoing) yield(ready chan<- *outgoing) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queued = false
	t.enqueue(ready)
}

// rest ends a turn for good.
func (t *outgoing) rest() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queued, t.allowed = false, t.sent
}

// park ends a turn of sending; the next begins no sooner than after wait.
func (t *outgoing) park(wait time.Duration, ready chan<- *outgoing) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.parked = time.AfterFunc(wait, func() { t.yield(ready) }) // close stops it
}

// frame returns the next data frame and how many bytes of content it holds, or nil
// where nothing may be sent.
func (t *outgoing) frame() ([]byte, int, error) {
	d, n, blob := t.advance()
	if n == 0 {
		return nil, 0, nil
	}
	t.last, t.lastBytes = d, int64(n)
	b, err := encodeData(t.id, d, func(b []byte) ([]byte, error) { return t.read(b, n, blob, t.plan.chunks[d.chunk], d.offset) })
	if err != nil && t.dropped() {
		return nil, 0, nil
	}
	if atelier.CodeOf(err) == atelier.Corrupt {
		return nil, 0, err
	}
	if err != nil {
		return nil, 0, atelier.Errorf(atelier.Internal, "cannot read content %s: %w", t.digest, err)
	}
	return b, n, nil
}

// unsent takes back that the last frame was sent.
func (t *outgoing) unsent() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d := t.last; d.round == t.round && d.sent == t.sent && t.lastBytes > 0 {
		start := t.plan.chunks[d.chunk].Start + d.offset
		t.ranges = slices.Concat(content.Ranges{{Start: start, End: start + t.lastBytes}}, t.ranges)
		t.at, t.sent, t.lastBytes = d.chunk, t.sent-t.lastBytes, 0
	}
}

// pause makes t wait for the next want.
func (t *outgoing) pause() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.allowed = t.sent
}

// read appends n bytes at offset off of a chunk to b.
func (t *outgoing) read(b []byte, n int, blob Blob, c chunk, off int64) ([]byte, error) {
	if t.blocks == nil || !t.blocks.holds(c.Len()) {
		at := len(b)
		b = slices.Grow(b, n+sumSize)[:at+n]
		return b, readFull(blob, b[at:], c.Start+off)
	}
	d := t.digest
	if t.plan.way == wayDifference {
		d = t.plan.difference
	}
	return t.blocks.append(b, n, d, blob, c, off)
}

// upcoming returns how many bytes of content the next frame holds. It holds no more,
// whatever the peer wants meanwhile.
func (t *outgoing) upcoming() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.paced, t.paid = true, int(t.piece().Len())
	return t.paid
}

// piece returns what the next frame would hold: within one chunk, and no larger than
// a frame. t.mu is held.
func (t *outgoing) piece() content.Range {
	if t.closed || t.sent >= t.allowed || len(t.ranges) == 0 {
		return content.Range{}
	}
	r := t.ranges[0]
	for t.plan.chunks[t.at].End <= r.Start {
		t.at++ // ranges and chunks are in order
	}
	return content.Range{Start: r.Start, End: min(r.End, t.plan.chunks[t.at].End, r.Start+int64(t.maxFrame-dataHeader))}
}

// advance takes the next piece off the ranges.
func (t *outgoing) advance() (d dataFrame, n int, blob Blob) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.piece()
	if n = int(p.Len()); t.paced {
		n = min(n, t.paid)
	}
	if n == 0 {
		return dataFrame{}, 0, nil
	}
	d = dataFrame{round: t.round, chunk: t.at, offset: p.Start - t.plan.chunks[t.at].Start}
	t.sent += int64(n)
	d.sent = t.sent
	r := &t.ranges[0]
	if r.Start += int64(n); r.Start == r.End {
		t.ranges = t.ranges[1:]
	}
	return d, n, t.blob
}

func (t *outgoing) dropped() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// close gives the blob back. Where a frame is being read, that fails and is
// not sent.
func (t *outgoing) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		close(t.done)
	}
	t.closed = true
	if t.parked != nil {
		t.parked.Stop()
	}
	if t.blob == nil {
		return nil
	}
	return t.blob.Close()
}
