package enrol

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

const year = 365 * 24 * time.Hour

// dial connects to the test hub with what the identity trusts at present.
func (r *renewal) dial(t *testing.T) error {
	t.Helper()
	cfg, err := r.id.TLSConfig("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(r.hub.url, "https://"), cfg)
	if err != nil {
		return err
	}
	return conn.Close()
}

// wrongClocks are the clocks that a device may have when it starts.
var wrongClocks = map[string]time.Duration{
	"10 years ahead":  10 * year,
	"10 years behind": -10 * year,
	"1970":            time.Unix(1, 0).Sub(began),
}

// Whatever the device's clock says, it reaches its hub; when the hub has said
// what time it is, nothing else counts, and the clock is reported.
func TestAWrongClockLocksNobodyOut(t *testing.T) {
	t.Parallel()
	for name, off := range wrongClocks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := startRenewal(t, func(r *renewal) {
				r.hub.shortServer(t, 100*24*time.Hour)
				r.clock.step(off)
			})
			if err := r.dial(t); err != nil {
				t.Fatal(err)
			}
			if err := r.id.HubSays(r.clock.Now()); err != nil {
				t.Fatal(err)
			}
			c := r.id.ClockCondition()
			want := strings.Fields(apart(off))
			if c.True() || c.Why().Reason() != atelier.ReasonClockUntrusted || !strings.Contains(c.Why().Message(), strings.Join(want, " ")+" the hub's") {
				t.Errorf("the condition is %v %s %q", c.True(), c.Why().Reason(), c.Why().Message())
			}
			r.wantCondition(t, true, atelier.ReasonAsDesired, "valid until 2030-01-31")
			if r.clock.pass(t, word); r.hub.renewals() != 0 {
				t.Error("renewed without need")
			}
			if err := r.dial(t); err != nil {
				t.Error(err)
			}
			// Time goes by the hub's word, also while somebody sets the clock.
			r.clock.pass(t, 24*time.Hour)
			r.clock.step(-off / 2)
			if got, want := r.id.time(), r.clock.Now(); !got.Equal(want) {
				t.Errorf("takes it for %s, it is %s", got, want)
			}
			r.clock.step(-off + off/2)
			if c := r.id.ClockCondition(); !c.True() {
				t.Errorf("the clock was set right: %s", c.Why().Message())
			}
		})
	}
}

// A certificate that has run out is renewed whatever the clock says, and once.
func TestAnExpiredCertificateIsRenewedOnceWhateverTheClockSays(t *testing.T) {
	t.Parallel()
	for name, off := range wrongClocks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := startRenewal(t, func(r *renewal) {
				r.clock.now = r.clock.now.Add(r.hub.life * 2)
				r.clock.step(off)
			})
			r.Refused() // what the hub's broker does
			cert := r.wait(t)
			r.clock.pass(t, r.hub.life/2)
			if n := r.hub.renewals(); n != 1 {
				t.Fatalf("renewed %d times", n)
			}
			r.wantCondition(t, true, atelier.ReasonAsDesired, cert.NotAfter.Format(time.RFC3339))
			r.clock.pass(t, r.hub.life/2) // over two thirds of its life
			r.wait(t)
		})
	}
}

// A hub that nobody can reach cannot say what time it is: what the device says
// then, it says by its own clock.
func TestAnExpiredCertificateIsByTheDevicesClockWhileTheHubIsSilent(t *testing.T) {
	t.Parallel()
	r := startRenewal(t, func(r *renewal) {
		r.hub.fail["/v1/renew/challenge"] = true
		r.clock.step(10 * year)
	})
	r.wantCondition(t, false, atelier.ReasonCertificateExpired, "by the device's clock, which says 2039")
	if c := r.id.ClockCondition(); !c.True() || c.Why().Reason() != atelier.ReasonWaiting {
		t.Errorf("knows something of the clock: %s", c.Why().Message())
	}
	r.clock.step(-50 * year)
	if c := r.id.ClockCondition(); c.True() || c.Why().Reason() != atelier.ReasonClockUntrusted || !strings.Contains(c.Why().Message(), "issued at 2030") {
		t.Errorf("a clock before the certificate's issue: %v %s", c.True(), c.Why().Message())
	}
}

