package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	atelier "github.com/atelier-edge/atelier"
)

// Times of one connection.
const (
	connectTimeout = 30 * time.Second
	writeTimeout   = 30 * time.Second
	pingTimeout    = 15 * time.Second
)

var (
	errReconnect = errors.New("closed in order to connect anew")
	errRefused   = errors.New("the broker refused the subscription")
)

// conn keeps one MQTT connection. The library neither reconnects nor stores
// anything: each connection is a client of its own, made by once and gone with it.
type conn struct {
	opts   *Options
	client string // MQTT client id
	name   string // for the log
	topic  string // subscribed to
	up     string // where the last will goes

	open    func() (Session, error)
	onUp    func(session string)
	onDown  func(session string, err error)
	receive func([]byte)

	other *conn         // the device's other connection
	hurry chan struct{} // the other one came up: try at once

	mu      sync.Mutex
	current mqtt.Client   // nil while there is none
	dropped chan struct{} // closed by drop; made anew for each connection
}

// run connects again and again until ctx ends: to the broker that took it last,
// and after a failure to the next.
func (c *conn) run(ctx context.Context) {
	which := 0
	for failures := 0; ; failures++ {
		var held time.Duration
		broker, others, err := c.broker(which)
		if err == nil {
			held, err = c.once(ctx, broker)
		} else {
			c.onDown("", err)
		}
		if ctx.Err() != nil {
			return
		}
		var delay time.Duration
		switch {
		case errors.Is(err, errReconnect):
			failures = -1
		case held > stable:
			failures = 0
			delay = c.opts.Backoff.Delay(0)
		default:
			delay = c.opts.Backoff.Delay(failures / (1 + others))
			which++
		}
		c.opts.Log.Warn("no connection to the hub", "channel", c.name, "why", WhyOf(err), "error", err, "retry_in", delay.Round(time.Millisecond))
		select {
		case <-c.opts.After(delay):
		case <-c.hurry:
		case <-ctx.Done():
			return
		}
	}
}

// broker returns the address for an attempt, and how many others there are.
func (c *conn) broker(which int) (u *url.URL, others int, err error) {
	brokers, err := parse(c.opts.Brokers())
	if err != nil {
		return nil, 0, err
	}
	return brokers[which%len(brokers)], len(brokers) - 1, nil
}

// once makes one connection and returns when it has ended: how long it held once it
// was there, and the reason.
func (c *conn) once(ctx context.Context, broker *url.URL) (held time.Duration, err error) {
	session, err := c.open()
	if err != nil {
		return 0, err
	}
	made := false
	defer func() {
		err = &attemptError{broker, made, err}
		c.onDown(session.ID, err)
	}()
	lost := make(chan error, 1)
	client := mqtt.NewClient(c.options(ctx, broker, session, lost))
	dropped := make(chan struct{})

	ctxConnect, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := wait(ctxConnect, client.Connect()); err != nil {
		client.Disconnect(0) // ends an attempt that is still under way
		return 0, fmt.Errorf("connect: %w", err)
	}
	defer client.Disconnect(250)
	subscribed := client.Subscribe(c.topic, 0, func(_ mqtt.Client, m mqtt.Message) { c.receive(m.Payload()) })
	if err := wait(ctxConnect, subscribed); err != nil {
		return 0, fmt.Errorf("subscribe to %s: %w", c.topic, err)
	}
	if sub, ok := subscribed.(*mqtt.SubscribeToken); ok && sub.Result()[c.topic] >= 0x80 {
		return 0, fmt.Errorf("subscribe to %s: %w", c.topic, errRefused)
	}
	made = true
	c.set(client, dropped)
	defer c.set(nil, nil)
	c.opts.Log.Info("connected to the hub", "channel", c.name, "broker", broker.Host)
	c.other.nudge()
	up := time.Now()
	c.onUp(session.ID)
	select {
	case err = <-lost:
	case <-dropped:
		err = errReconnect
	case <-ctx.Done():
		err = ctx.Err()
	}
	return time.Since(up), err
}

func (c *conn) options(ctx context.Context, broker *url.URL, session Session, lost chan<- error) *mqtt.ClientOptions {
	o := mqtt.NewClientOptions().
		AddBroker(broker.String()).
		SetClientID(c.client).
		SetProtocolVersion(4). // 3.1.1, without the library's second attempt at 3.1
		SetCleanSession(true).
		SetAutoReconnect(false).
		SetConnectRetry(false).
		SetConnectTimeout(connectTimeout).
		SetWriteTimeout(writeTimeout).
		SetKeepAlive(c.opts.KeepAlive).
		SetPingTimeout(pingTimeout).
		SetOrderMatters(true).
		SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return c.dial(ctx, broker) }).
		SetConnectionLostHandler(func(_ mqtt.Client, err error) {
			select {
			case lost <- err:
			default: // one reason is enough
			}
		})
	if session.Will != nil {
		o.SetBinaryWill(c.up, session.Will, 0, false)
	}
	return o
}

// dial opens the network connection. The TLS handshake is finished here, so
// that a certificate that the hub no longer takes shows as what it is.
func (c *conn) dial(ctx context.Context, broker *url.URL) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var config *tls.Config
	if c.opts.TLS != nil {
		var err error
		if config, err = c.opts.TLS(broker.Hostname()); err != nil {
			return nil, err
		}
	}
	switch broker.Scheme {
	case "wss", "ws":
		return mqtt.NewWebsocket(broker.String(), config, connectTimeout, nil, nil)
	case "tcp":
		return new(net.Dialer).DialContext(ctx, "tcp", broker.Host)
	}
	return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", broker.Host)
}

// nudge ends a pause between two attempts.
func (c *conn) nudge() {
	if c.connected() {
		return
	}
	select {
	case c.hurry <- struct{}{}:
	default:
	}
}

func (c *conn) set(client mqtt.Client, dropped chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current, c.dropped = client, dropped
}

func (c *conn) connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current != nil && c.current.IsConnectionOpen()
}

// drop ends the present connection, if there is one.
func (c *conn) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dropped != nil {
		close(c.dropped)
		c.dropped = nil
	}
}

func (c *conn) publish(ctx context.Context, topic string, payload []byte) error {
	c.mu.Lock()
	client := c.current
	c.mu.Unlock()
	if client == nil {
		return atelier.Errorf(atelier.Unavailable, "there is no connection to the hub")
	}
	if err := wait(ctx, client.Publish(topic, 0, false, payload)); err != nil {
		return atelier.Errorf(atelier.Unavailable, "publish to the hub: %w", err)
	}
	return nil
}

// wait waits for the library to finish what t stands for.
func wait(ctx context.Context, t mqtt.Token) error {
	select {
	case <-t.Done():
		return t.Error()
	case <-ctx.Done():
		return ctx.Err()
	}
}
