package brokertest

import (
	"bytes"
	"context"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/broker"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Setup is a bus under test that does not run yet.
type Setup struct {
	Bus broker.Bus
	URL string // where devices connect
	PKI *PKI
	// Devices are the ids of at least three devices that the broker knows.
	Devices []string
	// Embedded brokers bind client ids to certificates, ask Admit, tell presence
	// and bound packets.
	Embedded bool
}

// Devices returns n device ids for a test.
func Devices(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = atelier.NewID()
	}
	return ids
}

// Run tests what every Bus promises. make is called for each part anew.
func Run(t *testing.T, make func(t *testing.T) Setup) {
	for name, part := range map[string]func(*testing.T, *fixture){
		"BothWays":       bothWays,
		"ForeignTopics":  foreignTopics,
		"LargestPacket":  largestPacket,
		"Order":          order,
		"Fairness":       fairness,
		"StalledReader":  stalledReader,
		"StalledContent": stalledContent,
		"Content":        contentStream,
		"TakeOver":       takeOver,
		"LastWill":       lastWill,
		"Disconnect":     disconnect,
		"Strangers":      strangers,
		"BadPublish":     badPublish,
		"EndsWithItsRun": endsWithItsRun,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			part(t, newFixture(t, make(t)))
		})
	}
}

// Survives tests that messages flow both ways again after restart.
func Survives(t *testing.T, s Setup, restart func()) {
	f := newFixture(t, s)
	restart()
	f.listening()
	a := f.device(0)
	f.publish(0, wire.Control, []byte("after it"))
	if p := a.Expect(); string(p.Payload) != "after it" {
		t.Errorf("received %q", p.Payload)
	}
}

// Served runs the bus of s until the test ends.
func Served(t *testing.T, s Setup) { newFixture(t, s) }

// WebSocket tests the embedded broker's second door at url.
func WebSocket(t *testing.T, s Setup, url string) {
	f := newFixture(t, s)
	id := s.Devices[0]
	bare := s.PKI.Client(id)
	bare.Certificates = nil
	if _, err := Dial(t, url, id, Options{TLS: bare}); err == nil {
		t.Error("a client without a certificate could connect")
	}
	if _, err := Dial(t, url, s.Devices[1], Options{TLS: s.PKI.Client(id)}); err == nil {
		t.Error("a client could connect under a foreign id")
	}
	c := MustDial(t, url, id, id, Options{TLS: s.PKI.Client(id)})
	big := bytes.Repeat([]byte{0x5a}, wire.MaxPacket)
	c.Say(f.up(0, wire.Content), big)
	if m := f.expect(); m.Device != id || !bytes.Equal(m.Payload, big) {
		t.Errorf("received %d of %d bytes", len(m.Payload), len(big))
	}
	f.publish(0, wire.Content, big)
	if p := c.Expect(); !bytes.Equal(p.Payload, big) {
		t.Errorf("device received %d of %d bytes", len(p.Payload), len(big))
	}
	if err := f.Bus.Disconnect(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Lost:
	case <-time.After(Patience):
		t.Error("Disconnect does not end a WebSocket")
	}
}

// fixture is a running bus.
type fixture struct {
	Setup
	t    *testing.T
	rec  *recorder
	stop func()
}

func newFixture(t *testing.T, s Setup) *fixture {
	t.Helper()
	f := &fixture{Setup: s, t: t, rec: newRecorder()}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Bus.Run(ctx, f.rec) }()
	ended := false
	f.stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(Patience):
			t.Error("Run does not end")
		}
	}
	t.Cleanup(f.stop)
	f.listening()
	return f
}

// device connects a device's control connection.
func (f *fixture) device(i int) *Client {
	f.t.Helper()
	id := f.Devices[i]
	return MustDial(f.t, f.URL, id, id, Options{TLS: f.PKI.Client(id)})
}

func (f *fixture) up(i int, c wire.Channel) string {
	return wire.UpTopic(wire.DefaultShard, f.Devices[i], c)
}

// listening returns when the hub hears its devices.
func (f *fixture) listening() {
	f.t.Helper()
	i := len(f.Devices) - 1
	deadline := time.Now().Add(Patience)
	var c *Client
	for time.Now().Before(deadline) {
		if c == nil {
			var err error
			id := f.Devices[i]
			if c, err = Dial(f.t, f.URL, id, Options{TLS: f.PKI.Client(id)}); err != nil {
				c = nil
				time.Sleep(20 * time.Millisecond) // the broker may not listen yet
				continue
			}
		}
		c.Say(f.up(i, wire.Control), []byte("anybody there?"))
		select {
		case <-f.rec.messages:
			c.Disconnect(50)
			f.quiet()
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
	f.t.Fatal("the hub does not hear its devices")
}

// quiet forgets what is on the way, by waiting for a last message.
func (f *fixture) quiet() {
	f.t.Helper()
	i := len(f.Devices) - 1
	id := f.Devices[i]
	c, err := Dial(f.t, f.URL, id, Options{TLS: f.PKI.Client(id)})
	if err != nil {
		f.t.Fatal(err)
	}
	mark := []byte(atelier.NewID())
	c.Say(f.up(i, wire.Control), mark)
	for !bytes.Equal(f.expect().Payload, mark) {
	}
	c.Disconnect(50)
	for f.Embedded {
		if p := f.expectPresence(); p.device == id && !p.connected && len(f.rec.presence) == 0 {
			return
		}
	}
}

func (f *fixture) expect() broker.Message {
	f.t.Helper()
	select {
	case m := <-f.rec.messages:
		return m
	case <-time.After(Patience):
		f.t.Fatal("the hub received nothing")
		return broker.Message{}
	}
}

func (f *fixture) expectPresence() presence {
	f.t.Helper()
	select {
	case p := <-f.rec.presence:
		return p
	case <-time.After(Patience):
		f.t.Fatal("the hub was not told who is connected")
		return presence{}
	}
}

// publish sends to a device that is connected.
func (f *fixture) publish(i int, c wire.Channel, payload []byte) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), Patience)
	defer cancel()
	if err := f.Bus.Publish(ctx, wire.DownTopic(f.Devices[i], c), payload); err != nil {
		f.t.Fatal(err)
	}
}
