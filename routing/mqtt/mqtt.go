// Package mqtt is the server side of MQTT 3.1.1 and 5 for a server that is no broker: it
// passes nothing between clients. What a client publishes goes to its Peer, and is
// acknowledged only when that has said that it is kept; what a client gets is sent to it
// one by one, and whoever sent it learns when the client has acknowledged it.
//
// QoS 0 and 1 are served, and QoS 2 is not. Nothing is kept for a client that is away: that
// is for the Peer to do. Clients are hostile until checked: packets are bounded, who does
// not say in time who it is, does not read or falls silent loses its connection.
//
// The package knows MQTT, whose packets github.com/mochi-mqtt/server reads and writes, and
// no modules or routes.
package mqtt

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	atelier "github.com/atelier-edge/atelier"
)

// Message is what is published, by a client or to one.
type Message struct {
	Topic       string
	Payload     []byte
	QoS         byte
	Retain      bool
	Expiry      uint32 // seconds, 0 for none
	ContentType string // the rest is of clients of MQTT 5
	Properties  []Property
}

// Property is a user property.
type Property struct{ Key, Value string }

// Peer is what stands behind one client.
type Peer interface {
	// MayPublish and MaySubscribe say what the client may do; the error is Forbidden.
	MayPublish(topic string) error
	MaySubscribe(filter string) error
	// Publish takes a message, which may be published. kept is called exactly once, at any
	// time: with nil when it is kept.
	Publish(m Message, kept func(error))
	// Subscribed tells that what the client is subscribed to has changed.
	Subscribed()
	// Closed tells that the connection has ended.
	Closed()
}

// Options say whom a Server admits.
type Options struct {
	// Admit returns what stands behind the client; an error where it is not admitted.
	Admit func(c *Conn, user, password string) (Peer, error)
	// MaxPacket is the largest packet in bytes that is taken.
	MaxPacket int
	// Clients is how many may be connected at a time.
	Clients int
	Log     *slog.Logger
}

const (
	maxConnect   = 8 << 10
	connectTime  = 10 * time.Second
	writeTimeout = 30 * time.Second
	window       = 16 // messages of a client that are not acknowledged yet, and to it
	maxFilters   = 32 // that a client is subscribed to
)

// Server serves clients.
type Server struct {
	opts  Options
	slots chan struct{}
	group sync.WaitGroup
	mu    sync.Mutex
	conns map[*Conn]struct{}
	ended bool
}

// New returns a server.
func New(opts Options) *Server {
	return &Server{opts: opts, slots: make(chan struct{}, opts.Clients), conns: map[*Conn]struct{}{}}
}

// Serve serves who connects to l until l is closed.
func (s *Server) Serve(l net.Listener) error {
	for {
		nc, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if ne, ok := err.(net.Error); ok && ne.Timeout() { //nolint:errorlint // as package net gives it
				continue
			}
			return err
		}
		select {
		case s.slots <- struct{}{}:
		default:
			s.opts.Log.Warn("too many clients are connected", "clients", s.opts.Clients)
			_ = nc.Close() // it was told nothing yet
			continue
		}
		c := &Conn{Conn: nc, server: s, r: bufio.NewReaderSize(nc, 2048), done: make(chan struct{}), acks: make(chan ack, window), flight: map[uint16]chan struct{}{}, filters: map[string]byte{}}
		s.mu.Lock()
		refused := s.ended
		if !refused {
			s.conns[c] = struct{}{}
			s.group.Add(1)
		}
		s.mu.Unlock()
		if refused {
			_ = nc.Close() // the server ends
			<-s.slots
			continue
		}
		go func() { // ends with the connection
			defer s.group.Done()
			c.serve()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
			<-s.slots
		}()
	}
}

// Close ends all connections, and returns when they have ended.
func (s *Server) Close() {
	s.mu.Lock()
	s.ended = true
	for c := range s.conns {
		c.end(packets.ErrServerShuttingDown.Code)
	}
	s.mu.Unlock()
	s.group.Wait()
}

