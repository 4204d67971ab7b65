package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/grpc"
)

// gRPC's clients begin with HTTP/2 at once. net/http speaks it with them and with the
// module; in between, calls pass through message by message, whatever they are.

// preface is what a connection with HTTP/2 begins with, as far as it looks like the
// head of a request (RFC 9113, section 3.4).
var preface = []byte("PRI * HTTP/2.0\r\n\r\n")

// endpointField is the metadata by which a call names its endpoint.
const endpointField = "Atelier-Endpoint"

// Bounds of one client's connection.
const (
	maxStreams      = 100
	maxStreamBuffer = 256 << 10
	maxConnBuffer   = 1 << 20
)

// http2 is the server of connections with HTTP/2. It is made when the first comes.
type http2 struct {
	once   sync.Once
	server *http.Server // nil before, and where the gateway ends first
	conns  chan net.Conn
	closed chan struct{}
	stop   sync.Once
	served chan struct{} // closed when the server has ended
}

// Accept, Close and Addr make a net.Listener of it.
func (h *http2) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *http2) Close() error {
	h.stop.Do(func() { close(h.closed) })
	return nil
}

func (h *http2) Addr() net.Addr { return &net.UnixAddr{Name: "gateway", Net: "unix"} }

// begin starts the server. It ends with end.
func (h *http2) begin(g *Gateway) {
	h.once.Do(func() {
		h.conns, h.closed, h.served = make(chan net.Conn), make(chan struct{}), make(chan struct{})
		h.server = &http.Server{
			Handler: http.HandlerFunc(g.serveHTTP2), IdleTimeout: g.opts.Times.Idle, Protocols: new(http.Protocols), MaxHeaderBytes: 16 << 10,
			HTTP2: &http.HTTP2Config{
				MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: maxStreamBuffer, MaxReceiveBufferPerConnection: maxConnBuffer,
				WriteByteTimeout: g.opts.Times.Body,
			},
			ConnState: func(conn net.Conn, state http.ConnState) {
				switch c := conn.(*handedConn).client; state {
				case http.StateNew, http.StateIdle:
					c.waitsFor()
				default: // there are calls, or it has ended
					c.goesOn()
				}
			},
		}
		h.server.Protocols.SetUnencryptedHTTP2(true)
		go func() {
			defer close(h.served)
			_ = h.server.Serve(h) // it ends when the listener is closed, which is no failure
		}()
	})
}

// end lets the calls in progress end within d.
func (h *http2) end(d time.Duration) {
	h.once.Do(func() {}) // none begins any more
	if h.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if h.server.Shutdown(ctx) != nil {
		_ = h.server.Close() // their time is up
	}
	<-h.served
}

// handedConn is a client's connection in the hands of the HTTP/2 server.
type handedConn struct {
	net.Conn
	client *client
	r      io.Reader // with what came already
	once   sync.Once
	closed chan struct{}
}

func (c *handedConn) Read(b []byte) (int, error) { return c.r.Read(b) }

func (c *handedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}

// serveHTTP2 serves the client with HTTP/2 until its connection ends.
func (c *client) serveHTTP2() {
	c.g.http2.begin(c.g)
	if c.g.http2.server == nil {
		return // the gateway ends
	}
	c.conn.MayRead()
	conn := &handedConn{Conn: c.conn.Conn, client: c, r: c.r, closed: make(chan struct{})}
	select {
	case c.g.http2.conns <- conn:
		<-conn.closed
	case <-c.g.http2.closed:
	}
}

