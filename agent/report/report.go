// Package report sees to it that the hub learns the device's reported state: the
// full picture, at most one a second, sent again until the hub has acknowledged it.
//
// It knows neither what is in the picture nor how it travels.
package report

import (
	"context"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Options say what to report and how.
type Options struct {
	// Snapshot returns the device's state; the reporter fills in Session and Sequence.
	Snapshot func() atelier.ReportedState
	// Send sends a report to the hub. That it arrives is not certain.
	Send func(ctx context.Context, r atelier.ReportedState) error
	// Silent is called when the hub has not acknowledged silentAfter reports in a
	// row: it may have forgotten the session.
	Silent func()
	Times  Times
}

// Times are the reporter's intervals.
type Times struct {
	Coalesce time.Duration // between two reports, at least
	// Progress is the same where nothing but how far something is has changed: a hub
	// that brings a version to many devices is told that by all of them. It doubles up to
	// ProgressMost, from one such report to the next, until something else changes.
	Progress, ProgressMost time.Duration
	// Repeat is the pause before a report that was not acknowledged is sent
	// again; it doubles up to RepeatMost.
	Repeat, RepeatMost time.Duration
	// Refresh is when a report is made although nothing is known to have changed.
	Refresh time.Duration
}

// DefaultTimes are those of the agent.
var DefaultTimes = Times{Coalesce: time.Second, Progress: 5 * time.Second, ProgressMost: 30 * time.Second, Repeat: 3 * time.Second, RepeatMost: time.Minute, Refresh: 10 * time.Minute}

// silentAfter is how many unanswered reports make a silent hub.
const silentAfter = 4

// Reporter reports. Its methods are safe for concurrent use.
type Reporter struct {
	opts Options
	wake chan struct{}

	mu       sync.Mutex
	session  string // "" while there is none
	sequence uint64 // of the last report that was made
	acked    uint64 // in this session
	sent     bool   // a report was made in this session
	changed  bool   // since the last report was made
	moved    bool   // the same, but for how far something is
}

// New returns a reporter; Run makes it report.
func New(opts Options) *Reporter {
	return &Reporter{opts: opts, wake: make(chan struct{}, 1)}
}

// Changed tells that the state may have changed. It does not block.
func (r *Reporter) Changed() {
	r.mu.Lock()
	r.changed = true
	r.mu.Unlock()
	r.signal()
}

// Progressed tells that something is further than before, and no more. It does not block.
func (r *Reporter) Progressed() {
	r.mu.Lock()
	first := !r.moved
	r.moved = true
	r.mu.Unlock()
	if first {
		r.signal()
	}
}

// Begin tells that the hub has welcomed the device to session: what was
// acknowledged before counts no more.
func (r *Reporter) Begin(session string) {
	r.mu.Lock()
	r.session, r.acked, r.sent = session, 0, false
	r.mu.Unlock()
	r.signal()
}

// End tells that there is no session.
func (r *Reporter) End() {
	r.mu.Lock()
	r.session = ""
	r.mu.Unlock()
}

// Acked tells that the hub has stored the reports of session through a sequence.
func (r *Reporter) Acked(session string, through uint64) {
	r.mu.Lock()
	if session == r.session && through <= r.sequence {
		r.acked = max(r.acked, through)
	}
	r.mu.Unlock()
	r.signal()
}

func (r *Reporter) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// need says what is to be done now.
type need int

const (
	nothing need = iota // all is known to the hub, or there is no session
	wait                // the last report is not acknowledged yet
	news                // something was not reported yet
	further             // only how far something is was not
)

func (r *Reporter) need() (need, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.session == "":
		return nothing, ""
	case r.changed || !r.sent:
		return news, r.session
	case r.acked < r.sequence:
		return wait, r.session
	case r.moved:
		return further, r.session
	}
	return nothing, r.session
}

// Run reports until ctx ends.
func (r *Reporter) Run(ctx context.Context) {
	times := r.opts.Times
	unanswered := 0
	var last time.Time // when a report was sent
	progress := times.Progress
	timer := time.NewTimer(times.Refresh)
	defer timer.Stop()
	for {
		n, session := r.need()
		due := time.Until(last.Add(times.Coalesce))
		switch {
		case n == news && due <= 0:
			unanswered, progress = 0, times.Progress
			r.report(ctx, session)
			last = time.Now()
			continue
		case n == news:
			timer.Reset(due)
		case n == further:
			if due = time.Until(last.Add(progress)); due <= 0 {
				unanswered, progress = 0, max(progress, min(2*progress, times.ProgressMost))
				r.report(ctx, session)
				last = time.Now()
				continue
			}
			timer.Reset(due)
		case n == wait:
			pause := times.RepeatMost
			if unanswered < 20 && times.Repeat<<unanswered < pause {
				pause = times.Repeat << unanswered
			}
			if due = time.Until(last.Add(pause)); due <= 0 {
				if unanswered++; unanswered%silentAfter == 0 {
					r.opts.Silent()
				}
				r.report(ctx, session)
				last = time.Now()
				continue
			}
			timer.Reset(due)
		default:
			unanswered = 0
			timer.Reset(times.Refresh)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-timer.C:
			if n == nothing {
				r.Changed()
			}
		}
	}
}

// report makes a picture of the present and sends it. A picture is never sent
// twice: by the time of its repetition there may be a newer one.
func (r *Reporter) report(ctx context.Context, session string) {
	r.mu.Lock()
	r.changed, r.moved = false, false // before the picture is made, so that no change is missed
	r.mu.Unlock()
	state := r.opts.Snapshot()
	r.mu.Lock()
	if r.session != session {
		r.changed = true
		r.mu.Unlock()
		return
	}
	r.sequence++
	r.sent = true
	state.Session, state.Sequence = session, r.sequence
	r.mu.Unlock()
	// What cannot be sent is not acknowledged, and comes again.
	_ = r.opts.Send(ctx, state)
}
