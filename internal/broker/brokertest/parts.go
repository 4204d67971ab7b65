package brokertest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/broker"
	"github.com/atelier-edge/atelier/internal/wire"
)

func bothWays(t *testing.T, f *fixture) {
	a, b := f.device(0), f.device(1)
	a.Say(f.up(0, wire.Control), []byte("from a"))
	if m := f.expect(); m.Device != a.ID || m.Channel != wire.Control || string(m.Payload) != "from a" {
		t.Fatalf("received %+v", m)
	}
	content := MustDial(t, f.URL, b.ID+wire.ContentClientSuffix, b.ID, Options{TLS: f.PKI.Client(b.ID)})
	content.Say(f.up(1, wire.Content), []byte{0, 1, 2})
	if m := f.expect(); m.Device != b.ID || m.Channel != wire.Content || !bytes.Equal(m.Payload, []byte{0, 1, 2}) {
		t.Fatalf("received %+v", m)
	}
	f.publish(0, wire.Control, []byte("to a"))
	if p := a.Expect(); p.Topic != wire.DownTopic(a.ID, wire.Control) || string(p.Payload) != "to a" {
		t.Fatalf("device received %+v", p)
	}
	if len(b.In) > 0 {
		t.Error("another device received it too")
	}
	if f.Embedded {
		for _, want := range []string{a.ID, b.ID} {
			if p := f.expectPresence(); p != (presence{want, true}) {
				t.Errorf("presence %+v, expected %s to be there", p, want)
			}
		}
	}
	if c := f.Bus.Counters(); c.Received < 2 || c.Sent < 1 {
		t.Errorf("counters %+v", c)
	}
}

func foreignTopics(t *testing.T, f *fixture) {
	a, b := f.device(0), f.device(1)
	for _, filter := range []string{
		"#", "at1/#", "at1/d/#", "at1/d/+/ctl", wire.DownPattern(b.ID), wire.DownTopic(b.ID, wire.Control),
		wire.UpPattern(wire.DefaultShard), wire.UpPattern("+"), f.up(0, wire.Control), "$SYS/#",
		"$share/x/" + wire.DownPattern(b.ID),
	} {
		// Brokers may end the connection instead of refusing; either will do, and
		// so does granting what then brings nothing.
		if c, err := Dial(t, f.URL, a.ID, Options{TLS: f.PKI.Client(a.ID)}); err == nil {
			granted := c.Listen(filter)
			if granted && f.Embedded {
				t.Errorf("device may subscribe to %s", filter)
			}
			if granted {
				f.publish(1, wire.Control, []byte("for b only"))
				b.Expect()
				c.Say(f.up(0, wire.Telemetry), []byte("mark"))
				f.expect()
				select {
				case p := <-c.In:
					if !strings.HasPrefix(p.Topic, "$SYS/") {
						t.Errorf("subscribed to %s, device a received %s", filter, p.Topic)
					}
				case <-time.After(100 * time.Millisecond):
				}
			}
			c.Disconnect(10)
		}
	}
	for _, topic := range []string{
		f.up(1, wire.Control), "at1/u/0/" + a.ID + "/nonsense", "at1/u/0/" + b.ID + "/" + a.ID, "elsewhere",
		wire.DownTopic(b.ID, wire.Control), wire.DownTopic(a.ID, wire.Control),
	} {
		c, err := Dial(t, f.URL, a.ID, Options{TLS: f.PKI.Client(a.ID)})
		if err != nil {
			t.Fatal(err)
		}
		c.Say(topic, []byte("forged"))
		c.Disconnect(10)
	}
	a = f.device(0)
	a.Say(f.up(0, wire.Control), []byte("mark"))
	if m := f.expect(); m.Device != a.ID || string(m.Payload) != "mark" {
		t.Errorf("received %q of %s on a foreign topic", m.Payload, m.Device)
	}
	f.publish(1, wire.Control, []byte("mark"))
	if p := b.Expect(); string(p.Payload) != "mark" {
		t.Errorf("device b received %q from device a", p.Payload)
	}
}