// serveHTTP2 answers one request that came with HTTP/2.
func (g *Gateway) serveHTTP2(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	if !grpc.Is(r) || r.Method != http.MethodPost {
		http.Error(w, "only gRPC is answered over HTTP/2 here; send other requests with HTTP/1.1", http.StatusHTTPVersionNotSupported)
		return
	}
	grpc.Begin(w)
	to, err := g.routeOf(r)
	var key [sha256.Size]byte
	admits := false
	if err == nil {
		key, admits = admitted(to, r)
	}
	if err == nil && !admits {
		err = atelier.Errorf(atelier.Unauthenticated, "no or no valid key of endpoint %s came", to.backend.endpoint).
			WithRemedy("Send one of the endpoint's keys in the metadata, as authorization: Bearer KEY or x-api-key: KEY; 'atelier endpoint keys' shows them.")
	}
	if err != nil {
		status := grpc.Fail(w, err)
		if to != nil {
			to.backend.record(status, time.Since(begin))
		}
		return
	}
	asked := g.askedBy(r, key)
	on, b := g.acquire(to.backend.endpoint, func(r *route) *backend {
		b := r.pick(&asked)
		if b != r.backend && !b.reachable() {
			b.fallbacks.Add(1)
			return r.backend // a call's messages pass once only, so that this is found out before
		}
		return b
	})
	if b == nil {
		grpc.Fail(w, atelier.Errorf(atelier.NotFound, "endpoint %s is no longer on this device", to.backend.endpoint))
		return
	}
	defer b.inFlight.Add(-1)
	id := newRequestID(b.Rollout)
	w.Header().Set(atelier.HeaderRequestID, id)
	w.Header().Set(atelier.HeaderModel, b.name)
	o := g.overhear(r, on)
	status := g.passCall(w, r, b, id, o)
	took := time.Since(begin)
	b.record(status, took)
	o.end(id, status, took)
}

// routeOf finds the endpoint that a call is for: the one that its metadata or its
// authority names, or else the one whose key it carries.
func (g *Gateway) routeOf(r *http.Request) (*route, error) {
	table := g.table.Load()
	if name := r.Header.Get(endpointField); name != "" {
		if route := table.byEndpoint[name]; route != nil {
			return route, nil
		}
		if route := sharedCall(table.byServer[name], r); route != nil {
			return route, nil
		}
		return nil, atelier.Errorf(atelier.NotFound, "there is no endpoint %.80q on this device", name).
			WithRemedy("Look at 'atelier endpoint list' for the endpoints and their addresses.")
	}
	host, _, _ := strings.Cut(r.Host, ":")
	label, _, _ := strings.Cut(host, ".")
	if route := table.byEndpoint[label]; route != nil {
		return route, nil
	}
	if route := sharedCall(table.byServer[label], r); route != nil {
		return route, nil
	}
	for _, route := range table.byEndpoint {
		if _, ok := admitted(route, r); ok {
			return route, nil
		}
	}
	return nil, atelier.Errorf(atelier.Unauthenticated, "the call names no endpoint, and no valid key of any came").
		WithRemedy("Send one of the endpoint's keys in the metadata, as authorization: Bearer KEY or x-api-key: KEY, and atelier-endpoint: NAME where it is not clear.")
}

// admitted reports whether the call carries one of the route's keys, and returns its hash.
func admitted(route *route, r *http.Request) (sum [sha256.Size]byte, ok bool) {
	for _, field := range r.Header.Values("Authorization") {
		scheme, key, _ := strings.Cut(field, " ")
		if sum, ok = route.admits([]byte(strings.TrimLeft(key, " "))); ok && strings.EqualFold(scheme, "bearer") {
			return sum, true
		}
	}
	for _, key := range r.Header.Values("X-Api-Key") {
		if sum, ok = route.admits([]byte(key)); ok {
			return sum, true
		}
	}
	return sum, false
}

// passCall passes a call on to b's module and its answer back, and returns the
// status that it counts as. o overhears it, where it is not nil.
func (g *Gateway) passCall(w http.ResponseWriter, r *http.Request, b *backend, id string, o *overheard) int {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	control := http.NewResponseController(w)
	body := &callBody{ReadCloser: http.MaxBytesReader(w, r.Body, g.opts.MaxBody), control: control, patience: g.opts.Times.Body}
	var sent io.ReadCloser = body
	if o != nil {
		sent = &heard{body, &o.request}
	}
	out, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://module"+r.URL.EscapedPath(), sent)
	if err != nil {
		return grpc.Fail(w, atelier.Errorf(atelier.Invalid, "the call cannot be passed on: %w", err))
	}
	out.Header = r.Header.Clone()
	for _, field := range []string{"Authorization", "X-Api-Key", endpointField, "Te"} {
		out.Header.Del(field)
	}
	out.Header.Set("Te", "trailers")
	out.Header.Set(atelier.HeaderRequestID, id)
	late := time.AfterFunc(g.opts.Times.Answer, func() { cancel(errLate) })
	resp, err := b.calls().RoundTrip(out)
	late.Stop()
	if err != nil {
		return g.failCall(w, r, b, context.Cause(ctx), body, err)
	}
	defer resp.Body.Close()
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/grpc") {
		return grpc.Fail(w, atelier.Errorf(atelier.Unsupported, "the module of endpoint %s speaks no gRPC", b.endpoint).
			WithRemedy("Use Open Inference Protocol over REST with this endpoint."))
	}
	header := w.Header()
	for name, values := range resp.Header {
		if name != "Connection" && name != "Trailer" && name != http.CanonicalHeaderKey(atelier.HeaderRequestID) && name != http.CanonicalHeaderKey(atelier.HeaderModel) {
			header[name] = values
		}
	}
	if status := resp.Header.Get(grpc.StatusField); status != "" { // there is no message, and it says so at once
		header.Del("Trailer")
		return grpc.HTTPStatus(status)
	}
	answer := resp.Body
	if o != nil {
		answer = &heard{resp.Body, &o.message}
	}
	if err := g.passMessages(w, control, answer); err != nil {
		if r.Context().Err() != nil {
			return statusGone
		}
		header.Set(grpc.StatusField, "14")
		header.Set(grpc.MessageField, "the module of endpoint "+b.endpoint+" broke off its answer")
		return http.StatusBadGateway
	}
	for name, values := range resp.Trailer {
		if name != grpc.StatusField && name != grpc.MessageField { // those are announced
			name = http.TrailerPrefix + name
		}
		header[name] = values
	}
	return grpc.HTTPStatus(resp.Trailer.Get(grpc.StatusField))
}

