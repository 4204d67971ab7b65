package driver

import (
	"context"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Guard calls a driver so that the caller goes on when the driver does not: each call has
// a deadline, and after one that hangs no other is begun before it has ended. It is
// safe for concurrent use.
type Guard struct {
	driver Driver
	turn   chan struct{} // holds a token while nobody calls
}

// NewGuard returns a guard of d, which nobody else may use any more.
func NewGuard(d Driver) *Guard {
	g := &Guard{driver: d, turn: make(chan struct{}, 1)}
	g.turn <- struct{}{}
	return g
}

// Kind returns the driver's kind.
func (g *Guard) Kind() string { return g.driver.Kind() }

// Within calls fn with the driver and returns what it returns, or an error with the code
// Timeout when it is not done in time. fn then goes on alone; it must not touch anything
// of its caller's. While a former call hangs, Within waits for its end as long as its own
// time lasts, and then gives the code Unavailable.
func Within[T any](ctx context.Context, g *Guard, doing string, within time.Duration, fn func(context.Context, Driver) (T, error)) (T, error) {
	var none T
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, within)
	select {
	case <-g.turn:
	case <-ctx.Done():
		cancel()
		if err := caller.Err(); err != nil {
			return none, atelier.Errorf(atelier.Timeout, "nobody waits any more for the driver %s to %s: %w", g.Kind(), doing, err)
		}
		return none, atelier.Errorf(atelier.Unavailable, "cannot %s: the driver %s still hangs in an earlier call after %v", doing, g.Kind(), within).
			WithRemedy("Look at the kernel's log on the device; if the driver never comes back, restart the device.")
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1) // nobody may be there to take it
	go func() {
		defer cancel()
		value, err := fn(ctx, g.driver)
		g.turn <- struct{}{}
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	// Both may be there; what is done counts. A driver that heeds ctx is given a moment.
	patience := time.NewTimer(grace)
	defer patience.Stop()
	select {
	case r := <-done:
		return r.value, r.err
	case <-patience.C:
		return none, atelier.Errorf(atelier.Timeout, "the driver %s did not %s within %v", g.Kind(), doing, within).
			WithRemedy("Look at the kernel's log on the device.")
	}
}

// grace is how long a driver may take to return once its time is over.
const grace = 20 * time.Millisecond

// Close closes the driver when no call is in it; a call that hangs longer than ctx
// keeps it, and the end of the process ends it.
func (g *Guard) Close(ctx context.Context) error {
	select {
	case <-g.turn: // and nobody gets it any more
		return g.driver.Close()
	case <-ctx.Done():
		return atelier.Errorf(atelier.Timeout, "the driver %s hangs and cannot be closed", g.Kind())
	}
}
