package gateway

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/http1"
)

const (
	// maxReplay is the largest body that is held, so that it can be sent twice.
	maxReplay = 1 << 20
	// maxWhole is the largest answer that is written in one piece with its head.
	maxWhole = 64 << 10
	// piece is how much of a larger body passes at a time.
	piece = 32 << 10
	// attempts is how often a request is tried before it is given up.
	attempts = 3
)

// exchange is one request and its answer.
type exchange struct {
	*client
	endpoint string
	path     []byte // the target without the endpoint and its slash
	begin    time.Time
	whole    bool // all of the body is in client.body
	sent     bool // bytes of a body that is not held are on their way to a module
	gone     bool // the client gave up
	// answered is the body of the answer, where that was written in one piece; it is the
	// client's buffer. took is how long the module had for it.
	answered []byte
	took     time.Duration
}

// statusGone is what a request counts as whose client did not wait for the answer.
const statusGone = 499

// failure is why an exchange with a module failed.
type failure struct {
	status int
	err    error
	again  bool // another attempt does no harm
}

// run answers the request and reports whether the client's connection goes on.
func (x *exchange) run() bool {
	x.model = ""
	if f := x.collect(); f != nil {
		return x.giveUp(nil, f)
	}
	asked := x.asked()
	pick := func(r *route) *backend { return r.pick(&asked) }
	for attempt := 1; ; attempt++ {
		r, b := x.g.acquire(x.endpoint, pick)
		if b == nil {
			return x.giveUp(nil, &failure{status: http.StatusNotFound, err: atelier.Errorf(atelier.NotFound, "endpoint %s is no longer on this device", x.endpoint)})
		}
		x.setBackend(b)
		keep, f := x.answerWith(r, b)
		if f == nil {
			return keep
		}
		again := f.again && attempt < attempts && (x.whole || !x.sent)
		if b != r.backend && f.status < http.StatusGatewayTimeout && !x.gone && (x.whole || !x.sent) {
			// A canary that does not answer harms nobody: the version beside it does.
			again, pick = true, func(r *route) *backend { return r.backend }
			b.fallbacks.Add(1)
		}
		if !again {
			keep = x.giveUp(b, f)
		}
		b.inFlight.Add(-1)
		if !again {
			return keep
		}
	}
}

// answerWith lets b's module answer the request, and offers a copy to the route's shadow.
func (x *exchange) answerWith(r *route, b *backend) (keep bool, f *failure) {
	s := x.shadowing(r)
	if s != nil {
		defer s.enter()()
	}
	if keep, f = x.try(b); f != nil {
		return keep, f
	}
	b.record(x.resp.Status, time.Since(x.begin))
	b.inFlight.Add(-1)
	if s != nil {
		x.copyTo(s, r.trial)
	}
	return keep, nil
}

// setBackend makes the request's id lead to the backend that answers it, and the answer
// say which it is.
func (x *exchange) setBackend(b *backend) {
	x.model = b.name
	if n := len(x.id) - 17; x.id[:n] != b.Rollout {
		x.id = b.Rollout + x.id[n:]
	}
}

// giveUp answers with a failure, counted at b where there is one.
func (x *exchange) giveUp(b *backend, f *failure) bool {
	keep := x.fail(f.status, f.err, f.status >= 500 && x.whole)
	if b == nil {
		if r := x.g.table.Load().byEndpoint[x.endpoint]; r != nil {
			b = r.backend
		}
	}
	if b != nil {
		status := f.status
		if x.gone {
			status = statusGone
		}
		b.record(status, time.Since(x.begin))
	}
	return keep
}

// collect reads the body as far as it is held.
func (x *exchange) collect() *failure {
	if x.req.Body.Empty() {
		x.whole = true
		return nil
	}
	if x.req.Expect && x.r.Buffered() == 0 {
		if err := x.write([]byte("HTTP/1.1 100 Continue\r\n\r\n")); err != nil {
			return &failure{status: http.StatusBadRequest, err: err}
		}
		x.written = false
	}
	x.req.Expect = false
	if x.req.Body.Length > maxReplay {
		return nil
	}
	if int64(x.r.Buffered()) < x.req.Body.Length || x.req.Body.Chunked {
		x.conn.MustRead(2 * x.g.opts.Times.Body)
		x.waitsFor()
		defer x.goesOn()
	}
	for len(x.body) <= maxReplay {
		if len(x.body) == cap(x.body) {
			x.body = grow(x.body, x.req.Body.Length)
		}
		n, err := x.stream.Read(x.body[len(x.body):cap(x.body)])
		x.body = x.body[:len(x.body)+n]
		if err == nil && !x.stream.Done {
			continue
		}
		if err == nil || errors.Is(err, io.EOF) {
			x.whole = true
			return nil
		}
		return bodyFailure(err)
	}
	return nil
}

