package gateway

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/http1"
	"github.com/atelier-edge/atelier/serving/lending"
)

const (
	// askAgain is how often a module is asked whether it takes connections.
	askAgain = 10 * time.Second
	// lendAfter is how many requests of one endpoint a connection sends before it
	// is lent; a client that sends one and goes does not pay for more.
	lendAfter = 2
	// lendAfterMost is the same for connections that come back too soon.
	lendAfterMost = 64
	// lentIdle is how long a lent connection may be idle.
	lentIdle = 4 * time.Second
)

// lends is a backend's channel for connections that are lent.
type lends struct {
	mu     sync.Mutex
	lender *lending.Lender // nil where there is none
	asked  time.Time       // when a channel was tried last
}

// counts returns what the module answered over the channel. The caller holds l.mu.
func (l *lends) counts() lending.Counts {
	if l.lender == nil {
		return lending.Counts{Buckets: make([]uint64, len(atelier.LatencyBounds)+1)}
	}
	return l.lender.Counts()
}

// recall asks for all lent connections back. No request begins on them any more.
func (b *backend) recall() {
	b.lends.mu.Lock()
	defer b.lends.mu.Unlock()
	if b.lends.lender != nil {
		b.lends.lender.Recall()
	}
}

// stopLending ends the channel at once, and what is lent with it.
func (b *backend) stopLending() {
	b.lends.mu.Lock()
	defer b.lends.mu.Unlock()
	if b.lends.lender != nil {
		b.lends.lender.Close()
	}
}

// borrower returns the channel to the module, nil where it takes no connections.
func (b *backend) borrower(g *Gateway) *lending.Lender {
	l := &b.lends
	l.mu.Lock()
	if l.lender != nil {
		select {
		case <-l.lender.Ended():
			b.absorb(l.lender.Counts())
			l.lender = nil
		default:
			defer l.mu.Unlock()
			return l.lender
		}
	}
	ask := time.Since(l.asked) > askAgain
	if ask {
		l.asked = time.Now()
	}
	l.mu.Unlock()
	if !ask {
		return nil
	}
	lender, err := lending.Dial(b.Socket+lending.Suffix, lending.Terms{
		Endpoint: b.endpoint, Rollout: b.Rollout, Model: b.name, MaxBody: g.opts.MaxBody,
		Answer: g.opts.Times.Answer, Write: g.opts.Times.Body, Idle: min(lentIdle, g.opts.Times.Idle), Bounds: atelier.LatencyBounds,
	})
	if err != nil {
		if atelier.CodeOf(err) != atelier.Unavailable { // which is a module that does without
			g.opts.Log.Warn("no connections can be lent", "endpoint", b.endpoint, "error", err)
		}
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lender = lender
	return lender
}

// absorb adds the last counts of a channel to the backend's own.
func (b *backend) absorb(c lending.Counts) {
	for class := range b.requests {
		b.requests[class].Add(c.Requests[class])
	}
	for i := range b.buckets {
		b.buckets[i].Add(c.Buckets[i])
	}
	b.nanos.Add(c.Nanos)
}

// habit is what a connection was used for so far.
type habit struct {
	backend *backend
	count   int // requests for it since the last one for another, or since a loan
	after   int // how many there are before it is lent; 0 stands for lendAfter
}

// lasts notes a request for b and reports whether those before were for it too,
// and enough of them that lending pays.
func (h *habit) lasts(b *backend) bool {
	if h.backend != b {
		h.backend, h.count = b, 0
	}
	h.count++
	return h.count > max(h.after, lendAfter)
}

// returned notes how many requests a loan was good for.
func (h *habit) returned(answered int) {
	h.count = 0
	if h.after = max(h.after, lendAfter); answered < h.after {
		h.after = min(2*h.after, lendAfterMost)
	} else {
		h.after = lendAfter
	}
}

// lend lets the module answer the request, and those that come after it on the
// connection, where that is possible and pays. It returns when the connection is
// back, and reports whether the request is done with and the connection goes on.
func (x *exchange) lend(table *routes, r *route) (done, keep bool) {
	b := r.backend
	// Where requests are split or copied, each has to pass here.
	if r.trial != nil || !x.habit.lasts(b) || !x.plain() {
		return false, false
	}
	lender := b.borrower(x.g)
	if lender == nil {
		return false, false
	}
	came, err := x.r.Peek(x.r.Buffered())
	if err != nil {
		return false, false
	}
	came = bytes.Clone(came)
	b.inFlight.Add(1)
	if x.g.table.Load() != table { // as in acquire
		b.inFlight.Add(-1)
		return false, false
	}
	fd, loan, err := x.handOver(lender, came)
	b.inFlight.Add(-1) // the lender counts it by now
	if err != nil {
		return false, false
	}
	if x.g.table.Load() != table || x.leaving.Load() {
		lender.Recall() // whoever changed that may have looked before the loan was there
	}
	back := loan.Wait()
	x.habit.returned(back.Answered)
	if err := x.takeBack(fd); err != nil {
		return true, false // it broke meanwhile
	}
	return x.resume(b, came, back)
}

// plain reports whether the request is one that modules answer themselves.
func (x *exchange) plain() bool {
	_, tcp := x.conn.Conn.(*net.TCPConn)
	h := &x.req
	return tcp && http1.Is(h.Method, "post") && !h.Old && h.KeepAlive && !h.Expect && !h.Body.Chunked &&
		h.Body.Length+int64(len(x.rawHead)) <= lending.MaxRequest && !x.leaving.Load()
}

// handOver lends the connection with the bytes of the request that came. The
// descriptor that it returns is the connection then. It is no part of the poller,
// which would wake this process with each request that the module gets.
func (x *exchange) handOver(lender *lending.Lender, came []byte) (fd int, loan *lending.Loan, err error) {
	raw, err := x.conn.Conn.(syscall.Conn).SyscallConn() // plain has seen that it is TCP
	if err != nil {
		return -1, nil, err
	}
	if failed := raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) }); failed != nil || err != nil {
		return -1, nil, errors.Join(err, failed)
	}
	if loan, err = lender.Lend(fd, x.key, x.rawHead, came); err != nil {
		return -1, nil, errors.Join(err, unix.Close(fd))
	}
	_ = x.conn.Close() // fd is the connection now
	return fd, loan, nil
}

