package enrol

import (
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// agree is how far the device's clock may be off the hub's and still count as right.
const agree = 5 * time.Minute

// clock tells the time by which certificates are judged, without believing the
// device's own clock, which on many devices begins in 1970 at each start and on
// some is years ahead: docs/adr/0092.
//
// What is believed is the hub's signed word, carried on by the time since boot,
// which nobody sets. Before the hub has spoken it is only known that it is later
// than when the device's certificate was issued; a hub's certificate must be valid
// at some time after that.
type clock struct {
	now    func() time.Time
	uptime func() time.Duration

	mu     sync.Mutex
	base   time.Time     // the hub's time when uptime was at; zero while nothing is known
	at     time.Duration // see base
	spoken bool          // base is the hub's word, not only a time that it was later than
	server time.Time     // the earliest end of the certificates with which the hub was let in unproven
	last   atelier.Condition
}

// reading is what is known of the time.
type reading struct {
	time   time.Time
	known  bool          // time is by the hub; else by the device's own clock
	spoken bool          // the hub itself said so
	offset time.Duration // of the device's clock from time
}

func (c *clock) read() reading {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.readLocked(now)
}

func (c *clock) readLocked(now time.Time) reading {
	if c.base.IsZero() {
		return reading{time: now}
	}
	t := c.base.Add(c.uptime() - c.at)
	return reading{time: t, known: true, spoken: c.spoken, offset: now.Round(0).Sub(t)}
}

// issued takes note of a certificate that the hub has made a moment ago. Where
// the device's clock contradicts it, and the hub has not spoken, time goes on
// from there.
func (c *clock) issued(from, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.readLocked(c.now()).time; !c.spoken && (now.Before(from) || now.After(until)) {
		c.base, c.at = from, c.uptime()
	}
}

// HubSays takes the hub's time from a message that the hub signed and that
// answers one of this connection. It fails with Forbidden where the hub's
// certificate, which was let in without knowing the time, had run out by then: whoever
// uses it is not the hub, and the connection must be given up.
func (id *Identity) HubSays(t time.Time) error {
	c := &id.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	c.base, c.at, c.spoken = t.Round(0), c.uptime(), true
	end := c.server
	c.server = time.Time{}
	if !end.IsZero() && t.After(end) {
		return atelier.Errorf(atelier.Forbidden, "the hub's certificate ended at %s, and the hub says that it is %s", stamp(end), stamp(t)).
			WithRemedy("Look for whoever answers in the hub's place with an old certificate of it.")
	}
	return nil
}

// judge is the time at which a certificate of the hub must be valid: now by the
// hub's word, or else at some time after the device's certificate was issued.
func (id *Identity) judge(hub *x509.Certificate) time.Time {
	r := id.clock.read()
	if r.spoken {
		return r.time
	}
	t := id.Certificate().NotBefore
	if r.known && r.time.After(t) {
		t = r.time
	}
	if t.Before(hub.NotBefore) {
		return hub.NotBefore
	}
	return t
}

// admitted takes note of a certificate with which a hub was let in.
func (c *clock) admitted(end time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.spoken && (c.server.IsZero() || end.Before(c.server)) {
		c.server = end
	}
}

// doubtful reports whether a certificate that ends at end was let in although it
// had run out by the device's clock, with no word of the hub about the time.
func (c *clock) doubtful(end time.Time) bool {
	r := c.read()
	return !r.spoken && c.now().After(end)
}

// time is the best that is known: by the hub, or else by the device's clock,
// but not before its certificate was issued.
func (id *Identity) time() time.Time {
	r := id.clock.read()
	if from := id.Certificate().NotBefore; !r.known && r.time.Before(from) {
		return from
	}
	return r.time
}

// ClockCondition says whether the device's clock is right, as far as can be told:
// by the hub's word, or by what cannot be.
func (id *Identity) ClockCondition() atelier.Condition {
	cert := id.Certificate()
	r := id.clock.read()
	wrong := func(format string, args ...any) atelier.Condition {
		return atelier.Fails(atelier.ConditionClock, atelier.Because(atelier.ReasonClockUntrusted, fmt.Sprintf(format, args...)))
	}
	var cond atelier.Condition
	switch {
	case r.spoken && (r.offset > agree || r.offset < -agree):
		cond = wrong("The device's clock is %s the hub's: it says %s.", apart(r.offset), stamp(id.clock.now()))
	case r.spoken:
		cond = atelier.Holds(atelier.ConditionClock, atelier.Because(atelier.ReasonAsDesired, "The device's clock agrees with the hub's."))
	case !r.known && r.time.Before(cert.NotBefore):
		cond = wrong("The device's clock says %s, and its certificate was issued at %s.", stamp(r.time), stamp(cert.NotBefore))
	default:
		cond = atelier.Holds(atelier.ConditionClock, atelier.Because(atelier.ReasonWaiting, "The hub has not said yet what time it is."))
	}
	c := &id.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = cond.Following(c.last, r.time)
	return c.last
}

// apart says how far and to which side a clock is off, in the largest unit that fits.
func apart(d time.Duration) string {
	side := "ahead of"
	if d < 0 {
		d, side = -d, "behind"
	}
	const day = 24 * time.Hour
	for _, u := range []struct {
		size time.Duration
		name string
	}{{365 * day, "years"}, {day, "days"}, {time.Hour, "hours"}, {time.Minute, "minutes"}} {
		if n := (d + u.size/2) / u.size; n >= 2 {
			return fmt.Sprintf("%d %s %s", n, u.name, side)
		}
	}
	return fmt.Sprintf("%s %s", d.Round(time.Second), side)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