// grow makes room in b: for a body of length bytes, or for twice as much as before.
func grow(b []byte, length int64) []byte {
	size := max(2*cap(b), 4<<10)
	if length > int64(cap(b)) {
		size = int(min(length, maxReplay))
	}
	return append(make([]byte, 0, min(size, maxReplay+piece)), b...)
}

// bodyFailure says what was wrong with a request's body.
func bodyFailure(err error) *failure {
	switch {
	case errors.Is(err, http1.ErrTooLarge):
		return &failure{status: http.StatusRequestEntityTooLarge, err: err}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &failure{status: http.StatusRequestTimeout, err: atelier.Errorf(atelier.Timeout, "the request's body did not come in time")}
	case atelier.CodeOf(err) == atelier.Invalid:
		return &failure{status: http.StatusBadRequest, err: err}
	}
	return &failure{status: http.StatusBadRequest, err: atelier.Errorf(atelier.Invalid, "the request's body broke off")}
}

// try sends the request to b's module and relays its answer.
func (x *exchange) try(b *backend) (keep bool, f *failure) {
	sent := time.Now()
	m, reused, err := b.get()
	if err != nil {
		// Nothing was sent; a newer table may lead to another module.
		return false, &failure{
			status: http.StatusServiceUnavailable, again: x.moved(b),
			err: atelier.Errorf(atelier.Unavailable, "the module of endpoint %s does not answer", x.endpoint).
				WithRemedy("Try again in a moment; 'atelier why' tells more if it stays so."),
		}
	}
	if f := x.send(m); f != nil {
		if f.status != 0 {
			_ = m.Close() // the module is told by this that the request is torn
			return false, f
		}
		// The module does not take more. It may have answered already.
	}
	if f := x.receive(m); f != nil {
		_ = m.Close() // what it is worth is unknown
		// A fresh connection that broke says that the module did.
		f.again = f.again && !x.gone && (reused || x.moved(b))
		return false, f
	}
	keep, clean := x.relay(m)
	x.took = time.Since(sent)
	if clean {
		b.put(m)
	} else {
		_ = m.Close() // something may still be on its way
	}
	return keep, nil
}

// moved reports whether the endpoint leads elsewhere than to b by now.
func (x *exchange) moved(b *backend) bool {
	r := x.g.table.Load().byEndpoint[x.endpoint]
	return r != nil && r.backend != b
}

// send writes the request. A failure without a status is the module's, whose
// answer may be there all the same.
func (x *exchange) send(m *backendConn) *failure {
	broken := &failure{}
	frame := http1.Framing{Length: int64(len(x.body))}
	if !x.whole {
		frame = x.req.Body
	}
	x.out = x.appendRequest(x.out[:0], frame)
	m.MustWrite(x.g.opts.Times.Body)
	if _, err := m.Write(x.out); err != nil {
		return broken
	}
	if x.whole {
		return nil
	}
	return x.pass(m, frame)
}

// appendRequest appends the request as modules get it, with as much of the body as is held.
func (x *exchange) appendRequest(out []byte, frame http1.Framing) []byte {
	out = append(out, x.req.Method...)
	out = append(out, " /"...)
	out = append(out, x.path...)
	out = append(out, " HTTP/1.1\r\n"...)
	if !x.req.Host {
		out = append(out, "Host: module\r\n"...)
	}
	out = http1.AppendFields(out, x.req.Fields, "authorization", "x-api-key", "x-atelier-request-id")
	out = append(out, atelier.HeaderRequestID+": "...)
	out = append(out, x.id...)
	out = append(out, "\r\n"...)
	if !x.whole || len(x.body) > 0 || !http1.IsAny(x.req.Method, []string{"get", "head"}) {
		out = http1.AppendFraming(out, frame)
	}
	out = append(out, "\r\n"...)
	if frame.Chunked && len(x.body) > 0 {
		return http1.AppendChunk(out, x.body)
	}
	return append(out, x.body...)
}

// pass passes on what of a body is not held.
func (x *exchange) pass(m *backendConn, frame http1.Framing) *failure {
	broken := &failure{}
	x.sent = true
	buf, begin, came := make([]byte, piece), time.Now(), int64(0)
	for !x.stream.Done {
		if x.g.tooSlow(begin, came) {
			return bodyFailure(os.ErrDeadlineExceeded)
		}
		x.conn.MustRead(x.g.opts.Times.Body)
		n, err := x.stream.Read(buf)
		if err != nil && !errors.Is(err, io.EOF) {
			return bodyFailure(err)
		}
		came += int64(n)
		p := buf[:n]
		if frame.Chunked {
			x.out = x.out[:0]
			if n > 0 {
				x.out = http1.AppendChunk(x.out, p)
			}
			if x.stream.Done {
				x.out = http1.AppendChunk(x.out, nil)
			}
			p = x.out
		}
		m.MustWrite(x.g.opts.Times.Body)
		if _, err := m.Write(p); err != nil {
			return broken
		}
	}
	return nil
}

