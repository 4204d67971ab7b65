package transfer

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
)

// strikes is how often one chunk may arrive wrong before the fetch fails.
const strikes = 3

// maxPieces bounds how many separate pieces a fetch keeps account of; with more
// it forgets those of unfinished chunks.
const maxPieces = 4096

// fetch is the state of one Fetch. Frames change it (planned, arrived, gone) in the
// goroutine of Handle; next says, in the goroutine of Fetch, what to send now. It
// does no waiting and no sending itself.
type fetch struct {
	file     atelier.File
	maxFrame int
	rate     uint64        // bytes a second that came to the receiver before
	wake     chan struct{} // has a value when next should be called

	// differ opens the difference that a plan offers; see openDifference.
	differ func(planFrame) (*difference, error)
	log    *slog.Logger

	mu         sync.Mutex
	in         *content.Ingest
	bases      []atelier.Digest // offered; nil where a difference is not wanted
	difference *difference      // nil while the content comes as it is
	stopped    bool             // in and difference belong to Fetch alone again
	err        error
	win        window
	received   int64 // bytes of all frames

	id       uint64
	old      uint64         // an id that was in use before
	plan     *planFrame     // nil while it is asked for
	chunks   []chunk        // of the last plan
	got      content.Ranges // arrived, accepted included
	wrong    map[int]int    // of chunks: how often they were wrong
	again    bool           // ask now: the connection is new
	asked    bool           // something was sent for the present state
	deadline time.Time      // when patience ends
	tries    int            // how often it ended with nothing new
	refused  int            // how often the peer said gone with nothing new since
	delay    time.Time      // not to open anew before

	round   uint32
	begun   [16]time.Time // when the rounds began; the newest round%16
	ranges  content.Ranges
	total   int64     // bytes of ranges
	credit  int64     // said last
	sent    int64     // the most that data of this round said was sent
	fresh   bool      // something new came in this round
	probing bool      // the round is a probe, and nothing of it came yet
	slow    bool      // but something of an earlier one did
	last    time.Time // when data came last
	learned int64     // bytes that were new, ever
	seen    int64     // of learned, when next looked last
}

// step is what to do now.
type step struct {
	frame    []byte // to send, or nil
	wake     time.Time
	id       uint64 // to be known by
	forget   uint64 // an id no longer in use, or 0
	done     int64
	finished bool
	err      error
}

func newFetch(in *content.Ingest, file atelier.File, o ReceiverOptions) *fetch {
	return &fetch{
		file: file, maxFrame: o.MaxFrame, in: in, log: o.Log, wake: make(chan struct{}, 1),
		win:   window{frame: int64(o.MaxFrame - dataHeader), most: o.Window},
		wrong: map[int]int{}, id: newTransferID(),
	}
}

// stream is what comes in: the content itself, or the difference of which it is made.
func (f *fetch) stream() *content.Ingest {
	if f.difference != nil {
		return f.difference.in
	}
	return f.in
}

// done returns how many bytes of the content are as good as here.
func (f *fetch) done() int64 {
	if f.difference == nil {
		return f.in.Done()
	}
	in := f.difference.in
	if in.Done() == in.Size() {
		return f.file.Size
	}
	return min(f.file.Size-1, int64(float64(f.file.Size)*float64(in.Done())/float64(in.Size())))
}

// newTransferID returns an id that no earlier transfer of this device had, as far
// as chance goes: the sender may still remember those.
func newTransferID() uint64 { return max(1, rand.Uint64()) }

func (f *fetch) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// stop gives the Ingest back to Fetch: no frame touches it any more.
func (f *fetch) stop() (id uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = true
	return f.id
}

func (f *fetch) reconnected() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.again, f.tries, f.refused, f.delay = true, 0, 0, time.Time{}
	f.nudge()
}

// heard counts the bytes of a frame.
func (f *fetch) heard(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.stopped {
		f.received += int64(n)
	}
}

