package broker

import (
	"crypto/x509"
	"net"
	"sync"
	"time"
)

// conn is one connection of a device. The broker library sees it as a net.Conn.
type conn struct {
	net.Conn          // TLS or WebSocket
	raw      net.Conn // the socket below it

	certificate *x509.Certificate
	ended       chan struct{} // closed when the library is done with the connection
	// Set by hook under Embedded.mu, once.
	device      string
	client      string // the MQTT client id
	established bool
	version     byte // of MQTT: 4 is 3.1.1

	bulk    bulk
	writing sync.Mutex // so that packets of the library and of bulk stay whole
}

// Close closes the socket itself. Closing TLS first would wait for a peer that
// does not read, and with it whoever takes the connection over.
func (c *conn) Close() error { return c.raw.Close() }

// Write gives each packet its time; a peer that does not read loses the
// connection, rather than hold the writer for ever.
func (c *conn) Write(b []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.raw.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(b)
	if err != nil {
		_ = c.raw.Close()
	}
	return n, err
}

// SetDeadline moves the read deadline only: the library sets both with each
// packet that it reads, which would lift the bound of a write that is waiting.
func (c *conn) SetDeadline(t time.Time) error { return c.raw.SetReadDeadline(t) }
