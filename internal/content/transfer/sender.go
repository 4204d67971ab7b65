package transfer

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Blob is content that can be sent. *content.Blob is one. ReadAt is safe for
// concurrent use.
type Blob interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// SenderOptions configure a Sender. Open and Send are required.
type SenderOptions struct {
	// Open authorises peer to read d and opens it: NotFound or Forbidden, which
	// are told to the peer, where it may not. It is called again when a peer
	// opens a transfer anew.
	Open func(ctx context.Context, peer string, d atelier.Digest) (Blob, error)
	// Send sends a frame to peer, and may keep it. Where it fails as Exhausted the
	// connection is busy, and data is sent again in a moment; after other errors when
	// the peer wants it next. Other frames count as lost then.
	Send func(peer string, frame []byte) error
	// Difference, where set, looks for a difference that peer can make the target of,
	// which it may have: Open was called before. It does not wait; where there is
	// none it says what to wait for, if anything, and for how long: it is asked again
	// after that, and ends the waiting.
	Difference func(ctx context.Context, peer string, o Offer) (*Difference, *Pending)
	// Meter, where set, is called with the bytes of content, or of a difference to it,
	// in each frame sent. way is WayWhole or WayDifference.
	Meter func(peer string, d atelier.Digest, way string, bytes int)
	// Pace, where set, is asked before each frame with so many bytes to peer. 0 lets it
	// be sent and takes the bytes off the peer's budget; else it takes nothing, and is
	// asked again after that long. It must not wait.
	Pace func(peer string, bytes int) time.Duration
	Log  *slog.Logger // nil for none

	// Cache is how many bytes of chunks are kept in memory, for peers that pull the
	// same content at about the same time; such chunks are verified when they are
	// read. 0 for none: each frame is read on its own.
	Cache     int64
	MaxFrame  int           // largest frame in bytes; DefaultMaxFrame
	Window    int64         // most bytes sent ahead to one transfer; 8 MiB
	Transfers int           // most transfers at once, each with an open blob; 1024
	PerPeer   int           // most transfers of one peer: a newer one replaces the one idle longest; 8
	Plans     int           // most plans kept, each at most 72 KiB; 32
	Workers   int           // frames read and sent at once; 2
	Idle      time.Duration // a transfer that nothing is wanted of for so long is forgotten; 90 s
}

// Sender gives content to peers that ask for it. What it knows of a transfer may
// be lost at any time: the peer opens it anew. Its methods are safe for
// concurrent use.
type Sender struct {
	opts   SenderOptions
	plans  *planCache
	blocks *blockCache    // nil for none
	opens  chan *outgoing // asked for, to be authorised and planned
	early  chan planned   // to be planned before anybody asks
	ready  chan *outgoing // something may be sent; each transfer at most once

	waits sync.WaitGroup // transfers that wait for a difference; only Run's goroutines begin one

	mu    sync.Mutex
	peers map[string]map[uint64]*outgoing
	count int
}

// NewSender returns a Sender; it works while Run does.
func NewSender(o SenderOptions) *Sender {
	if o.MaxFrame == 0 {
		o.MaxFrame = DefaultMaxFrame
	}
	o.MaxFrame = max(o.MaxFrame, MinMaxFrame)
	if o.Window <= 0 {
		o.Window = 8 << 20
	}
	if o.Transfers <= 0 {
		o.Transfers = 1024
	}
	if o.PerPeer <= 0 {
		o.PerPeer = 8
	}
	if o.Plans <= 0 {
		o.Plans = 32
	}
	if o.Workers <= 0 {
		o.Workers = 2
	}
	if o.Idle <= 0 {
		o.Idle = 90 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	var blocks *blockCache
	if o.Cache > 0 {
		blocks = newBlockCache(o.Cache)
	}
	return &Sender{
		opts:   o,
		blocks: blocks,
		plans:  newPlanCache(o.Plans),
		// A transfer is in each queue at most once, also one that was dropped
		// before its turn came; hence twice the number.
		opens: make(chan *outgoing, 2*o.Transfers),
		ready: make(chan *outgoing, 2*o.Transfers),
		early: make(chan planned, planners),
		peers: map[string]map[uint64]*outgoing{},
	}
}

// planners is how many contents are read at once to plan their transfer.
const planners = 2

// Run sends until ctx ends, then forgets all transfers and returns nil.
func (s *Sender) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range planners {
		wg.Go(func() { s.each(ctx, s.opens, s.open) })
	}
	for range s.opts.Workers {
		wg.Go(func() { s.each(ctx, s.ready, s.pump) })
	}
	wg.Go(func() { s.prepare(ctx) })
	tick := time.NewTicker(s.opts.Idle / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			wg.Wait()
			s.waits.Wait()
			s.dropIf(func(*outgoing) bool { return true })
			return nil
		case now := <-tick.C:
			s.dropIf(func(t *outgoing) bool { return now.Sub(t.lastUse()) >= s.opts.Idle })
		}
	}
}

