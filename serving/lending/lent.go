package lending

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/serving/direct"
	"github.com/atelier-edge/atelier/serving/http1"
)

// lent is one connection while the module has it.
type lent struct {
	c     *channel
	index uint32
	slot  *slot
	key   [sha256.Size]byte // hash of the one key that requests come with

	conn    http1.Conn
	raw     syscall.RawConn
	leaving atomic.Bool // the module ends

	buf  []byte // the first n are unread
	n    int
	read func(fd uintptr) bool // tryRead, made once
	err  error                 // of the last tryRead

	began time.Time // the request in progress; changes only while none is
	head  http1.Request
	id    []byte // of the request
	out   []byte
	patience
}

// firstBuffer is how much a connection reads at a time, until a request is larger.
const firstBuffer = 16 << 10

func newLent(c *channel, f *frame, conn net.Conn) (*lent, error) {
	to, err := direct.New(conn)
	if err != nil {
		return nil, err
	}
	l := &lent{
		c: c, index: f.slot, slot: &c.page.slots[f.slot], key: f.key,
		conn: http1.Conn{Conn: to}, raw: to.Raw(), began: time.Now(),
		buf: make([]byte, max(len(f.bytes), firstBuffer)), id: append([]byte(c.terms.Rollout), '-'),
	}
	l.n = copy(l.buf, f.bytes)
	l.read = l.tryRead
	l.answered, l.watched = make(chan struct{}, 1), make(chan struct{}, 1)
	return l, nil
}

// unread returns what came and was not answered.
func (l *lent) unread() []byte { return l.buf[:l.n] }

// recalled reports whether no further request may begin.
func (l *lent) recalled() bool {
	return l.slot.recalled.Load() != 0 || l.leaving.Load() || l.c.orphan.Load()
}

// interrupt makes serve look whether it is recalled.
func (l *lent) interrupt() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) } // fails only with the connection

// errRecalled stops a read.
var errRecalled = errors.New("the connection is recalled")

// serve answers requests until the loan is to end, and says why it does.
func (l *lent) serve() Outcome {
	if l.n > 0 { // otherwise it is idle, as the state says already
		l.slot.state.Store(taken)
	}
	for {
		if l.n > 0 && l.recalled() {
			return Back
		}
		size, usual := l.request()
		switch {
		case !usual:
			return Back
		case size == 0 || size > l.n: // more must come
			if outcome, ok := l.more(size); !ok {
				return outcome
			}
			continue
		}
		if outcome, ok := l.answer(size); !ok {
			return outcome
		}
	}
}

// more reads on; size is that of the request, 0 where it is not known yet. It
// reports whether something came.
func (l *lent) more(size int) (Outcome, bool) {
	if size = max(size, l.n+1); size > len(l.buf) {
		l.buf = append(make([]byte, 0, min(max(size, 2*len(l.buf)), MaxRequest)), l.unread()...)
		l.buf = l.buf[:cap(l.buf)]
	}
	l.conn.MustRead(l.c.terms.Idle)
	err := l.raw.Read(l.read)
	if err == nil {
		err = l.err
	}
	switch {
	case err == nil:
		return 0, true
	case errors.Is(err, io.EOF) && l.n == 0:
		return Closed, false
	}
	return Back, false // also what the gateway will find out itself
}

// tryRead reads what is there. It notes that the module has bytes before it has
// them: nothing that it dies with is thought to be still unread.
func (l *lent) tryRead(fd uintptr) bool {
	l.slot.state.Store(taken)
	if l.recalled() { // after the note: whoever sets the mark and then sees no note knows that nothing begins
		l.err = errRecalled
	} else {
		var n int
		n, l.err = direct.Read(fd, l.buf[l.n:])
		switch {
		case n > 0:
			if l.n == 0 {
				l.began = time.Now()
				l.slot.since.Store(l.began.UnixNano())
			}
			l.n += n
			return true
		case l.err == nil:
			l.err = io.EOF
		}
	}
	if l.n == 0 {
		l.slot.state.Store(idle)
	}
	return !again(l.err)
}

// request looks at the request that is there so far. Its size is 0 until its head
// has come. It is not usual where the gateway has to deal with it.
func (l *lent) request() (size int, usual bool) {
	if l.n == 0 {
		return 0, true
	}
	end := bytes.Index(l.unread(), headEnd)
	if end < 0 {
		return 0, l.n < http1.MaxHead
	}
	end += len(headEnd)
	h := &l.head
	if end > http1.MaxHead || http1.ParseRequest(l.buf[:end], h) != nil {
		return 0, false
	}
	if h.Old || !h.KeepAlive || h.Expect || h.Body.Chunked || h.Body.Length > min(l.c.terms.MaxBody, MaxRequest) {
		return 0, false
	}
	size = end + int(h.Body.Length)
	path := l.path()
	return size, size <= MaxRequest && path != nil && l.admitted() && l.c.b.handler.Takes(h, path)
}

var headEnd = []byte("\r\n\r\n")

// path returns the request's target without the endpoint, nil where it is for
// another one.
func (l *lent) path() []byte {
	rest := l.head.Target[1:]
	if after, ok := bytes.CutPrefix(rest, l.c.prefix); ok {
		return rest[len(rest)-len(after)-1:]
	}
	return nil
}

// admitted reports whether the request comes with the key that the connection was
// lent for.
func (l *lent) admitted() bool {
	for key := range l.head.Keys {
		if sum := sha256.Sum256(key); len(key) > 0 && subtle.ConstantTimeCompare(sum[:], l.key[:]) == 1 {
			return true
		}
	}
	return false
}

// consume drops the request of that size, which is done with.
func (l *lent) consume(size int) {
	l.drop(size)
	if l.n == 0 {
		l.slot.state.Store(idle)
		return
	}
	l.slot.state.Store(taken)
	l.began = time.Now()
	l.slot.since.Store(l.began.UnixNano())
}

// drop drops the request of that size.
func (l *lent) drop(size int) { l.n = copy(l.buf, l.buf[size:l.n]) }
