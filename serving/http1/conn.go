package http1

import (
	"net"
	"time"
)

// Conn is a connection whose deadlines are moved only when they must be: five
// moves a request are timers that can be saved. What is given d fails between d/2
// and d later.
type Conn struct {
	net.Conn
	read, write time.Time // the deadlines in force, zero for none
}

// MustRead makes reads fail when d has passed.
func (c *Conn) MustRead(d time.Duration) {
	if now := time.Now(); outside(c.read, now, d) {
		c.read = now.Add(d)
		_ = c.SetReadDeadline(c.read) // fails only with the connection
	}
}

// MustWrite is the same for writes.
func (c *Conn) MustWrite(d time.Duration) {
	if now := time.Now(); outside(c.write, now, d) {
		c.write = now.Add(d)
		_ = c.SetWriteDeadline(c.write) // fails only with the connection
	}
}

func outside(deadline, now time.Time, d time.Duration) bool {
	left := deadline.Sub(now)
	return left < d/2 || left > d
}

// Interrupt makes reads fail at once, until MustRead or MayRead.
func (c *Conn) Interrupt() {
	c.read = time.Unix(1, 0)
	_ = c.SetReadDeadline(c.read) // fails only with the connection
}

// MayRead lets reads take as long as they do.
func (c *Conn) MayRead() {
	c.read = time.Time{}
	_ = c.SetReadDeadline(c.read) // fails only with the connection
}
