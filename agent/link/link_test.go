package link_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"sync/atomic"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/link"
	"github.com/atelier-edge/atelier/internal/wire"
)

// allow lets everybody do everything.
type allow struct{ mochi.HookBase }

func (allow) ID() string { return "allow" }
func (allow) Provides(b byte) bool {
	return b == mochi.OnConnectAuthenticate || b == mochi.OnACLCheck
}
func (allow) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }
func (allow) OnACLCheck(*mochi.Client, string, bool) bool              { return true }

// broker is a real broker on a free port that wants client certificates.
type broker struct {
	*mochi.Server
	address string
	serials chan string // of the client certificates, as they connect
	device  *tls.Config
}

func startBroker(t *testing.T, kind string) *broker {
	t.Helper()
	ca, caKey := certificate(t, nil, nil)
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	server, _ := certificate(t, ca.Leaf, caKey)
	client, _ := certificate(t, ca.Leaf, caKey)
	b := &broker{serials: make(chan string, 16)}
	b.device = &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{client}}
	config := &tls.Config{
		Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			select {
			case b.serials <- s.PeerCertificates[0].SerialNumber.String():
			default:
			}
			return nil
		},
	}
	b.Server = mochi.New(&mochi.Options{InlineClient: true, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := b.AddHook(new(allow), nil); err != nil {
		t.Fatal(err)
	}
	var l listeners.Listener
	if kind == "wss" {
		// The library's own WebSocket listener cannot say which port it got.
		free, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := free.Addr().String()
		if err := free.Close(); err != nil {
			t.Fatal(err)
		}
		l = listeners.NewWebsocket(listeners.Config{ID: "l", Address: address, TLSConfig: config})
		b.address = "wss://" + address + "/mqtt"
	} else {
		l = listeners.NewTCP(listeners.Config{ID: "l", Address: "127.0.0.1:0", TLSConfig: config})
	}
	if err := b.AddListener(l); err != nil {
		t.Fatal(err)
	}
	if kind != "wss" {
		b.address = "tls://" + l.Address()
	}
	go func() { _ = b.Serve() }()
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func certificate(t *testing.T, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (tls.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true,
		IsCA: parent == nil, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, key
}

// events records what a link tells.
type events struct {
	opened           atomic.Int64
	up, contentUp    chan string
	down             chan error
	control, content chan []byte
}

func newEvents() *events {
	return &events{
		up: make(chan string, 64), contentUp: make(chan string, 64), down: make(chan error, 64),
		control: make(chan []byte, 64), content: make(chan []byte, 64),
	}
}

func (e *events) Open() (link.Session, error) {
	e.opened.Add(1)
	id := atelier.NewID()
	return link.Session{ID: id, Will: []byte("bye " + id)}, nil
}
func (e *events) Up(session string)      { e.up <- session }
func (e *events) Down(_ string, r error) { e.down <- r }
func (e *events) ContentUp()             { e.contentUp <- "" }
func (e *events) Control(p []byte)       { e.control <- p }
func (e *events) Content(p []byte)       { e.content <- p }

func next[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func options(address string, e *events) link.Options {
	return link.Options{
		Brokers: func() []string { return []string{address} }, Device: atelier.NewID(), Shard: "0", Handler: e,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Backoff: link.Backoff{
			Min: time.Millisecond, Max: 20 * time.Millisecond, Random: func() float64 { return 1 },
		},
	}
}

// start runs a link until the test ends.
func start(t *testing.T, opts link.Options) *link.Link {
	t.Helper()
	l, err := link.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return l
}

func TestCarriesMessagesBothWays(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"tls", "wss"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, kind)
			e := newEvents()
			opts := options(b.address, e)
			opts.TLS = func(string) (*tls.Config, error) { return b.device, nil }
			up := make(chan packets.Packet, 64)
			if err := b.Subscribe(wire.UpPattern("0"), 1, func(_ *mochi.Client, _ packets.Subscription, p packets.Packet) { up <- p }); err != nil {
				t.Fatal(err)
			}
			l := start(t, opts)
			next(t, e.up)
			next(t, e.contentUp)
			if !l.Connected() {
				t.Error("the link says that it is not connected")
			}
			for _, ch := range []wire.Channel{wire.Control, wire.Content, wire.Telemetry} {
				if err := l.Publish(t.Context(), ch, []byte("up")); err != nil {
					t.Fatal(err)
				}
				if p := next(t, up); p.TopicName != wire.UpTopic("0", opts.Device, ch) || string(p.Payload) != "up" {
					t.Errorf("%s: the broker got %q on %s", ch, p.Payload, p.TopicName)
				}
			}
			big := make([]byte, wire.MaxPacket)
			for topic, c := range map[wire.Channel]chan []byte{wire.Control: e.control, wire.Content: e.content} {
				if err := b.Publish(wire.DownTopic(opts.Device, topic), big, false, 0); err != nil {
					t.Fatal(err)
				}
				if got := next(t, c); len(got) != len(big) {
					t.Errorf("%s: got %d bytes", topic, len(got))
				}
			}
		})
	}
}

