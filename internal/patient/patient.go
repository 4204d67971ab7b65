// Package patient lets transfers over HTTP last as long as bytes keep moving: no
// deadline stands over a whole transfer, and one that stands still is given up.
package patient

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Stall is how long a transfer may stand still before it is given up, unless a
// server says otherwise.
const Stall = 60 * time.Second

// Reader reads the body of a request. It lasts as long as bytes keep coming: Timeout
// where none came for the stall.
type Reader struct {
	body    io.Reader
	control *http.ResponseController
	stall   time.Duration

	mu          sync.Mutex
	interrupted bool
}

// NewReader returns a reader of r's body, which w answers.
func NewReader(w http.ResponseWriter, r *http.Request, stall time.Duration) *Reader {
	return &Reader{body: r.Body, control: http.NewResponseController(w), stall: stall}
}

// Read implements io.Reader.
func (p *Reader) Read(b []byte) (int, error) {
	if p.deadline(time.Now().Add(p.stall)) {
		return 0, os.ErrDeadlineExceeded
	}
	n, err := p.body.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = atelier.Errorf(atelier.Timeout, "nothing came for %s", p.stall).WithRemedy("Send it again.")
	}
	return n, err
}

// deadline sets the deadline of the next read, and reports whether there is to be none.
func (p *Reader) deadline(t time.Time) (interrupted bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.interrupted {
		_ = p.control.SetReadDeadline(t) // not every transport has deadlines
	}
	return p.interrupted
}

// Interrupt ends the read that waits, and all that would follow. It may be called
// from another goroutine than Read, as long as the request is being served.
func (p *Reader) Interrupt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.interrupted = true
	_ = p.control.SetReadDeadline(time.Unix(1, 0))
}

// Done lifts the deadline of a body that came whole: left in place it would end a
// request that works for long. Of one that did not, net/http goes on reading.
func (p *Reader) Done() { p.deadline(time.Time{}) }

// Writer is a response writer that lasts as long as the caller keeps taking bytes.
type Writer struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
}

// NewWriter returns a writer to w.
func NewWriter(w http.ResponseWriter, stall time.Duration) *Writer {
	return &Writer{w, http.NewResponseController(w), stall}
}

// Write implements io.Writer.
func (p *Writer) Write(b []byte) (int, error) {
	_ = p.control.SetWriteDeadline(time.Now().Add(p.stall)) // not every transport has deadlines
	return p.ResponseWriter.Write(b)
}
