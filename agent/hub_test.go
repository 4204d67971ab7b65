package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/agenttest"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/content/transfer"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// hub is as much of a hub as one device meets: enrolment over HTTPS, a real
// broker with mutual TLS, signed messages, and content.
type hub struct {
	*testing.T
	*agenttest.Authority
	device string
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
	https  *httptest.Server
	broker *mochi.Server
	mqtt   string
	sender *transfer.Sender
	store  *content.Store // what the device uploads
	loads  *transfer.Receiver

	mu       sync.Mutex
	keys     trust.KeySet
	contents map[atelier.Digest][]byte
	desired  []byte // the envelope
	position atelier.Position
	ack      wire.DesiredAck
	reported atelier.ReportedState
	batches  int
	collects map[string]wire.Collected
	byes     int
}

// allow lets every client in that TLS has let in.
type allow struct{ mochi.HookBase }

func (allow) ID() string                                               { return "allow" }
func (allow) Provides(b byte) bool                                     { return b == mochi.OnConnectAuthenticate || b == mochi.OnACLCheck }
func (allow) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }
func (allow) OnACLCheck(*mochi.Client, string, bool) bool              { return true }

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{
		T: t, Authority: agenttest.NewAuthority(t), device: atelier.NewID(),
		contents: map[atelier.Digest][]byte{}, collects: map[string]wire.Collected{},
	}
	h.certify()
	h.serveHTTPS()
	h.sender = transfer.NewSender(transfer.SenderOptions{Open: h.open, Send: func(_ string, f []byte) error { return h.down(wire.Content, f) }})
	var err error
	if h.store, err = content.Open(durable.OS{}, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	h.loads = transfer.NewReceiver(h.store, func(f []byte) error { return h.down(wire.Content, f) }, transfer.ReceiverOptions{})
	h.startBroker("127.0.0.1:0")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = h.sender.Run(ctx); close(done) }()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = h.broker.Close()
		h.https.Close()
	})
	return h
}

func (h *hub) certify() {
	h.Helper()
	key, err := trust.NewDeviceKey()
	if err != nil {
		h.Fatal(err)
	}
	h.caKey = key
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		h.Fatal(err)
	}
	if h.ca, err = x509.ParseCertificate(der); err != nil {
		h.Fatal(err)
	}
}

// issue certifies a public key under a name.
func (h *hub) issue(name string, public any) []byte {
	h.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, h.ca, public, h.caKey)
	if err != nil {
		h.Fatal(err)
	}
	return der
}

func (h *hub) server() tls.Certificate {
	h.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{h.issue("hub", key.Public())}, PrivateKey: key}
}

func (h *hub) serveHTTPS() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/ca", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(trust.EncodeCertificate(h.ca.Raw)) })
	mux.HandleFunc("POST /v1/enrol", func(w http.ResponseWriter, r *http.Request) {
		var e wire.EnrolRequest
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			h.Error(err)
			return
		}
		csr, key, err := trust.ParseCSR(e.CSR)
		if err != nil {
			h.Error(err)
			return
		}
		h.mu.Lock()
		h.keys = trust.NewKeySet(key)
		h.mu.Unlock()
		_ = json.NewEncoder(w).Encode(wire.Enrolment{
			Device: h.device, Name: e.Name, Workspace: h.Workspace, WorkspaceName: "lab", Shard: wire.DefaultShard,
			Certificate: string(trust.EncodeCertificate(h.issue(h.device, csr.PublicKey))), CA: string(trust.EncodeCertificate(h.ca.Raw)),
			Root: h.Root(), Delegation: h.Delegation(), MQTT: []string{"tls://" + h.mqtt},
		})
	})
	h.https = httptest.NewUnstartedServer(mux)
	h.https.TLS = &tls.Config{Certificates: []tls.Certificate{h.server()}}
	h.https.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	h.https.StartTLS()
}

