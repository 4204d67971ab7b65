package fleet

import (
	"context"
	"math/rand/v2"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/wire"
)

// How long to wait for an acknowledgement before a desired state is sent again:
// firstRetry after the first attempt, doubled with each, never more than lastRetry.
const (
	firstRetry = 2 * time.Second
	lastRetry  = 2 * time.Minute
)

func retryAfter(attempts int) time.Duration {
	d := lastRetry
	if attempts < 7 {
		d = min(firstRetry<<max(attempts-1, 0), lastRetry)
	}
	return d - rand.N(d/4+1) // a fleet does not ask all at once
}

func (f *Fleet) wakeDelivery() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

// changed notes that a device has a newer desired state.
func (f *Fleet) changed(device string, p atelier.Position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sessions[device]
	if s == nil || !p.After(s.newest) {
		return
	}
	s.newest, s.refused, s.attempts, s.next = p, false, 0, time.Time{}
	f.wakeDelivery()
}

// deliver sends desired states to the devices that lack them, again and again
// until they have acknowledged them.
func (f *Fleet) deliver(ctx context.Context) error {
	for {
		due, wait := f.due()
		for _, s := range due {
			if err := f.sendDesired(ctx, s); err != nil && ctx.Err() == nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-f.kick:
		case <-f.clock.After(wait):
		}
	}
}

// due returns the sessions to send to now, and how long there is nothing to do
// after that. It counts the attempt.
func (f *Fleet) due() (due []session, wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.clock.Now()
	wait = lastRetry
	for _, s := range f.sessions {
		if s.id == "" || s.refused || !s.newest.After(s.acked) {
			continue
		}
		if s.next.After(now) {
			wait = min(wait, s.next.Sub(now))
			continue
		}
		s.attempts++
		after := retryAfter(s.attempts)
		s.next = now.Add(after)
		wait = min(wait, after)
		due = append(due, *s)
	}
	return due, max(wait, time.Millisecond)
}

// sendDesired sends the stored envelope as it is, after the trust that it needs.
func (f *Fleet) sendDesired(ctx context.Context, s session) error {
	var desired catalog.DesiredState
	err := f.store.View(ctx, func(tx store.Tx) (err error) {
		desired, err = catalog.DesiredStates.Get(tx, s.workspace, s.device)
		return err
	})
	if isNotFound(err) {
		return nil // the device was deleted
	}
	if err != nil {
		return err
	}
	if err := f.sendTrust(ctx, s.workspace, s.device, s.root, s.delegation); err != nil {
		return err
	}
	return f.send(ctx, s.device, desired.Envelope)
}

// acknowledged takes a device's answer to a desired state.
func (f *Fleet) acknowledged(ctx context.Context, p *peer, a wire.DesiredAck) error {
	f.heard(p.device)
	stale := false
	err := f.store.Update(ctx, asHub, func(tx store.Tx) error {
		stale = false
		desired, err := catalog.DesiredStates.Get(tx, p.workspace, p.device)
		if err != nil && !isNotFound(err) {
			return err
		}
		if err != nil || a.Position != desired.Position {
			stale = true // an answer to an older state, or to one that never was, says nothing of the newest
			return nil
		}
		r, err := f.reportedOf(tx, p)
		if err != nil {
			return err
		}
		switch {
		case a.Saved && r.Acked == a.Position && r.Refused == nil:
			return nil
		case a.Saved:
			r.Acked, r.Refused = a.Position, nil
		case r.Acked == a.Position && r.Refused == nil:
			stale = true // it holds that state: what it refuses bears its number, and somebody else sent it
			return nil
		default:
			r.Refused = &catalog.Refusal{Position: a.Position, Why: a.Why}
		}
		_, err = catalog.ReportedStates.Update(tx, p.workspace, r)
		return err
	})
	if err != nil {
		return err
	}
	if stale {
		f.ignore(p.device, "it answers to a state that is not the newest")
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sessions[p.device]
	if s == nil || s.newest != a.Position {
		return nil
	}
	if a.Saved {
		s.acked, s.refused = a.Position, false
		return nil
	}
	switch a.Why.Reason() {
	case atelier.ReasonKeyUnknown, atelier.ReasonSignatureInvalid, atelier.ReasonStateNotDurable, atelier.ReasonNoSpace:
		// It may pass: trust arrives late, a disk is freed. Keep sending.
	default:
		s.refused = true
	}
	return nil
}