func (s *Sender) each(ctx context.Context, queue <-chan *outgoing, do func(context.Context, *outgoing)) {
	for {
		select {
		case <-ctx.Done():
			return
		case t := <-queue:
			do(ctx, t)
		}
	}
}

// Handle takes in a frame from peer; what is damaged or unknown is dropped. It
// keeps no reference to the frame and does not wait.
func (s *Sender) Handle(peer string, frame []byte) {
	k, id, body, ok := unseal(frame, s.opts.MaxFrame)
	if !ok {
		return
	}
	switch k {
	case kindOpen:
		if o, ok := decodeOpen(body); ok {
			s.asked(peer, id, o)
		}
	case kindWant:
		if w, ok := decodeWant(body); ok {
			s.wanted(peer, id, w)
		}
	case kindCancel:
		s.cancelled(peer, id)
	}
}

// Drop ends all transfers of peer, for example when it was revoked. A frame that
// is being sent is still sent.
func (s *Sender) Drop(peer string) {
	s.dropIf(func(t *outgoing) bool { return t.peer == peer })
}

// Active returns how many transfers the Sender knows of now.
func (s *Sender) Active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// asked begins a transfer, or sends the plan of a known one again.
func (s *Sender) asked(peer string, id uint64, o openFrame) {
	s.mu.Lock()
	t := s.peers[peer][id]
	known := t != nil
	if !known {
		if len(s.peers[peer]) >= s.opts.PerPeer && !s.evict(peer) {
			s.mu.Unlock()
			return // the peer asks again
		}
		if s.count >= s.opts.Transfers {
			s.mu.Unlock()
			s.say(peer, encodeGone(id, goneFrame{atelier.Exhausted, "the sender is busy with other transfers"}))
			return
		}
		if s.peers[peer] == nil {
			s.peers[peer] = map[uint64]*outgoing{}
		}
		t = newOutgoing(peer, id, o, s.opts)
		t.blocks = s.blocks
		s.peers[peer][id] = t
		s.count++
	}
	s.mu.Unlock()
	if !t.enqueueOpen(s.opens) && !known {
		s.remove(t) // the queue is full: the peer asks again
	}
}

// evict drops the transfer of peer that is idle longest, of those that do not wait
// to be opened: a peer cannot fill that queue with what it then drops. s.mu is held.
func (s *Sender) evict(peer string) bool {
	var oldest *outgoing
	for _, t := range s.peers[peer] {
		if !t.waiting() && (oldest == nil || t.lastUse().Before(oldest.lastUse())) {
			oldest = t
		}
	}
	if oldest == nil {
		return false
	}
	s.forget(oldest)
	return true
}

// cancelled forgets a transfer that the peer needs no more. One that still waits to
// be opened is left to idle instead, see evict.
func (s *Sender) cancelled(peer string, id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.peers[peer][id]; t != nil && !t.waiting() {
		s.forget(t)
	}
}

func (s *Sender) dropIf(cond func(*outgoing) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range s.peers {
		for _, t := range of {
			if cond(t) {
				s.forget(t)
			}
		}
	}
}

func (s *Sender) remove(t *outgoing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(t)
}

// forget takes t off the books. s.mu is held.
func (s *Sender) forget(t *outgoing) {
	if s.peers[t.peer][t.id] != t {
		return
	}
	delete(s.peers[t.peer], t.id)
	if len(s.peers[t.peer]) == 0 {
		delete(s.peers, t.peer)
	}
	s.count--
	if err := t.close(); err != nil {
		s.opts.Log.Warn("content could not be closed", "digest", t.digest, "error", err)
	}
}

func (s *Sender) wanted(peer string, id uint64, w wantFrame) {
	s.mu.Lock()
	t := s.peers[peer][id]
	s.mu.Unlock()
	if t == nil {
		s.say(peer, encodeGone(id, goneFrame{message: "the sender does not know the transfer"}))
		return
	}
	t.want(w, s.ready)
}

// say sends a frame that answers; if it is lost, the peer asks again.
func (s *Sender) say(peer string, frame []byte) { _ = s.send(peer, frame) }

func (s *Sender) send(peer string, frame []byte) error {
	err := s.opts.Send(peer, frame)
	if err != nil {
		s.opts.Log.Debug("a content frame could not be sent", "peer", peer, "error", err)
	}
	return err
}

