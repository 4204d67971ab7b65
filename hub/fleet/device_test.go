package fleet_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/broker/brokertest"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/content/transfer"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

func itoa(n int) string { return strconv.Itoa(n) }

// device plays a device: it does what an agent does with messages, and "runs" a
// module by fetching its content and saying that it serves.
type device struct {
	h      *hub
	id     string
	ws     string
	name   string
	key    *ecdsa.PrivateKey
	signer trust.Signer
	cert   tls.Certificate
	pinned *trust.Pinned
	store  *content.Store
	facts  atelier.Facts

	control, bulk *brokertest.Client
	receiver      *transfer.Receiver
	sender        *transfer.Sender
	offers        map[atelier.Digest][]byte
	stop          func() // ends what works for the present connections
	ends          sync.WaitGroup

	mu       sync.Mutex
	session  string
	welcomed bool
	refuse   *atelier.Why // of desired states
	mute     bool         // do not answer desired states
	saved    atelier.DesiredState
	raw      []byte // the payload of saved
	states   int    // desired states that came, repetitions included
	sequence uint64
	acked    uint64 // reports
	telAcked uint64
	modules  []atelier.ModuleStatus
	revoked  bool
	packed   atomic.Bool      // a message came packed
	failed   map[string]error // fetches, by deployment
	// storage makes what the device says of its content, and bases what it names when it
	// asks for a file; nil for agents of before.
	storage func() *atelier.Storage
	bases   func(atelier.File) []atelier.Digest
	came    map[atelier.Digest]transfer.Arrival
}

func newDevice(h *hub, e wire.Enrolment, key *ecdsa.PrivateKey) *device {
	h.t.Helper()
	signer, err := trust.NewSigner(key)
	if err != nil {
		h.t.Fatal(err)
	}
	pinned, err := trust.Pin(e.Workspace, e.Root)
	if err == nil {
		_, err = pinned.Apply(e.Delegation)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	cert, err := trust.ParseCertificate([]byte(e.Certificate))
	if err != nil {
		h.t.Fatal(err)
	}
	s, err := content.Open(durable.OS{}, h.t.TempDir())
	if err != nil {
		h.t.Fatal(err)
	}
	d := &device{
		h: h, id: e.Device, ws: e.Workspace, name: e.Name, key: key, signer: signer, pinned: pinned, store: s,
		cert: tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key},
		facts: atelier.Facts{
			OS: "linux", Arch: "amd64", Targets: []string{"process"}, Gateway: "127.0.0.1:8600",
			Runtimes: []atelier.RuntimeSupport{{Name: atelier.RuntimeONNX, OK: true}}, Features: []string{atelier.FeatureGolden, atelier.FeaturePacked, atelier.FeatureStage, atelier.FeatureTrial},
		},
		failed: map[string]error{}, offers: map[atelier.Digest][]byte{}, came: map[atelier.Digest]transfer.Arrival{},
	}
	h.t.Cleanup(d.disconnect)
	return d
}

func (d *device) topic(c wire.Channel) string { return wire.UpTopic(wire.DefaultShard, d.id, c) }

func (d *device) sign(kind string, v any) []byte {
	payload, err := json.Marshal(v)
	if err != nil {
		d.h.t.Error(err)
	}
	raw, err := trust.Sign(kind, payload, d.signer)
	if err != nil {
		d.h.t.Error(err)
	}
	return raw
}

// connect opens both connections, and says hello until it is welcomed.
func (d *device) connect() {
	d.h.t.Helper()
	d.dial()
	eventually(d.h.t, func() string {
		d.mu.Lock()
		welcomed := d.welcomed
		d.mu.Unlock()
		if !welcomed {
			d.hello()
			return d.name + " is not welcomed"
		}
		return ""
	})
}