// Conn is a client's connection. Its methods are safe for concurrent use.
type Conn struct {
	net.Conn
	server    *Server
	r         *bufio.Reader
	version   byte
	id        string
	peer      Peer
	keepAlive time.Duration // silence after which the connection ends, 0 for none
	slots     chan struct{} // one for each message that the client has not acknowledged
	acks      chan ack      // what the client waits for, in order

	done  chan struct{} // closed when the connection ends
	ended sync.Once

	writing sync.Mutex
	mu      sync.Mutex
	flight  map[uint16]chan struct{}
	last    uint16 // packet id
	filters map[string]byte
}

// ack is an acknowledgement that the client waits for.
type ack struct {
	id   uint16
	kept chan error
}

// ID is the client's id as it gave it.
func (c *Conn) ID() string { return c.id }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// End ends the connection, since another one takes its place or the client may not be
// connected any more.
func (c *Conn) End(forbidden bool) {
	code := packets.ErrSessionTakenOver.Code
	if forbidden {
		code = packets.ErrNotAuthorized.Code
	}
	c.end(code)
}

// end ends the connection and tells a client of MQTT 5 why.
func (c *Conn) end(code byte) {
	c.ended.Do(func() {
		close(c.done)
		if c.version == 5 && c.writing.TryLock() {
			if b, err := encode(&packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ProtocolVersion: 5, ReasonCode: code}); err == nil {
				_ = c.SetWriteDeadline(time.Now().Add(time.Second)) // fails with the connection only
				_, _ = c.Write(b)                                   // it ends anyway
			}
			c.writing.Unlock()
		}
		_ = c.Close() // what it says is of no use any more
	})
}

func (c *Conn) write(pk *packets.Packet) error {
	pk.ProtocolVersion = c.version
	b, err := encode(pk)
	if err != nil {
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if _, err := c.Write(b); err != nil {
		_ = c.Close() // half a packet may have gone
		return err
	}
	return nil
}

// Subscribed returns the QoS with which the client is subscribed to a topic.
func (c *Conn) Subscribed(topic string) (qos byte, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for filter, q := range c.filters {
		if matches(filter, topic) {
			qos, ok = max(qos, q), true
		}
	}
	return qos, ok
}

// ErrNotSubscribed says that the client does not want the topic.
var ErrNotSubscribed = errors.New("the client is not subscribed to the topic")

// Send sends a message with the QoS of the client's subscription. taken is closed when the
// client has acknowledged it, or at once where it does not acknowledge. Where ctx or the
// connection ends before it was sent, the error says so.
func (c *Conn) Send(ctx context.Context, m Message) (taken <-chan struct{}, err error) {
	qos, ok := c.Subscribed(m.Topic)
	if !ok {
		return nil, ErrNotSubscribed
	}
	pk := &packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos, Retain: m.Retain}, TopicName: m.Topic, Payload: m.Payload,
		Properties: packets.Properties{ContentType: m.ContentType, MessageExpiryInterval: m.Expiry},
	}
	for _, p := range m.Properties {
		pk.Properties.User = append(pk.Properties.User, packets.UserProperty{Key: p.Key, Val: p.Value})
	}
	done := make(chan struct{})
	if qos == 0 {
		close(done)
		return done, c.write(pk)
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.done:
		return nil, net.ErrClosed
	}
	c.mu.Lock()
	for {
		if c.last++; c.last != 0 && c.flight[c.last] == nil {
			break
		}
	}
	pk.PacketID = c.last
	c.flight[c.last] = done
	c.mu.Unlock()
	return done, c.write(pk)
}

// acknowledged notes that the client has taken a message.
func (c *Conn) acknowledged(id uint16) {
	c.mu.Lock()
	done := c.flight[id]
	delete(c.flight, id)
	c.mu.Unlock()
	if done != nil {
		close(done)
		<-c.slots
	}
}

// code is how an error is told to a client of MQTT 5.
func code(err error) byte {
	switch atelier.CodeOf(err) {
	case atelier.Forbidden:
		return packets.ErrNotAuthorized.Code
	case atelier.TooLarge:
		return packets.ErrPacketTooLarge.Code
	case atelier.Invalid:
		return packets.ErrPayloadFormatInvalid.Code
	case atelier.NoSpace, atelier.Exhausted:
		return packets.ErrQuotaExceeded.Code
	}
	return packets.ErrUnspecifiedError.Code
}