var errLate = errors.New("the module was too slow")

// failCall tells of a call to which no answer came.
func (g *Gateway) failCall(w http.ResponseWriter, r *http.Request, b *backend, cause error, body *callBody, err error) int {
	var large *http.MaxBytesError
	switch {
	case r.Context().Err() != nil:
		return statusGone // nobody is there to be told
	case errors.Is(cause, errLate):
		return grpc.Fail(w, atelier.Errorf(atelier.Timeout, "the module of endpoint %s did not answer within %v", b.endpoint, g.opts.Times.Answer))
	case errors.As(body.failed(), &large):
		return grpc.Fail(w, atelier.Errorf(atelier.TooLarge, "the request is larger than %d bytes", g.opts.MaxBody))
	case body.failed() != nil:
		return grpc.Fail(w, atelier.Errorf(atelier.Timeout, "the request did not come in time"))
	}
	g.opts.Log.Debug("a call was not answered", "endpoint", b.endpoint, "error", err)
	return grpc.Fail(w, atelier.Errorf(atelier.Unavailable, "the module of endpoint %s does not answer", b.endpoint).
		WithRemedy("Try again in a moment; 'atelier why' tells more if it stays so."))
}

// passMessages writes what comes to the client as it comes.
func (g *Gateway) passMessages(w http.ResponseWriter, control *http.ResponseController, from io.Reader) error {
	buffer := make([]byte, piece)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			_ = control.SetWriteDeadline(time.Now().Add(g.opts.Times.Body)) // HTTP/2's streams have one
			if _, err := w.Write(buffer[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n > 0 {
			if err := control.Flush(); err != nil {
				return err
			}
		}
	}
}

// callBody is the body of a call, which has to come in time, and remembers why it
// did not.
type callBody struct {
	io.ReadCloser
	control  *http.ResponseController
	patience time.Duration
	mu       sync.Mutex
	closed   bool // by the transport, which does so where the module fails; reads fail then, too
	err      error
}

func (c *callBody) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	return c.ReadCloser.Close()
}

func (c *callBody) Read(b []byte) (int, error) {
	_ = c.control.SetReadDeadline(time.Now().Add(c.patience)) // HTTP/2's streams have one
	n, err := c.ReadCloser.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		c.mu.Lock()
		if !c.closed {
			c.err = err
		}
		c.mu.Unlock()
	}
	return n, err
}

func (c *callBody) failed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// calls returns what speaks HTTP/2 with b's module.
func (b *backend) calls() *http.Transport {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.transport == nil {
		b.transport = &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				d := net.Dialer{Timeout: dialTimeout}
				return d.DialContext(ctx, "unix", b.Socket)
			},
			DisableCompression: true, IdleConnTimeout: idleFor, Protocols: new(http.Protocols),
		}
		b.transport.Protocols.SetUnencryptedHTTP2(true)
	}
	return b.transport
}

// isPreface reports whether a request's head is none, but the beginning of HTTP/2.
func isPreface(head []byte) bool { return bytes.Equal(head, preface) }
