package gateway

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/http1"
	"github.com/atelier-edge/atelier/serving/topics"
)

// maxDiscard is how much of an unwanted body is read so that a client gets to
// read why it is unwanted.
const maxDiscard = 256 << 10

// lingerTime is how long a connection is read on that ends before its request does.
const lingerTime = 2 * time.Second

// client is one connection of a client. Its requests come one after the other.
type client struct {
	g    *Gateway
	conn http1.Conn // replaced when it was lent; swap guards it for others than serve
	swap sync.Mutex
	r    *bufio.Reader
	wait waiting

	// idle is true while no request is in progress: then the connection may be
	// closed at any time.
	idle    atomic.Bool
	leaving atomic.Bool
	waits   atomic.Int64 // since when the client is waited for, in Unix nanoseconds; 0 while it is not
	evicted bool         // it makes room for another; the gateway's mu guards it

	rawHead []byte // of the request, which req points into
	req     http1.Request
	rawResp []byte // of the answer, which resp points into
	resp    http1.Response
	id      string // of the request; "" outside any endpoint
	model   string // MODEL:VERSION that answers the request; "" while none does
	out     []byte // what is about to be written
	body    []byte // of the request, where it is small enough to be sent twice
	stream  *http1.BodyReader
	written bool              // a part of an answer is out
	key     [sha256.Size]byte // hash of the one that the request came with

	habit habit
	owed  bool // a module gave back a part of a request, which is to be answered
}

func newClient(g *Gateway, conn net.Conn) *client {
	return &client{g: g, conn: http1.Conn{Conn: conn}, r: bufio.NewReaderSize(conn, http1.MaxHead)}
}

// leave ends the connection when its request, if there is one, is answered.
func (c *client) leave() {
	c.leaving.Store(true)
	if c.idle.Load() {
		_ = c.conn.SetReadDeadline(time.Unix(1, 0)) // wakes serve, which then leaves; it fails only with the connection
	}
}

// serve answers requests until the connection ends.
func (c *client) serve() {
	defer c.cut()
	for (!c.leaving.Load() || c.owed) && c.next() {
	}
}

// cut closes the connection.
func (c *client) cut() {
	c.swap.Lock()
	defer c.swap.Unlock()
	_ = c.conn.Close() // what can be sent was sent
}

// turnAway answers that there are too many clients.
func (c *client) turnAway() {
	defer c.conn.Close()
	c.conn.MustRead(time.Second)
	c.fail(http.StatusServiceUnavailable, atelier.Errorf(atelier.Unavailable, "too many clients are connected").
		WithRemedy("Try again in a moment."), false)
}

// next answers one request and reports whether another may come.
func (c *client) next() bool {
	c.id, c.model, c.stream, c.written, c.body, c.out = "", "", nil, false, c.body[:0], c.out[:0]
	if cap(c.body) > maxKept {
		c.body = nil
	}
	if cap(c.out) > maxKept {
		c.out = nil
	}
	if !c.await() {
		return false
	}
	if first, err := c.r.Peek(1); err == nil && first[0] == topics.First {
		c.serveMQTT()
		return false
	}
	begin := time.Now()
	head, err := http1.ReadHead(c.r, func() {
		c.conn.MustRead(c.g.opts.Times.Head)
		c.waitsFor()
	})
	c.goesOn()
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return c.fail(http.StatusRequestHeaderFieldsTooLarge, atelier.Errorf(atelier.TooLarge, "the request's head is larger than %d bytes", http1.MaxHead), false)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return c.fail(http.StatusRequestTimeout, atelier.Errorf(atelier.Timeout, "the request's head did not come in time, which is %v, or less while many clients are connected", c.g.opts.Times.Head), false)
	case err != nil:
		return false
	}
	if isPreface(head) {
		c.serveHTTP2()
		return false
	}
	c.rawHead = append(c.rawHead[:0], head...)
	_, _ = c.r.Discard(len(head)) // it is in the buffer
	if err := http1.ParseRequest(c.rawHead, &c.req); err != nil {
		status := http.StatusBadRequest
		if atelier.CodeOf(err) == atelier.Unsupported {
			status = http.StatusNotImplemented
		}
		return c.fail(status, err, false)
	}
	c.stream = http1.NewBodyReader(c.r, c.req.Body, c.g.opts.MaxBody)
	return c.route(begin)
}

// maxKept is the largest buffer that a connection keeps between requests.
const maxKept = 128 << 10

// await waits for the first byte of a request.
func (c *client) await() bool {
	c.owed = false
	if c.r.Buffered() > 0 {
		return true
	}
	c.conn.MustRead(c.g.opts.Times.Idle)
	c.waitsFor()
	defer c.goesOn()
	c.idle.Store(true)
	defer c.idle.Store(false)
	if c.leaving.Load() {
		return false
	}
	_, err := c.r.Peek(1)
	return err == nil
}

