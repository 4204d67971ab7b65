package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/otlp"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// TestHostileDevice lets a device that joined do everything wrong that a device
// can, while its neighbour serves, gets new versions and reports.
func TestHostileDevice(t *testing.T) {
	t.Parallel()
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		hostileDevice(t, newWorld(t), true)
	})
	t.Run("mosquitto", func(t *testing.T) {
		t.Parallel()
		hostileDevice(t, withMosquitto(t), false)
	})
}

// most is how much more memory the hub may take while a device misbehaves: what
// its queues hold at most, and room for the garbage of a busy program.
func most() int64 {
	if raceEnabled {
		return 1 << 30
	}
	return 256 << 20
}

func hostileDevice(t *testing.T, w *world, embedded bool) {
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	for v := range 2 {
		w.atelier("model", "register", "digits", digits(v+1))
	}
	neighbour := w.join("neighbour", "site=a")
	w.atelier("deploy", "digits:1", "--to", "site=a")
	e := w.endpoint("digits")
	e.infer(t, neighbour, 1)
	var shown struct{ ID string }
	w.asked(&shown, "device", "show", "neighbour")
	var version struct {
		Variants []struct{ Files []atelier.File }
	}
	w.asked(&version, "model", "show", "digits:1")

	a := &attack{
		rogue: w.rogue("rogue"), other: w.rogue("other"), neighbour: shown.ID, embedded: embedded,
		content: version.Variants[0].Files[0].Digest,
	}
	before := w.hub.use(t)
	peak := before.resident
	quiet := w.redeploy(t, e, neighbour, 2)

	load := e.load(t, neighbour)
	done := make(chan struct{})
	go func() { defer close(done); a.run(t) }()
	var under []time.Duration
	sample := time.NewTicker(200 * time.Millisecond)
	defer sample.Stop()
	for going := true; going; {
		select {
		case <-done:
			going = false
		case <-sample.C:
			peak = max(peak, w.hub.use(t).resident)
			if len(under) < 4 {
				under = append(under, w.redeploy(t, e, neighbour, 1+len(under)%2))
			}
		}
	}
	if failed := load.stop(); len(failed) > 0 {
		t.Errorf("%d requests to the neighbour failed, the first: %v", len(failed), failed[0])
	}

	// The neighbour's measurements have come, and come.
	eventually(t, 60*time.Second, func() error {
		if late := w.query(`time() - max(timestamp(system_uptime_seconds{device="neighbour"}))`); late > 10 {
			return fmt.Errorf("the neighbour's last measurement is %v s old", late)
		}
		return nil
	})
	if forged := w.query(`count({device="neighbour",forged="yes"}) or count({device_id="` + shown.ID + `",forged="yes"})`); forged != 0 {
		t.Errorf("%v forged series of the neighbour are stored", forged)
	}
	if future := w.query(fmt.Sprintf(`count(last_over_time({forged="yes"}[2d] @ %d))`, time.Now().AddDate(10, 0, 1).Unix())); future != 0 {
		t.Errorf("%v series from the future are stored", future)
	}

	// Who it was is known, and nobody else is accused.
	if out := w.atelier("why", "rogue"); !strings.Contains(out, "Misbehaves") {
		t.Errorf("why rogue: %s", out)
	}
	if out := w.atelier("why", "neighbour"); !strings.Contains(out, "is as desired.") {
		t.Errorf("why neighbour: %s", out)
	}
	if !strings.Contains(w.hub.Output(), "a device misbehaves") {
		t.Error("the hub's log does not name the offender")
	}
	for _, sign := range []string{"does not verify", "panic", "another device took"} {
		if strings.Contains(neighbour.agent.Output(), sign) {
			t.Errorf("the neighbour noticed: its log says %q", sign)
		}
	}

	// What was taken is given back.
	eventually(t, 60*time.Second, func() error {
		if now := w.hub.use(t); now.files > before.files+20 {
			return fmt.Errorf("the hub has %d files open, before it were %d", now.files, before.files)
		}
		return nil
	})
	after := w.hub.use(t)
	t.Logf("resident MiB: before %d, peak %d, after %d; files: before %d, after %d; a new version is served in %v, under attack in %v",
		before.resident>>20, peak>>20, after.resident>>20, before.files, after.files, quiet.Round(time.Millisecond), under)
	if peak > before.resident+most() {
		t.Errorf("the hub grew from %d to %d MiB", before.resident>>20, peak>>20)
	}
	w.atelier("device", "revoke", "rogue")
	if c, err := a.rogue.connect(a.rogue.id, nil, false); err == nil && embedded {
		_ = c.Close()
		t.Error("the rogue may connect although it was revoked")
	}
}

