package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

// The bounds of the embedded broker.
const (
	maxPacket        = wire.MaxPacket + 1<<10 // with topic and header
	outboundMessages = 160                    // waiting for one slow subscriber; two windows of content fit
	inflight         = 64                     // QoS 1 and 2 exchanges of one connection
	connectTimeout   = 15 * time.Second       // for the TLS handshake and CONNECT
	maxPending       = 512                    // connections that are at that
	evictTime        = 250 * time.Millisecond // until one of those has given way
	writeTimeout     = 30 * time.Second       // for one packet to a stalled reader
	maxKeepAlive     = 10 * time.Minute
	linger           = 100 * time.Millisecond // before a connection is cut
)

// EmbeddedConfig says how the embedded broker listens.
type EmbeddedConfig struct {
	// Listener takes plain TCP connections; the broker speaks TLS on them and
	// closes it. nil for a broker that is reached by WebSocket only.
	Listener net.Listener
	// TLS holds the hub's certificate and, as ClientCAs, the authority that
	// signs devices. Client certificates are required, whatever ClientAuth says.
	TLS *tls.Config
	// Shard is the topic shard that devices publish under; wire.DefaultShard where empty.
	Shard string
	// MaxConnections bounds the connections; 20000 where it is 0.
	MaxConnections int
	Log            *slog.Logger
}

// Embedded is a Bus whose broker runs in the hub's own process.
type Embedded struct {
	cfg    EmbeddedConfig
	log    *slog.Logger
	server *mqtt.Server
	count  counters
	slots  chan struct{}
	wg     sync.WaitGroup // of connections

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before it
	inbox   *inbox
	closed  bool
	conns   map[*conn]struct{}
	pending []*conn          // those that have not connected as a device yet, the oldest first
	current map[string]*conn // by client id
}

// NewEmbedded makes a broker; Run starts it.
func NewEmbedded(cfg EmbeddedConfig) (*Embedded, error) {
	if cfg.TLS == nil || (cfg.TLS.ClientCAs == nil && cfg.TLS.GetConfigForClient == nil) {
		return nil, atelier.Errorf(atelier.Invalid, "the embedded broker was given no authority for client certificates")
	}
	if cfg.Shard == "" {
		cfg.Shard = wire.DefaultShard
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 20000
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.TLS = cfg.TLS.Clone()
	cfg.TLS.ClientAuth = tls.RequireAndVerifyClientCert
	// Small records at first would let a reader begin sooner with a page; a packet it
	// needs whole.
	cfg.TLS.DynamicRecordSizingDisabled = true

	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumPacketSize = maxPacket
	caps.MaximumClientWritesPending = outboundMessages
	caps.MaximumInflight = inflight
	caps.ReceiveMaximum = inflight
	caps.MaximumSessionExpiryInterval = 0 // nothing rests on the broker's sessions
	caps.MaximumMessageExpiryInterval = 60
	caps.TopicAliasMaximum = 0
	caps.SharedSubAvailable = 0
	caps.MinimumProtocolVersion = 4

	e := &Embedded{
		cfg: cfg, log: cfg.Log,
		slots:   make(chan struct{}, cfg.MaxConnections),
		conns:   map[*conn]struct{}{},
		current: map[string]*conn{},
		server: mqtt.New(&mqtt.Options{
			Capabilities: caps,
			InlineClient: true,
			// The library's own log repeats hostile packets in full.
			Logger:                 slog.New(slog.DiscardHandler),
			SysTopicResendInterval: 3600,
		}),
	}
	if err := e.server.AddHook(&hook{e: e}, nil); err != nil {
		return nil, atelier.Errorf(atelier.Internal, "set up the embedded broker: %w", err)
	}
	return e, nil
}

// Run implements Bus.
func (e *Embedded) Run(ctx context.Context, h Handler) error {
	if err := e.server.Serve(); err != nil {
		return atelier.Errorf(atelier.Unavailable, "start the embedded broker: %w", err)
	}
	in := newInbox(h, &e.count)
	e.mu.Lock()
	e.ctx, e.inbox = ctx, in
	e.mu.Unlock()

	var wg sync.WaitGroup
	wg.Go(func() { in.run(ctx) })
	stop := context.AfterFunc(ctx, e.close)
	var err error
	if e.cfg.Listener != nil {
		err = e.accept(ctx)
	}
	<-ctx.Done()
	stop()
	e.close()
	e.wg.Wait()
	wg.Wait()
	return errors.Join(err, e.server.Close())
}

// close stops taking connections and ends those that there are.
func (e *Embedded) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	if e.cfg.Listener != nil {
		_ = e.cfg.Listener.Close() // closing it twice is all that can fail here
	}
	for c := range e.conns {
		_ = c.Close()
	}
}