// route finds out what the request is for, and answers it.
func (c *client) route(begin time.Time) bool {
	path, _, _ := bytes.Cut(c.req.Target, []byte("?"))
	if string(path) == "/" || string(path) == "/healthz" {
		if m := string(c.req.Method); m != "GET" && m != "HEAD" {
			return c.fail(http.StatusMethodNotAllowed, atelier.Errorf(atelier.Invalid, "method %.20s came, GET was expected", m), true)
		}
		return c.answer(http.StatusOK, "application/json", []byte(`{"status":"ok"}`), "", true)
	}
	name, rest, slash := bytes.Cut(c.req.Target[1:], []byte("/"))
	if !slash { // /endpoint, perhaps with a query
		var query []byte
		if name, query, slash = bytes.Cut(name, []byte("?")); slash {
			rest = append([]byte("?"), query...)
		}
	}
	table := c.g.table.Load()
	r := table.byEndpoint[string(name)]
	direct := r != nil // or by the name of the server that several endpoints share
	if !direct {
		if r = c.shared(table.byServer[string(name)], rest); r != nil {
			name = []byte(r.backend.endpoint)
		}
	}
	if r == nil {
		return c.fail(http.StatusNotFound, atelier.Errorf(atelier.NotFound, "there is no endpoint %.80q on this device", name).
			WithRemedy("Look at 'atelier endpoint list' for the endpoints and their addresses."), true)
	}
	c.id = newRequestID(r.backend.Rollout)
	refuse := func(status int, err error, reusable bool) bool {
		again := c.fail(status, err, reusable)
		r.backend.record(status, time.Since(begin))
		return again
	}
	if !c.authenticated(r) {
		return refuse(http.StatusUnauthorized, atelier.Errorf(atelier.Unauthenticated, "no or no valid key of endpoint %s came", name).
			WithRemedy("Send one of the endpoint's keys as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'; 'atelier endpoint keys' shows them."), true)
	}
	if c.req.Body.Length > c.g.opts.MaxBody {
		return refuse(http.StatusRequestEntityTooLarge, http1.ErrTooLarge, false)
	}
	x := exchange{client: c, endpoint: string(name), path: rest, begin: begin}
	if direct { // a module does not know the paths of others
		if done, keep := x.lend(table, r); done {
			return keep
		}
	}
	return x.run()
}

// authenticated reports whether the request carries one of the route's keys.
func (c *client) authenticated(r *route) bool {
	for key := range c.req.Keys {
		if sum, ok := r.admits(key); ok {
			c.key = sum
			return true
		}
	}
	return false
}

// newRequestID makes the id of one request. The rollout leads to deployment,
// package and model.
func newRequestID(rollout string) string {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	b := make([]byte, len(rollout)+1+2*len(random))
	n := copy(b, rollout)
	b[n] = '-'
	hex.Encode(b[n+1:], random[:])
	return string(b)
}

// problem is the body of an error (RFC 9457).
type problem struct {
	Type    string       `json:"type"`
	Title   string       `json:"title"`
	Status  int          `json:"status"`
	Detail  string       `json:"detail"`
	Code    atelier.Code `json:"code"`
	Remedy  string       `json:"remedy,omitempty"`
	Field   string       `json:"field,omitempty"`
	Request string       `json:"request,omitempty"`
}

// fail answers with an error; reusable says whether the connection could go on.
// It reports whether it does.
func (c *client) fail(status int, err error, reusable bool) bool {
	p := problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: err.Error(), Code: atelier.CodeOf(err), Request: c.id}
	var e *atelier.Error
	if errors.As(err, &e) {
		p.Remedy, p.Field = e.Remedy, e.Field
	}
	body, err := json.Marshal(&p)
	if err != nil {
		return false
	}
	var more string
	switch status {
	case http.StatusUnauthorized:
		more = "WWW-Authenticate: Bearer\r\n"
	case http.StatusServiceUnavailable:
		more = "Retry-After: 1\r\n"
	}
	return c.answer(status, "application/problem+json", body, more, reusable)
}

// answer writes an answer of the gateway's own. more are further header fields.
func (c *client) answer(status int, contentType string, body []byte, more string, reusable bool) bool {
	if c.written {
		return false // something else has begun; only the connection's end can tell
	}
	// A client that waits for 100 has not sent its body and may never do so.
	unread := c.stream != nil && !c.stream.Done
	keep := reusable && c.req.KeepAlive && (!unread || !c.req.Expect) && !c.leaving.Load()
	if keep && unread {
		keep = c.discard()
	}
	b := append(c.out[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	b = append(b, "\r\nContent-Type: "...)
	b = append(b, contentType...)
	b = append(b, "\r\n"...)
	b = append(b, more...)
	b = c.appendOwn(b, keep)
	b = http1.AppendFraming(b, http1.Framing{Length: int64(len(body))})
	b = append(b, "\r\n"...)
	if string(c.req.Method) != "HEAD" {
		b = append(b, body...)
	}
	c.out = b
	if c.write(b) != nil {
		return false
	}
	if !keep && (c.stream == nil || !c.stream.Done) {
		c.linger()
	}
	return keep
}

// appendOwn appends the fields that the gateway adds to every answer.
func (c *client) appendOwn(b []byte, keep bool) []byte {
	if c.id != "" {
		b = append(b, atelier.HeaderRequestID+": "...)
		b = append(b, c.id...)
		b = append(b, "\r\n"...)
	}
	if c.model != "" {
		b = append(b, atelier.HeaderModel+": "...)
		b = append(b, c.model...)
		b = append(b, "\r\n"...)
	}
	if !keep {
		return append(b, "Connection: close\r\n"...)
	}
	if c.req.Old {
		return append(b, "Connection: keep-alive\r\n"...)
	}
	return b
}

// write writes b to the client.
func (c *client) write(b []byte) error {
	c.written = true
	c.conn.MustWrite(c.g.opts.Times.Body)
	_, err := c.conn.Write(b)
	return err
}

// discard reads what is left of the body, if that is little, and reports whether
// it is gone.
func (c *client) discard() bool {
	if c.req.Body.Length > maxDiscard {
		return false
	}
	c.conn.MustRead(c.g.opts.Times.Head)
	n, err := io.CopyN(io.Discard, c.stream, maxDiscard+1)
	return errors.Is(err, io.EOF) && n <= maxDiscard
}

// linger closes the sending side and reads on for a moment: were the connection
// closed with bytes unread, the client might lose the answer.
func (c *client) linger() {
	if half, ok := c.conn.Conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	c.conn.MustRead(lingerTime)
	_, _ = io.Copy(io.Discard, c.r) // whatever it is, nobody wants it
}