// redeploy brings a version to the neighbour and returns how long it took.
func (w *world) redeploy(t *testing.T, e endpoint, d *device, version int) time.Duration {
	t.Helper()
	begin := time.Now()
	w.atelier("deploy", fmt.Sprintf("digits:%d", version), "--no-wait")
	eventually(t, 60*time.Second, func() error {
		a, err := e.try(d, 1)
		if err == nil && a.version != fmt.Sprint(version) {
			err = fmt.Errorf("version %s answers", a.version)
		}
		return err
	})
	return time.Since(begin)
}

// attack is what a rogue does.
type attack struct {
	rogue, other *rogue
	neighbour    string // id
	content      atelier.Digest
	embedded     bool
}

func (a *attack) run(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { a.eavesdrop(ctx, t) })
	for name, part := range map[string]func(*testing.T){
		"foreign topics": a.foreignTopics, "wills": a.wills, "retained": a.retained, "announced": a.announced, "enormous": a.enormous,
		"forged": a.forged, "telemetry": a.telemetry, "flood": a.flood, "MQTT 5": a.properties, "same id": a.sameID, "half open": a.halfOpen,
	} {
		begin := time.Now()
		part(t)
		t.Logf("%s: %v", name, time.Since(begin).Round(time.Millisecond))
	}
	cancel()
	wg.Wait()
}

// eavesdrop asks for everything on the content connection, and for content that is
// not the rogue's, thousands of times. Nothing of others may come.
func (a *attack) eavesdrop(ctx context.Context, t *testing.T) {
	r := a.rogue
	c, err := r.connect(r.id+wire.ContentClientSuffix, nil, false)
	if err != nil {
		t.Errorf("the rogue cannot connect for content: %v", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Time{})
	for _, filter := range []string{
		"#", "+/#", "at1/#", "at1/d/#", "at1/d/+/ctl", "at1/u/#", wire.DownPattern(a.neighbour), wire.DownTopic(a.neighbour, wire.Content),
		"$SYS/#", "$share/g/at1/d/#", "$share/g/" + wire.DownPattern(a.neighbour), wire.DownPattern(r.id),
	} {
		if err := c.subscribe(filter); err != nil {
			t.Errorf("the broker hung up: %v", err)
			return
		}
	}
	go func() {
		sum, err := a.content.Sum()
		if err != nil {
			t.Error(err)
			return
		}
		ranges := make([]byte, 0, 16*512) // as many as a want may list
		for i := range uint64(512) {
			ranges = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(ranges, 2*i), 2*i+1)
		}
		for id := range uint64(3000) {
			open := binary.BigEndian.AppendUint32(append([]byte{}, sum[:]...), 120<<10)
			want := binary.BigEndian.AppendUint64([]byte{0, 0, 0, 1}, 1<<62)
			want = append(binary.BigEndian.AppendUint32(want, 512), ranges...)
			for _, f := range [][]byte{frame(1, id, append(open, 1, 1)), frame(3, id, want)} {
				if c.publish(0, r.up(wire.Content), f) != nil {
					return // the test is over
				}
			}
		}
	}()
	for {
		head, body, err := c.next()
		if err != nil {
			return
		}
		if head>>4 != 3 || len(body) < 2 {
			continue
		}
		n := int(binary.BigEndian.Uint16(body))
		topic, payload := string(body[2:2+n]), body[2+n:]
		if d, _, ok := wire.ParseDown(topic); (!ok || d != r.id) && !strings.HasPrefix(topic, "$SYS/") {
			t.Errorf("the rogue received what was for others, on %s", topic)
		}
		if len(payload) > 1 && strings.HasSuffix(topic, "/c") && payload[1] == 4 {
			t.Error("the rogue received content that its desired state does not reach")
		}
	}
}