func largestPacket(t *testing.T, f *fixture) {
	a := f.device(0)
	big := bytes.Repeat([]byte{0xa5}, wire.MaxPacket)
	a.Say(f.up(0, wire.Content), big)
	if m := f.expect(); !bytes.Equal(m.Payload, big) {
		t.Errorf("received %d of %d bytes", len(m.Payload), len(big))
	}
	f.publish(0, wire.Content, big)
	if p := a.Expect(); !bytes.Equal(p.Payload, big) {
		t.Errorf("device received %d of %d bytes", len(p.Payload), len(big))
	}
	a.Say(f.up(0, wire.Content), make([]byte, 256<<10))
	b := f.device(1)
	b.Say(f.up(1, wire.Control), []byte("mark"))
	if m := f.expect(); string(m.Payload) != "mark" {
		t.Errorf("received a packet of %d bytes", len(m.Payload))
	}
}

func order(t *testing.T, f *fixture) {
	a := f.device(0)
	const n = 500
	for i := range uint32(n) {
		a.Say(f.up(0, wire.Telemetry), binary.BigEndian.AppendUint32(nil, i))
	}
	last, got := -1, 0
	for {
		select {
		case m := <-f.rec.messages:
			i := int(binary.BigEndian.Uint32(m.Payload))
			if i <= last {
				t.Fatalf("message %d came after %d", i, last)
			}
			last = i
			got++
			continue
		case <-time.After(time.Second):
		}
		break
	}
	if lost := uint64(n - got); lost > 0 && f.Bus.Counters().Dropped < lost {
		t.Errorf("%d of %d messages came, %d are counted as dropped", got, n, f.Bus.Counters().Dropped)
	}
}

// fairness lets one device flood a slow hub: another's message must not wait
// behind the flood.
func fairness(t *testing.T, f *fixture) {
	a, b := f.device(0), f.device(1)
	first := make(chan struct{}, 1)
	release := make(chan struct{})
	f.rec.hold = func(m broker.Message) {
		if m.Device == a.ID {
			select {
			case first <- struct{}{}:
			default:
			}
			<-release
		}
	}
	defer close(release)
	payload := make([]byte, 16<<10)
	for range 4000 {
		a.Say(f.up(0, wire.Telemetry), payload)
	}
	select {
	case <-first:
	case <-time.After(Patience):
		t.Fatal("the flood does not arrive")
	}
	deadline := time.Now().Add(2 * Patience)
	for came := false; !came; { // said again: a broker under a flood may lose it
		b.Say(f.up(1, wire.Control), []byte("urgent"))
		select {
		case m := <-f.rec.messages:
			if came = true; m.Device != b.ID {
				t.Errorf("a message of %s came first", m.Device)
			}
		case <-time.After(500 * time.Millisecond):
			if time.Now().After(deadline) {
				t.Fatal("a message waits behind another device's flood")
			}
		}
	}
	for f.Bus.Counters().Dropped == 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond) // the flood is still on its way
	}
	if f.Bus.Counters().Dropped == 0 {
		t.Error("nothing of the flood was dropped: the queues have no bound")
	}
}

// stalledReader connects a device that stops reading: the hub must go on
// publishing to others.
func stalledReader(t *testing.T, f *fixture) {
	b := f.device(1)
	stall(t, f.URL, f.Devices[0], f.Devices[0], f.PKI.Client(f.Devices[0]))
	f.outlast(b)
}

// stalledContent does so with the connection that is for content alone.
func stalledContent(t *testing.T, f *fixture) {
	b := f.device(1)
	stall(t, f.URL, f.Devices[0]+wire.ContentClientSuffix, f.Devices[0], f.PKI.Client(f.Devices[0]))
	f.outlast(b)
	if f.Embedded && f.Bus.Counters().Dropped == 0 {
		t.Error("nothing was dropped for a reader that stalls")
	}
}