// accept takes connections until ctx ends. A failing listener is tried again:
// the reasons (too many open files) pass.
func (e *Embedded) accept(ctx context.Context) error {
	for {
		raw, err := e.cfg.Listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = raw.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return atelier.Errorf(atelier.Unavailable, "the embedded broker's listener was closed")
		case err != nil:
			e.log.Warn("broker cannot accept a connection", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		c, ok := e.admit(raw)
		if !ok {
			continue
		}
		go e.secure(ctx, c)
	}
}

// makeRoom takes a slot for a connection. Where there is none, the oldest one that
// has not connected as a device gives way; false where all have.
func (e *Embedded) makeRoom() bool {
	select {
	case e.slots <- struct{}{}:
		return true
	default:
	}
	e.mu.Lock()
	evicted := e.evict()
	e.mu.Unlock()
	if !evicted {
		return false
	}
	late := time.NewTimer(evictTime)
	defer late.Stop()
	select {
	case e.slots <- struct{}{}:
		return true
	case <-late.C:
		return false
	}
}

// evict ends the oldest connection that has not connected as a device, and
// reports whether there was one. e.mu is held.
func (e *Embedded) evict() bool {
	if len(e.pending) == 0 {
		return false
	}
	e.count.refused.Add(1)
	_ = e.pending[0].Close()
	e.pending = slices.Delete(e.pending, 0, 1)
	return true
}

// admit makes room for a connection, or closes it. Whoever is slow to say who it
// is gives way: strangers who open connections and say nothing take room from one
// another, not from devices, which need a moment only.
func (e *Embedded) admit(raw net.Conn) (*conn, bool) {
	if !e.makeRoom() {
		e.count.refused.Add(1)
		_ = raw.Close()
		return nil, false
	}
	c := &conn{Conn: raw, raw: raw, ended: make(chan struct{})}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || e.ctx == nil {
		<-e.slots
		_ = raw.Close()
		return nil, false
	}
	if len(e.pending) >= maxPending {
		e.evict()
	}
	e.pending = append(e.pending, c)
	e.conns[c] = struct{}{}
	e.wg.Add(1)
	return c, true
}

// release forgets a connection that has ended.
func (e *Embedded) release(c *conn) {
	_ = c.Close()
	e.mu.Lock()
	delete(e.conns, c)
	e.settle(c)
	last := c.client != "" && e.current[c.client] == c
	if last {
		delete(e.current, c.client)
	}
	present := last && c.established && c.client == c.device
	e.mu.Unlock()
	if present {
		e.inbox.presence(c.device, false)
	}
	c.endBulk()
	close(c.ended)
	<-e.slots
	e.wg.Done()
}

// settle takes a connection off those of which nobody knows who they are. e.mu is held.
func (e *Embedded) settle(c *conn) {
	if i := slices.Index(e.pending, c); i >= 0 {
		e.pending = slices.Delete(e.pending, i, i+1)
	}
}

// secure makes the TLS handshake and serves the connection.
func (e *Embedded) secure(ctx context.Context, c *conn) {
	defer e.release(c)
	c.records = &gather{Conn: c.raw}
	t := tls.Server(c.records, e.cfg.TLS)
	handshake, cancel := context.WithTimeout(ctx, connectTimeout)
	err := t.HandshakeContext(handshake)
	cancel()
	if err != nil {
		e.count.refused.Add(1)
		e.log.Debug("broker refused a connection", "remote", c.raw.RemoteAddr(), "error", err)
		return
	}
	c.Conn = t
	c.certificate = t.ConnectionState().PeerCertificates[0]
	e.serve(c)
}

// serve runs the MQTT exchange until the connection ends.
func (e *Embedded) serve(c *conn) {
	defer func() {
		// The library decodes what the device sent; a fault in it may cost this
		// connection, not the hub.
		if fault := recover(); fault != nil {
			e.count.refused.Add(1)
			e.log.Error("broker library failed on a packet", "device", c.device, "fault", fault)
		}
	}()
	_ = c.raw.SetReadDeadline(time.Now().Add(connectTimeout))
	err := e.server.EstablishConnection("atelier", c)
	if broken := (packets.Code{}); c.device != "" && errors.As(err, &broken) {
		switch broken.Code {
		case packets.ErrMalformedPacket.Code, packets.ErrProtocolViolation.Code, packets.ErrPacketTooLarge.Code:
			e.count.refused.Add(1)
			e.misbehaves(c.device, "it sent a packet that MQTT or its bounds do not allow")
		}
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		e.log.Debug("broker connection ended", "client", c.client, "error", err)
	}
}

// Publish implements Bus. What overflows the queue of a slow subscriber is counted.
// The library loses it silently; content is Exhausted then.
func (e *Embedded) Publish(_ context.Context, topic string, payload []byte) error {
	if err := checkPublish(topic, payload); err != nil {
		return err
	}
	subs := e.server.Topics.Subscribers(topic)
	if len(subs.Subscriptions) == 0 {
		return atelier.Errorf(atelier.Unavailable, "no device listens to %s", topic)
	}
	if c := e.bulkConn(topic, subs); c != nil {
		if err := e.push(c, bulkFrame{topic, payload}); err != nil {
			return err
		}
		e.count.sent.Add(1)
		return nil
	}
	if err := e.server.Publish(topic, payload, false, 0); err != nil {
		return atelier.Errorf(atelier.Unavailable, "publish to %s: %w", topic, err)
	}
	e.count.sent.Add(1)
	return nil
}

// Disconnect implements Bus. What was published to the device just before, to
// tell it why, gets a moment to leave.
func (e *Embedded) Disconnect(ctx context.Context, device string) error {
	select {
	case <-ctx.Done():
	case <-time.After(linger):
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.conns {
		if c.device == device {
			_ = c.Close()
		}
	}
	return nil
}

// Counters implements Bus.
func (e *Embedded) Counters() Counters { return e.count.snapshot() }

func checkPublish(topic string, payload []byte) error {
	if _, _, ok := wire.ParseDown(topic); !ok {
		return atelier.Errorf(atelier.Invalid, "topic %q does not lead to a device", topic)
	}
	if len(payload) > wire.MaxPacket {
		return atelier.Errorf(atelier.TooLarge, "message of %d bytes is over the limit of %d", len(payload), wire.MaxPacket)
	}
	return nil
}
