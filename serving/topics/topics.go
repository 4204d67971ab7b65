// Package topics lets MQTT clients on a device ask its endpoints: a request is
// published to endpoints/{endpoint}/{route}, with an optional tag of the client's own
// behind, and its answer comes to endpoints/{endpoint}/answers/{route} with the same
// tag, or to the response topic that the request names (MQTT 5). Route is score, infer
// or invocations; payloads are the bodies that these take and give over HTTP.
//
// A client's user name is that of the endpoint, its password one of the endpoint's keys. It may publish to and read from topics of that
// endpoint alone. Nothing is kept for clients that are away: no retained messages, no
// last wills, no sessions. Requests beyond a client's bound are answered at once, with 429.
//
// The package knows MQTT and nothing of routes to modules: whoever makes a Server says
// who is admitted, and answers the requests.
package topics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	atelier "github.com/atelier-edge/atelier"
)

// The bounds of one client, and of all.
const (
	maxConnect   = 8 << 10 // bytes of the packet by which a client says who it is
	maxPacket    = 8 << 20 // bytes of any other
	maxClients   = 64
	maxInFlight  = 4  // requests of one client
	maxRequests  = 64 // requests of all
	waiting      = 32
	maxKeepAlive = 10 * time.Minute
	writeTimeout = 30 * time.Second
	connectTime  = 10 * time.Second
	linger       = 100 * time.Millisecond // for the last answers to leave
)

// Options say whom a Server admits and who answers.
type Options struct {
	// Admit reports whether key is one of the endpoint's. It is asked again when Recheck
	// is called.
	Admit func(endpoint, key string) bool
	// Path returns where an endpoint's route is answered over HTTP.
	Path func(endpoint, route string) string
	// Transport answers requests, which carry the client's key, as HTTP does.
	Transport http.RoundTripper
	Log       *slog.Logger
}

// Server serves MQTT clients. Its methods are safe for concurrent use.
type Server struct {
	opts   Options
	broker *mqtt.Server
	inline *mqtt.Client
	ctx    context.Context // of requests; they may outlive the client's connection
	cancel func()
	slots  chan struct{} // one for each request in progress

	mu       sync.Mutex
	sessions map[*session]struct{}
	ending   bool
	running  sync.WaitGroup // requests
}

// New starts a server, which waits for clients until it is closed.
func New(opts Options) (*Server, error) {
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumPacketSize = maxPacket
	caps.MaximumClientWritesPending = waiting
	caps.MaximumClients = maxClients
	caps.MaximumInflight = waiting
	caps.ReceiveMaximum = waiting
	caps.MaximumSessionExpiryInterval = 0
	caps.TopicAliasMaximum = 0
	caps.SharedSubAvailable = 0
	caps.RetainAvailable = 0
	caps.MaximumQos = 1
	caps.MinimumProtocolVersion = 4
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{opts: opts, ctx: ctx, cancel: cancel, slots: make(chan struct{}, maxRequests), sessions: map[*session]struct{}{}, broker: mqtt.New(&mqtt.Options{
		Capabilities: caps, InlineClient: true, SysTopicResendInterval: 3600,
		Logger: slog.New(slog.DiscardHandler), // the library's own log repeats packets in full
	})}
	if err := s.broker.AddHook(&hook{s: s}, nil); err != nil {
		return nil, atelier.Errorf(atelier.Internal, "set up the server of MQTT clients: %w", err)
	}
	if err := s.broker.Serve(); err != nil {
		return nil, atelier.Errorf(atelier.Internal, "start the server of MQTT clients: %w", err)
	}
	s.inline = s.broker.NewClient(nil, "local", "answers", true)
	s.inline.Properties.ProtocolVersion = 5 // so that an answer may have properties; clients of 3.1.1 get it without
	return s, nil
}

// Close lets requests in progress be answered within d, then ends all connections.
func (s *Server) Close(d time.Duration) {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { // ends with the last request
		s.running.Wait()
		close(done)
	}()
	late := time.NewTimer(d)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
	}
	s.cancel()
	<-done
	s.mu.Lock()
	connected := len(s.sessions) > 0
	s.mu.Unlock()
	if connected {
		time.Sleep(linger)
	}
	s.mu.Lock()
	for c := range s.sessions {
		_ = c.Close() // its time is up
	}
	s.mu.Unlock()
	_ = s.broker.Close() // it has no listeners that could fail
}

