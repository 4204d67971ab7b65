package enrol

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

// fakeClock is a clock that the test moves, for one sleeper.
type fakeClock struct {
	armed chan struct{} // somebody has gone to sleep

	mu    sync.Mutex
	now   time.Time
	steps time.Duration  // by which somebody set the clock
	alarm chan time.Time // nil while nobody sleeps
	until time.Time
}

func newFakeClock() *fakeClock {
	return &fakeClock{now: began, armed: make(chan struct{}, 1)}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Uptime goes on as time does, whoever sets the clock.
func (c *fakeClock) Uptime() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now.Sub(began) + time.Hour
}

// Reading is what the device's clock says, steps off the true time.
func (c *fakeClock) Reading() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now.Add(c.steps)
}

// step sets the device's clock.
func (c *fakeClock) step(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.steps += d
}

var began = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func (c *fakeClock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alarm, c.until = make(chan time.Time, 1), c.now.Add(d)
	select {
	case c.armed <- struct{}{}:
	default:
	}
	return c.alarm
}

// asleep waits until somebody sleeps, and returns for how long yet.
func (c *fakeClock) asleep(t *testing.T) time.Duration {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		c.mu.Lock()
		sleeps, left := c.alarm != nil, c.until.Sub(c.now)
		c.mu.Unlock()
		if sleeps {
			return left
		}
		select {
		case <-c.armed:
		case <-deadline:
			t.Fatal("the renewer does not sleep")
		}
	}
}

// pass lets time go by, from alarm to alarm, for d.
func (c *fakeClock) pass(t *testing.T, d time.Duration) {
	t.Helper()
	for end := c.Now().Add(d); c.Now().Before(end); {
		c.asleep(t)
		c.mu.Lock()
		if c.until.After(end) {
			c.now = end
		} else {
			c.now = c.until
			c.alarm <- c.now
			c.alarm = nil
		}
		c.mu.Unlock()
	}
}

// renewal is a device with a running renewer.
type renewal struct {
	*Renewer
	hub   *testHub
	clock *fakeClock
	id    *Identity
	opts  Options
	fresh chan *x509.Certificate
	done  chan error
}