// dial opens both connections and says nothing.
func (d *device) dial() {
	d.h.t.Helper()
	d.disconnect()
	config := d.h.tls(d.cert)
	d.mu.Lock()
	d.session, d.welcomed = atelier.NewID(), false
	will := &brokertest.Packet{Topic: d.topic(wire.Control), Payload: d.sign(wire.TypeBye, wire.Bye{Session: d.session})}
	d.mu.Unlock()
	control, err := brokertest.Dial(d.h.t, d.h.url, d.id, brokertest.Options{TLS: config, Will: will})
	if err != nil {
		d.h.t.Fatalf("%s cannot connect: %v", d.name, err)
	}
	bulk, err := brokertest.Dial(d.h.t, d.h.url, d.id+wire.ContentClientSuffix, brokertest.Options{TLS: config})
	if err != nil {
		d.h.t.Fatalf("%s cannot connect for content: %v", d.name, err)
	}
	send := func(frame []byte) error {
		bulk.Publish(d.topic(wire.Content), 0, false, frame)
		return nil
	}
	d.control, d.bulk = control, bulk
	d.receiver = transfer.NewReceiver(d.store, send, transfer.ReceiverOptions{MaxFrame: wire.MaxPacket})
	d.sender = transfer.NewSender(transfer.SenderOptions{
		MaxFrame: wire.MaxPacket,
		Send:     func(_ string, frame []byte) error { return send(frame) },
		Open: func(_ context.Context, _ string, digest atelier.Digest) (transfer.Blob, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			b, ok := d.offers[digest]
			if !ok {
				return nil, atelier.Errorf(atelier.NotFound, "not offered")
			}
			return memory{bytes.NewReader(b)}, nil
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	d.stop = cancel
	d.ends.Go(func() { _ = d.sender.Run(ctx) })
	d.ends.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case p := <-control.In:
				d.take(ctx, p.Payload)
			case p := <-bulk.In:
				d.receiver.Handle(p.Payload)
				d.sender.Handle("hub", p.Payload)
			}
		}
	})
	if !control.Listen(wire.DownTopic(d.id, wire.Control)) || !bulk.Listen(wire.DownTopic(d.id, wire.Content)) {
		d.h.t.Fatal("subscription refused")
	}
}

// disconnect says nothing more, and waits until the device does nothing more.
func (d *device) disconnect() {
	if d.stop == nil {
		return
	}
	d.stop()
	d.control.Disconnect(50)
	d.bulk.Disconnect(50)
	d.ends.Wait()
	d.stop = nil
}

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

func (d *device) say(kind string, v any) {
	d.control.Publish(d.topic(wire.Control), 0, false, d.sign(kind, v))
}

func (d *device) helloMessage() wire.Hello {
	d.mu.Lock()
	defer d.mu.Unlock()
	root, delegation := d.pinned.Versions()
	return wire.Hello{
		Session: d.session, Position: d.saved.Position(), Agent: "test", Facts: d.facts, Wall: time.Now(),
		RootVersion: root, DelegationVersion: delegation,
	}
}

func (d *device) hello() { d.say(wire.TypeHello, d.helloMessage()) }

