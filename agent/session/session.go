// Package session is the agent's side of the conversation with its hub: hello
// until welcomed, desired states saved and acknowledged, trust applied, logs
// collected.
//
// Nothing is believed that a key of the workspace did not sign, except trust
// metadata, which proves itself. Nothing rests on delivery: what matters is
// repeated by whoever needs the answer, and answered again each time it comes.
// The package knows neither MQTT nor modules.
package session

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/state"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Events are told what the hub says. Each returns soon.
type Events interface {
	// Welcomed tells that the hub has accepted the session.
	Welcomed(session string, w wire.Welcome)
	// Lost tells that the session, welcomed or not, has ended.
	Lost()
	// Desired tells that a new desired state was saved.
	Desired()
	Acked(wire.Ack)
	// Revoked tells that the hub revoked the device; that is saved already.
	Revoked(wire.Revoked)
	// Collect makes what the hub asks for ready to be fetched. It may take a
	// while and runs in a goroutine of its own, one at a time.
	Collect(context.Context, wire.Collect) wire.Collected
}

// Options say who talks, and through what.
type Options struct {
	Device  string // id
	Agent   string // the agent's version
	Signer  trust.Signer
	State   *state.Store
	Publish func(ctx context.Context, ch wire.Channel, payload []byte) error
	Facts   func() atelier.Facts
	Clock   func() wire.Clock
	Events  Events
	Log     *slog.Logger
}

// Times of the conversation.
const (
	helloFirst   = 2 * time.Second // before hello is repeated; doubles
	helloMost    = time.Minute
	publishLimit = 30 * time.Second
)

// inboxSize bounds the messages that wait. What does not fit is dropped: the hub
// repeats what it needs answered.
const inboxSize = 16

// keptAnswers is how many answers to Collect are kept, to be repeated.
const keptAnswers = 8

// Session is the conversation. Up, Down and Receive are called by whoever
// carries the messages; they do not block.
type Session struct {
	opts  Options
	inbox chan []byte
	ups   chan string // the newest change of the connection: a session's id, or ""
	again chan struct{}

	// What follows belongs to Run's goroutine.
	current  string // the session's id, "" while there is no connection
	welcomed bool
	hellos   int

	group      sync.WaitGroup
	mu         sync.Mutex
	answers    map[string]wire.Collected
	order      []string
	collecting bool
}

// New returns a session; Run makes it talk.
func New(opts Options) *Session {
	return &Session{
		opts: opts, inbox: make(chan []byte, inboxSize), ups: make(chan string, 1), again: make(chan struct{}, 1),
		answers: map[string]wire.Collected{},
	}
}

// Bye returns a fresh session id and the signed farewell that is its last will.
func (s *Session) Bye() (id string, will []byte, err error) {
	id = atelier.NewID()
	will, err = s.sign(wire.TypeBye, wire.Bye{Session: id})
	return id, will, err
}

// Farewell tells the hub that a session ends on purpose. Call it after Run has
// returned, while the connection is still there.
func (s *Session) Farewell(ctx context.Context, session string) error {
	envelope, err := s.sign(wire.TypeBye, wire.Bye{Session: session})
	if err != nil {
		return err
	}
	return s.publish(ctx, envelope)
}

// Up tells that the connection of a session is there.
func (s *Session) Up(session string) { s.change(session) }

// Down tells that there is no connection.
func (s *Session) Down() { s.change("") }

func (s *Session) change(to string) {
	for {
		select {
		case s.ups <- to:
			return
		default:
		}
		select {
		case <-s.ups: // an older change that nobody saw
		default:
		}
	}
}

// Receive takes a control message from the hub.
func (s *Session) Receive(envelope []byte) {
	select {
	case s.inbox <- envelope:
	default:
		s.opts.Log.Warn("dropping a message from the hub: too many wait")
	}
}

// HelloAgain says hello once more in the present session: the hub may have
// forgotten it.
func (s *Session) HelloAgain() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}

