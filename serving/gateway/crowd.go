package gateway

import "time"

// A device serves a bounded number of clients. When as many are there, one that
// only waits, or that dawdles over a request, makes room for the next: otherwise
// those who open connections and do nothing would keep out all others.

const (
	// dawdling is how long a request may be on its way before its client counts as one
	// that may have to make room.
	dawdling = time.Second
	// evictedShare is which part of the clients may be on their way out at a time.
	evictedShare = 4
	// minRate is how many bytes a second a body must have on average that is passed on
	// while it comes, beyond the time that any body has.
	minRate = 4 << 10
)

// waitsFor notes that nothing happens until the client sends more; it ends with
// goesOn.
func (c *client) waitsFor() { c.waits.Store(time.Now().UnixNano()) }

func (c *client) goesOn() { c.waits.Store(0) }

// makeRoom ends the connection of the client that has kept the gateway waiting for
// longest, of those without a request if there are any. The caller holds g.mu.
func (g *Gateway) makeRoom(now time.Time) bool {
	if g.evicted > g.opts.MaxConns/evictedShare {
		return false // many leave already
	}
	var worst *client
	var worstIdle bool
	var since int64
	for c := range g.conns {
		waits, idle := c.waits.Load(), c.idle.Load()
		if waits == 0 || c.leaving.Load() || !idle && now.UnixNano()-waits < int64(dawdling) {
			continue
		}
		if worst == nil || idle && !worstIdle || idle == worstIdle && waits < since {
			worst, worstIdle, since = c, idle, waits
		}
	}
	if worst == nil {
		return false
	}
	g.evicted++
	worst.evicted = true
	worst.leaving.Store(true)
	worst.swap.Lock()
	defer worst.swap.Unlock()
	_ = worst.conn.SetReadDeadline(time.Unix(1, 0)) // wakes serve; it fails only with the connection
	return true
}

// tooSlow reports whether a body of which so many bytes have come since begin
// comes too slowly.
func (g *Gateway) tooSlow(begin time.Time, came int64) bool {
	return time.Since(begin) > 2*g.opts.Times.Body+time.Duration(came)*(time.Second/minRate)
}