// take handles a message from the hub.
func (d *device) take(ctx context.Context, message []byte) {
	raw, err := wire.Unpack(message)
	if err != nil {
		d.h.t.Errorf("%s received what cannot be unpacked: %v", d.name, err)
		return
	}
	if len(message) != len(raw) {
		d.packed.Store(true)
		if !slices.Contains(d.facts.Features, atelier.FeaturePacked) {
			d.h.t.Errorf("%s received a packed message, and reads none", d.name)
		}
	}
	kind, payload, err := trust.Peek(raw)
	if err != nil {
		d.h.t.Errorf("%s received what is no envelope: %v", d.name, err)
		return
	}
	if kind == wire.TypeTrust {
		var m wire.Trust
		if json.Unmarshal(payload, &m) == nil {
			for _, e := range m.Envelopes {
				_, _ = d.pinned.Apply(e) // old ones come again
			}
		}
		return
	}
	if _, _, err := trust.Open(raw, d.pinned.StateKeys(d.ws)); err != nil {
		if kind == wire.TypeDesired {
			var s atelier.DesiredState
			_ = json.Unmarshal(payload, &s)
			d.say(wire.TypeDesiredAck, wire.DesiredAck{Position: s.Position(), Why: trust.WhyOf(err)})
		}
		return
	}
	switch kind {
	case wire.TypeWelcome:
		var m wire.Welcome
		if json.Unmarshal(payload, &m) == nil {
			d.mu.Lock()
			d.welcomed = d.welcomed || m.Session == d.session
			d.mu.Unlock()
		}
	case wire.TypeDesired:
		d.desired(ctx, payload)
	case wire.TypeAck:
		var m wire.Ack
		if json.Unmarshal(payload, &m) == nil {
			d.mu.Lock()
			if m.Stream == wire.StreamReport && m.Session == d.session {
				d.acked = max(d.acked, m.Through)
			} else if m.Stream != wire.StreamReport {
				d.telAcked = max(d.telAcked, m.Through)
			}
			d.mu.Unlock()
		}
	case wire.TypeRevoked:
		d.mu.Lock()
		d.revoked = true
		d.mu.Unlock()
	case wire.TypeCollect:
		var m wire.Collect
		if json.Unmarshal(payload, &m) == nil {
			d.collect(m)
		}
	}
}

func (d *device) collect(m wire.Collect) {
	d.mu.Lock()
	answer := wire.Collected{ID: m.ID, Why: atelier.Because(atelier.ReasonWaiting, "there is no such log")}
	if m.What == wire.CollectModuleLog {
		log := bytes.Repeat([]byte("a line of "+m.Deployment+"\n"), 40000)
		log = log[max(0, int64(len(log))-m.MaxBytes):]
		answer = wire.Collected{ID: m.ID, OK: true, Digest: atelier.DigestOf(log), Size: int64(len(log))}
		d.offers[answer.Digest] = log
	}
	d.mu.Unlock()
	d.say(wire.TypeCollected, answer)
}

