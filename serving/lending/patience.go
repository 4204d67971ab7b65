package lending

import (
	"context"
	"errors"
	"os"
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

// patience watches a client that waits for its answer.
type patience struct {
	timer    *time.Timer // starts watch
	cancel   context.CancelCauseFunc
	further  bool          // the client has sent more than the request: it is there
	answered chan struct{} // tells watch to end
	watched  chan struct{} // tells that it has
}

func (p *patience) init(l *lent) {
	p.answered, p.watched = make(chan struct{}, 1), make(chan struct{}, 1)
	p.timer = time.AfterFunc(time.Hour, l.watch)
	p.timer.Stop()
}

// begin lets watch begin when an answer takes long.
func (l *lent) begin(cancel context.CancelCauseFunc, further bool) {
	l.cancel, l.further = cancel, further
	l.timer.Reset(quiet)
}

// end ends what begin began.
func (l *lent) end() {
	if l.timer.Stop() {
		return
	}
	l.answered <- struct{}{}
	l.interrupt()
	<-l.watched
	l.conn.MayRead()
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