// frame makes a frame of the content protocol.
func frame(kind byte, id uint64, body []byte) []byte {
	b := append(binary.BigEndian.AppendUint64([]byte{1, kind}, id), body...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// each opens a connection for each value: the broker may end it at any time.
func (a *attack) each(t *testing.T, what []string, do func(*rogueConn, string) error) {
	for _, v := range what {
		c, err := a.rogue.connect(a.rogue.id, nil, false)
		if err != nil {
			t.Errorf("the rogue cannot connect: %v", err)
			return
		}
		_ = do(c, v) // the broker may hang up, and should
		_ = c.Close()
	}
}

func (a *attack) foreignTopics(t *testing.T) {
	message := a.rogue.sign(wire.TypeReported, atelier.ReportedState{Device: a.neighbour, Session: atelier.NewID(), Sequence: 1})
	a.each(t, []string{
		wire.UpTopic("0", a.neighbour, wire.Control), wire.UpTopic("0", a.neighbour, wire.Telemetry), wire.UpTopic("0", a.neighbour, wire.Content),
		wire.UpTopic("1", a.rogue.id, wire.Control), wire.DownTopic(a.neighbour, wire.Control), wire.DownTopic(a.rogue.id, wire.Control),
		"$SYS/broker/uptime", a.rogue.up(wire.Control) + "/x", "at1/u/0/+/ctl", "",
	}, func(c *rogueConn, topic string) error {
		for flags := range byte(3) { // QoS 0, 1 and 2
			if err := c.publish(flags<<1, topic, message); err != nil {
				return err
			}
		}
		return nil
	})
}

func (a *attack) wills(t *testing.T) {
	for _, w := range []will{
		{wire.UpTopic("0", a.neighbour, wire.Control), false}, {wire.DownTopic(a.neighbour, wire.Control), false},
		{a.rogue.up(wire.Control), true}, {"#", false}, {"$SYS/x", false},
	} {
		for _, v5 := range []bool{false, true} {
			c, err := a.rogue.connect(a.rogue.id, &w, v5)
			if err != nil {
				continue
			}
			if a.embedded {
				t.Errorf("a last will on %q (retained: %v) is taken", w.topic, w.retain)
			}
			_ = c.Close() // dies without a word
		}
	}
}

func (a *attack) retained(t *testing.T) {
	a.each(t, []string{a.rogue.up(wire.Control), wire.DownTopic(a.neighbour, wire.Control)}, func(c *rogueConn, topic string) error {
		if err := c.publish(1, topic, make([]byte, 100<<10)); err != nil || !a.embedded {
			return err
		}
		if err := c.ended(); err != nil {
			t.Errorf("after a retained message to %s: %v", topic, err)
		}
		return nil
	})
}

// announced says that 256 MB follow, and sends none of them.
func (a *attack) announced(t *testing.T) {
	a.each(t, []string{""}, func(c *rogueConn, _ string) error {
		if _, err := c.Write([]byte{0x30, 0xff, 0xff, 0xff, 0x7f, 0, 1}); err != nil || !a.embedded {
			return err
		}
		if err := c.ended(); err != nil {
			t.Errorf("after 256 MB were announced: %v", err)
		}
		return nil
	})
}

// enormous sends 256 MB in one message.
func (a *attack) enormous(t *testing.T) {
	a.each(t, []string{""}, func(c *rogueConn, _ string) error {
		if _, err := c.Write([]byte{0x30, 0xff, 0xff, 0xff, 0x7f}); err != nil {
			return err
		}
		if _, err := c.Write(text(a.rogue.up(wire.Control))); err != nil {
			return err
		}
		piece := make([]byte, 1<<20)
		for i := range 256 {
			if _, err := c.Write(piece); err != nil {
				return err
			}
			if i > 64 && a.embedded {
				t.Error("more than 64 MB of one message were taken")
				return nil
			}
		}
		return nil
	})
}

// forged says with sound and unsound signatures what is not so.
func (a *attack) forged(t *testing.T) {
	stranger := *a.rogue
	key, err := trust.NewDeviceKey()
	if err == nil {
		stranger.signer, err = trust.NewSigner(key)
	}
	if err != nil {
		t.Error(err)
		return
	}
	session := atelier.NewID()
	facts := atelier.Facts{OS: "linux", Hostname: strings.Repeat("x", 60<<10)}
	messages := [][]byte{
		a.rogue.sign(wire.TypeHello, wire.Hello{Session: session, Position: atelier.Position{Epoch: 1<<53 - 1, Generation: 1<<53 - 1}, RootVersion: -1, DelegationVersion: 1 << 40}),
		a.rogue.sign(wire.TypeHello, wire.Hello{Session: atelier.NewID(), Position: atelier.Position{Epoch: 1<<64 - 1, Generation: 1<<64 - 1}, Facts: facts}),
		a.rogue.sign(wire.TypeHello, wire.Hello{Session: session}), // replayed: that one has ended
		a.rogue.sign(wire.TypeDesiredAck, wire.DesiredAck{Position: atelier.Position{Epoch: 1, Generation: 77}, Saved: true}),
		a.rogue.sign(wire.TypeDesiredAck, wire.DesiredAck{Position: atelier.Position{Epoch: 1 << 60}, Why: atelier.Because(atelier.ReasonSuperseded, strings.Repeat("no ", 20000))}),
		a.rogue.sign(wire.TypeReported, atelier.ReportedState{Device: a.neighbour, Session: session, Sequence: 1 << 62}),
		a.rogue.sign(wire.TypeReported, atelier.ReportedState{Device: a.rogue.id, Session: session, Sequence: 1<<64 - 1, Modules: make([]atelier.ModuleStatus, 200)}),
		a.rogue.sign(wire.TypeBye, wire.Bye{}), a.rogue.sign(wire.TypeBye, wire.Bye{Session: atelier.NewID()}),
		a.rogue.sign(wire.TypeCollected, wire.Collected{ID: "x", OK: true, Digest: a.content, Size: 1 << 62}),
		a.rogue.sign(wire.TypeAck, wire.Ack{Stream: "report", Through: 1 << 63}),
		a.rogue.sign(wire.TypeRevoked, wire.Revoked{}), a.rogue.sign("text/plain", strings.Repeat("[", 9000)),
		a.other.sign(wire.TypeHello, wire.Hello{Session: atelier.NewID()}), // another device's own words
		stranger.sign(wire.TypeHello, wire.Hello{Session: atelier.NewID()}),
		[]byte("{}"), []byte("null"), []byte(strings.Repeat("[", 100_000)), {0xff}, {},
	}
	a.each(t, []string{"", ""}, func(c *rogueConn, _ string) error {
		for range 20 {
			for _, m := range messages {
				if err := c.publish(0, a.rogue.up(wire.Control), m); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// telemetry reports thousands of series, in the neighbour's name and from the future.
func (a *attack) telemetry(t *testing.T) {
	a.each(t, []string{""}, func(c *rogueConn, _ string) error {
		for n := range uint64(60) {
			now := time.Now()
			r := otlp.Request{Resources: []otlp.Resource{{}}}
			for i := range 150 {
				at := now
				if i%3 == 0 {
					at = now.AddDate(10, 0, 0)
				}
				r.Resources[0].Metrics = append(r.Resources[0].Metrics, otlp.Metric{
					Name: fmt.Sprintf("forged.%d.%d", n, i), Kind: otlp.Gauge, Points: []otlp.Point{{
						Time: uint64(at.UnixNano()), Value: 666, Attributes: []otlp.Attribute{
							{Key: "device", Value: "neighbour"}, {Key: "device_id", Value: a.neighbour}, {Key: "forged", Value: "yes"}, {Key: "__workspace__", Value: "x"},
						},
					}},
				}, otlp.Metric{
					Name: fmt.Sprintf("forged.%d.%d", n, i), Kind: otlp.Gauge, Points: []otlp.Point{{
						Time: uint64(at.UnixNano()), Value: 666, Attributes: []otlp.Attribute{
							{Key: "device", Value: "neighbour"}, {Key: "device_id", Value: a.neighbour}, {Key: "forged", Value: "yes"},
						},
					}},
				})
			}
			clock := wire.Clock{BootID: "b", Monotone: time.Hour, Wall: now}
			f := wire.TelemetryFrame{Stream: atelier.NewID(), Sequence: 1<<63 + n, Previous: n % 2, Taken: clock, Sent: clock, Payload: r.Encode(nil)}
			b, err := f.Encode(nil)
			if err != nil {
				t.Error(err)
				return nil
			}
			for _, m := range [][]byte{b, b[:len(b)/2], append([]byte{9}, b[1:]...)} {
				if err := c.publish(0, a.rogue.up(wire.Telemetry), m); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// flood sends as much as it can, for a few seconds at most.
func (a *attack) flood(t *testing.T) {
	hello := a.rogue.sign(wire.TypeHello, wire.Hello{Session: atelier.NewID()})
	a.each(t, []string{a.rogue.up(wire.Control), a.rogue.up(wire.Telemetry), a.rogue.up(wire.Content)}, func(c *rogueConn, topic string) error {
		for end, n := time.Now().Add(3*time.Second), 0; n < 20_000 && time.Now().Before(end); n++ {
			if err := c.publish(0, topic, hello); err != nil {
				return err
			}
		}
		return nil
	})
}

// properties speaks MQTT 5, with what only it has.
func (a *attack) properties(t *testing.T) {
	c, err := a.rogue.connect(a.rogue.id, nil, true)
	if err != nil {
		return // a broker need not speak it
	}
	defer func() { _ = c.Close() }()
	topic := a.rogue.up(wire.Control)
	for _, properties := range [][]byte{
		{0x23, 0xff, 0xff},                          // a topic alias beyond the maximum
		append([]byte{0x08}, text("at1/d/#")...),    // a response topic with a wildcard
		{0x02, 0, 0, 0, 0},                          // expired at once
		{0x0b, 0xff, 0xff, 0xff, 0x7f},              // a subscription identifier, which clients may not send
		append([]byte{0x09}, make([]byte, 2)...),    // empty correlation data
		{0x01, 7},                                   // an impossible format
		append([]byte{0x26}, text("only a key")...), // half a user property
	} {
		body := append(append(text(topic), byte(len(properties))), properties...)
		if _, err := c.Write(packet(0x30, append(body, "x"...))); err != nil {
			if c, err = a.rogue.connect(a.rogue.id, nil, true); err != nil {
				t.Errorf("the rogue cannot connect again: %v", err)
				return
			}
		}
	}
}

// sameID opens many connections with one client id, and some with the neighbour's.
func (a *attack) sameID(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			id := a.rogue.id
			if i%3 == 0 && a.embedded { // elsewhere it interrupts the neighbour, see docs/brokers.md
				id = a.neighbour
			}
			c, err := a.rogue.connect(id, nil, false)
			if err != nil {
				return
			}
			if id != a.rogue.id {
				t.Error("the rogue may connect as its neighbour")
			}
			_ = c.publish(0, a.rogue.up(wire.Control), []byte("x"))
			_ = c.Close()
		})
	}
	wg.Wait()
}

// halfOpen opens connections and says nothing, with TLS and without.
func (a *attack) halfOpen(t *testing.T) {
	var all []net.Conn
	for i := range 600 {
		c, err := net.Dial("tcp", a.rogue.address)
		if err != nil {
			t.Errorf("connection %d: %v", i, err)
			break
		}
		all = append(all, c)
	}
	for range 40 {
		if c, err := a.rogue.dial(); err == nil {
			all = append(all, c)
		}
	}
	for _, c := range all {
		_ = c.Close()
	}
}