func (f *fetch) planned(p planFrame) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped || f.plan != nil {
		return
	}
	defer f.nudge()
	switch {
	case p.way == wayDifference && f.bases != nil:
		if !f.takes(p) {
			f.bases = nil
			f.reopen()
			return
		}
	case p.way != wayWhole:
		f.err = atelier.Errorf(atelier.Unsupported, "the peer would send %s in a way (%d) that was not offered", f.file.Digest, p.way)
		return
	case p.size != f.file.Size:
		f.err = atelier.Errorf(atelier.Corrupt, "%s has %d bytes at the peer, expected were %d", f.file.Digest, p.size, f.file.Size)
		return
	default:
		f.leave()
	}
	f.plan, f.asked, f.tries = &p, false, 0
	if !slices.Equal(p.chunks, f.chunks) {
		// Pieces of unfinished chunks are worth something under the same plan only.
		f.chunks, f.got = p.chunks, slices.Clone(f.stream().Accepted())
	}
}

// takes reports whether the content is to come as the difference that p offers,
// which may be the one that is under way already.
func (f *fetch) takes(p planFrame) bool {
	if f.difference != nil && f.difference.in.Digest() == p.difference && f.difference.in.Size() == p.size {
		return true
	}
	f.leave()
	d, err := f.differ(p)
	if err != nil {
		if !errors.Is(err, errWholeIsBetter) {
			f.log.Warn("a difference cannot be taken; the content comes as it is", "digest", f.file.Digest, "error", err)
		}
		return false
	}
	f.difference = d
	return true
}

// leave ends a difference that is under way, for another plan.
func (f *fetch) leave() {
	if f.difference != nil {
		f.err = f.difference.close()
		f.difference, f.chunks = nil, nil
	}
}

// gone handles that the peer knows nothing of the transfer, or refuses it.
func (f *fetch) gone(g goneFrame) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return
	}
	defer f.nudge()
	switch g.code {
	case atelier.NotFound, atelier.Forbidden, atelier.Corrupt, atelier.Unsupported, atelier.TooLarge, atelier.Internal:
		f.err = atelier.Errorf(g.code, "the peer does not send %s: %q", f.file.Digest, g.message)
	default:
		// It forgot, or has no room now. The first time at once, then ever slower.
		f.delay = time.Now()
		if f.refused > 0 {
			f.delay = f.delay.Add(min(time.Second<<min(f.refused-1, 5), longestWait))
		}
		f.refused++
		f.reopen()
	}
}

func (f *fetch) reopen() {
	f.old, f.id = f.id, newTransferID()
	f.plan, f.ranges, f.asked = nil, nil, false
	f.round, f.credit, f.sent, f.total = 0, 0, 0, 0
}

// arrived takes data in: what is missing goes to disk, a chunk that is complete is
// verified.
func (f *fetch) arrived(d dataFrame, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped || f.err != nil || f.plan == nil || d.chunk >= len(f.plan.chunks) || d.round > f.round {
		return
	}
	c := f.plan.chunks[d.chunk]
	r := content.Range{Start: c.Start + d.offset, End: c.Start + d.offset + int64(len(d.bytes))}
	if r.End > c.End {
		return
	}
	defer f.nudge()
	if began := f.begun[d.round%uint32(len(f.begun))]; f.round-d.round < uint32(len(f.begun)) && !began.IsZero() {
		f.win.answered(now.Sub(began))
		f.begun[d.round%uint32(len(f.begun))] = time.Time{} // only the first answer tells
	}
	f.answersProbe(d.round, now)
	if d.round == f.round {
		f.sent = min(max(f.sent, d.sent), f.total)
	}
	f.win.arrived(int64(len(d.bytes)), now)
	for _, m := range f.got.Missing(r) {
		if _, err := f.stream().WriteAt(d.bytes[m.Start-r.Start:m.End-r.Start], m.Start); err != nil {
			f.err = err
			return
		}
		f.learned += m.Len()
		f.fresh = true
	}
	f.got = f.got.Add(r)
	if f.got.Contains(c.Range) && !f.stream().Has(c.Range) {
		f.accept(d.chunk)
	}
	if len(f.got) > maxPieces {
		f.got = slices.Clone(f.stream().Accepted())
	}
}

