package lending

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"
)

// quiet is how long an answer may take before its client is watched for giving
// up. Most come sooner, and watching costs more than they do.
const quiet = 50 * time.Millisecond

// Why the context of a request ended.
var (
	errGone = errors.New("the client gave up")
	errLate = errors.New("the request took too long")
)

// patience watches a client that waits for its answer. The channel's one ticker
// tells when to begin: setting a timer for each request would wake a thread.
type patience struct {
	mu       sync.Mutex
	waits    bool // a request is in progress
	watches  bool // and watch looks after it
	cancel   context.CancelCauseFunc
	further  bool          // the client has sent more than the request: it is there
	answered chan struct{} // tells watch to end
	watched  chan struct{} // tells that it has
}

// begin notes that a request is in progress.
func (l *lent) begin(cancel context.CancelCauseFunc, further bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waits, l.cancel, l.further = true, cancel, further
}

// end notes that it is not any more.
func (l *lent) end() {
	l.mu.Lock()
	watches := l.watches
	l.waits, l.watches = false, false
	l.mu.Unlock()
	if !watches {
		return
	}
	l.answered <- struct{}{}
	l.interrupt()
	<-l.watched
	l.conn.MayRead()
}

// nudge begins to watch where an answer takes long.
func (l *lent) nudge(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waits && !l.watches && now.Sub(l.began) >= quiet {
		l.watches = true
		go l.watch() // ends before end returns
	}
}

// nudges nudges the loans as long as there are any. It returns when the channel ends.
func (c *channel) nudges() {
	ticker := time.NewTicker(quiet)
	defer ticker.Stop()
	for {
		select {
		case <-c.ended:
			return
		case now := <-ticker.C:
			if c.nudge(now) > 0 {
				continue
			}
		}
		ticker.Stop() // no ticks while nothing is lent
		select {
		case <-c.ended:
			return
		case <-c.first:
			ticker.Reset(quiet)
		}
	}
}

func (c *channel) nudge(now time.Time) (loans int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.loans {
		l.nudge(now)
	}
	return len(c.loans)
}

// watch cancels the request when its client gives up or its time is over. It
// takes no byte.
func (l *lent) watch() {
	late := time.AfterFunc(l.c.terms.Answer-quiet, func() { l.cancel(errLate) })
	for waits := !l.further; waits; {
		l.conn.MayRead()
		if len(l.answered) > 0 { // looked at after MayRead, lest that undoes the interruption of end
			break
		}
		gone := false
		err := l.raw.Read(func(fd uintptr) bool {
			var one [1]byte
			n, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK)
			gone = n <= 0 && err == nil || err != nil && !again(err)
			return !again(err)
		})
		if gone {
			l.cancel(errGone)
		}
		waits = errors.Is(err, os.ErrDeadlineExceeded) // by a recall: the request still counts
	}
	<-l.answered
	late.Stop()
	l.watched <- struct{}{}
}

// again reports whether a call that must not wait has nothing to tell yet.
func again(err error) bool { return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) }
