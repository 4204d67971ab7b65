package lending

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Lender is the gateway's end of a channel. Its methods are safe for concurrent use.
type Lender struct {
	conn  *net.UnixConn
	terms Terms
	poke  chan struct{} // tells the sender that marks were set
	ended chan struct{} // closed when the channel has ended and all loans with it

	mu     sync.Mutex
	page   *page // nil when the channel has ended
	last   Counts
	loans  map[uint32]*Loan
	free   []uint32
	broken bool // this side ended the channel: what the module does is unknown
}

// Loan is one lent connection.
type Loan struct {
	lender *Lender
	slot   uint32
	begun  time.Time
	end    chan Return // gets one
}

// Return is how a loan ended.
type Return struct {
	Outcome Outcome
	// Partial says that the module took bytes besides one whole request with it: the
	// connection cannot go on.
	Partial bool
	// Unread are the bytes that the module read and did not answer.
	Unread []byte
	// Answered is how many requests the module says it answered.
	Answered int
	// Since is when the request began that the outcome is about.
	Since time.Time
}

// Dial opens a channel to the module whose lending socket is at path. The code
// Unavailable says that there is none.
func Dial(path string, terms Terms) (*Lender, error) {
	terms.Version = version
	if err := terms.check(); err != nil {
		return nil, err
	}
	conn, err := net.DialTimeout("unixpacket", path, sendTime)
	if err != nil {
		return nil, atelier.Errorf(atelier.Unavailable, "the module takes no lent connections: %w", err)
	}
	page, file, err := newPage()
	if err != nil {
		_ = conn.Close() // nothing was sent
		return nil, err
	}
	l := &Lender{
		conn: conn.(*net.UnixConn), terms: terms, page: page, loans: map[uint32]*Loan{},
		poke: make(chan struct{}, 1), ended: make(chan struct{}), free: make([]uint32, 0, MaxLoans),
	}
	for slot := range uint32(MaxLoans) {
		l.free = append(l.free, MaxLoans-1-slot)
	}
	hello, err := appendHello(nil, &terms)
	if err == nil {
		err = send(l.conn, hello, int(file.Fd()))
	}
	_ = file.Close() // it is mapped, and the module has its own
	if err != nil {
		_ = conn.Close() // the module takes that for the end
		page.unmap()
		return nil, fmt.Errorf("open a lending channel: %w", err)
	}
	go l.recalls() // both end with the channel
	go l.run()
	return l, nil
}

// Lend passes the connection behind descriptor fd to the module, with the bytes
// that were read of it; key is the hash of the key with which its requests must
// come. While the loan lasts nobody else may read or write the connection. The code
// Unavailable says that the module takes no more.
func (l *Lender) Lend(fd int, key [sha256.Size]byte, unread ...[]byte) (*Loan, error) {
	l.mu.Lock()
	if l.page == nil || len(l.free) == 0 {
		l.mu.Unlock()
		return nil, atelier.Errorf(atelier.Unavailable, "the module takes no more lent connections")
	}
	loan := &Loan{lender: l, slot: l.free[len(l.free)-1], begun: time.Now(), end: make(chan Return, 1)}
	l.free = l.free[:len(l.free)-1]
	l.loans[loan.slot] = loan
	s := &l.page.slots[loan.slot]
	s.recalled.Store(0)
	s.answered.Store(0)
	s.since.Store(loan.begun.UnixNano())
	s.state.Store(handed)
	l.mu.Unlock()
	if err := l.send(appendLend(nil, loan.slot, &key, unread...), fd); err != nil {
		l.withdraw(loan)
		return nil, atelier.Errorf(atelier.Unavailable, "the module takes no more lent connections: %w", err)
	}
	return loan, nil
}

// send sends a packet. A module that does not read any more loses the connections.
func (l *Lender) send(b []byte, fd int) error {
	err := send(l.conn, b, fd)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.Close()
	}
	return err
}

// withdraw forgets a loan that the module has not got.
func (l *Lender) withdraw(loan *Loan) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page != nil {
		l.release(loan)
	}
}

// release frees the slot of a loan that has ended. The caller holds l.mu.
func (l *Lender) release(loan *Loan) {
	l.page.slots[loan.slot].state.Store(idle)
	delete(l.loans, loan.slot)
	l.free = append(l.free, loan.slot)
}

// Wait returns when the loan has ended. A module that neither answers nor gives
// up a request, long after it had to, loses all loans.
func (l *Loan) Wait() Return {
	ticker := time.NewTicker(l.lender.terms.Answer)
	defer ticker.Stop()
	for {
		select {
		case r := <-l.end:
			return r
		case <-ticker.C:
			if l.overdue() {
				l.lender.Close()
			}
		}
	}
}