// outlast publishes more than any buffer holds to a device that does not read.
func (f *fixture) outlast(b *Client) {
	t := f.t
	t.Helper()
	payload := make([]byte, wire.MaxPacket)
	start := time.Now()
	for range 400 { // 47 MiB, far beyond any buffer
		ctx, cancel := context.WithTimeout(t.Context(), Patience)
		err := f.Bus.Publish(ctx, wire.DownTopic(f.Devices[0], wire.Content), payload)
		cancel()
		switch atelier.CodeOf(err) {
		case "", atelier.Unavailable, atelier.Exhausted:
		default:
			t.Fatal(err)
		}
	}
	f.publish(1, wire.Control, []byte("still there"))
	if p := b.Expect(); string(p.Payload) != "still there" {
		t.Errorf("received %q", p.Payload)
	}
	if took := time.Since(start); took > Patience {
		t.Errorf("a stalled reader held the hub up for %v", took)
	}
}

// contentStream sends content of many sizes to the connection that is for content, also
// after that was cut and is there anew: it comes as it was, in order.
func contentStream(t *testing.T, f *fixture) {
	id := f.Devices[0]
	for range 2 {
		c := MustDial(t, f.URL, id+wire.ContentClientSuffix, id, Options{TLS: f.PKI.Client(id)})
		for i, size := range []int{0, 1, 100, 128, 16_300, 16_400, 100_000, wire.MaxPacket, 5} {
			payload := bytes.Repeat([]byte{byte(i)}, size)
			f.publish(0, wire.Content, payload)
			f.publish(0, wire.Content, []byte("next"))
			for _, want := range [][]byte{payload, []byte("next")} {
				if p := c.Expect(); p.Topic != wire.DownTopic(id, wire.Content) || !bytes.Equal(p.Payload, want) {
					t.Fatalf("%d bytes came to %s, want %d", len(p.Payload), p.Topic, len(want))
				}
			}
		}
		c.Cut()
	}
}