func TestComesBackWithANewSessionAndLeavesItsWill(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "tls")
	e := newEvents()
	opts := options(b.address, e)
	opts.TLS = func(string) (*tls.Config, error) { return b.device, nil }
	wills := make(chan string, 8)
	if err := b.Subscribe(wire.UpTopic("0", opts.Device, wire.Control), 1, func(_ *mochi.Client, _ packets.Subscription, p packets.Packet) {
		wills <- string(p.Payload)
	}); err != nil {
		t.Fatal(err)
	}
	start(t, opts)
	first := next(t, e.up)
	client, ok := b.Clients.Get(opts.Device)
	if !ok {
		t.Fatal("the broker does not know the client")
	}
	client.Stop(errors.New("cut"))
	if will := next(t, wills); will != "bye "+first {
		t.Errorf("the will says %q, expected that of session %s", will, first)
	}
	next(t, e.down)
	if second := next(t, e.up); second == first {
		t.Error("the second connection has the first one's session")
	}
}

func TestReconnectUsesTheRenewedCertificate(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "tls")
	e := newEvents()
	opts := options(b.address, e)
	var asked atomic.Int64
	opts.TLS = func(string) (*tls.Config, error) { asked.Add(1); return b.device, nil }
	l := start(t, opts)
	next(t, e.up)
	next(t, e.contentUp)
	before := asked.Load()
	l.Reconnect()
	next(t, e.up)
	next(t, e.contentUp)
	if asked.Load() != before+2 {
		t.Errorf("the certificate was asked for %d times, expected twice", asked.Load()-before)
	}
}

func TestTriesTheNextAddress(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "tls")
	e := newEvents()
	opts := options("tls://127.0.0.1:1", e)
	opts.Brokers = func() []string { return []string{"tls://127.0.0.1:1", b.address} }
	opts.TLS = func(string) (*tls.Config, error) { return b.device, nil }
	l := start(t, opts)
	next(t, e.up)
	next(t, e.contentUp)
	for len(e.down) > 0 {
		<-e.down
	}
	l.Reconnect()
	next(t, e.up)
	next(t, e.contentUp)
	if err := <-e.down; err == nil || len(e.down) > 0 {
		t.Errorf("reconnecting took more than one attempt: %v, %v", err, <-e.down)
	}
}

func TestPublishWithoutConnectionIsUnavailable(t *testing.T) {
	t.Parallel()
	l, err := link.New(options("tls://127.0.0.1:1", newEvents()))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Publish(t.Context(), wire.Control, nil); atelier.CodeOf(err) != atelier.Unavailable {
		t.Errorf("got %v, expected the code unavailable", err)
	}
	l.Reconnect() // nothing to close, and no harm
}

func TestBacksOffWhileTheHubIsAway(t *testing.T) {
	t.Parallel()
	e := newEvents()
	opts := options("tcp://127.0.0.1:1", e)
	opts.Backoff = link.Backoff{Min: time.Second, Max: 10 * time.Second, Random: func() float64 { return 1 }}
	slept := make(chan time.Duration, 64)
	opts.After = func(d time.Duration) <-chan time.Time {
		select {
		case slept <- d:
		default:
		}
		return time.After(0)
	}
	start(t, opts)
	counts := map[time.Duration]int{}
	for range 20 {
		counts[next(t, slept)]++
	}
	for _, d := range []time.Duration{1, 2, 4, 8, 10} {
		if counts[d*time.Second] == 0 {
			t.Errorf("never waited %ds: %v", d, counts)
		}
	}
	if err := next(t, e.down); err == nil {
		t.Error("a failed attempt gave no reason")
	}
}

func TestDelayIsJitteredAndBounded(t *testing.T) {
	t.Parallel()
	for n := range 100 {
		if d := link.DefaultBackoff.Delay(n); d < 0 || d >= link.DefaultBackoff.Max || n == 0 && d >= time.Second {
			t.Errorf("attempt %d waits %v", n, d)
		}
	}
}

func TestNewRefusesAddresses(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "hub:8883", "http://hub", "::", "tls://"} {
		if _, err := link.New(link.Options{Brokers: func() []string { return []string{address} }}); err == nil {
			t.Errorf("%q was accepted", address)
		}
	}
}
