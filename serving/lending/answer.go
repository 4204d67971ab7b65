package lending

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/http1"
)

// statusGone is what a request counts as whose client did not wait for the answer.
const statusGone = 499

// answer answers the request of that size and reports whether the loan goes on.
func (l *lent) answer(size int) (Outcome, bool) {
	if size == l.n {
		l.slot.state.Store(whole)
	}
	l.nextID()
	ctx, cancel := context.WithCancelCause(context.Background())
	l.begin(cancel, size < l.n)
	body := l.buf[size-int(l.head.Body.Length) : size]
	a, err := l.call(ctx, &Request{Head: &l.head, Path: l.path(), ID: l.id, Body: body})
	l.end()
	cause := context.Cause(ctx)
	cancel(nil)
	switch {
	case errors.Is(cause, errGone):
		l.record(statusGone)
		l.consume(size)
		return Closed, false
	case errors.Is(cause, errLate):
		l.drop(size)
		return TimedOut, false
	case err != nil:
		l.drop(size)
		return Failed, false
	}
	l.slot.state.Store(answering)
	l.compose(&a)
	err = l.write()
	l.record(a.Status)
	if cap(l.out) > MaxRequest {
		l.out = nil // one large answer does not keep its memory
	}
	if err != nil {
		l.n = 0 // the connection is torn; what else came on it nobody can answer
		return Closed, false
	}
	l.consume(size)
	return 0, true
}

// call lets the handler answer. One that panics loses its request, not the process.
func (l *lent) call(ctx context.Context, r *Request) (a Answer, err error) {
	defer func() {
		if p := recover(); p != nil {
			l.c.b.log.Error("a request failed", "request", string(r.ID), "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("the handler panicked: %v", p)
		}
	}()
	return l.c.b.handler.Answer(ctx, r), nil
}

// nextID makes the id of a request, as the gateway does.
func (l *lent) nextID() {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	l.id = hex.AppendEncode(l.id[:len(l.c.terms.Rollout)+1], random[:])
}

// compose writes the whole answer to l.out.
func (l *lent) compose(a *Answer) {
	b := append(l.out[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(a.Status), 10)
	b = append(append(b, ' '), http.StatusText(a.Status)...)
	b = append(b, "\r\nDate: "...)
	b = time.Now().UTC().AppendFormat(b, http.TimeFormat)
	b = append(b, "\r\n"...)
	if a.ContentType != "" {
		b = append(append(append(b, "Content-Type: "...), a.ContentType...), "\r\n"...)
	}
	b = append(b, a.Fields...)
	b = append(b, atelier.HeaderRequestID+": "...)
	b = append(append(b, l.id...), "\r\n"...)
	if l.c.terms.Model != "" {
		b = append(append(append(b, atelier.HeaderModel+": "...), l.c.terms.Model...), "\r\n"...)
	}
	if a.Status == http.StatusNoContent || a.Status == http.StatusNotModified { // which have no body, whatever the handler says
		l.out = append(b, "\r\n"...)
		return
	}
	b = http1.AppendFraming(b, http1.Framing{Length: int64(len(a.Body))})
	l.out = append(append(b, "\r\n"...), a.Body...)
}

// piece is how much of an answer the client has to take within the terms' time.
const piece = 64 << 10

func (l *lent) write() error {
	for b := l.out; len(b) > 0; {
		l.conn.MustWrite(l.c.terms.Write)
		n, err := l.conn.Write(b[:min(len(b), piece)])
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// record counts an answer.
func (l *lent) record(status int) {
	l.slot.answered.Add(1)
	l.c.page.record(status, time.Since(l.began), l.c.terms.Bounds)
}
