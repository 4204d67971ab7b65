package broker

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
)

// WebSocket returns the handler for MQTT over WebSocket, for a path such as
// /mqtt of an HTTPS server that asks for client certificates
// (tls.VerifyClientCertIfGiven) with the authority that signs devices. It
// answers 401 to whoever shows none, and 503 while the broker does not run.
func (e *Embedded) WebSocket() http.Handler {
	upgrader := websocket.Upgrader{
		Subprotocols:     []string{"mqtt"},
		HandshakeTimeout: connectTimeout,
		// Access rests on the client's certificate. A browser that was given one
		// still may not use it for a foreign page, so the default check of the
		// origin stays.
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			http.Error(w, "MQTT over WebSocket needs a device's certificate.", http.StatusUnauthorized)
			return
		}
		ws, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return // the upgrader has answered
		}
		ws.SetReadLimit(maxPacket)
		if err := ws.NetConn().SetDeadline(time.Time{}); err != nil { // the HTTP server's deadlines
			_ = ws.Close()
			return
		}
		c, ok := e.admit(ws.NetConn())
		if !ok {
			return
		}
		defer e.release(c)
		c.Conn = &wsConn{Conn: ws}
		c.certificate = r.TLS.PeerCertificates[0]
		e.serve(c)
	})
}

// wsConn reads a WebSocket's binary messages as one stream (MQTT 3.1.1, 6.0).
type wsConn struct {
	*websocket.Conn
	message io.Reader
}

var errTextMessage = errors.New("a text message came where MQTT takes binary ones")

func (c *wsConn) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			kind, r, err := c.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errTextMessage
			}
			c.message = r
		}
		n, err := c.message.Read(p)
		if errors.Is(err, io.EOF) {
			c.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (c *wsConn) Write(p []byte) (int, error) {
	// The library sets the socket's deadline from its own with each write.
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	if err := c.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// SetDeadline completes net.Conn; conn sets the socket's deadlines itself.
func (c *wsConn) SetDeadline(t time.Time) error { return c.NetConn().SetDeadline(t) }