// answersProbe looks at what data of a round says while the present one is a probe.
// Where data of earlier rounds still comes, nothing was lost: the peer, or this side,
// was slow. When all of that is there, which it is when the probe's own comes, another
// round begins with what is missing then.
func (f *fetch) answersProbe(round uint32, now time.Time) {
	silent := now.Sub(f.last)
	if f.last.IsZero() {
		silent = 0
	}
	f.last = now
	switch {
	case !f.probing:
	case round < f.round:
		if !f.slow {
			f.win.stalled(silent)
		}
		f.slow = true
	default:
		f.probing, f.again = false, f.again || f.slow
	}
}

func (f *fetch) accept(i int) {
	c := f.plan.chunks[i]
	err := f.stream().Accept(c.Range, c.sum)
	switch {
	case err == nil:
		delete(f.wrong, i)
		return
	case atelier.CodeOf(err) != atelier.Corrupt:
		f.err = err
		return
	}
	if f.wrong[i]++; f.wrong[i] >= strikes {
		f.err = err
		return
	}
	// Forget the chunk: its bytes are missing again.
	var keep content.Ranges
	for _, r := range f.got {
		for _, k := range (content.Ranges{c.Range}).Missing(r) {
			keep = keep.Add(k)
		}
	}
	for _, r := range f.stream().Accepted() {
		keep = keep.Add(r)
	}
	f.got = keep
}

// next says what to do at now.
func (f *fetch) next(now time.Time) step {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := step{id: f.id, forget: f.old, done: f.done(), err: f.err}
	f.old = 0
	if f.err != nil {
		return s
	}
	if f.learned != f.seen {
		f.seen, f.tries, f.refused = f.learned, 0, 0
		f.deadline = now.Add(f.win.patience(0))
	}
	switch {
	case s.done == f.file.Size:
		s.finished = true
	case f.plan == nil:
		s.frame, s.err = f.opening(now)
	default:
		s.frame = f.wanting(now)
	}
	f.again = false
	s.wake = f.deadline
	return s
}

// opening asks for a plan, again and again. The sender may need a while for it
// when it has to read the content first.
func (f *fetch) opening(now time.Time) ([]byte, error) {
	if now.Before(f.delay) {
		f.deadline = f.delay
		return nil, nil
	}
	if f.asked && !f.again && now.Before(f.deadline) {
		return nil, nil
	}
	if f.asked && !f.again {
		f.tries++
	}
	f.asked = true
	f.deadline = now.Add(f.win.patience(f.tries))
	o := openFrame{digest: f.file.Digest, maxFrame: f.maxFrame, ways: []way{wayWhole}}
	if f.bases != nil {
		o.ways, o.rate, o.bases = append(o.ways, wayDifference), f.rate, f.bases
		o.has = uint64(f.in.Done())
	}
	return encodeOpen(f.id, o)
}

// wanting begins a new round where something must have been lost, or raises the
// credit where it runs low.
func (f *fetch) wanting(now time.Time) []byte {
	over := f.sent >= f.total && f.fresh // all of the round was sent, and some of it is missing
	late := !now.Before(f.deadline)
	switch {
	case !f.asked || f.again || over || late:
		if f.asked && late && !f.again && !over {
			f.tries++
		}
		f.begin(now, late && !f.again && !over)
	case !f.probing && f.credit < f.total && f.sent+f.win.size()-f.credit >= f.win.step():
		f.credit = min(f.total, f.sent+f.win.size())
	default:
		return nil
	}
	return encodeWant(f.id, wantFrame{round: f.round, credit: f.credit, ranges: f.ranges})
}

// begin begins a round. A probe is one that begins since patience has ended: it asks
// for little, as long as nobody knows what became of all that was asked for before.
func (f *fetch) begin(now time.Time, probe bool) {
	f.asked, f.fresh, f.probing, f.slow = true, false, probe, false
	f.round++
	f.begun[f.round%uint32(len(f.begun))] = now
	f.ranges = f.got.Missing(content.Range{Start: 0, End: f.stream().Size()})
	if most := min(MaxRanges, (f.maxFrame-wantHeader)/wantEntry); len(f.ranges) > most {
		f.ranges = f.ranges[:most]
	}
	f.total, f.sent = f.ranges.Bytes(), 0
	f.credit = min(f.total, f.win.size())
	if probe {
		f.credit = min(f.total, 2*f.win.frame)
	}
	f.deadline = now.Add(f.win.patience(f.tries))
	f.win.started(now)
}
