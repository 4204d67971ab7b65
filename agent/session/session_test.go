package session

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/agenttest"
	"github.com/atelier-edge/atelier/agent/state"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// bench is a session whose hub is the test.
type bench struct {
	*testing.T
	*Session
	hub    *agenttest.Authority
	device string
	disk   *durabletest.Disk
	keys   trust.KeySet
	store  *state.Store

	up       chan message
	desireds chan bool
	mu       sync.Mutex
	welcomes []wire.Welcome
	acks     []wire.Ack
	lost     int
	revoked  int
	collects int
}

type message struct {
	payloadType string
	payload     []byte
}

func (b *bench) Welcomed(_ string, w wire.Welcome) {
	b.locked(func() { b.welcomes = append(b.welcomes, w) })
}
func (b *bench) Lost()                { b.locked(func() { b.lost++ }) }
func (b *bench) Desired()             { b.desireds <- true }
func (b *bench) Acked(a wire.Ack)     { b.locked(func() { b.acks = append(b.acks, a) }) }
func (b *bench) Revoked(wire.Revoked) { b.locked(func() { b.revoked++ }) }
func (b *bench) Collect(context.Context, wire.Collect) wire.Collected {
	b.locked(func() { b.collects++ })
	return wire.Collected{OK: true, Size: 3}
}

