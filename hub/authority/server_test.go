package authority

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/trust"
)

// serve answers each connection that passes the handshake with "hello".
func serve(t testing.TB, cfg *tls.Config) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = l.Close() // ends the goroutine
		<-done
	})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "hello") // the client sees what went wrong
			_ = conn.Close()
		}
	}()
	return l.Addr().String()
}

// dial returns nil when the server answered.
func dial(addr string, cfg *tls.Config) error {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", addr, cfg)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(conn)
	if err == nil && string(b) != "hello" {
		err = errors.New("no answer")
	}
	return errors.Join(err, conn.Close())
}

func clientConfig(a *Authority, certs ...tls.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.CA())
	return &tls.Config{RootCAs: pool, ServerName: "localhost", Time: a.now, Certificates: certs}
}

func TestHTTPSUnderEveryName(t *testing.T) {
	t.Parallel()
	c := newClock()
	a := open(t, Options{
		Dir: t.TempDir(), Now: c.Now,
		Names: []string{"Hub.Example.org.", "10.1.2.3", "[2001:db8::1]", "localhost", "*.edge.example"},
	})
	addr := serve(t, a.HTTPS(nil))
	cfg := clientConfig(a)
	for _, name := range []string{"localhost", "127.0.0.1", "::1", "hub.example.org", "10.1.2.3", "2001:db8::1", "a.edge.example"} {
		cfg.ServerName = name
		if err := dial(addr, cfg); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg.ServerName = "elsewhere.example"
	if err := dial(addr, cfg); err == nil {
		t.Error("the certificate is good for a name that is not the hub's")
	}
	// Long after the first certificate has ended, the server has another.
	c.Add(3 * serverLife)
	cfg.ServerName = "localhost"
	if err := dial(addr, cfg); err != nil {
		t.Error(err)
	}
}

func TestHTTPSVerifiesWhatIsShown(t *testing.T) {
	t.Parallel()
	c := newClock()
	a := open(t, Options{Dir: t.TempDir(), Now: c.Now})
	banned := atelier.NewID()
	addr := serve(t, a.HTTPS(func(id string, _ *x509.Certificate) error {
		if id == banned {
			return errors.New("revoked")
		}
		return nil
	}))
	for _, certs := range [][]tls.Certificate{nil, {issue(t, a, device)}} {
		if err := dial(addr, clientConfig(a, certs...)); err != nil {
			t.Errorf("with %d certificates: %v", len(certs), err)
		}
	}
	if err := dial(addr, clientConfig(a, issue(t, a, banned))); err == nil {
		t.Error("a revoked device came in")
	}
}

func TestServerNamesAreChecked(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "https://hub", "hub:8443", "a..b", "-*-!", "a.*.b"} {
		if _, err := Open(Options{Dir: t.TempDir(), Names: []string{name}}); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%q: got %v, want code %s", name, err, atelier.Invalid)
		}
	}
}

func TestMQTTLetsOnlyDevicesIn(t *testing.T) {
	t.Parallel()
	c := newClock()
	a := open(t, Options{Dir: t.TempDir(), Now: c.Now})
	banned := atelier.NewID()
	addr := serve(t, a.MQTT(func(id string, cert *x509.Certificate) error {
		if id == banned || cert.Subject.CommonName != id {
			return errors.New("revoked")
		}
		return nil
	}))
	good := issue(t, a, device)
	if err := dial(addr, clientConfig(a, good)); err != nil {
		t.Fatal(err)
	}
	stranger := open(t, Options{Dir: t.TempDir(), Now: c.Now})
	hub, err := a.HubClient()
	if err != nil {
		t.Fatal(err)
	}
	server, err := a.serverFor(nil)
	if err != nil {
		t.Fatal(err)
	}
	forged := good
	forged.PrivateKey = issue(t, a, device).PrivateKey
	for name, certs := range map[string][]tls.Certificate{
		"no certificate":        nil,
		"another authority's":   {issue(t, stranger, device)},
		"a revoked device":      {issue(t, a, banned)},
		"the hub's own":         {*hub},
		"a server's":            {*server},
		"without its key":       {forged},
		"another authority too": {issue(t, stranger, banned)},
	} {
		if err := dial(addr, clientConfig(a, certs...)); err == nil {
			t.Errorf("%s: let in", name)
		}
	}
	c.Add(DefaultDeviceLife + time.Minute)
	if err := dial(addr, clientConfig(a, good)); err == nil {
		t.Error("an expired certificate was let in")
	}
}

// A device that was let in must not come back by a resumed session.
func TestARevokedDeviceCannotResume(t *testing.T) {
	t.Parallel()
	a := open(t, Options{Dir: t.TempDir()})
	var calls atomic.Int32
	var revoked atomic.Bool
	addr := serve(t, a.MQTT(func(string, *x509.Certificate) error {
		calls.Add(1)
		if revoked.Load() {
			return errors.New("revoked")
		}
		return nil
	}))
	cfg := clientConfig(a, issue(t, a, device))
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for range 2 {
		if err := dial(addr, cfg); err != nil {
			t.Fatal(err)
		}
	}
	revoked.Store(true)
	if err := dial(addr, cfg); err == nil {
		t.Fatal("let in")
	}
	if calls.Load() != 3 {
		t.Fatalf("asked %d times, want 3", calls.Load())
	}
}

// An external broker works with what ServerPEM and HubClient issue.
func TestAnExternalBrokersCertificates(t *testing.T) {
	t.Parallel()
	a := open(t, Options{Dir: t.TempDir()})
	certPEM, keyPEM, err := a.ServerPEM("broker.example")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := trust.ParseCertificate(a.CAPEM())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	addr := serve(t, &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	})
	hub, err := a.HubClient()
	if err != nil {
		t.Fatal(err)
	}
	cfg := clientConfig(a, *hub)
	cfg.ServerName = "broker.example"
	if err := dial(addr, cfg); err != nil {
		t.Fatal(err)
	}
}