// Run talks until ctx ends.
func (s *Session) Run(ctx context.Context) {
	defer s.group.Wait()
	hello := time.NewTimer(time.Hour)
	hello.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-s.ups:
			if s.current != "" {
				s.opts.Events.Lost()
			}
			s.current, s.welcomed, s.hellos = id, false, 0
			if id == "" {
				hello.Stop()
			} else {
				hello.Reset(0)
			}
		case <-s.again:
			if s.current != "" {
				s.hellos = 0
				hello.Reset(0)
			}
		case <-hello.C:
			s.hello(ctx)
			hello.Reset(helloPause(s.hellos))
			s.hellos++
		case envelope := <-s.inbox:
			if s.handle(ctx, envelope) {
				hello.Stop()
			}
		}
	}
}

// helloPause is the pause after the given number of hellos, with jitter, so that
// a fleet does not speak all at once.
func helloPause(hellos int) time.Duration {
	pause := helloMost
	if hellos < 16 && helloFirst<<hellos < helloMost {
		pause = helloFirst << hellos
	}
	return pause/2 + time.Duration(rand.Int64N(int64(pause/2)))
}

func (s *Session) hello(ctx context.Context) {
	root, delegation := s.opts.State.TrustVersions()
	clock := s.opts.Clock()
	s.say(ctx, wire.TypeHello, wire.Hello{
		Session: s.current, BootID: clock.BootID, Position: s.opts.State.Position(), Agent: s.opts.Agent, Facts: s.opts.Facts(),
		Wall: clock.Wall, Monotone: int64(clock.Monotone), RootVersion: root, DelegationVersion: delegation,
	})
}

// handle takes one message. It returns true when the hub has welcomed the session.
func (s *Session) handle(ctx context.Context, message []byte) (welcomed bool) {
	envelope, err := wire.Unpack(message)
	if err != nil {
		s.opts.Log.Warn("a message from the hub cannot be unpacked", "error", err)
		return false
	}
	payloadType, payload, err := s.opts.State.Verify(envelope)
	if err != nil {
		s.unverified(ctx, envelope, err)
		return false
	}
	switch payloadType {
	case wire.TypeWelcome:
		return s.welcome(payload)
	case wire.TypeDesired:
		s.desired(ctx, envelope, payload)
	case wire.TypeTrust:
		s.trust(payload)
	case wire.TypeAck:
		decode(s, payload, s.opts.Events.Acked)
	case wire.TypeRevoked:
		decode(s, payload, s.revoked)
	case wire.TypeCollect:
		decode(s, payload, func(c wire.Collect) { s.collect(ctx, c) })
	default:
		s.opts.Log.Debug("ignoring a message of an unknown type", "type", payloadType)
	}
	return false
}

// unverified takes a message that no trusted key signed: trust metadata proves
// itself, a desired state is refused with the reason, and the rest is dropped.
func (s *Session) unverified(ctx context.Context, envelope []byte, cause error) {
	claimed, payload, err := trust.Peek(envelope)
	if err == nil && claimed == wire.TypeTrust {
		s.trust(payload)
		return
	}
	s.opts.Log.Warn("a message from the hub does not verify", "type", claimed, "why", trust.WhyOf(cause))
	if err == nil && claimed == wire.TypeDesired {
		s.say(ctx, wire.TypeDesiredAck, state.Refusal(envelope, cause))
	}
}

// decode reads a payload and hands it on.
func decode[T any](s *Session, payload []byte, to func(T)) {
	var v T
	if err := json.Unmarshal(payload, &v); err != nil {
		s.opts.Log.Warn("a message from the hub cannot be read", "error", err)
		return
	}
	to(v)
}

func (s *Session) welcome(payload []byte) bool {
	var w wire.Welcome
	if err := json.Unmarshal(payload, &w); err != nil || w.Session != s.current {
		return false // of an earlier session, or no welcome
	}
	if !s.welcomed {
		s.opts.Log.Info("the hub has welcomed the device")
	}
	s.welcomed = true
	s.opts.Events.Welcomed(w.Session, w)
	return true
}

func (s *Session) desired(ctx context.Context, envelope, payload []byte) {
	ack, changed := s.opts.State.Receive(envelope, payload)
	switch {
	case !ack.Saved:
		s.opts.Log.Warn("refused a desired state", "why", ack.Why)
	case changed:
		s.opts.Log.Info("saved a desired state", "epoch", ack.Position.Epoch, "generation", ack.Position.Generation)
		s.opts.Events.Desired()
	}
	s.say(ctx, wire.TypeDesiredAck, ack)
}

