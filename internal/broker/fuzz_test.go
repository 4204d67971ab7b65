package broker

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/atelier-edge/atelier/internal/wire"
)

// FuzzPackets says what it likes over an admitted connection of one device, after
// a CONNECT or in its place. The library must not fail on it, and whatever comes
// through is the device's own, within bounds.
func FuzzPackets(f *testing.F) {
	const device = "01jz0000000000000000000001"
	packet := func(encode func(*packets.Packet, *bytes.Buffer) error, pk packets.Packet) []byte {
		var b bytes.Buffer
		if err := encode(&pk, &b); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	connect := packet((*packets.Packet).ConnectEncode, packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 4,
		Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), ClientIdentifier: device, Clean: true, Keepalive: 60},
	})
	publish := func(topic string, qos byte, retain bool, payload string) []byte {
		return packet((*packets.Packet).PublishEncode, packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos, Retain: retain}, ProtocolVersion: 4,
			PacketID: uint16(qos), TopicName: topic, Payload: []byte(payload),
		})
	}
	own := wire.UpTopic(wire.DefaultShard, device, wire.Control)
	f.Add(true, publish(own, 1, false, "hello"))
	f.Add(true, publish(strings.Replace(own, "1", "2", 1), 0, false, "forged"))
	f.Add(true, publish(own, 2, true, "retained"))
	f.Add(true, []byte{0x30, 0xff, 0xff, 0xff, 0x7f, 0, 1, 'a'}) // announces 256 MB
	f.Add(true, []byte{0x82, 8, 0, 1, 0, 3, 'a', '/', '#', 0})
	f.Add(true, []byte{0x62, 2, 0, 1, 0x40, 2, 0, 9, 0xc0, 0, 0xe0, 0})
	f.Add(false, connect)
	f.Add(false, append(append([]byte{}, connect...), connect...))
	will := packet((*packets.Packet).ConnectEncode, packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 5,
		Connect: packets.ConnectParams{
			ProtocolName: []byte("MQTT"), ClientIdentifier: device + wire.ContentClientSuffix, Clean: true,
			WillFlag: true, WillTopic: own, WillPayload: []byte("bye"),
		},
	})
	f.Add(false, will)

	ca := &x509.Certificate{Subject: pkix.Name{CommonName: device}}
	var mu sync.Mutex
	var wrong []string
	e, err := NewEmbedded(EmbeddedConfig{TLS: &tls.Config{ClientCAs: x509.NewCertPool()}, Log: slog.New(slog.NewTextHandler(complaint(func(line string) {
		if strings.Contains(line, "failed on a packet") {
			mu.Lock()
			defer mu.Unlock()
			wrong = append(wrong, line)
		}
	}), nil))})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = e.Run(ctx, scripted{ // it ends with nil, without a listener
			receive: func(m Message) {
				if m.Device != device || len(m.Payload) > maxPacket {
					mu.Lock()
					defer mu.Unlock()
					wrong = append(wrong, "took a message of "+m.Device)
				}
			},
			presence: func(string, bool) {},
		})
	}()
	f.Cleanup(func() { cancel(); <-ended })
	for e.running() == nil {
		time.Sleep(time.Millisecond)
	}

	f.Fuzz(func(t *testing.T, connected bool, raw []byte) {
		client, server := net.Pipe()
		c, ok := e.admit(server)
		if !ok {
			t.Fatal("no room for one connection")
		}
		c.certificate = ca
		done := make(chan struct{})
		go func() { defer close(done); defer e.release(c); e.serve(c) }()
		drained := make(chan struct{})
		go func() { defer close(drained); _, _ = io.Copy(io.Discard, client) }() // ends with the pipe
		_ = client.SetWriteDeadline(time.Now().Add(20 * time.Second))
		if connected {
			_, _ = client.Write(connect) // the broker may hang up at any time
		}
		_, _ = client.Write(raw)
		_ = client.Close()
		<-done
		<-drained
		mu.Lock()
		defer mu.Unlock()
		if len(wrong) > 0 {
			t.Fatalf("%q: %v", raw, wrong)
		}
		if n := e.server.Info.Retained; n != 0 {
			t.Fatalf("%q: %d messages are retained", raw, n)
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(e.conns) != 0 || len(e.current) != 0 || len(e.slots) != 0 {
			t.Fatalf("%q: %d connections and %d slots are left", raw, len(e.conns), len(e.slots))
		}
	})
}

// running returns the context of Run, nil before it began.
func (e *Embedded) running() context.Context {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ctx
}

// complaint takes each line of a log.
type complaint func(string)

func (c complaint) Write(p []byte) (int, error) {
	c(string(p))
	return len(p), nil
}
