package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// rogue is a device that joined and whose key somebody else holds. It speaks MQTT
// by hand, so that nothing keeps it from breaking the rules.
type rogue struct {
	t       testing.TB
	id      string
	address string
	tls     *tls.Config
	signer  trust.Signer
}

// rogue joins a device whose agent never runs, and takes over its identity.
func (w *world) rogue(name string) *rogue {
	w.t.Helper()
	d := w.prepare(name)
	w.agentJoins(d, w.joinCommand("--label", "site=rogue"))
	var saved struct {
		Device, Certificate, Key, CA string
		MQTT                         []string
	}
	if err := json.Unmarshal([]byte(read(w.t, filepath.Join(d.dir, "state", "identity", "identity.json"))), &saved); err != nil {
		w.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(saved.Certificate), []byte(saved.Key))
	if err != nil {
		w.t.Fatal(err)
	}
	key, err := trust.ParseKey([]byte(saved.Key))
	if err != nil {
		w.t.Fatal(err)
	}
	signer, err := trust.NewSigner(key)
	if err != nil {
		w.t.Fatal(err)
	}
	broker, err := url.Parse(saved.MQTT[0])
	if err != nil {
		w.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(saved.CA))
	return &rogue{
		t: w.t, id: saved.Device, address: broker.Host, signer: signer,
		tls: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: broker.Hostname(), Certificates: []tls.Certificate{pair}},
	}
}

// rogueTime bounds each thing that a rogue waits for.
const rogueTime = 20 * time.Second

// rogueConn is an MQTT connection by hand.
type rogueConn struct {
	*tls.Conn
	v5 bool
}

// will is a last will.
type will struct {
	topic  string
	retain bool
}

func text(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }

// packet makes an MQTT packet.
func packet(head byte, body []byte) []byte {
	p := []byte{head}
	for n := len(body); ; {
		b := byte(n & 0x7f)
		if n >>= 7; n > 0 {
			b |= 0x80
		}
		if p = append(p, b); n == 0 {
			return append(p, body...)
		}
	}
}

// dial makes the TLS connection and says nothing.
func (r *rogue) dial() (*tls.Conn, error) {
	raw, err := net.DialTimeout("tcp", r.address, rogueTime)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, r.tls)
	_ = c.SetDeadline(time.Now().Add(rogueTime))
	if err := c.Handshake(); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return c, nil
}

// connect connects as an MQTT client; the error is the broker's refusal.
func (r *rogue) connect(client string, last *will, v5 bool) (*rogueConn, error) {
	c, err := r.dial()
	if err != nil {
		return nil, err
	}
	flags, level := byte(2), byte(4)
	if v5 {
		level = 5
	}
	var tail []byte
	if last != nil {
		flags |= 4
		if last.retain {
			flags |= 0x20
		}
		if v5 {
			tail = append(tail, 0)
		}
		tail = append(append(tail, text(last.topic)...), text("a last word")...)
	}
	body := append(text("MQTT"), level, flags, 0, 30)
	if v5 { // session expiry "never", receive maximum 65535, a user property
		properties := []byte{0x11, 0xff, 0xff, 0xff, 0xff, 0x21, 0xff, 0xff}
		properties = append(append(append(properties, 0x26), text("a")...), text("b")...)
		body = append(append(body, byte(len(properties))), properties...)
	}
	body = append(append(body, text(client)...), tail...)
	conn := &rogueConn{c, v5}
	if _, err := c.Write(packet(0x10, body)); err != nil {
		_ = c.Close()
		return nil, err
	}
	head, answer, err := conn.next()
	if err == nil && (head != 0x20 || len(answer) < 2 || answer[1] != 0) {
		err = fmt.Errorf("the broker answered %x %x", head, answer)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return conn, nil
}

// next reads one packet.
func (c *rogueConn) next() (head byte, body []byte, err error) {
	var one [1]byte
	if _, err := io.ReadFull(c, one[:]); err != nil {
		return 0, nil, err
	}
	head = one[0]
	n := 0
	for shift := 0; ; shift += 7 {
		if _, err := io.ReadFull(c, one[:]); err != nil {
			return 0, nil, err
		}
		if n |= int(one[0]&0x7f) << shift; one[0]&0x80 == 0 {
			break
		}
		if shift > 21 {
			return 0, nil, errors.New("a packet without end")
		}
	}
	body = make([]byte, n)
	_, err = io.ReadFull(c, body)
	return head, body, err
}

// publish sends a message; flags are those of the packet, QoS 0 unless they say more.
func (c *rogueConn) publish(flags byte, topic string, payload []byte) error {
	body := text(topic)
	if flags&6 != 0 {
		body = append(body, 0, 7)
	}
	if c.v5 {
		body = append(body, 0)
	}
	_, err := c.Write(packet(0x30|flags, append(body, payload...)))
	return err
}

// subscribe asks for a topic and does not wait for the answer.
func (c *rogueConn) subscribe(filter string) error {
	body := []byte{0, 9}
	if c.v5 {
		body = append(body, 0)
	}
	_, err := c.Write(packet(0x82, append(append(body, text(filter)...), 0)))
	return err
}

// ended waits until the broker has hung up.
func (c *rogueConn) ended() error {
	for {
		if _, _, err := c.next(); err != nil {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				return errors.New("the broker does not end the connection")
			}
			return nil
		}
	}
}

// sign signs a message with the rogue's key.
func (r *rogue) sign(kind string, v any) []byte {
	payload, err := json.Marshal(v)
	if err != nil {
		r.t.Error(err)
	}
	raw, err := trust.Sign(kind, payload, r.signer)
	if err != nil {
		r.t.Error(err)
	}
	return raw
}

func (r *rogue) up(c wire.Channel) string { return wire.UpTopic(wire.DefaultShard, r.id, c) }

// use is what a program takes of the machine.
type use struct {
	resident int64 // bytes
	files    int
}

func (p program) use(t testing.TB) use {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d", p.PID())
	entries, err := os.ReadDir(dir + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	u := use{files: len(entries)}
	_, rest, _ := strings.Cut(read(t, dir+"/status"), "VmRSS:")
	if _, err := fmt.Sscanf(rest, "%d", &u.resident); err != nil {
		t.Fatal(err)
	}
	u.resident <<= 10
	return u
}