// stall opens an MQTT connection by hand, subscribes, and never reads again.
func stall(t *testing.T, url, client, device string, config *tls.Config) {
	t.Helper()
	raw, err := net.DialTimeout("tcp", strings.TrimPrefix(url, "ssl://"), Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	if err := raw.(*net.TCPConn).SetReadBuffer(8 << 10); err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, config)
	_ = conn.SetDeadline(time.Now().Add(Patience))
	str := func(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }
	connect := append(str("MQTT"), 4, 2, 0, 60) // level 4, clean session, keep alive 60 s
	connect = append(connect, str(client)...)
	subscribe := append([]byte{0, 1}, str(wire.DownPattern(device))...)
	subscribe = append(subscribe, 0)
	for _, packet := range [][]byte{
		append([]byte{0x10, byte(len(connect))}, connect...),
		append([]byte{0x82, byte(len(subscribe))}, subscribe...),
	} {
		if _, err := conn.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
	answer := make([]byte, 4+5) // CONNACK and SUBACK
	for n := 0; n < len(answer); {
		m, err := conn.Read(answer[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	if answer[3] != 0 || answer[8] > 2 {
		t.Fatalf("broker answered % x", answer)
	}
}

func takeOver(t *testing.T, f *fixture) {
	young := f.device(0)
	if f.Embedded {
		f.expectPresence()
	}
	rounds := 1 // NATS shuts out a client that keeps taking itself over
	if f.Embedded {
		// A broker may tidy the older connection up late, and with it what the
		// newer one has subscribed to.
		rounds = 50
	}
	for range rounds {
		old := young
		young = f.device(0)
		select {
		case <-old.Lost:
		case <-time.After(Patience):
			t.Fatal("the older connection with the same client id goes on")
		}
		f.publish(0, wire.Control, []byte("which"))
		if p := young.Expect(); string(p.Payload) != "which" {
			t.Errorf("received %q", p.Payload)
		}
	}
	young.Say(f.up(0, wire.Control), []byte("mark"))
	f.expect()
	for f.Embedded && len(f.rec.presence) > 0 {
		if p := <-f.rec.presence; !p.connected {
			t.Error("the device counts as gone although its newer connection lives")
		}
	}
}

func lastWill(t *testing.T, f *fixture) {
	id := f.Devices[0]
	will := &Packet{f.up(0, wire.Control), []byte("bye")}
	c, err := Dial(t, f.URL, id, Options{TLS: f.PKI.Client(id), Will: will})
	if err != nil {
		t.Fatal(err)
	}
	c.Say(f.up(0, wire.Control), []byte("hello"))
	if m := f.expect(); string(m.Payload) != "hello" {
		t.Fatalf("received %q", m.Payload)
	}
	c.Cut()
	if m := f.expect(); m.Device != id || string(m.Payload) != "bye" {
		t.Errorf("received %q of %s, expected the last will", m.Payload, m.Device)
	}
}

func disconnect(t *testing.T, f *fixture) {
	a, b := f.device(0), f.device(1)
	content := MustDial(t, f.URL, a.ID+wire.ContentClientSuffix, a.ID, Options{TLS: f.PKI.Client(a.ID)})
	f.rec.deny = func(device string) error {
		if device == a.ID {
			return atelier.Errorf(atelier.Forbidden, "revoked")
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	if err := f.Bus.Disconnect(ctx, a.ID); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Client{a, content} {
		select {
		case <-c.Lost:
		case <-time.After(Patience):
			t.Fatalf("connection %s goes on", c.ID)
		}
	}
	if !b.IsConnectionOpen() {
		t.Error("another device was disconnected too")
	}
	if f.Embedded {
		if _, err := Dial(t, f.URL, a.ID, Options{TLS: f.PKI.Client(a.ID)}); err == nil {
			t.Error("the device could connect again although it is not admitted")
		}
	}
	if err := f.Bus.Disconnect(ctx, f.Devices[2]); err != nil {
		t.Errorf("Disconnect of who is not connected: %v", err)
	}
}

func strangers(t *testing.T, f *fixture) {
	id := f.Devices[0]
	foreign := NewPKI(t).Client(id)
	foreign.RootCAs = f.PKI.Pool()
	bare := f.PKI.Client(id)
	bare.Certificates = nil
	for name, config := range map[string]*tls.Config{"foreign authority": foreign, "no certificate": bare} {
		if _, err := Dial(t, f.URL, id, Options{TLS: config}); err == nil {
			t.Errorf("a client with %s could connect", name)
		}
	}
	if !f.Embedded {
		return
	}
	for _, c := range []struct {
		client string
		o      Options
	}{
		{f.Devices[1], Options{}},
		{"", Options{}},
		{id + "x", Options{}},
		{id + "-c-c", Options{}},
		{id, Options{Will: &Packet{f.up(1, wire.Control), []byte("forged")}}},
		{id, Options{Will: &Packet{f.up(0, wire.Control), []byte("kept")}, Retain: true}},
	} {
		c.o.TLS = f.PKI.Client(id)
		if _, err := Dial(t, f.URL, c.client, c.o); err == nil {
			t.Errorf("device %s could connect as %q with will %+v", id, c.client, c.o.Will)
		}
	}
}

func badPublish(t *testing.T, f *fixture) {
	topic := wire.DownTopic(f.Devices[0], wire.Control)
	for _, c := range []struct {
		topic string
		size  int
		code  atelier.Code
	}{
		{topic, wire.MaxPacket + 1, atelier.TooLarge},
		{"at1/d/+/ctl", 1, atelier.Invalid},
		{f.up(0, wire.Control), 1, atelier.Invalid},
		{"", 1, atelier.Invalid},
	} {
		err := f.Bus.Publish(t.Context(), c.topic, make([]byte, c.size))
		if atelier.CodeOf(err) != c.code {
			t.Errorf("publish of %d bytes to %q: %v, expected code %s", c.size, c.topic, err, c.code)
		}
	}
}

func endsWithItsRun(t *testing.T, f *fixture) {
	a := f.device(0)
	a.Say(f.up(0, wire.Control), []byte("mark"))
	f.expect()
	f.stop()
	err := f.Bus.Publish(t.Context(), wire.DownTopic(a.ID, wire.Control), []byte("too late"))
	if atelier.CodeOf(err) != atelier.Unavailable {
		t.Errorf("publish after the end: %v", fmt.Sprint(err))
	}
}