// takeBack makes a connection of fd again.
func (x *exchange) takeBack(fd int) error {
	file := os.NewFile(uintptr(fd), "client")
	conn, err := net.FileConn(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	x.swap.Lock()
	defer x.swap.Unlock()
	x.conn = http1.Conn{Conn: conn}
	return nil
}

// resume goes on with a connection that is back from b. came is what came of the
// request with which it was lent, besides its head.
func (x *exchange) resume(b *backend, came []byte, back lending.Return) (done, keep bool) {
	unread := back.Unread
	if back.Outcome == lending.Untouched {
		unread = came
	}
	x.r.Reset(x.conn.Conn)
	if len(unread) > 0 {
		x.r.Reset(io.MultiReader(bytes.NewReader(unread), x.conn.Conn))
	}
	x.stream = http1.NewBodyReader(x.r, http1.Framing{}, 0)
	unanswered := func(f *failure) (done, keep bool) {
		x.begin, x.whole = back.Since, !back.Partial
		if back.Partial {
			x.stream = nil // what is left of the request is unknown
		}
		return true, x.giveUp(b, f)
	}
	switch back.Outcome {
	case lending.Untouched:
		x.stream = http1.NewBodyReader(x.r, x.req.Body, x.g.opts.MaxBody)
		return false, false
	case lending.Back, lending.Unused:
		if len(unread) > 0 {
			_, err := x.r.Peek(1) // into the buffer: it is a request that has begun
			x.owed = err == nil
		}
		return true, true
	case lending.TimedOut:
		return unanswered(x.late())
	case lending.Unmet, lending.Failed:
		return unanswered(x.died("ended before it answered"))
	case lending.Torn:
		b.record(http.StatusBadGateway, time.Since(back.Since))
	}
	if tcp, ok := x.conn.Conn.(*net.TCPConn); ok {
		_ = errors.Join(tcp.CloseRead(), tcp.CloseWrite()) // the module may have a descriptor still; it has no use any more
	}
	return true, false
}