// Whoever is not the hub is not let in, whether or not the time is known.
func TestOnlyTheHubIsLetIn(t *testing.T) {
	t.Parallel()
	r := startRenewal(t, nil)
	stranger := newTestHub(t, r.clock.Now)
	device, key := r.hub.issue(&x509.Certificate{
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotAfter: r.clock.Now().Add(year),
	}, nil)
	early, earlyKey := r.hub.issue(&x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		NotBefore: r.clock.Now().Add(-year), NotAfter: r.id.Certificate().NotBefore.Add(-time.Hour),
	}, nil)
	for range 2 {
		good := r.hub.server
		if err := r.dial(t); err != nil {
			t.Errorf("the hub: %v", err)
		}
		for name, c := range map[string]tls.Certificate{
			"another authority's": stranger.server,
			"a device":            {Certificate: [][]byte{device.Raw}, PrivateKey: key},
			"one from before the device's certificate": {Certificate: [][]byte{early.Raw}, PrivateKey: earlyKey},
		} {
			r.hub.set(func() { r.hub.server = c })
			if r.dial(t) == nil {
				t.Errorf("%s was let in", name)
			}
		}
		r.hub.set(func() { r.hub.server = good })
		for _, host := range []string{"elsewhere.example", ""} {
			cfg, err := r.id.TLSConfig(host)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := tls.Dial("tcp", strings.TrimPrefix(r.hub.url, "https://"), cfg)
			if err == nil {
				t.Errorf("one that is not %q was let in: %v", host, conn.Close())
			}
		}
		if err := r.id.HubSays(r.clock.Now()); err != nil {
			t.Fatal(err)
		}
	}
}

// Somebody took an old server key of the hub's: as long as the device knows no
// time he is let in, and out when the hub's word has come.
func TestAnOldCertificateOfTheHubIsFoundOut(t *testing.T) {
	t.Parallel()
	r := startRenewal(t, func(r *renewal) {
		r.hub.shortServer(t, time.Hour)
		r.clock.now = r.clock.now.Add(24 * time.Hour)
	})
	if err := r.dial(t); err != nil {
		t.Fatal(err)
	}
	wantCode(t, r.id.HubSays(r.clock.Now()), atelier.Forbidden)
	if err := r.dial(t); err == nil {
		t.Fatal("let in again")
	}
}

// Without a proven time, what the hub says over HTTPS counts only where it proves itself.
func TestADoubtfulHubRevokesNobodyAndMovesNobody(t *testing.T) {
	t.Parallel()
	r := startRenewal(t, func(r *renewal) {
		r.hub.shortServer(t, time.Hour)
		r.hub.revoked = true
		r.clock.step(10 * year)
	})
	r.clock.pass(t, word)
	r.clock.asleep(t)
	r.wantCondition(t, false, atelier.ReasonCertificateExpired, "it is not believed")
	r.hub.set(func() { r.hub.revoked = false })
	before := r.id.MQTT()
	r.clock.pass(t, time.Minute)
	r.wait(t)
	if got := r.id.MQTT(); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("goes to %v", got)
	}
}

func TestApart(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		10*year + 3*24*time.Hour: "10 years ahead of", -10 * year: "10 years behind", 400 * 24 * time.Hour: "400 days ahead of",
		-30 * time.Hour: "30 hours behind", 7 * time.Minute: "7 minutes ahead of", 61 * time.Second: "1m1s ahead of",
	} {
		if got := apart(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}

// shortServer gives the hub a server certificate with a life from now on.
func (h *testHub) shortServer(t *testing.T, life time.Duration) {
	t.Helper()
	cert, key := h.issue(&x509.Certificate{
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, NotAfter: h.now().Add(life),
	}, nil)
	h.set(func() { h.server = tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key} })
}

func (h *testHub) renewals() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.asked
}
