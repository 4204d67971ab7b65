package broker

import (
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"time"
)

// conn is one connection of a device. The broker library sees it as a net.Conn.
type conn struct {
	net.Conn          // TLS or WebSocket
	raw      net.Conn // the socket below it
	records  *gather  // between both; nil for WebSocket

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
	if err := c.writePacket(b, nil); err != nil {
		return 0, err
	}
	return len(b), nil
}

// writePacket writes a packet whose end is rest. What fails ends the connection.
func (c *conn) writePacket(b, rest []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	err := c.raw.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err != nil {
		return err
	}
	if c.records != nil {
		c.records.hold()
	}
	_, err = c.Conn.Write(b)
	if err == nil && len(rest) > 0 {
		_, err = c.Conn.Write(rest)
	}
	if c.records != nil {
		err = errors.Join(err, c.records.release())
	}
	if err != nil {
		_ = c.raw.Close()
	}
	return err
}

// SetDeadline moves the read deadline only: the library sets both with each
// packet that it reads, which would lift the bound of a write that is waiting.
func (c *conn) SetDeadline(t time.Time) error { return c.raw.SetReadDeadline(t) }