// overdue reports whether the module has had the connection for longer than it
// may without a new request: also one that is idle it has to give back.
func (l *Loan) overdue() bool {
	l.lender.mu.Lock()
	defer l.lender.mu.Unlock()
	if l.lender.page == nil {
		return false
	}
	terms := &l.lender.terms
	return time.Since(l.lender.told(l).Since) > 2*(terms.Answer+terms.Write+terms.Idle)
}

// Recall asks for all connections back. When it returns, the module begins no
// request any more on those that are lent; what it has begun it finishes.
func (l *Lender) Recall() {
	l.mu.Lock()
	if l.page != nil {
		for slot := range l.loans {
			l.page.slots[slot].recalled.Store(1)
		}
	}
	l.mu.Unlock()
	select {
	case l.poke <- struct{}{}:
	default: // it will look at these marks too
	}
}

// Counts returns what the module has answered so far.
func (l *Lender) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page == nil {
		return l.last
	}
	c := l.page.counts(len(l.terms.Bounds) + 1)
	for slot := range l.loans {
		if l.page.slots[slot].state.Load() != idle {
			c.InFlight++
		}
	}
	return c
}

// Ended is closed when the channel has ended. The counts stay as they are then.
func (l *Lender) Ended() <-chan struct{} { return l.ended }

// Close ends the channel and its loans. Where the module is at work on a request,
// the loan is Torn.
func (l *Lender) Close() {
	l.mu.Lock()
	l.broken = true
	l.mu.Unlock()
	_ = l.conn.Close() // which run sees
}

// recalls tells the module of marks, so that nobody who sets one waits for it.
func (l *Lender) recalls() {
	for {
		select {
		case <-l.ended:
			return
		case <-l.poke:
			_ = l.send([]byte{kindRecall}, -1) // where it fails, the channel ends, and all loans with it
		}
	}
}

// run takes connections back until the channel ends.
func (l *Lender) run() {
	buffer, reset := make([]byte, maxFrame), false
	for {
		f, file, err := receive(l.conn, buffer)
		if errors.Is(err, syscall.ECONNRESET) && !reset {
			// The module went with packets unread; what it sent before is still there.
			reset = true
			continue
		}
		if file != nil {
			_ = file.Close() // a module has none to give; the packet's kind is refused below
		}
		if err == nil && !l.back(&f) {
			err = atelier.Errorf(atelier.Invalid, "slot %d is not lent, or the packet is none of a module's", f.slot)
		}
		if err != nil {
			l.finish(atelier.CodeOf(err) == atelier.Invalid)
			return
		}
	}
}

// back ends the loan that f is about, and reports whether there is one.
func (l *Lender) back(f *frame) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	loan := l.loans[f.slot]
	if f.kind != kindBack || loan == nil {
		return false
	}
	r := l.told(loan)
	r.Outcome, r.Unread = f.outcome, append([]byte(nil), f.bytes...)
	loan.end <- r
	l.release(loan)
	return true
}

// told is what the page tells of a loan, as far as it is to be believed.
func (l *Lender) told(loan *Loan) Return {
	s := &l.page.slots[loan.slot]
	r := Return{Since: time.Unix(0, s.since.Load()), Answered: int(s.answered.Load())}
	if r.Since.Before(loan.begun) || r.Since.After(time.Now()) {
		r.Since = loan.begun
	}
	return r
}

// finish ends all loans by what the page says of them. It says the truth where
// the module has died, and nothing where this side ended the channel.
func (l *Lender) finish(garbled bool) {
	_ = l.conn.Close() // it has ended, or nothing of use comes any more
	l.mu.Lock()
	defer l.mu.Unlock()
	unsure := l.broken || garbled
	for slot, loan := range l.loans {
		r := l.told(loan)
		switch state := l.page.slots[slot].state.Load(); {
		case unsure && state == idle:
			r.Outcome = Closed // there is no request to lose
		case unsure:
			r.Outcome = Torn
		case state == idle:
			r.Outcome = Unused
		case state == handed:
			r.Outcome = Untouched
		case state == whole:
			r.Outcome = Unmet
		case state == taken:
			r.Outcome = Unmet
			r.Partial = true
		default:
			r.Outcome = Torn
		}
		loan.end <- r
	}
	l.last = l.page.counts(len(l.terms.Bounds) + 1)
	l.page.unmap()
	l.page, l.loans, l.free = nil, nil, nil
	close(l.ended)
}
