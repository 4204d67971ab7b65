package broker

import (
	"net"
	"sync"
)

// gather is the socket below TLS. TLS writes each of its records, of 16 KB, on its
// own; while something is held here they are gathered, and leave in one piece: a
// packet of content then costs one system call, and wakes its reader once.
type gather struct {
	net.Conn

	mu   sync.Mutex
	held *[]byte // what was written since hold; nil where nothing is held
}

// gathered holds memory for packets that are being written: one for each connection
// that is being written to, not for each connection.
var gathered = sync.Pool{New: func() any { b := make([]byte, 0, maxPacket+maxPacket/64); return &b }}

// Write implements net.Conn.
func (g *gather) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held == nil {
		return g.Conn.Write(b)
	}
	*g.held = append(*g.held, b...)
	return len(b), nil
}

// hold begins to hold what is written.
func (g *gather) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held = gathered.Get().(*[]byte)
	*g.held = (*g.held)[:0]
}

// release writes what was held, and holds no more.
func (g *gather) release() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := g.Conn.Write(*g.held)
	gathered.Put(g.held)
	g.held = nil
	return err
}
