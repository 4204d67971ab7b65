package brokertest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/atelier-edge/atelier/internal/broker"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Patience is how long the suite waits for what must happen.
const Patience = 15 * time.Second

// Packet is what a client received.
type Packet struct {
	Topic   string
	Payload []byte
}

// Client is a device's MQTT connection, or somebody's who plays one.
type Client struct {
	paho.Client
	ID string
	// In receives what comes on any topic.
	In chan Packet
	// Lost closes when the connection ends without Disconnect.
	Lost chan struct{}
	raw  net.Conn
	t    testing.TB
}

// Cut ends a connection over TCP without a word, as a broken network does.
func (c *Client) Cut() { _ = c.raw.Close() }

// Options change how Dial connects.
type Options struct {
	TLS       *tls.Config
	Will      *Packet
	Retain    bool // of the will
	KeepAlive time.Duration
	Dirty     bool // not a clean session
}

// Dial connects as the MQTT client id; the error is the broker's refusal. The
// test's end disconnects it.
func Dial(t testing.TB, address, id string, o Options) (*Client, error) {
	t.Helper()
	c := &Client{ID: id, In: make(chan Packet, 4096), Lost: make(chan struct{}), t: t}
	if o.KeepAlive == 0 {
		o.KeepAlive = 30 * time.Second
	}
	opts := paho.NewClientOptions().AddBroker(address).SetClientID(id).SetTLSConfig(o.TLS).
		SetProtocolVersion(4).SetCleanSession(!o.Dirty).SetAutoReconnect(false).SetKeepAlive(o.KeepAlive).
		SetConnectTimeout(Patience).
		SetConnectionLostHandler(func(paho.Client, error) { close(c.Lost) }).
		SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { c.In <- Packet{m.Topic(), m.Payload()} })
	if strings.HasPrefix(address, "ssl:") {
		opts.SetCustomOpenConnectionFn(c.open(o.TLS))
	}
	if o.Will != nil {
		opts.SetBinaryWill(o.Will.Topic, o.Will.Payload, 0, o.Retain)
	}
	c.Client = paho.NewClient(opts)
	token := c.Connect()
	if !token.WaitTimeout(Patience) {
		t.Fatalf("client %s: no answer to CONNECT", id)
	}
	if err := token.Error(); err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Disconnect(50) })
	return c, nil
}

// open dials so that Cut can reach the socket.
func (c *Client) open(config *tls.Config) paho.OpenConnectionFunc {
	return func(u *url.URL, _ paho.ClientOptions) (net.Conn, error) {
		raw, err := net.DialTimeout("tcp", u.Host, Patience)
		if err != nil {
			return nil, err
		}
		c.raw = raw
		conn := tls.Client(raw, config)
		return conn, conn.Handshake()
	}
}

// MustDial is Dial where it must succeed, and subscribes to the device's own
// topics.
func MustDial(t testing.TB, address, id, device string, o Options) *Client {
	t.Helper()
	c, err := Dial(t, address, id, o)
	if err != nil {
		t.Fatalf("client %s cannot connect: %v", id, err)
	}
	if !c.Listen(wire.DownPattern(device)) {
		t.Fatalf("client %s may not subscribe to its own topics", id)
	}
	return c
}

// Listen subscribes and reports whether the broker granted it.
func (c *Client) Listen(filter string) bool {
	c.t.Helper()
	token := c.Subscribe(filter, 0, nil).(*paho.SubscribeToken)
	if !token.WaitTimeout(Patience) || token.Error() != nil {
		return false
	}
	granted, ok := token.Result()[filter]
	return ok && granted <= 2
}

// Say publishes with QoS 0.
func (c *Client) Say(topic string, payload []byte) {
	c.t.Helper()
	if token := c.Publish(topic, 0, false, payload); !token.WaitTimeout(Patience) {
		c.t.Fatalf("client %s: publish to %s hangs", c.ID, topic)
	}
}

// Expect returns the next packet.
func (c *Client) Expect() Packet {
	c.t.Helper()
	select {
	case p := <-c.In:
		return p
	case <-time.After(Patience):
		c.t.Fatalf("client %s received nothing", c.ID)
		return Packet{}
	}
}

// recorder is a broker.Handler that keeps what it is told.
type recorder struct {
	messages chan broker.Message
	presence chan presence
	deny     func(device string) error
	hold     func(broker.Message) // called first, where set
}

type presence struct {
	device    string
	connected bool
}

func newRecorder() *recorder {
	return &recorder{
		messages: make(chan broker.Message, 1<<14), presence: make(chan presence, 1024),
		deny: func(string) error { return nil }, hold: func(broker.Message) {},
	}
}

func (r *recorder) Admit(_ context.Context, device string, _ *x509.Certificate) error {
	return r.deny(device)
}

func (r *recorder) Receive(_ context.Context, m broker.Message) {
	r.hold(m)
	r.messages <- m
}

func (r *recorder) Refused(string, string) {}

func (r *recorder) Presence(_ context.Context, device string, connected bool) {
	r.presence <- presence{device, connected}
}