func (s *Session) trust(payload []byte) {
	decode(s, payload, func(t wire.Trust) {
		changed, err := s.opts.State.ApplyTrust(t.Envelopes)
		if err != nil {
			s.opts.Log.Warn("refused trust metadata", "error", err)
		}
		if changed {
			root, delegation := s.opts.State.TrustVersions()
			s.opts.Log.Info("applied trust metadata", "root", root, "delegation", delegation)
			// What the hub said before could not be verified: ask it to repeat that.
			s.HelloAgain()
		}
	})
}

func (s *Session) revoked(r wire.Revoked) {
	s.opts.Log.Error("the hub revoked this device; modules go on running", "reason", r.Reason)
	if err := s.opts.State.Revoke(r); err != nil {
		s.opts.Log.Error("the revocation cannot be saved", "error", err)
	}
	s.opts.Events.Revoked(r)
}

// collect answers a request again, or has its content made ready.
func (s *Session) collect(ctx context.Context, c wire.Collect) {
	s.mu.Lock()
	answer, known := s.answers[c.ID]
	busy := s.collecting
	s.collecting = s.collecting || !known
	s.mu.Unlock()
	switch {
	case known:
		s.say(ctx, wire.TypeCollected, answer)
	case !busy: // otherwise the hub asks again
		s.group.Go(func() {
			answer := s.opts.Events.Collect(ctx, c)
			answer.ID = c.ID
			s.keep(answer)
			s.say(ctx, wire.TypeCollected, answer)
		})
	}
}

func (s *Session) keep(answer wire.Collected) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.collecting = false
	s.answers[answer.ID] = answer
	if s.order = append(s.order, answer.ID); len(s.order) > keptAnswers {
		delete(s.answers, s.order[0])
		s.order = s.order[1:]
	}
}

// Report signs and sends a reported state.
func (s *Session) Report(ctx context.Context, r atelier.ReportedState) error {
	envelope, err := s.sign(wire.TypeReported, r)
	if err == nil && len(envelope) > wire.MaxPacket {
		shorten(&r)
		envelope, err = s.sign(wire.TypeReported, r)
	}
	if err != nil {
		s.opts.Log.Error("cannot sign a report", "error", err)
		return err
	}
	return s.publish(ctx, envelope)
}

// shorten leaves the messages of a report's reasons away, which are by far the
// most of it: a packet that a broker cuts would tell nothing at all.
func shorten(r *atelier.ReportedState) {
	r.Modules = slices.Clone(r.Modules)
	for i := range r.Modules {
		for _, slot := range []**atelier.SlotStatus{&r.Modules[i].Current, &r.Modules[i].Candidate, &r.Modules[i].Staged, &r.Modules[i].Trial} {
			if *slot != nil {
				short := **slot
				if short.Shadow != nil {
					counts := *short.Shadow
					counts.Samples, short.Shadow = nil, &counts
				}
				short.Standing = atelier.Stand(short.State(), atelier.Because(short.Why().Reason(), "").WithRemedy(""))
				*slot = &short
			}
		}
	}
}

// say signs and sends a message. What fails is in the log: it is said again when
// the hub asks again.
func (s *Session) say(ctx context.Context, payloadType string, v any) {
	envelope, err := s.sign(payloadType, v)
	if err == nil {
		err = s.publish(ctx, envelope)
	}
	if err != nil && ctx.Err() == nil {
		s.opts.Log.Debug("a message did not reach the hub", "type", payloadType, "error", err)
	}
}

func (s *Session) publish(ctx context.Context, envelope []byte) error {
	ctx, cancel := context.WithTimeout(ctx, publishLimit)
	defer cancel()
	return s.opts.Publish(ctx, wire.Control, envelope)
}

func (s *Session) sign(payloadType string, v any) ([]byte, error) {
	payload, err := json.Marshal(v)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode a message: %w", err)
	}
	return trust.Sign(payloadType, payload, s.opts.Signer)
}