func (b *bench) locked(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

// run starts a session in a bubble of its own, where time is the test's.
func run(t *testing.T, test func(b *bench)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		key, err := trust.NewDeviceKey()
		if err != nil {
			t.Fatal(err)
		}
		signer, err := trust.NewSigner(key)
		if err != nil {
			t.Fatal(err)
		}
		b := &bench{
			T: t, hub: agenttest.NewAuthority(t), device: atelier.NewID(), disk: durabletest.NewDisk(),
			keys: trust.NewKeySet(signer.Public()), up: make(chan message, 1000), desireds: make(chan bool, 100),
		}
		b.store, err = state.Open(state.Options{
			FS: b.disk, Dir: "/state", Device: b.device, Workspace: b.hub.Workspace, Root: b.hub.Root(), Delegation: b.hub.Delegation(),
		})
		if err != nil {
			t.Fatal(err)
		}
		b.Session = New(Options{
			Device: b.device, Agent: "1.2.3", Signer: signer, State: b.store,
			Publish: func(_ context.Context, _ wire.Channel, envelope []byte) error {
				payloadType, payload, err := trust.Open(envelope, b.keys)
				if err != nil {
					b.Errorf("the device sent what its key did not sign: %v", err)
				}
				if len(envelope) > wire.MaxPacket {
					b.Errorf("a message has %d bytes", len(envelope))
				}
				b.up <- message{payloadType, payload}
				return nil
			},
			Facts:  func() atelier.Facts { return atelier.Facts{Hostname: "host"} },
			Clock:  func() wire.Clock { return wire.Clock{BootID: "boot", Monotone: time.Second, Wall: time.Now()} },
			Events: b, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { b.Session.Run(ctx); close(done) }()
		defer func() { cancel(); <-done }()
		test(b)
	})
}

// next returns the device's next message, which must be of a type.
func next[T any](b *bench, payloadType string) T {
	b.Helper()
	var v T
	select {
	case m := <-b.up:
		if m.payloadType != payloadType {
			b.Fatalf("the device sent %s, expected %s", m.payloadType, payloadType)
		}
		if err := json.Unmarshal(m.payload, &v); err != nil {
			b.Fatal(err)
		}
	case <-time.After(time.Hour):
		b.Fatalf("the device never sent %s", payloadType)
	}
	return v
}

// say sends a message packed; what tests hand to Receive itself comes as it is.
func (b *bench) say(payloadType string, v any) {
	b.Receive(wire.Pack(b.hub.Sign(b, payloadType, v)))
}

// open connects and welcomes the device.
func (b *bench) open() string {
	b.Helper()
	id, _, err := b.Bye()
	if err != nil {
		b.Fatal(err)
	}
	b.Up(id)
	h := next[wire.Hello](b, wire.TypeHello)
	if h.Session != id {
		b.Errorf("hello is of session %q, want %q", h.Session, id)
	}
	b.say(wire.TypeWelcome, wire.Welcome{Session: id})
	synctest.Wait()
	return id
}

func (b *bench) desired(generation uint64) atelier.DesiredState {
	return atelier.DesiredState{Workspace: b.hub.Workspace, Device: b.device, Epoch: 1, Generation: generation}
}

func TestSaysHelloUntilWelcomed(t *testing.T) {
	run(t, func(b *bench) {
		id, will, err := b.Bye()
		if err != nil {
			b.Fatal(err)
		}
		if payloadType, _, err := trust.Open(will, b.keys); err != nil || payloadType != wire.TypeBye {
			b.Errorf("the will is %s, %v", payloadType, err)
		}
		b.Up(id)
		h := next[wire.Hello](b, wire.TypeHello)
		if h.BootID != "boot" || h.Agent != "1.2.3" || h.Facts.Hostname != "host" || h.RootVersion != 1 || h.DelegationVersion != 1 {
			b.Errorf("hello is %+v", h)
		}
		next[wire.Hello](b, wire.TypeHello)
		b.say(wire.TypeWelcome, wire.Welcome{Session: "of another time"})
		next[wire.Hello](b, wire.TypeHello)
		b.say(wire.TypeWelcome, wire.Welcome{Session: id, Telemetry: map[string]uint64{"s": 7}})
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(b.up) > 1 { // one may have crossed the welcome
			b.Errorf("%d hellos after the welcome", len(b.up))
		}
		b.locked(func() {
			if len(b.welcomes) != 1 || b.welcomes[0].Telemetry["s"] != 7 {
				b.Errorf("welcomes: %+v", b.welcomes)
			}
		})
	})
}

func TestANewConnectionIsANewSession(t *testing.T) {
	run(t, func(b *bench) {
		first := b.open()
		b.Down()
		synctest.Wait()
		b.locked(func() {
			if b.lost != 1 {
				b.Errorf("lost %d times", b.lost)
			}
		})
		time.Sleep(time.Hour)
		if len(b.up) != 0 {
			b.Error("it talks without a connection")
		}
		if second := b.open(); second == first {
			b.Error("the session is the old one")
		}
	})
}

func TestSavesAndAcknowledgesDesiredStates(t *testing.T) {
	run(t, func(b *bench) {
		b.open()
		raw := b.hub.Desired(b, b.desired(1))
		for range 3 {
			b.Receive(raw)
			raw = wire.Pack(raw)
			ack := next[wire.DesiredAck](b, wire.TypeDesiredAck)
			if !ack.Saved || ack.Position.Generation != 1 {
				b.Errorf("the answer is %+v", ack)
			}
		}
		if len(b.desireds) != 1 {
			b.Errorf("%d changes of one state", len(b.desireds))
		}
		b.Receive(agenttest.NewAuthority(b).Desired(b, b.desired(2)))
		if ack := next[wire.DesiredAck](b, wire.TypeDesiredAck); ack.Saved || ack.Why.Reason() != atelier.ReasonKeyUnknown || ack.Position.Generation != 2 {
			b.Errorf("a stranger's state is answered %+v", ack)
		}
		b.disk.SetSpace(0)
		b.Receive(b.hub.Desired(b, b.desired(3)))
		if ack := next[wire.DesiredAck](b, wire.TypeDesiredAck); ack.Saved || ack.Why.Reason() != atelier.ReasonStateNotDurable {
			b.Errorf("a state that cannot be saved is answered %+v", ack)
		}
		if len(b.desireds) != 1 {
			b.Error("a refused state counts")
		}
	})
}

func TestAppliesTrustThatNobodyItKnowsSigned(t *testing.T) {
	run(t, func(b *bench) {
		b.open()
		delegation := b.hub.Rotate(b)
		b.say(wire.TypeTrust, wire.Trust{Envelopes: []wire.Raw{b.hub.Root(), delegation}}) // signed by the new key
		if h := next[wire.Hello](b, wire.TypeHello); h.DelegationVersion != 2 {
			b.Errorf("hello says delegation %d, want 2", h.DelegationVersion)
		}
		b.Receive(b.hub.Desired(b, b.desired(1)))
		if ack := next[wire.DesiredAck](b, wire.TypeDesiredAck); !ack.Saved {
			b.Errorf("the answer is %+v", ack)
		}
	})
}

func TestIgnoresWhatIsNotSigned(t *testing.T) {
	run(t, func(b *bench) {
		b.open()
		stranger := agenttest.NewAuthority(b)
		for _, m := range [][]byte{
			[]byte("nonsense"), nil, {1}, {1, 0xff, 0xff},
			wire.Pack(stranger.Sign(b, wire.TypeRevoked, wire.Revoked{})),
			stranger.Sign(b, wire.TypeRevoked, wire.Revoked{}),
			stranger.Sign(b, wire.TypeAck, wire.Ack{Stream: "x"}),
			stranger.Sign(b, wire.TypeCollect, wire.Collect{ID: "1"}),
			stranger.Sign(b, wire.TypeTrust, wire.Trust{Envelopes: []wire.Raw{stranger.Root(), stranger.Delegation()}}),
			b.hub.Sign(b, "application/of-another-kind", 1),
			b.hub.Sign(b, wire.TypeAck, "no ack"),
		} {
			b.Receive(m)
			synctest.Wait()
		}
		b.locked(func() {
			if b.revoked+b.collects+len(b.acks) != 0 || len(b.up) != 0 {
				b.Errorf("revoked %d, collected %d, acks %v, sent %d", b.revoked, b.collects, b.acks, len(b.up))
			}
		})
	})
}

func TestARevocationIsSaved(t *testing.T) {
	run(t, func(b *bench) {
		b.open()
		b.say(wire.TypeRevoked, wire.Revoked{Reason: "stolen"})
		synctest.Wait()
		if r, err := b.store.Revoked(); err != nil || r == nil || b.revoked != 1 {
			b.Errorf("got %v, %v, told %d times", r, err, b.revoked)
		}
	})
}

func TestCollectsOnceAndAnswersEachTime(t *testing.T) {
	run(t, func(b *bench) {
		b.open()
		for range 3 {
			b.say(wire.TypeCollect, wire.Collect{ID: "one", What: wire.CollectAgentLog})
			if c := next[wire.Collected](b, wire.TypeCollected); c.ID != "one" || !c.OK || c.Size != 3 {
				b.Errorf("the answer is %+v", c)
			}
		}
		if b.collects != 1 {
			b.Errorf("collected %d times", b.collects)
		}
		for i := range 20 {
			b.say(wire.TypeCollect, wire.Collect{ID: atelier.NewID()})
			next[wire.Collected](b, wire.TypeCollected)
			if n := len(b.answers); n > keptAnswers {
				b.Fatalf("after %d requests %d answers are kept", i, n)
			}
		}
	})
}

func TestAReportFitsAPacket(t *testing.T) {
	run(t, func(b *bench) {
		b.open()
		r := atelier.ReportedState{Device: b.device, Session: "s", Sequence: 1}
		for range 100 {
			s := &atelier.SlotStatus{Standing: atelier.Stand(atelier.BackOff, atelier.Because(atelier.ReasonInitFailed, strings.Repeat("x", 4000)))}
			r.Modules = append(r.Modules, atelier.ModuleStatus{Candidate: s})
		}
		if err := b.Report(b.Context(), r); err != nil {
			b.Fatal(err)
		}
		got := next[atelier.ReportedState](b, wire.TypeReported)
		if len(got.Modules) != 100 || got.Modules[99].Candidate.Why().Reason() != atelier.ReasonInitFailed {
			b.Error("the report lost more than its messages")
		}
		if len(r.Modules[0].Candidate.Why().Message()) != 4000 {
			b.Error("the caller's report was changed")
		}
	})
}