func startRenewal(t *testing.T, before func(*renewal)) *renewal {
	t.Helper()
	r := &renewal{clock: newFakeClock(), fresh: make(chan *x509.Certificate, 100), done: make(chan error, 1)}
	r.hub = newTestHub(t, r.clock.Now)
	o := r.hub.options(t.TempDir())
	o.Now, o.Uptime = r.clock.Reading, r.clock.Uptime
	r.opts = o.Options
	var err error
	if r.id, err = Join(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before(r)
	}
	r.Renewer = NewRenewer(RenewerOptions{
		Identity: r.id, Renewed: func(c *x509.Certificate) { r.fresh <- c }, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		After: r.clock.After, Random: func() float64 { return 0.5 },
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.done <- r.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return r
}

func (r *renewal) wait(t *testing.T) *x509.Certificate {
	t.Helper()
	select {
	case c := <-r.fresh:
		return c
	case err := <-r.done:
		t.Fatalf("the renewer ended: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("no new certificate")
	}
	return nil
}

func (r *renewal) wantCondition(t *testing.T, good bool, reason atelier.Reason, says string) {
	t.Helper()
	c := r.Condition()
	if c.Type() != atelier.ConditionCertificate || c.True() != good || c.Why().Reason() != reason || !strings.Contains(c.Why().Message(), says) {
		t.Fatalf("condition %v %s %q, want %v %s that says %q", c.True(), c.Why().Reason(), c.Why().Message(), good, reason, says)
	}
}

func TestRenewsAtTwoThirdsOfTheLife(t *testing.T) {
	t.Parallel()
	r := startRenewal(t, nil)
	first := r.id.Certificate()
	r.wantCondition(t, true, atelier.ReasonAsDesired, "2030-01-31")
	life := r.hub.life
	r.clock.pass(t, life*2/3+life/48) // before the middle of the spread
	if len(r.fresh) != 0 {
		t.Fatal("renewed too early")
	}
	r.clock.pass(t, life/24)
	next := r.wait(t)
	if !r.id.Certificate().Equal(next) || next.Equal(first) || !next.NotAfter.After(first.NotAfter) {
		t.Fatal("the identity has another certificate than was announced")
	}
	again, err := Load(r.opts)
	if err != nil || !again.Certificate().Equal(next) || again.MQTT()[0] != "tls://elsewhere:8883" {
		t.Fatalf("what was renewed is not saved: %v", err)
	}
	cfg, err := r.id.TLSConfig("127.0.0.1")
	if err != nil || !cfg.Certificates[0].Leaf.Equal(next) {
		t.Fatalf("the next connection would use another certificate: %v", err)
	}
	r.wantCondition(t, true, atelier.ReasonAsDesired, next.NotAfter.Format(time.RFC3339))
}

// The device was away until long after its certificate had run out.
func TestRenewsAtOnceWhenExpired(t *testing.T) {
	t.Parallel()
	r := startRenewal(t, func(r *renewal) { r.clock.now = r.clock.now.Add(365 * 24 * time.Hour) })
	r.clock.pass(t, word)
	if c := r.wait(t); !c.NotAfter.After(r.clock.Now()) {
		t.Fatalf("valid until %s", c.NotAfter)
	}
}

func TestFailuresAreTriedAgainEverSlower(t *testing.T) {
	t.Parallel()
	r := startRenewal(t, func(r *renewal) {
		r.clock.now = r.clock.now.Add(r.hub.life * 9 / 10)
		r.hub.fail["/v1/renew"] = true
	})
	r.clock.pass(t, word)
	for _, want := range []time.Duration{3750 * time.Millisecond, 7500 * time.Millisecond, 15 * time.Second, 30 * time.Second} {
		if got := r.clock.asleep(t); got != want {
			t.Fatalf("waits %s, want %s", got, want)
		}
		r.wantCondition(t, true, atelier.ReasonInProgress, "the database is away")
		r.clock.pass(t, want)
	}
	if d := r.backoff(1000); d > lastRetry || d < lastRetry/2 {
		t.Fatalf("waits %s in the end", d)
	}
	since := r.Condition().Since()
	r.clock.pass(t, r.hub.life/10)
	r.wantCondition(t, false, atelier.ReasonCertificateExpired, "could not be renewed")
	if got := r.Condition().Since(); !got.After(since) || r.Condition().Since() != got {
		t.Fatalf("since %s, was %s", got, since)
	}
	r.hub.set(func() { r.hub.fail["/v1/renew"] = false })
	r.clock.pass(t, lastRetry)
	r.wait(t)
	r.wantCondition(t, true, atelier.ReasonAsDesired, "valid until")
}

func TestALostAnswerIsAskedForAgain(t *testing.T) {
	t.Parallel()
	r := startRenewal(t, func(r *renewal) {
		r.clock.now = r.clock.now.Add(r.hub.life)
		r.hub.lose["/v1/renew"] = 2
	})
	r.clock.pass(t, time.Minute)
	r.wait(t)
}

func TestARevokedDeviceStopsAsking(t *testing.T) {
	t.Parallel()
	r := startRenewal(t, func(r *renewal) {
		r.clock.now = r.clock.now.Add(r.hub.life)
		r.hub.revoked = true
	})
	r.clock.pass(t, word)
	select {
	case err := <-r.done:
		wantCode(t, err, atelier.Forbidden)
	case <-time.After(20 * time.Second):
		t.Fatal("goes on")
	}
	r.wantCondition(t, false, atelier.ReasonRevoked, "revoked")
}

func TestAWrongCertificateIsNotTaken(t *testing.T) {
	t.Parallel()
	r := startRenewal(t, func(r *renewal) {
		r.clock.now = r.clock.now.Add(r.hub.life * 9 / 10)
		r.hub.tamperOn = func(w *wire.Renewal) { w.Certificate = w.CA }
	})
	before := r.id.Certificate()
	r.clock.pass(t, word)
	r.clock.asleep(t)
	if !r.id.Certificate().Equal(before) {
		t.Fatal("taken")
	}
	r.wantCondition(t, true, atelier.ReasonInProgress, "not for device")
}

// The hub refuses a certificate that is good by the device's clock, which is wrong.
func TestRefusedRenewsAtOnceButNotAllTheTime(t *testing.T) {
	t.Parallel()
	r := startRenewal(t, nil)
	r.clock.asleep(t)
	r.Refused()
	r.wait(t)
	r.clock.asleep(t)
	for range 10 {
		r.Refused()
	}
	r.clock.pass(t, refusedAgain)
	if n := len(r.fresh); n != 0 {
		t.Fatalf("renewed %d times more within the hour", n)
	}
	r.Refused()
	r.wait(t)
}

// A device whose clock begins in 1970 can talk to its hub all the same.
func TestAClockInThePastLocksNobodyOut(t *testing.T) {
	t.Parallel()
	r := startRenewal(t, nil)
	cfg, err := r.id.TLSConfig("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	past, err := Load(Options{StateDir: r.opts.StateDir, Now: func() time.Time { return time.Unix(0, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	if cfg, err = past.TLSConfig("127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(r.hub.url, "https://"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	renewer := NewRenewer(RenewerOptions{Identity: past})
	if _, err := renewer.renew(context.Background()); err != nil {
		t.Fatal(err)
	}
	early := newTestHub(t, r.clock.Now)
	o := early.options(t.TempDir())
	o.Now = func() time.Time { return time.Unix(0, 0) }
	if _, err := Join(context.Background(), o); err != nil {
		t.Fatal(err)
	}
}