// open authorises t and makes its plan, unless it has one, and sends the plan.
func (s *Sender) open(ctx context.Context, t *outgoing) {
	plan, pending, err := t.open(func() (Blob, planFrame, *Pending, error) { return s.choose(ctx, t) })
	switch {
	case err != nil:
		s.refuse(t, err)
	case plan == nil && pending != nil:
		s.waits.Go(func() { s.await(ctx, t, pending) })
	case plan != nil:
		frame, err := encodePlan(t.id, *plan)
		if err != nil {
			s.refuse(t, err)
			return
		}
		s.say(t.peer, frame)
		if pending != nil {
			s.waits.Go(func() { s.watch(ctx, t, pending) })
		}
	}
}

// choose opens what t's content comes as, and makes the plan. It says what to wait
// for before that, without a Blob, or what might come later.
func (s *Sender) choose(ctx context.Context, t *outgoing) (Blob, planFrame, *Pending, error) {
	blob, err := s.opts.Open(ctx, t.peer, t.digest)
	if err != nil {
		return nil, planFrame{}, nil, err
	}
	d, pending := s.difference(ctx, t, blob.Size(), t.lacks(blob.Size()))
	if pending != nil && pending.Wait > 0 {
		return nil, planFrame{}, pending, blob.Close()
	}
	if d != nil {
		plan, err := s.plan(ctx, planKey{d.Digest, wayDifference, chunkLength(d.Blob.Size(), t.maxFrame-planTail)}, d.Blob)
		if err == nil {
			plan.recipe, t.spoiled = recipe{d.Digest, d.Bases}, d.Spoiled
			return d.Blob, plan, pending, blob.Close()
		}
		s.opts.Log.Warn("a difference cannot be sent; the content is sent as it is", "peer", t.peer, "digest", t.digest, "error", err)
		if err := d.Blob.Close(); err != nil {
			s.opts.Log.Warn("a difference could not be closed", "digest", d.Digest, "error", err)
		}
		if d.Spoiled != nil && atelier.CodeOf(err) == atelier.Corrupt {
			d.Spoiled()
		}
	}
	plan, err := s.plan(ctx, planKey{t.digest, wayWhole, chunkLength(blob.Size(), t.maxFrame)}, blob)
	if err != nil {
		return nil, planFrame{}, nil, errors.Join(err, blob.Close())
	}
	return blob, plan, pending, nil
}

func (s *Sender) plan(ctx context.Context, key planKey, blob Blob) (planFrame, error) {
	return s.plans.get(ctx, key, func() (planFrame, error) { return makePlan(ctx, key, blob) })
}

// refuse tells the peer why t ends.
func (s *Sender) refuse(t *outgoing, err error) {
	s.remove(t)
	g := goneFrame{code: atelier.CodeOf(err), message: err.Error()}
	switch g.code {
	case atelier.Corrupt:
		s.opts.Log.Error("content cannot be sent", "peer", t.peer, "why", atelier.BecauseOf(atelier.ReasonDigestMismatch, err))
	case atelier.Internal:
		// Its particulars are for this side's log, not for the peer.
		s.opts.Log.Error("content cannot be sent", "peer", t.peer, "digest", t.digest, "error", err)
		g.message = "the sender failed to read the content"
	}
	s.say(t.peer, encodeGone(t.id, g))
}

// turn is how many frames of one transfer are sent before the others' turn.
const turn = 8

// busy is for how long nothing is sent over a connection that takes no more.
const busy = 50 * time.Millisecond

// pump sends what t may send now, or the first frames of it.
func (s *Sender) pump(ctx context.Context, t *outgoing) {
	for range turn {
		if ctx.Err() != nil {
			break
		}
		if wait := s.pace(t); wait > 0 {
			t.park(wait, s.ready)
			return
		}
		frame, n, err := t.frame()
		if err != nil {
			t.rest()
			if t.plan.way == wayDifference && t.spoiled != nil && atelier.CodeOf(err) == atelier.Corrupt {
				t.spoiled()
			}
			s.refuse(t, err)
			return
		}
		if frame == nil {
			break
		}
		if err := s.send(t.peer, frame); err != nil {
			t.unsent()
			if atelier.CodeOf(err) == atelier.Exhausted {
				t.park(busy, s.ready)
				return
			}
			t.pause()
			break
		}
		if s.opts.Meter != nil {
			s.opts.Meter(t.peer, t.digest, t.plan.way.String(), n)
		}
	}
	t.yield(s.ready)
}

// pace returns how long t has to wait before its next frame.
func (s *Sender) pace(t *outgoing) time.Duration {
	if s.opts.Pace == nil {
		return 0
	}
	n := t.upcoming()
	if n == 0 {
		return 0
	}
	return s.opts.Pace(t.peer, n+dataHeader)
}