// Recheck ends the connections of clients whose key is none any more.
func (s *Server) Recheck() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.sessions {
		if c.endpoint == "" {
			continue // it has not said yet who it is
		}
		if !s.opts.Admit(c.endpoint, c.key) {
			_ = c.Close() // its requests in progress are answered to nobody
		}
	}
}

// First is the first byte that an MQTT client sends (MQTT 5, section 2.1): no request
// of HTTP begins with it.
const First = 0x10

// announced returns the length of the packet that b begins, and how many bytes say it;
// false where they are not complete or none.
func announced(b []byte) (length, size int, ok bool) {
	for i := 1; i < len(b) && i < 5; i++ {
		length |= int(b[i]&0x7f) << (7 * (i - 1))
		if b[i] < 0x80 {
			return length, i + 1, true
		}
	}
	return 0, 0, false
}

// Reader is a connection's bytes, of which some may have been read ahead.
type Reader interface {
	io.Reader
	Peek(n int) ([]byte, error)
}

// Serve serves the client on conn until its connection ends. What it sent is read from
// r. The first packet must come in a moment, and be small: until then nobody knows who
// it is.
func (s *Server) Serve(conn net.Conn, r Reader) {
	c := &session{Conn: conn, r: r, slots: make(chan struct{}, maxInFlight)}
	defer c.Close()
	s.mu.Lock()
	refused := s.ending
	if !refused {
		s.sessions[c] = struct{}{}
	}
	s.mu.Unlock()
	if refused {
		return
	}
	defer func() {
		s.mu.Lock()
		delete(s.sessions, c)
		s.mu.Unlock()
	}()
	_ = c.SetDeadline(time.Now().Add(connectTime)) // fails only with the connection
	if !small(r) {
		s.opts.Log.Debug("an MQTT client began with a packet that is too large, or none")
		return
	}
	defer func() {
		// The library decodes what the client sent; a fault in it may cost this connection only.
		if fault := recover(); fault != nil {
			s.opts.Log.Error("the MQTT library failed on a packet", "endpoint", c.endpoint, "fault", fault)
		}
	}()
	if err := s.broker.EstablishConnection("gateway", c); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		s.opts.Log.Debug("an MQTT client's connection ended", "endpoint", c.endpoint, "error", err)
	}
}

// small reports whether the first packet is a CONNECT of a size that one may have.
func small(r Reader) bool {
	for n := 2; n <= 5; n++ {
		b, err := r.Peek(n)
		if err != nil || b[0] != First {
			return false
		}
		if length, _, ok := announced(b); ok {
			return length <= maxConnect
		}
	}
	return false
}

// session is one client's connection.
type session struct {
	net.Conn
	r     io.Reader
	slots chan struct{} // one for each request in progress

	// Set once under Server.mu, when the client has said who it is.
	endpoint, key string
}

func (c *session) Read(b []byte) (int, error) { return c.r.Read(b) }

// Write gives each packet its time; a client that does not read loses the connection.
func (c *session) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(b)
	if err != nil {
		_ = c.Close() // it can be of no use any more
	}
	return n, err
}

// SetDeadline moves the read deadline only: the library sets both with each packet that
// it reads, which would lift the bound of a write that is waiting.
func (c *session) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// request is what a client asks.
type request struct {
	endpoint, route, tag string
	packet               packets.Packet
}

// root is what all topics begin with.
const root = "endpoints/"

// parse splits a topic that leads to a route of endpoint; false where it does not.
func parse(topic, endpoint string) (route, tag string, ok bool) {
	rest, ok := strings.CutPrefix(topic, root+endpoint+"/")
	if !ok {
		return "", "", false
	}
	route, tag, tagged := strings.Cut(rest, "/")
	if strings.Contains(tag, "/") || tagged && tag == "" {
		return "", "", false
	}
	switch route {
	case "score", "infer", "invocations":
		return route, tag, true
	}
	return "", "", false
}

// answers is what the topics of an endpoint's answers begin with.
func answers(endpoint string) string { return root + endpoint + "/answers/" }

