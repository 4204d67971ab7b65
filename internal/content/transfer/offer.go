package transfer

import (
	"context"
	"slices"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Offer is what a peer says of itself when it asks for content.
type Offer struct {
	Target  atelier.Digest
	Size    int64 // of the target, in bytes
	Missing int64 // bytes of it that the peer does not have yet
	// Bases are contents that the peer says to hold, the most promising first; at
	// most MaxBases. That it says so gives it no right to them.
	Bases []atelier.Digest
	Rate  uint64 // bytes a second that came to the peer lately; 0 where it does not know
}

// Difference is a difference that can be sent.
type Difference struct {
	Blob   Blob             // the Sender closes it
	Digest atelier.Digest   // of the difference
	Bases  []atelier.Digest // that it needs, all of them offered
	// Decoding is about how long a device is at making the target of it.
	Decoding time.Duration
	// Spoiled, where set, is called where the bytes are not what Digest says.
	Spoiled func()
}

// Pending says that a difference is being made.
type Pending struct {
	Ready <-chan struct{} // closed when there is one, or will be none
	// Wait is for how long it pays to wait, where it is not 0: then, or when Ready is
	// closed, the Sender asks again. Else content is sent as it is, and where the
	// difference is ready later, the peer is told to ask again, and decides.
	Wait time.Duration
}

// Expectation says about how a difference that is being made will come out.
type Expectation struct {
	// For is how long it has been in the making.
	For time.Duration
	// Known tells that there is an estimate, which the other fields hold.
	Known    bool
	Size     int64         // of the difference, in bytes
	Decoding time.Duration // that a device is at making the target of it
	Rest     time.Duration // until it is there; below 0 where that is overdue
}

// difference looks for one that t's peer would take, which misses so much of the
// size of the target.
func (s *Sender) difference(ctx context.Context, t *outgoing, size, missing int64) (*Difference, *Pending) {
	if s.opts.Difference == nil || !slices.Contains(t.ways, wayDifference) {
		return nil, nil
	}
	return s.opts.Difference(ctx, t.peer, Offer{Target: t.digest, Size: size, Missing: missing, Bases: t.bases, Rate: t.rate})
}

// await lets t wait for a difference, and then looks for one again.
func (s *Sender) await(ctx context.Context, t *outgoing, p *Pending) {
	timer := time.NewTimer(p.Wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return
	case <-t.done:
		return
	case <-p.Ready:
	case <-timer.C:
	}
	select {
	case <-ctx.Done():
	case s.opens <- t: // t is in no queue: it counts as waiting to be opened
	}
}

// watch tells t's peer to ask again when a difference comes while the content is
// being sent as it is, and is less than what is still to be sent. The peer decides.
func (s *Sender) watch(ctx context.Context, t *outgoing, p *Pending) {
	select {
	case <-ctx.Done():
		return
	case <-t.done:
		return
	case <-p.Ready:
	}
	missing := t.missing()
	d, _ := s.difference(ctx, t, t.plan.size, missing)
	if d == nil {
		return
	}
	smaller := d.Blob.Size() < missing
	if err := d.Blob.Close(); err != nil {
		s.opts.Log.Warn("a difference could not be closed", "digest", d.Digest, "error", err)
	}
	if t.plan.way == wayWhole && smaller {
		s.remove(t)
		s.say(t.peer, encodeGone(t.id, goneFrame{message: "a smaller way is there"}))
	}
}
