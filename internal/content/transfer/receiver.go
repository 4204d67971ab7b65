package transfer

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
)

// ReceiverOptions set what is usually left as it is: the zero value gives the
// defaults.
type ReceiverOptions struct {
	// MaxFrame is the largest frame in bytes that the way between the peers
	// takes, either direction; DefaultMaxFrame.
	MaxFrame int
	// Window is the most bytes that may be on their way to one Fetch; 8 MiB. They
	// wait in buffers on the way, not in this program, while Handle is busy.
	Window int64
	// Parallel is how many Fetches are active at once, the others wait; 2.
	Parallel int
	// Reserve is how many bytes of the disk stay free when a difference is taken,
	// which needs room beside the content.
	Reserve int64
	Log     *slog.Logger // nil for none
}

// Receiver fetches content from one peer into a store. Its methods are safe for
// concurrent use.
type Receiver struct {
	store *content.Store
	send  func([]byte) error
	opts  ReceiverOptions
	slots chan struct{}

	mu      sync.Mutex
	fetches map[uint64]*fetch // by transfer id
	rate    uint64            // bytes a second that came last; 0 before anything did
	last    window            // of the Fetch that learned last, on this connection
	learned time.Time         // when that was; zero for never
}

// NewReceiver returns a Receiver that sends its frames to the peer with send. It
// may keep the frame; what fails to be sent is sent again later, as if it was
// lost on the way.
func NewReceiver(store *content.Store, send func(frame []byte) error, o ReceiverOptions) *Receiver {
	if o.MaxFrame == 0 {
		o.MaxFrame = DefaultMaxFrame
	}
	o.MaxFrame = max(o.MaxFrame, MinMaxFrame)
	if o.Window <= 0 {
		o.Window = 8 << 20
	}
	if o.Parallel <= 0 {
		o.Parallel = 2
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Receiver{store: store, send: send, opts: o, slots: make(chan struct{}, o.Parallel), fetches: map[uint64]*fetch{}}
}

// Handle takes in a frame from the peer; what is damaged or unknown is dropped. It
// keeps no reference to the frame. It writes to disk and sometimes waits for the
// disk to sync: what the peer may send meanwhile is bounded by the window.
func (r *Receiver) Handle(frame []byte) {
	k, id, body, ok := unseal(frame, r.opts.MaxFrame)
	if !ok {
		return
	}
	r.mu.Lock()
	f := r.fetches[id]
	r.mu.Unlock()
	if f == nil {
		return
	}
	f.heard(len(frame))
	switch k {
	case kindPlan:
		if p, ok := decodePlan(body); ok {
			f.planned(p)
		}
	case kindData:
		if d, ok := decodeData(body); ok {
			f.arrived(d, time.Now())
		}
	case kindGone:
		if g, ok := decodeGone(body); ok {
			f.gone(g)
		}
	}
}

// Reconnected tells that the connection to the peer is a new one: what was on its
// way is lost, and all Fetches ask again at once.
func (r *Receiver) Reconnected() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.learned = time.Time{}
	for _, f := range r.fetches {
		f.reconnected()
	}
}

// Fetch brings the content of file into the store and returns when it is visible
// there, or was there already. It asks until the peer answers: only ctx ends it
// when the peer stays away. progress, which may be nil, hears how many bytes are
// verified, now and then, in the goroutine of the caller.
//
// bases are contents of the store that are what their digests say, the most similar
// first; the first MaxBases of them are offered to the peer, which may send a
// difference to some of them. nil asks for the content as it is; an empty list for
// compressed content at best. Where a difference leads to anything but the content,
// the content is fetched as it is.
//
// What came in is kept when Fetch fails or ctx ends, and is not fetched again by
// the next. Errors: NotFound or Forbidden where the peer does not give the
// content; Corrupt where it is not what its digest says, also after it was fetched
// anew; NoSpace; Unavailable and Timeout, with the cause, where ctx ended.
func (r *Receiver) Fetch(ctx context.Context, file atelier.File, bases []atelier.Digest, progress func(done int64)) (Arrival, error) {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return Arrival{}, ended(ctx, file)
	}
	var all Arrival
	once := func() (again bool, err error) {
		var a Arrival
		a, again, err = r.fetch(ctx, file, bases, progress)
		all.Way, all.Received = a.Way, all.Received+a.Received
		return again, err
	}
	again, err := once()
	if again && all.Way == WayDifference {
		r.opts.Log.Warn("a difference did not lead to the content, which is now fetched as it is", "digest", file.Digest, "error", err)
		all.Failed, bases = true, nil
		again, err = once()
	}
	if again {
		_, err = once()
	}
	return all, err
}

// Arrival tells how a content came.
type Arrival struct {
	// Way is how it came: WayWhole, WayDifference, or "" where it was there.
	Way string
	// Received is how many bytes of frames came for it during this Fetch, those that
	// came twice included.
	Received int64
	// Failed tells that a difference was tried and did not lead to the content.
	Failed bool
}

// The ways in which content comes, in words.
const (
	WayWhole      = "whole"      // as it is
	WayDifference = "difference" // made of a difference
)

