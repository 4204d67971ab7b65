package gateway

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"
)

// quiet is how long an answer may take before its client is watched for giving
// up. Most come sooner, and watching costs more than they do.
const quiet = 50 * time.Millisecond

// waiting is what one client waits for.
type waiting struct {
	mu     sync.Mutex
	on     *backendConn // nil while nothing is waited for
	since  time.Time
	nudged bool // reads of on were interrupted
}

// nudge looks for clients that wait long, and interrupts their wait, so that
// they begin to watch. It returns when ctx ends.
func (g *Gateway) nudge(ctx context.Context) {
	for ctx.Err() == nil {
		sleep(ctx, quiet)
		if g.busy.Load() == 0 { // no ticks while nothing happens
			select {
			case <-ctx.Done():
			case <-g.wake:
			}
			continue
		}
		now := time.Now()
		g.mu.Lock()
		for c := range g.conns {
			w := &c.wait
			w.mu.Lock()
			if w.on != nil && !w.nudged && now.Sub(w.since) >= quiet {
				w.nudged = true
				_ = w.on.SetReadDeadline(time.Unix(1, 0)) // fails only with the connection
			}
			w.mu.Unlock()
		}
		g.mu.Unlock()
	}
}

// begin notes that c waits for m.
func (w *waiting) begin(m *backendConn) {
	w.mu.Lock()
	w.on, w.since, w.nudged = m, time.Now(), false
	w.mu.Unlock()
}

// end notes that it waits no more, and undoes an interruption.
func (w *waiting) end() {
	w.mu.Lock()
	if w.nudged {
		w.on.MayRead()
	}
	w.on = nil
	w.mu.Unlock()
}

// awaitAnswer waits for the first byte of m's answer. A client that gives up
// meanwhile ends the request at the module.
func (x *exchange) awaitAnswer(m *backendConn) error {
	if x.g.busy.Add(1) == 1 {
		select {
		case x.g.wake <- struct{}{}:
		default:
		}
	}
	defer x.g.busy.Add(-1)
	x.wait.begin(m)
	_, err := m.r.Peek(1)
	x.wait.end()
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	m.MustRead(x.g.opts.Times.Answer)
	if x.r.Buffered() > 0 { // the client has sent its next request already: it is there
		_, err = m.r.Peek(1)
		return err
	}
	x.conn.MayRead()
	watched := make(chan bool)
	go func() { // ends with the client, its next byte, or the interruption below
		_, err := x.r.Peek(1)
		gone := err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
		if gone {
			_ = m.Close() // which cancels the request there
		}
		watched <- gone
	}()
	_, err = m.r.Peek(1)
	x.conn.Interrupt()
	if x.gone = <-watched; x.gone {
		x.leaving.Store(true)
	}
	return err
}