// died says what became of a module that did not answer properly.
func (x *exchange) died(format string, args ...any) *failure {
	return &failure{status: http.StatusBadGateway, err: atelier.Errorf(atelier.Unavailable, "the module of endpoint "+x.endpoint+" "+format, args...).
		WithRemedy("Send the request again; read the module's log with 'atelier device logs' if it stays so.")}
}

// late says that a module took too long.
func (x *exchange) late() *failure {
	return &failure{status: http.StatusGatewayTimeout, err: atelier.Errorf(atelier.Timeout, "the module of endpoint %s did not answer within %v", x.endpoint, x.g.opts.Times.Answer)}
}

// receive reads the head of the module's answer.
func (x *exchange) receive(m *backendConn) *failure {
	if err := x.awaitAnswer(m); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return x.late()
		}
		f := x.died("ended before it answered")
		f.again = true
		return f
	}
	for {
		head, err := http1.ReadHead(m.r, func() { m.MustRead(x.g.opts.Times.Body) })
		if err != nil {
			return x.died("broke off its answer")
		}
		// The head is copied out of the buffer before anything else is read.
		x.rawResp = append(x.rawResp[:0], head...)
		_, _ = m.r.Discard(len(head)) // it is in the buffer
		if err := http1.ParseResponse(x.rawResp, x.req.Method, &x.resp); err != nil {
			return x.died("gave an answer that is not HTTP: %w", err)
		}
		if x.resp.Status >= 200 || x.resp.Status == http.StatusSwitchingProtocols {
			break
		}
	}
	if x.resp.Status == http.StatusSwitchingProtocols {
		return x.died("wants to switch protocols, which is not offered here")
	}
	return nil
}

// relay passes the answer on. It reports whether the client's connection goes
// on, and whether the module's is clean.
func (x *exchange) relay(m *backendConn) (keep, clean bool) {
	frame := x.resp.Body
	keep = x.req.KeepAlive && x.stream.Done && !x.leaving.Load()
	if frame.Chunked || frame.Length < 0 {
		if x.req.Old { // it knows no chunks: the connection's end is the body's
			keep = false
			frame = http1.Framing{Length: -1}
		} else {
			frame = http1.Framing{Chunked: true}
		}
	}
	out := append(x.out[:0], "HTTP/1.1"...)
	out = append(out, x.resp.Line[8:]...)
	out = append(out, "\r\n"...)
	out = http1.AppendFields(out, x.resp.Fields, "x-atelier-request-id", "x-atelier-model")
	out = x.appendOwn(out, keep)
	switch {
	case string(x.req.Method) == "HEAD": // says how long the body would be
		for _, f := range x.resp.Fields {
			if http1.Is(f.Name, "content-length") {
				out = append(append(append(out, "Content-Length: "...), f.Value...), "\r\n"...)
			}
		}
	case x.resp.Status == http.StatusNoContent || x.resp.Status == http.StatusNotModified:
	case frame.Chunked || frame.Length >= 0:
		out = http1.AppendFraming(out, frame)
	}
	out = append(out, "\r\n"...)
	body := http1.NewBodyReader(m.r, x.resp.Body, -1)
	if !frame.Chunked && frame.Length >= 0 && frame.Length <= maxWhole {
		head := len(out)
		out = append(out, make([]byte, frame.Length)...)
		if int64(m.r.Buffered()) < frame.Length {
			m.MustRead(x.g.opts.Times.Body)
		}
		n, err := io.ReadFull(body, out[head:])
		x.out = out
		if err != nil { // the client sees by the missing rest that it is torn
			x.resp.Status = http.StatusBadGateway // which is what it counts as
			_ = x.write(out[:head+n])
			return false, false
		}
		x.answered = out[head:]
		return x.write(out) == nil && keep, x.resp.KeepAlive
	}
	x.out = out
	if x.write(out) != nil {
		return false, false
	}
	buf := make([]byte, piece)
	for {
		m.MustRead(x.g.opts.Times.Answer)
		n, err := body.Read(buf)
		if n > 0 {
			p := buf[:n]
			if frame.Chunked {
				x.out = http1.AppendChunk(x.out[:0], p)
				p = x.out
			}
			if x.write(p) != nil {
				return false, false
			}
		}
		if errors.Is(err, io.EOF) || err == nil && body.Done {
			break
		}
		if err != nil {
			x.resp.Status = http.StatusBadGateway // it counts as torn
			return false, false
		}
	}
	if frame.Chunked && x.write([]byte("0\r\n\r\n")) != nil {
		return false, false
	}
	return keep, x.resp.KeepAlive
}
