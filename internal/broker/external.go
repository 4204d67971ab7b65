package broker

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"log/slog"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

// resubscribeInterval lies between the attempts to be let listen.
const resubscribeInterval = 5 * time.Second

// ExternalConfig says which broker the hub uses. docs/brokers.md tells how the
// broker is set up.
type ExternalConfig struct {
	// URL is the broker's address, such as "ssl://broker.example:8883".
	URL string
	// TLS holds the hub's client certificate and the authority of the broker.
	TLS *tls.Config
	// Shard is the topic shard that this hub serves; wire.DefaultShard where empty.
	Shard string
	Log   *slog.Logger
}

// External is a Bus on any MQTT 3.1.1 broker. It connects by itself whenever
// the broker can be reached. It cannot tell who is connected.
type External struct {
	cfg   ExternalConfig
	log   *slog.Logger
	count counters

	mu     sync.Mutex
	client paho.Client
}

// NewExternal makes the hub's client of a broker; Run starts it.
func NewExternal(cfg ExternalConfig) (*External, error) {
	if cfg.URL == "" {
		return nil, atelier.Errorf(atelier.Invalid, "no address was given for the MQTT broker").
			WithRemedy("Give it as ssl://HOST:PORT.")
	}
	if cfg.Shard == "" {
		cfg.Shard = wire.DefaultShard
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &External{cfg: cfg, log: cfg.Log}, nil
}

func (x *External) options(client string) *paho.ClientOptions {
	return paho.NewClientOptions().
		AddBroker(x.cfg.URL).
		SetClientID(client).
		SetTLSConfig(x.cfg.TLS).
		SetProtocolVersion(4).
		SetCleanSession(true).
		SetConnectTimeout(connectTimeout).
		SetWriteTimeout(writeTimeout).
		SetKeepAlive(30 * time.Second)
}

// Run implements Bus. It returns nil although the broker cannot be reached: it
// goes on trying until ctx ends.
func (x *External) Run(ctx context.Context, h Handler) error {
	in := newInbox(h, &x.count)
	var wg sync.WaitGroup
	receive := func(_ paho.Client, m paho.Message) {
		_, device, channel, ok := wire.ParseUp(m.Topic())
		if !ok || m.Retained() || len(m.Payload()) > wire.MaxPacket {
			x.count.refused.Add(1)
			return
		}
		in.message(Message{device, channel, m.Payload()})
	}
	opts := x.options("atelier-hub-" + x.cfg.Shard + "-" + rand.Text()[:8]).
		SetAutoReconnect(true).
		SetConnectRetry(true).
		SetConnectRetryInterval(time.Second).
		SetMaxReconnectInterval(10 * time.Second).
		SetOnConnectHandler(func(c paho.Client) {
			wg.Go(func() { x.subscribe(ctx, c, receive) })
		}).
		SetConnectionLostHandler(func(_ paho.Client, err error) {
			x.log.Warn("no connection to the MQTT broker; the hub tries again", "error",
				atelier.Errorf(atelier.Unavailable, "the connection to the MQTT broker %s broke: %w", x.cfg.URL, err).
					WithRemedy("Check that the broker runs and lets the hub in; docs/brokers.md tells how it is set up."))
		})
	client := paho.NewClient(opts)
	x.mu.Lock()
	x.client = client
	x.mu.Unlock()

	client.Connect()
	in.run(ctx)
	client.Disconnect(250)
	wg.Wait()
	return nil
}

// subscribe asks for what the devices say, again and again until the broker
// grants it or the connection ends: a hub that hears nothing is of no use.
func (x *External) subscribe(ctx context.Context, c paho.Client, receive paho.MessageHandler) {
	topic := wire.UpPattern(x.cfg.Shard)
	for ctx.Err() == nil && c.IsConnectionOpen() {
		err := await(ctx, c.Subscribe(topic, 0, receive), func(t paho.Token) error {
			if s, ok := t.(*paho.SubscribeToken); ok && s.Result()[topic] > 2 {
				return errors.New("it was not granted")
			}
			return nil
		})
		if err == nil {
			x.log.Info("connected to the MQTT broker", "url", x.cfg.URL)
			return
		}
		x.log.Error("the MQTT broker does not let the hub listen to its devices", "url", x.cfg.URL, "topic", topic, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(resubscribeInterval):
		}
	}
}

// await waits for a token, but no longer than connectTimeout, and then for check.
func await(ctx context.Context, t paho.Token, check func(paho.Token) error) error {
	late := time.NewTimer(connectTimeout)
	defer late.Stop()
	select {
	case <-t.Done():
		if err := t.Error(); err != nil {
			return err
		}
		return check(t)
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		return errors.New("the broker did not answer")
	}
}

// Publish implements Bus. It waits until the message is on its way to the
// broker, which slows a sender down to what the connection carries.
func (x *External) Publish(ctx context.Context, topic string, payload []byte) error {
	if err := checkPublish(topic, payload); err != nil {
		return err
	}
	x.mu.Lock()
	client := x.client
	x.mu.Unlock()
	if client == nil || !client.IsConnectionOpen() {
		return atelier.Errorf(atelier.Unavailable, "the MQTT broker %s is not connected", x.cfg.URL)
	}
	t := client.Publish(topic, 0, false, payload)
	select {
	case <-t.Done():
	case <-ctx.Done():
		return atelier.Errorf(atelier.Timeout, "publish to %s: %w", topic, ctx.Err())
	}
	if err := t.Error(); err != nil {
		return atelier.Errorf(atelier.Unavailable, "publish to %s: %w", topic, err)
	}
	x.count.sent.Add(1)
	return nil
}

// Disconnect implements Bus. MQTT has no word for it; but a client that connects
// under an id takes over from whoever holds it, and that is what the hub does for
// a moment, with both ids of the device. Keeping the device out is left to the
// broker's own list of revoked certificates; the hub ignores what it says.
func (x *External) Disconnect(ctx context.Context, device string) error {
	var errs []error
	for _, id := range []string{device, device + wire.ContentClientSuffix} {
		c := paho.NewClient(x.options(id).SetAutoReconnect(false))
		err := await(ctx, c.Connect(), func(paho.Token) error { return nil })
		if err != nil {
			errs = append(errs, err)
		}
		c.Disconnect(50)
	}
	if err := errors.Join(errs...); err != nil {
		return atelier.Errorf(atelier.Unavailable, "disconnect device %s from %s: %w", device, x.cfg.URL, err)
	}
	return nil
}

// Counters implements Bus.
func (x *External) Counters() Counters { return x.count.snapshot() }
