package fleet

import (
	"fmt"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// How much a device may say on its control channel: a burst, for instance after
// a long absence, and what is regained of it each second. An agent reports once
// a second at most.
const (
	controlBurst = 100
	controlRate  = 4
)

// A device is told of when it has sent manyIgnored messages without effect
// within a conductWindow. A sound one sends a few, when messages cross each other.
const (
	manyIgnored   = 20
	conductWindow = time.Minute
	conductShown  = 10 * time.Minute // after the last of them
)

// conduct remembers how devices behave, since the hub started. What it holds is
// bounded by the number of devices that misbehave or speak.
type conduct struct {
	mu      sync.Mutex
	devices map[string]*behaviour
}

type behaviour struct {
	tokens float64 // control messages that the device may send now
	filled time.Time

	began   time.Time // of the window in which ignored counts
	ignored int
	last    string    // what was ignored last
	bad     time.Time // when there were last too many in a window; zero for never
	told    time.Time // when that was logged last
}

func (c *conduct) of(device string) *behaviour {
	if c.devices == nil {
		c.devices = map[string]*behaviour{}
	}
	b := c.devices[device]
	if b == nil {
		b = &behaviour{tokens: controlBurst}
		c.devices[device] = b
	}
	return b
}

// admit reports whether the device may send one more control message.
func (c *conduct) admit(device string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.of(device)
	if !b.filled.IsZero() {
		b.tokens = min(controlBurst, b.tokens+controlRate*max(now.Sub(b.filled), 0).Seconds())
	}
	b.filled = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// note counts a message without effect. It returns how many there were in this
// window when it is time to tell somebody, 0 otherwise.
func (c *conduct) note(device, what string, now time.Time) (tell int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.of(device)
	if now.Sub(b.began) > conductWindow {
		b.began, b.ignored = now, 0
	}
	b.ignored++
	b.last = what
	if b.ignored < manyIgnored {
		return 0
	}
	b.bad = now
	if now.Sub(b.told) < conductWindow {
		return 0
	}
	b.told = now
	return b.ignored
}

// why returns what is to be said of the device's behaviour, if anything.
func (c *conduct) why(device string, now time.Time) (_ atelier.Why, found bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.devices[device]
	if b == nil || b.bad.IsZero() || now.Sub(b.bad) > conductShown {
		return
	}
	return atelier.Because(atelier.ReasonMisbehaves, fmt.Sprintf(
		"The hub ignores much of what the device sends, the last time %s ago: %s.", ago(now, b.bad), b.last)), true
}

// forget drops what is known of a device that is gone.
func (c *conduct) forget(device string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.devices, device)
}

// Refused implements broker.Handler.
func (f *Fleet) Refused(device, what string) { f.ignore(device, what) }
