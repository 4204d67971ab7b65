package broker_test

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/broker"
	"github.com/atelier-edge/atelier/internal/broker/brokertest"
)

func embedded(t *testing.T, pki *brokertest.PKI) (*broker.Embedded, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	bus, err := broker.NewEmbedded(broker.EmbeddedConfig{Listener: l, TLS: pki.Server()})
	if err != nil {
		t.Fatal(err)
	}
	return bus, "ssl://" + l.Addr().String()
}

func external(t *testing.T, pki *brokertest.PKI, url string) *broker.External {
	t.Helper()
	bus, err := broker.NewExternal(broker.ExternalConfig{URL: url, TLS: pki.Client("hub")})
	if err != nil {
		t.Fatal(err)
	}
	return bus
}

func TestEmbedded(t *testing.T) {
	t.Parallel()
	brokertest.Run(t, func(t *testing.T) brokertest.Setup {
		pki := brokertest.NewPKI(t)
		bus, url := embedded(t, pki)
		return brokertest.Setup{Bus: bus, URL: url, PKI: pki, Devices: brokertest.Devices(4), Embedded: true}
	})
}

func TestMosquitto(t *testing.T) {
	t.Parallel()
	brokertest.Run(t, func(t *testing.T) brokertest.Setup {
		pki := brokertest.NewPKI(t)
		s := brokertest.Mosquitto(t, pki)
		return brokertest.Setup{Bus: external(t, pki, s.URL), URL: s.URL, PKI: pki, Devices: brokertest.Devices(4)}
	})
}

func TestNATS(t *testing.T) {
	t.Parallel()
	brokertest.Run(t, func(t *testing.T) brokertest.Setup {
		pki, devices := brokertest.NewPKI(t), brokertest.Devices(4)
		s := brokertest.NATS(t, pki, devices...)
		return brokertest.Setup{Bus: external(t, pki, s.URL), URL: s.URL, PKI: pki, Devices: devices}
	})
}

// The hub's client comes back by itself, with its subscription.
func TestBrokerRestarts(t *testing.T) {
	t.Parallel()
	pki, devices := brokertest.NewPKI(t), brokertest.Devices(4)
	s := brokertest.Mosquitto(t, pki)
	bus := external(t, pki, s.URL)
	setup := brokertest.Setup{Bus: bus, URL: s.URL, PKI: pki, Devices: devices}
	brokertest.Survives(t, setup, func() { s.Stop(); s.Start() })
}

func TestWebSocket(t *testing.T) {
	t.Parallel()
	pki, devices := brokertest.NewPKI(t), brokertest.Devices(4)
	bus, url := embedded(t, pki)
	mux := http.NewServeMux()
	mux.Handle("/mqtt", bus.WebSocket())
	server := httptest.NewUnstartedServer(mux)
	server.TLS = pki.Server()
	server.TLS.ClientAuth = tls.VerifyClientCertIfGiven
	server.StartTLS()
	t.Cleanup(server.Close)
	brokertest.WebSocket(t,
		brokertest.Setup{Bus: bus, URL: url, PKI: pki, Devices: devices, Embedded: true},
		"wss://"+server.Listener.Addr().String()+"/mqtt")
}

func TestNewEmbeddedWantsAnAuthority(t *testing.T) {
	t.Parallel()
	_, err := broker.NewEmbedded(broker.EmbeddedConfig{TLS: &tls.Config{}})
	if atelier.CodeOf(err) != atelier.Invalid {
		t.Errorf("a broker that cannot tell devices apart: %v", err)
	}
}

// Strangers who open connections and say nothing keep no device out.
func TestStrangersGiveWay(t *testing.T) {
	t.Parallel()
	pki, devices := brokertest.NewPKI(t), brokertest.Devices(1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const room, strangers = 100, 300
	bus, err := broker.NewEmbedded(broker.EmbeddedConfig{Listener: l, TLS: pki.Server(), MaxConnections: room})
	if err != nil {
		t.Fatal(err)
	}
	brokertest.Served(t, brokertest.Setup{Bus: bus, URL: "ssl://" + l.Addr().String(), PKI: pki, Devices: devices, Embedded: true})
	for range strangers {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	brokertest.MustDial(t, "ssl://"+l.Addr().String(), devices[0], devices[0], brokertest.Options{TLS: pki.Client(devices[0])})
}