// accept begins to answer what the client asks, and returns at once.
func (s *Server) accept(c *session, q request) {
	s.mu.Lock()
	if s.ending {
		s.mu.Unlock()
		return
	}
	s.running.Add(1)
	s.mu.Unlock()
	if !take(c.slots) {
		defer s.running.Done()
		s.answer(q, refusal(http.StatusTooManyRequests, atelier.Errorf(atelier.Exhausted, "%d requests of this client are in progress", maxInFlight).
			WithRemedy("Wait for an answer before asking again.")))
		return
	}
	if !take(s.slots) {
		defer s.running.Done()
		<-c.slots
		s.answer(q, refusal(http.StatusTooManyRequests, atelier.Errorf(atelier.Exhausted, "%d requests by MQTT are in progress on this device", maxRequests).
			WithRemedy("Try again in a moment.")))
		return
	}
	go func() { // ends when it is answered, or with the server
		defer s.running.Done()
		s.answer(q, s.ask(c.key, q))
		<-s.slots
		<-c.slots
	}()
}

// take takes a slot if there is one.
func take(slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		return false
	}
}

// reply is what came back.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// headerLength tells how long the JSON before binary tensors is (Open Inference Protocol,
// binary tensor data extension).
const headerLength = "Inference-Header-Content-Length"

// ask has a request answered over HTTP.
func (s *Server) ask(key string, q request) reply {
	ctx := s.ctx
	if expiry := q.packet.Properties.MessageExpiryInterval; expiry > 0 {
		bounded, cancel := context.WithTimeout(ctx, time.Duration(expiry)*time.Second)
		defer cancel()
		ctx = bounded
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://gateway"+s.opts.Path(q.endpoint, q.route), bytes.NewReader(q.packet.Payload))
	if err != nil {
		return refusal(http.StatusBadRequest, atelier.Errorf(atelier.Invalid, "the request cannot be passed on: %w", err))
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	if kind := q.packet.Properties.ContentType; kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	for _, p := range q.packet.Properties.User {
		if http.CanonicalHeaderKey(p.Key) == headerLength {
			req.Header.Set(p.Key, p.Val)
		}
	}
	resp, err := s.opts.Transport.RoundTrip(req)
	if err != nil {
		if ctx.Err() != nil {
			return refusal(http.StatusGatewayTimeout, atelier.Errorf(atelier.Timeout, "the request was not answered before it expired"))
		}
		return refusal(http.StatusBadGateway, atelier.Errorf(atelier.Unavailable, "the request was not answered: %w", err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPacket))
	if err == nil && len(body) > maxPacket-maxConnect {
		return refusal(http.StatusBadGateway, atelier.Errorf(atelier.TooLarge, "the answer is larger than %d bytes", maxPacket-maxConnect).
			WithRemedy("Ask over HTTP."))
	}
	if err != nil {
		return refusal(http.StatusBadGateway, atelier.Errorf(atelier.Unavailable, "the answer broke off: %w", err))
	}
	return reply{resp.StatusCode, resp.Header, body}
}

// refusal is an answer of our own, in the form of the gateway's (RFC 9457).
func refusal(status int, err *atelier.Error) reply {
	body := fmt.Appendf(nil, `{"type":"about:blank","title":%q,"status":%d,"detail":%q,"code":%q,"remedy":%q}`,
		http.StatusText(status), status, err.Error(), err.Code, err.Remedy)
	return reply{status, http.Header{"Content-Type": {"application/problem+json"}}, body}
}

// answer publishes what came back. Status, request id and the like are properties,
// which clients of MQTT 3.1.1 do not see; they tell an error by its body.
func (s *Server) answer(q request, r reply) {
	topic := answers(q.endpoint) + q.route
	if q.tag != "" {
		topic += "/" + q.tag
	}
	asked := &q.packet.Properties
	if asked.ResponseTopic != "" {
		topic = asked.ResponseTopic
	}
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: q.packet.FixedHeader.Qos},
		TopicName:   topic, Payload: r.body, PacketID: uint16(q.packet.FixedHeader.Qos), // each subscriber gets one of its own; without QoS there may be none
		Properties: packets.Properties{
			CorrelationData: asked.CorrelationData, ContentType: r.header.Get("Content-Type"),
			User: []packets.UserProperty{{Key: "status", Val: strconv.Itoa(r.status)}},
		},
	}
	for _, name := range []string{atelier.HeaderRequestID, headerLength, "Retry-After"} {
		if v := r.header.Get(name); v != "" {
			pk.Properties.User = append(pk.Properties.User, packets.UserProperty{Key: strings.ToLower(name), Val: v})
		}
	}
	if err := s.broker.InjectPacket(s.inline, pk); err != nil {
		s.opts.Log.Error("an answer could not be published", "topic", topic, "error", err)
	}
}
