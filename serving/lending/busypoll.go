package lending

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// A thread that sleeps until the next request comes is woken late, and finds its
// caches cold: in a virtual machine, whose processor went with it, both together
// cost more than many a model. So where a client asks again as soon as it has an
// answer, the module polls the connection for a moment before it sleeps
// (docs/adr/0138-latency-of-one-client.md), on these terms:
//
//   - it polls about as long as sleeping costs, and in all no longer than it worked;
//   - only while requests come on one connection alone: more keep the processors busy;
//   - whoever else wants the processor gets it, and is left in peace for a while.

// DefaultBusyPoll is how long is polled at most for one request.
const DefaultBusyPoll = 150 * time.Microsecond

const (
	// minBrisk and maxBrisk bound how many brisk pauses must come before it is polled
	// again; to poll in vain doubles it.
	minBrisk, maxBrisk = 4, 1024
	// maxCredit is how much polling work may be saved up for.
	maxCredit = 10 * time.Millisecond
	// disturbed is how far apart two polls lie where another thread ran for more than
	// a moment. Hosts of virtual machines also come between.
	disturbed = 50 * time.Microsecond
	// minRest and maxRest bound how long nobody polls after that.
	minRest, maxRest = 2 * time.Millisecond, time.Second
)

// poller is what the connections of a module share of this.
type poller struct {
	limit   time.Duration        // 0: nobody polls
	busy    atomic.Int32         // requests in progress
	last    atomic.Pointer[lent] // whose request was the last
	polling atomic.Bool
	rest    atomic.Int64 // the last rest, in nanoseconds; only who polls changes it
	until   atomic.Int64 // its end, in Unix nanoseconds; likewise
}

// setUp makes limit how long is polled. Where there is one processor, the client
// needs it.
func (p *poller) setUp(limit time.Duration) {
	if runtime.GOMAXPROCS(0) > 1 {
		p.limit = limit
	}
}

// enter notes that a request of l is in progress, until leave.
func (p *poller) enter(l *lent) {
	p.busy.Add(1)
	if p.last.Swap(l) != l {
		l.habit.brisk = 0 // others ask, too
	}
}

func (p *poller) leave() { p.busy.Add(-1) }

// begin lets one connection poll, unless there are reasons not to.
func (p *poller) begin(now time.Time) bool {
	return p.busy.Load() == 0 && now.UnixNano() >= p.until.Load() && p.polling.CompareAndSwap(false, true)
}

// end notes how it went. Where one in some forty polls is disturbed, rests become long.
func (p *poller) end(now time.Time, wasDisturbed bool) {
	rest := p.rest.Load()
	if wasDisturbed {
		rest = min(max(4*rest, int64(minRest)), int64(maxRest))
		p.until.Store(now.Add(time.Duration(rest)).UnixNano())
	} else {
		rest -= rest / 32
	}
	p.rest.Store(rest)
	p.polling.Store(false)
}

// habit is how a connection's client asks.
type habit struct {
	answered time.Time     // when the last answer was written
	brisk    int           // pauses in a row after which a request came at once
	need     int           // as many must be before it is polled
	credit   time.Duration // for polling
}

// asked notes that a request has begun. A pause is brisk where polling would have
// found the request: when it does not poll, the module takes its time to wake up.
func (h *habit) asked(now time.Time, limit time.Duration) {
	if h.brisk++; now.Sub(h.answered) > 2*limit {
		h.brisk = 0
	}
}

// worked notes that the answer to it has been written.
func (h *habit) worked(began, now time.Time) {
	h.answered = now
	h.credit = min(h.credit+now.Sub(began), maxCredit)
}

// busyPoll waits actively for the next request, where that is worth it. It takes
// no byte.
func (l *lent) busyPoll() {
	h, p := &l.habit, &l.c.b.poller
	h.need = max(h.need, minBrisk)
	if p.limit == 0 || h.brisk < h.need || h.credit < p.limit || !p.begin(h.answered) {
		return
	}
	began, before, found, wasDisturbed := time.Now(), switches(), false, false
	now := began
	_ = l.raw.Control(func(fd uintptr) { // where it fails, so does the read that follows
		for !l.recalled() {
			if found = readable(fd); found || wasDisturbed || p.busy.Load() > 0 || now.Sub(began) >= p.limit {
				return
			}
			_, _, _ = syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0)
			last := now
			now = time.Now()
			// Unless it was the client that ran: then its request is there now.
			wasDisturbed = now.Sub(last) > disturbed && switches() != before
		}
	})
	wasDisturbed = wasDisturbed && !found
	p.end(now, wasDisturbed)
	h.credit -= now.Sub(began)
	switch {
	case found:
		h.need /= 2
	case !wasDisturbed:
		h.brisk, h.need = 0, min(2*h.need, maxBrisk)
	}
}

// readable reports whether a read would return at once. The Go scheduler is not told
// of the call, as it would be by package syscall: it never waits.
func readable(fd uintptr) bool {
	var one byte
	_, _, err := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&one)), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
	return err != syscall.EAGAIN
}

// switches is how often this thread had to leave its processor to another.
func switches() int64 {
	const thisThread = 1 // RUSAGE_THREAD
	var u syscall.Rusage
	_ = syscall.Getrusage(thisThread, &u) // fails for wrong arguments only
	return u.Nivcsw
}