// startBroker starts the broker, also after it was stopped.
func (h *hub) startBroker(address string) {
	h.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(h.ca)
	h.broker = mochi.New(&mochi.Options{InlineClient: true, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	l := listeners.NewTCP(listeners.Config{ID: "l", Address: address, TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{h.server()}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}})
	if err := h.broker.AddHook(new(allow), nil); err != nil {
		h.Fatal(err)
	}
	if err := h.broker.AddListener(l); err != nil {
		h.Fatal(err)
	}
	h.mqtt = l.Address()
	if err := h.broker.Subscribe(wire.UpPattern(wire.DefaultShard), 1, func(_ *mochi.Client, _ packets.Subscription, p packets.Packet) { h.up(p) }); err != nil {
		h.Fatal(err)
	}
	if err := h.broker.Serve(); err != nil {
		h.Fatal(err)
	}
}

func (h *hub) down(ch wire.Channel, payload []byte) error {
	return h.broker.Publish(wire.DownTopic(h.device, ch), payload, false, 0)
}

func (h *hub) say(payloadType string, v any) {
	if err := h.down(wire.Control, h.Sign(h, payloadType, v)); err != nil {
		h.Error(err)
	}
}

// up takes what the device publishes.
func (h *hub) up(p packets.Packet) {
	_, device, ch, ok := wire.ParseUp(p.TopicName)
	if !ok || device != h.device {
		h.Errorf("the device published on %s", p.TopicName)
		return
	}
	payload := bytes.Clone(p.Payload)
	switch ch {
	case wire.Content:
		if transfer.ToSender(payload) {
			h.sender.Handle(device, payload)
		} else {
			go h.loads.Handle(payload) // it writes to disk, and the broker waits
		}
	case wire.Telemetry:
		f, err := wire.DecodeTelemetry(payload)
		if err != nil {
			h.Error(err)
			return
		}
		h.mu.Lock()
		h.batches++
		h.mu.Unlock()
		h.say(wire.TypeAck, wire.Ack{Stream: f.Stream, Through: f.Sequence})
	case wire.Control:
		h.mu.Lock()
		defer h.mu.Unlock()
		payloadType, body, err := trust.Open(payload, h.keys)
		if err != nil {
			h.Error(err)
			return
		}
		h.control(payloadType, body)
	}
}

func (h *hub) control(payloadType string, body []byte) {
	read := func(v any) {
		if err := json.Unmarshal(body, v); err != nil {
			h.Error(err)
		}
	}
	switch payloadType {
	case wire.TypeHello:
		var m wire.Hello
		read(&m)
		h.say(wire.TypeWelcome, wire.Welcome{Session: m.Session, Position: h.position, Time: time.Now()})
		if h.position.After(m.Position) {
			_ = h.down(wire.Control, h.desired) // the device says hello again if it is lost
		}
	case wire.TypeDesiredAck:
		read(&h.ack)
	case wire.TypeReported:
		var r atelier.ReportedState
		read(&r)
		h.reported = r
		h.say(wire.TypeAck, wire.Ack{Session: r.Session, Stream: wire.StreamReport, Through: r.Sequence})
	case wire.TypeCollected:
		var c wire.Collected
		read(&c)
		h.collects[c.ID] = c
	case wire.TypeBye:
		h.byes++
	}
}

// desire sends a desired state until the device has acknowledged it.
func (h *hub) desire(modules ...atelier.Module) {
	h.Helper()
	h.mu.Lock()
	h.position.Epoch, h.position.Generation = 1, h.position.Generation+1
	position := h.position
	h.desired = h.Desired(h, atelier.DesiredState{
		Workspace: h.Workspace, Device: h.device, Epoch: position.Epoch, Generation: position.Generation, Modules: modules,
	})
	envelope := h.desired
	h.mu.Unlock()
	h.eventually("the desired state is acknowledged", func() bool {
		_ = h.down(wire.Control, envelope)
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.ack.Position == position && h.ack.Saved
	})
}

func (h *hub) open(_ context.Context, _ string, d atelier.Digest) (transfer.Blob, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	b, ok := h.contents[d]
	if !ok {
		return nil, atelier.Errorf(atelier.NotFound, "there is no content %s", d)
	}
	return memory{bytes.NewReader(b)}, nil
}

// memory is a blob in memory.
type memory struct{ *bytes.Reader }

func (m memory) Size() int64 { return m.Reader.Size() }
func (memory) Close() error  { return nil }

func (h *hub) eventually(what string, cond func() bool) {
	h.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			h.mu.Lock()
			defer h.mu.Unlock()
			b, _ := json.Marshal(h.reported)
			h.Fatalf("never: %s; last report: %s", what, b)
		}
		time.Sleep(20 * time.Millisecond) // the pause of a poll
	}
}

// report waits for a report for which cond holds.
func (h *hub) report(what string, cond func(r atelier.ReportedState) bool) {
	h.Helper()
	h.eventually(what, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return cond(h.reported)
	})
}
