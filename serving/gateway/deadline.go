package gateway

import (
	"net"
	"time"
)

// timed is a connection whose deadlines are moved only when they must be: five
// moves a request are timers that can be saved. What is given d fails between d/2
// and d later.
type timed struct {
	net.Conn
	read, write time.Time // the deadlines in force, zero for none
}

// mustRead makes reads fail when d has passed.
func (t *timed) mustRead(d time.Duration) {
	if now := time.Now(); outside(t.read, now, d) {
		t.read = now.Add(d)
		_ = t.SetReadDeadline(t.read) // fails only with the connection
	}
}

// mustWrite is the same for writes.
func (t *timed) mustWrite(d time.Duration) {
	if now := time.Now(); outside(t.write, now, d) {
		t.write = now.Add(d)
		_ = t.SetWriteDeadline(t.write) // fails only with the connection
	}
}

func outside(deadline, now time.Time, d time.Duration) bool {
	left := deadline.Sub(now)
	return left < d/2 || left > d
}

// interrupt makes reads fail at once, until mustRead or mayRead.
func (t *timed) interrupt() {
	t.read = time.Unix(1, 0)
	_ = t.SetReadDeadline(t.read) // fails only with the connection
}

// mayRead lets reads take as long as they do.
func (t *timed) mayRead() {
	t.read = time.Time{}
	_ = t.SetReadDeadline(t.read) // fails only with the connection
}