// fetch says again where the content is worth fetching anew: every chunk was as the
// peer said, and yet the content as a whole was wrong, or there was something wrong
// with a difference. Nothing of it was kept then.
func (r *Receiver) fetch(ctx context.Context, file atelier.File, bases []atelier.Digest, progress func(int64)) (a Arrival, again bool, err error) {
	in, err := r.ingest(ctx, file)
	if atelier.CodeOf(err) == atelier.Exists {
		if err := r.store.Keep(file.Digest); err != nil {
			return a, false, err
		}
		report(progress, file.Size)
		return a, false, nil
	}
	if err != nil {
		return a, false, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()

	f := r.newFetch(in, file, bases)
	err = r.run(ctx, f, progress)
	r.learn(f)
	a = Arrival{Way: WayWhole, Received: f.received}
	if d := f.difference; d != nil {
		a.Way = WayDifference
		defer func() { err = errors.Join(err, d.close()) }()
		if err == nil {
			err = d.apply(ctx, r.store, file)
		}
		if err == nil {
			return a, false, in.Abort() // what came of it as it is, before
		}
		if ctx.Err() != nil {
			return a, false, ended(ctx, file)
		}
		return a, true, errors.Join(err, d.drop())
	}
	if err != nil {
		return a, false, err
	}
	if _, err := in.Commit(ctx); err != nil {
		if ctx.Err() != nil {
			err = ended(ctx, file)
		}
		return a, atelier.CodeOf(err) == atelier.Corrupt, err
	}
	// What came of a difference, before. Where somebody looks at it right now, it stays
	// until the store is opened again.
	if err := r.store.Abort(file.Digest); atelier.CodeOf(err) != atelier.InUse {
		return a, false, err
	}
	return a, false, nil
}

// newFetch makes the state of a fetch with what is known of the line.
func (r *Receiver) newFetch(in *content.Ingest, file atelier.File, bases []atelier.Digest) *fetch {
	f := newFetch(in, file, r.opts)
	if bases != nil {
		f.bases = bases[:min(len(bases), MaxBases)]
		f.differ = func(p planFrame) (*difference, error) {
			return openDifference(r.store, p, f.bases, in, r.opts.Reserve)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	f.rate = r.rate
	if time.Since(r.learned) < stillSame {
		f.win.rate, f.win.trip, f.win.steady = r.last.rate, r.last.trip, r.last.steady
		// Beside other fetches the first answer would also tell how long theirs queue.
		f.win.recall = len(r.fetches) == 0
	}
	return f
}

// Rate returns the bytes a second in which content came last, 0 before any did. It is
// what the peer is told when content is asked for.
func (r *Receiver) Rate() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return int64(min(r.rate, math.MaxInt64))
}

// learn remembers how fast content came.
func (r *Receiver) learn(f *fetch) {
	if f.win.rate > 0 {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.rate = uint64(f.win.rate)
		r.last, r.learned = f.win, time.Now()
	}
}

// stillSame is for how long a connection is taken to be as fast as it was: a Fetch that
// begins within it begins with the window of the one before.
const stillSame = time.Minute

// ingest begins or resumes; where another Fetch is at the same content it waits.
func (r *Receiver) ingest(ctx context.Context, file atelier.File) (*content.Ingest, error) {
	for {
		in, err := r.store.Ingest(file.Digest, file.Size)
		if atelier.CodeOf(err) != atelier.InUse {
			return in, err
		}
		select {
		case <-ctx.Done():
			return nil, ended(ctx, file)
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// run asks until all chunks are accepted.
func (r *Receiver) run(ctx context.Context, f *fetch, progress func(int64)) error {
	defer func() {
		// Also at the end: it tells the peer that it may forget the transfer.
		id := f.stop()
		r.register(id, 0, nil)
		_ = r.send(encodeCancel(id)) // if it is lost, the peer forgets by itself
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	told := int64(-1)
	for {
		s := f.next(time.Now())
		if s.done != told {
			told = s.done
			report(progress, told)
		}
		if s.finished || s.err != nil {
			return s.err
		}
		r.register(s.forget, s.id, f)
		if s.frame != nil {
			// What cannot be sent now is as good as lost: it is sent again when
			// patience ends or the connection is back.
			_ = r.send(s.frame)
		}
		timer.Reset(time.Until(s.wake))
		select {
		case <-ctx.Done():
			return ended(ctx, f.file)
		case <-f.wake:
		case <-timer.C:
		}
	}
}

// register makes f known by its id instead of an older one.
func (r *Receiver) register(old, id uint64, f *fetch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old != 0 {
		delete(r.fetches, old)
	}
	if id != 0 {
		r.fetches[id] = f
	}
}

func report(progress func(int64), done int64) {
	if progress != nil {
		progress(done)
	}
}

// ended says that ctx ended before the content was there.
func ended(ctx context.Context, file atelier.File) error {
	cause := context.Cause(ctx)
	code := atelier.Unavailable
	if errors.Is(cause, context.DeadlineExceeded) {
		code = atelier.Timeout
	}
	return atelier.Errorf(code, "fetching %s ended before it was complete: %w", file.Digest, cause)
}
