// Package link keeps a device connected to its hub over MQTT. It is the only
// part of the agent that knows an MQTT library.
//
// There are two connections: control, under the device's id, and content, under
// the id with wire.ContentClientSuffix, so that bulk never delays control. Both
// are clean sessions at QoS 0: nothing in Atelier rests on what a broker
// promises, and whoever publishes repeats until the hub itself has answered.
// Each connection comes back by itself, with exponential back-off and full jitter.
//
// The package knows neither messages nor their signatures; it carries bytes
// between a topic and a Handler.
package link

import (
	"context"
	"crypto/tls"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Handler receives what comes from the hub and what becomes of the connections.
// Control and Content are called in the order in which messages came, each from
// one goroutine; while one runs, nothing more is read from its connection, so it
// must return within a few seconds. The slices are the callee's to keep.
type Handler interface {
	// Open is called before each connection of the control channel. It returns
	// the new session's id and the payload of its last will.
	Open() (Session, error)
	// Up tells that the session's connection is there and subscribed.
	Up(session string)
	// Down tells that it is gone, or could not be made; WhyOf(err) says why.
	Down(session string, err error)
	// ContentUp tells that the content connection is there and subscribed.
	ContentUp()
	Control(payload []byte)
	Content(payload []byte)
}

// Session is one connection of the control channel.
type Session struct {
	ID   string
	Will []byte // published by the broker when the connection breaks
}

// Options say where to connect and as whom.
type Options struct {
	// Brokers returns the hub's MQTT addresses in the order in which to try them:
	// tls://HOST:PORT (ssl:// and mqtts:// mean the same), or wss://HOST:PORT/PATH
	// for MQTT over WebSocket. tcp:// and ws:// do without TLS. It is asked each time, since a hub may move.
	Brokers func() []string
	Device  string // id
	Shard   string // the topic shard to publish under
	// TLS returns the configuration of the next connection, to host; it is asked each
	// time, so that a renewed certificate is used from then on.
	TLS     func(host string) (*tls.Config, error)
	Handler Handler
	Log     *slog.Logger
	// KeepAlive is the longest silence before a ping; 60 seconds where zero.
	KeepAlive time.Duration
	// Backoff says how long to wait between attempts; DefaultBackoff where zero.
	Backoff Backoff
	// After is time.After where nil. It is there for tests.
	After func(d time.Duration) <-chan time.Time
}

// Backoff is an exponential back-off with full jitter: the wait before attempt n
// is chosen evenly between 0 and min(Max, Min × 2ⁿ), so that a fleet that lost
// its hub does not come back all at once.
type Backoff struct {
	Min, Max time.Duration
	Random   func() float64 // in [0, 1)
}

// DefaultBackoff starts at a second and ends at half a minute: 10,000 devices
// then make some 1,300 attempts a second, two connections each.
var DefaultBackoff = Backoff{Min: time.Second, Max: 30 * time.Second, Random: rand.Float64}

// Delay returns the wait before attempt n, counted from 0.
func (b Backoff) Delay(n int) time.Duration {
	most := b.Max
	if n < 30 && b.Min<<n < b.Max {
		most = b.Min << n
	}
	return time.Duration(b.Random() * float64(most))
}

// stable is how long a connection must have held for the back-off to begin anew: short,
// so that a link that is cut every five seconds is used in between, of which a device
// needs two to be there again. A hub that took 10,000 devices in and lost them again as
// fast as that would see some 6,000 attempts a second.
const stable = 3 * time.Second

// Link is a device's connection to its hub. Its methods are safe for concurrent use.
type Link struct {
	opts             Options
	control, content *conn
}

// New returns a Link; Run makes it connect. The error is an *atelier.Error with
// code Invalid or Unsupported where an address is none of ours.
func New(opts Options) (*Link, error) {
	if _, err := parse(opts.Brokers()); err != nil {
		return nil, err
	}
	if opts.KeepAlive == 0 {
		opts.KeepAlive = time.Minute
	}
	if opts.Backoff.Random == nil {
		opts.Backoff = DefaultBackoff
	}
	if opts.After == nil {
		opts.After = time.After
	}
	l := &Link{opts: opts}
	h := opts.Handler
	l.control = &conn{
		hurry: make(chan struct{}, 1),
		opts:  &l.opts, client: opts.Device, name: "control",
		topic: wire.DownTopic(opts.Device, wire.Control),
		up:    wire.UpTopic(opts.Shard, opts.Device, wire.Control),
		open:  h.Open, onUp: h.Up, onDown: h.Down, receive: h.Control,
	}
	l.content = &conn{
		hurry: make(chan struct{}, 1),
		opts:  &l.opts, client: opts.Device + wire.ContentClientSuffix, name: "content",
		topic:   wire.DownTopic(opts.Device, wire.Content),
		open:    func() (Session, error) { return Session{}, nil },
		onUp:    func(string) { h.ContentUp() },
		onDown:  func(string, error) {},
		receive: h.Content,
	}
	l.control.other, l.content.other = l.content, l.control
	return l, nil
}

// parse checks the brokers' addresses.
func parse(addresses []string) ([]*url.URL, error) {
	if len(addresses) == 0 {
		return nil, atelier.Errorf(atelier.Invalid, "there is no address of an MQTT broker").
			WithRemedy("Join the device again.")
	}
	var brokers []*url.URL
	for _, address := range addresses {
		u, err := url.Parse(address)
		if err != nil || u.Host == "" {
			return nil, atelier.Errorf(atelier.Invalid, "%q is not the address of an MQTT broker, expected tls://HOST:PORT or wss://HOST:PORT/PATH", address).
				WithRemedy("Correct the hub's configuration and join the device again.")
		}
		switch u.Scheme {
		case "tls", "ssl", "mqtts", "wss", "tcp", "ws":
		default:
			return nil, atelier.Errorf(atelier.Unsupported, "the address %q has scheme %q, expected tls or wss", address, u.Scheme)
		}
		brokers = append(brokers, u)
	}
	return brokers, nil
}

// Run keeps both connections until ctx ends, and returns when they are closed.
func (l *Link) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { l.control.run(ctx) })
	wg.Go(func() { l.content.run(ctx) })
	wg.Wait()
}

// Publish sends payload on a channel and returns when it is written to the
// connection; content and data go over the content connection, the rest over control.
// That it arrives is not certain. The error has code Unavailable while there
// is no connection.
func (l *Link) Publish(ctx context.Context, ch wire.Channel, payload []byte) error {
	c := l.control
	if ch == wire.Content || ch == wire.Data {
		c = l.content
	}
	return c.publish(ctx, wire.UpTopic(l.opts.Shard, l.opts.Device, ch), payload)
}

// Connected reports whether the control connection is up.
func (l *Link) Connected() bool { return l.control.connected() }

// Reconnect closes both connections and opens them anew, at once: after the
// device's certificate was renewed.
func (l *Link) Reconnect() {
	l.control.drop()
	l.content.drop()
}