// desired saves a desired state and begins to act on it.
func (d *device) desired(ctx context.Context, payload []byte) {
	var s atelier.DesiredState
	if err := json.Unmarshal(payload, &s); err != nil || s.Device != d.id || s.Workspace != d.ws {
		d.h.t.Errorf("%s received a desired state for %s in %s: %v", d.name, s.Device, s.Workspace, err)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.states++
	if d.mute {
		return
	}
	if d.refuse != nil {
		d.say(wire.TypeDesiredAck, wire.DesiredAck{Position: s.Position(), Why: *d.refuse})
		return
	}
	switch {
	case s.Position() == d.saved.Position():
		if !bytes.Equal(payload, d.raw) {
			d.h.t.Errorf("%s received two states at the position %+v:\n%s\n%s", d.name, s.Position(), d.raw, payload)
		}
	case s.Position().After(d.saved.Position()):
		d.saved, d.raw = s, payload
		d.ends.Go(func() { d.act(ctx, s) })
	default:
		return // a late one
	}
	d.say(wire.TypeDesiredAck, wire.DesiredAck{Position: s.Position(), Saved: true})
}

// act fetches what the modules need and reports them as serving.
func (d *device) act(ctx context.Context, s atelier.DesiredState) {
	var modules []atelier.ModuleStatus
	for _, m := range s.Modules {
		slot := &atelier.SlotStatus{
			Rollout: m.Rollout, Model: m.Model.Name, Version: m.Model.Version, Digest: m.Model.Digest,
			Standing: atelier.Stand(atelier.Serving, atelier.Because(atelier.ReasonAsDesired, "")),
		}
		for _, file := range m.Content() {
			if err := d.fetch(ctx, file); err != nil {
				if ctx.Err() != nil {
					return
				}
				slot.Standing = atelier.Stand(atelier.BackOff, atelier.Because(atelier.ReasonUnreachable, err.Error()))
				d.mu.Lock()
				d.failed[m.Deployment] = err
				d.mu.Unlock()
			}
		}
		modules = append(modules, atelier.ModuleStatus{Deployment: m.Deployment, Name: m.Name, Current: slot})
	}
	for _, m := range s.Staged {
		modules = d.hold(ctx, m, modules)
	}
	for i := range s.Trials {
		modules = d.try(ctx, &s.Trials[i], modules)
	}
	d.mu.Lock()
	newest := d.saved.Position() == s.Position()
	if newest {
		d.modules = modules
	}
	d.mu.Unlock()
	if newest {
		d.report(ctx)
	}
}

// fetch fetches a file, and notes how it came.
func (d *device) fetch(ctx context.Context, file atelier.File) error {
	var bases []atelier.Digest
	if d.bases != nil {
		bases = d.bases(file)
	}
	a, err := d.receiver.Fetch(ctx, file, bases, nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	if a.Received > 0 {
		d.came[file.Digest] = a
	}
	return err
}

// hold fetches what a staged module needs and adds it to what is reported.
func (d *device) hold(ctx context.Context, m atelier.Module, modules []atelier.ModuleStatus) []atelier.ModuleStatus {
	slot := &atelier.SlotStatus{
		Rollout: m.Rollout, Model: m.Model.Name, Version: m.Model.Version,
		Standing: atelier.Stand(atelier.StagedState, atelier.Because(atelier.ReasonWaiting, "")),
	}
	for _, file := range m.Content() {
		if err := d.fetch(ctx, file); err != nil {
			slot.Standing = atelier.Stand(atelier.BackOff, atelier.Because(atelier.ReasonUnreachable, err.Error()))
		}
	}
	for i := range modules {
		if modules[i].Deployment == m.Deployment {
			modules[i].Staged = slot
			return modules
		}
	}
	return append(modules, atelier.ModuleStatus{Deployment: m.Deployment, Name: m.Name, Staged: slot})
}

// report reports until the hub has acknowledged it, or something newer is reported.
func (d *device) report(ctx context.Context) {
	d.mu.Lock()
	d.sequence++
	r := atelier.ReportedState{
		Device: d.id, Session: d.session, Sequence: d.sequence, Position: d.saved.Position(), Agent: "test",
		Time: time.Now(), Facts: d.facts, Modules: d.modules,
	}
	if d.storage != nil {
		r.Storage = d.storage()
	}
	d.mu.Unlock()
	for {
		d.say(wire.TypeReported, r)
		for range 20 {
			d.mu.Lock()
			done := d.acked >= r.Sequence || d.sequence > r.Sequence || d.session != r.Session
			d.mu.Unlock()
			if done {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// serves waits until the device runs the deployment's rollout and the hub knows it.
func (d *device) serves(dep atelier.Deployment) atelier.DeviceStatus {
	d.h.t.Helper()
	var found atelier.DeviceStatus
	eventually(d.h.t, func() string {
		page, _, err := d.h.fleet.DeviceStatuses(d.h.ctx, d.ws, dep.ID, "", 100)
		if err != nil {
			return err.Error()
		}
		for _, s := range page {
			if s.Device == d.id {
				found = s
				if s.State() == atelier.Serving && s.Version == dep.Version {
					return ""
				}
			}
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		return fmt.Sprintf("%s does not serve %s: %s; it holds %d.%d, made %d reports of which %d are acknowledged, fetches failed: %v",
			d.name, dep.Name, found.Why().Message(), d.saved.Epoch, d.saved.Generation, d.sequence, d.acked, d.failed)
	})
	return found
}

// holds returns the desired state that the device has saved.
func (d *device) holds() atelier.DesiredState {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.saved
}

func (d *device) position() atelier.Position {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.saved.Position()
}
