package router

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Options say how the router is run.
type Options struct {
	Program string // path of atelier-router
	State   string // its directory for what must last
	Run     string // the directory of its control socket
	// Table returns what the router shall go by, false where there needs to be none.
	Table func() (atelier.RoutingTable, bool)
	// Publish sends a frame to the hub.
	Publish func(ctx context.Context, frame []byte) error
	Config  string // path of the agent's configuration, for what people are told to do
	Changed func() // called when Condition has changed; it must not block
	Times   Times
	Log     *slog.Logger
}

// Times of the supervisor.
type Times struct {
	Poll             time.Duration // how often the router is asked how it is
	Start            time.Duration // how long it may take to answer after its start
	Retry, RetryMost time.Duration // the pauses before another start
}

// DefaultTimes are those of the agent.
var DefaultTimes = Times{Poll: 3 * time.Second, Start: 15 * time.Second, Retry: time.Second, RetryMost: time.Minute}

// Socket is the path of the control socket in the run directory.
func Socket(run string) string { return filepath.Join(run, "router.sock") }

// logFile is in the router's state directory; logLimit is the size at which it begins anew
// when the router is started, keeping one older file.
const (
	logFile  = "router.log"
	logLimit = 1 << 20
)

// Supervisor keeps the router as it is needed. Its methods are safe for concurrent use.
type Supervisor struct {
	opts   Options
	client *Client
	wake   chan struct{}
	acks   chan wire.Ack

	mu        sync.Mutex
	condition atelier.Condition
	status    *atelier.RouterStatus // nil while none answers
	wanted    bool
	child     chan struct{} // closed when the child that was started last has ended; nil before
	stored    map[string]uint64
	connected bool
	carry     chan struct{} // wakes carry
	lost      uint64        // messages that were given up, when Condition said so last
}

// New returns a supervisor; Run makes it work.
func New(opts Options) *Supervisor {
	return &Supervisor{
		opts: opts, client: NewClient(Socket(opts.Run)), wake: make(chan struct{}, 1), acks: make(chan wire.Ack, 64), carry: make(chan struct{}, 1),
		condition: atelier.Holds(atelier.ConditionMessages, atelier.Because(atelier.ReasonAsDesired, "no module has routes")),
	}
}

// Wake tells that what Table returns may have changed.
func (s *Supervisor) Wake() { nudge(s.wake) }

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Connected tells that the hub has welcomed the device, and what it has stored of each
// stream of messages (wire.Welcome.Messages); nil of a hub that takes none.
func (s *Supervisor) Connected(stored map[string]uint64) {
	s.mu.Lock()
	s.stored, s.connected = stored, stored != nil
	s.mu.Unlock()
	nudge(s.carry)
}

// Disconnected tells that the connection is gone.
func (s *Supervisor) Disconnected() {
	s.mu.Lock()
	s.connected = false
	s.mu.Unlock()
	nudge(s.carry)
}

// Acked tells that the hub has stored everything of a stream through a number. Other
// streams than those of messages are ignored by the router.
func (s *Supervisor) Acked(stream string, through uint64) {
	s.mu.Lock()
	running := s.status != nil
	s.mu.Unlock()
	if !running {
		return
	}
	select {
	case s.acks <- wire.Ack{Stream: stream, Through: through}:
	default: // the router sends again, and the hub says it again
	}
}

// Condition says whether messages of modules are carried as routes say, false where
// there is nothing to be carried.
func (s *Supervisor) Condition() (atelier.Condition, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.condition, s.wanted || s.status != nil
}

// Status returns what the router said last, nil where none answers.
func (s *Supervisor) Status() *atelier.RouterStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Run supervises the router until ctx ends; then it leaves it running.
func (s *Supervisor) Run(ctx context.Context) {
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { s.carryOn(ctx) })
	parts.Go(func() { s.passAcks(ctx) })
	failures := 0
	var begun time.Time
	for ctx.Err() == nil {
		table, wanted := s.opts.Table()
		s.mu.Lock()
		s.wanted = wanted
		s.mu.Unlock()
		pause := s.opts.Times.Poll
		status, err := s.ask(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failures = 0
			if err := s.follow(ctx, table, wanted, status); err != nil && ctx.Err() == nil {
				s.opts.Log.Warn("the router does not go by the newest routes", "error", err)
				s.found(nil, err)
			}
		case !wanted:
			s.found(nil, nil)
			pause = time.Hour // until it is woken
		case s.childRuns() && time.Since(begun) < s.opts.Times.Start:
			pause = s.opts.Times.Poll / 20 // it has not opened its socket yet
		default:
			if failures++; failures > 1 {
				s.found(nil, err)
			}
			begun = time.Now()
			if err := s.start(); err != nil {
				s.found(nil, err)
			}
			pause = min(s.opts.Times.Retry<<min(failures-1, 20), s.opts.Times.RetryMost)
			if s.childRuns() {
				pause = s.opts.Times.Poll / 20
			}
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-s.wake:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// follow gives a router that runs the newest table, and ends one that nothing needs.
func (s *Supervisor) follow(ctx context.Context, table atelier.RoutingTable, wanted bool, status atelier.RouterStatus) error {
	if !wanted && status.Waiting() == 0 {
		s.found(nil, nil)
		s.opts.Log.Info("the router ends: no module has routes or a twin any more")
		return Stop(ctx, s.client)
	}
	raw, err := json.Marshal(table)
	if err != nil {
		return err
	}
	if status.Table != atelier.DigestOf(raw) {
		if err := s.client.Apply(ctx, raw); err != nil {
			return err
		}
		s.opts.Log.Info("the router has new routes", "modules", len(table.Modules), "routes", len(table.Routes))
		if status, err = s.ask(ctx); err != nil {
			return err
		}
	}
	s.found(&status, nil)
	return nil
}

func (s *Supervisor) ask(ctx context.Context) (atelier.RouterStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return s.client.Status(ctx)
}

// found notes what the router says of itself, nil where none answers, and why.
func (s *Supervisor) found(status *atelier.RouterStatus, err error) {
	s.mu.Lock()
	anew := status != nil && (s.status == nil || s.status.PID != status.PID)
	if anew {
		s.lost = 0
	}
	s.status = status
	next, lost := s.judge(status, err)
	same := next.True() == s.condition.True() && next.Why() == s.condition.Why()
	s.condition = next.Following(s.condition, time.Now())
	s.lost = lost
	s.mu.Unlock()
	if anew {
		nudge(s.carry)
	}
	if !same {
		if !next.True() {
			s.opts.Log.Warn("messages of modules are not carried as they should be", "why", next.Why())
		}
		s.opts.Changed()
	}
}

// judge says how messages are carried. What was given up counts until all that is left has
// reached where it goes.
func (s *Supervisor) judge(status *atelier.RouterStatus, err error) (c atelier.Condition, lost uint64) {
	fails := func(why atelier.Why) (atelier.Condition, uint64) {
		return atelier.Fails(atelier.ConditionMessages, why), s.lost
	}
	switch {
	case err != nil:
		if last := lastLine(filepath.Join(s.opts.State, logFile)); last != "" {
			err = fmt.Errorf("%w; the last line of its log: %s", err, last)
		}
		return fails(atelier.BecauseOf(atelier.ReasonRouterDown, err))
	case status == nil:
		return atelier.Holds(atelier.ConditionMessages, atelier.Because(atelier.ReasonAsDesired, "no module has routes")), 0
	case status.Error != "" && strings.Contains(status.Error, syscall.EADDRINUSE.Error()):
		return fails(atelier.Because(atelier.ReasonPortInUse, fmt.Sprintf("The router cannot listen for modules: %s.", status.Error)).
			WithRemedy(fmt.Sprintf("Stop the program that has the address, or change modules.listen in %s and restart the modules.", s.opts.Config)))
	case status.Error != "":
		return fails(atelier.Because(atelier.ReasonRouterDown, status.Error))
	}
	pending := 0
	var bytes int64
	var full []string
	for _, q := range status.Queues {
		pending += q.Pending
		bytes += q.Bytes
		if lost += q.Dropped; q.Dropped > 0 {
			full = append(full, way(q))
		}
	}
	if pending == 0 {
		return atelier.Holds(atelier.ConditionMessages, atelier.Because(atelier.ReasonAsDesired, "no message waits")), lost
	}
	if lost > s.lost || lost > 0 && !s.condition.True() && s.condition.Why().Reason() == atelier.ReasonMessagesLost {
		c, _ = fails(atelier.Because(atelier.ReasonMessagesLost, fmt.Sprintf("%d messages were given up on the way %s, since the queue or the disk was full", lost, strings.Join(full, ", "))))
		return c, lost
	}
	return atelier.Holds(atelier.ConditionMessages, atelier.Because(atelier.ReasonAsDesired, "messages wait on disk for who takes them")), lost
}

func way(q atelier.RouterQueue) string {
	into := "upstream"
	if q.Into != "" {
		into = q.Into + "/" + q.Input
	}
	return "from " + firstOf(q.From, "twins") + " into " + into
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// carryOn carries frames to the hub while it is there and a router runs.
func (s *Supervisor) carryOn(ctx context.Context) {
	for ctx.Err() == nil {
		s.mu.Lock()
		stored, ready := s.stored, s.connected && s.status != nil
		s.mu.Unlock()
		if !ready {
			select {
			case <-s.carry:
			case <-ctx.Done():
			}
			continue
		}
		carrying, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- s.client.Carry(carrying, stored, s.opts.Publish) }()
		select {
		case <-s.carry: // the connection has changed
			cancel()
			<-ended //nolint:errcheck // it was cancelled
		case err := <-ended:
			cancel()
			s.opts.Log.Debug("messages of modules are not carried for a moment", "error", err)
			select {
			case <-time.After(s.opts.Times.Retry):
			case <-s.carry:
			case <-ctx.Done():
			}
		}
		cancel()
	}
}

func (s *Supervisor) passAcks(ctx context.Context) {
	for {
		select {
		case a := <-s.acks:
			asking, cancel := context.WithTimeout(ctx, 5*time.Second)
			if err := s.client.Acked(asking, a); err != nil && ctx.Err() == nil {
				s.opts.Log.Debug("the router was not told what the hub has", "error", err)
			}
			cancel()
		case <-ctx.Done():
			return
		}
	}
}

func (s *Supervisor) childRuns() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.child == nil {
		return false
	}
	select {
	case <-s.child:
		return false
	default:
		return true
	}
}

// start starts the router in a session of its own.
func (s *Supervisor) start() error {
	failed := func(err error) error {
		return atelier.Errorf(atelier.Internal, "cannot start the router: %w", err).
			WithRemedy("Check that atelier-router is installed beside atelier-agent.")
	}
	for _, dir := range []string{s.opts.State, s.opts.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return failed(err)
		}
	}
	path := filepath.Join(s.opts.State, logFile)
	if info, err := os.Stat(path); err == nil && info.Size() > logLimit {
		if err := os.Rename(path, path+".1"); err != nil {
			return failed(err)
		}
	}
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return failed(err)
	}
	defer func() { _ = log.Close() }() // the child has its own
	cmd := exec.Command(s.opts.Program, "--state", s.opts.State, "--control", Socket(s.opts.Run))
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return failed(err)
	}
	ended := make(chan struct{})
	go func() { // ends with the router; a router that outlives the agent is init's
		_ = cmd.Wait() // how it ended is in its log
		close(ended)
		s.Wake()
	}()
	s.mu.Lock()
	s.child = ended
	s.mu.Unlock()
	return nil
}

// lastLine returns the last line of the file at path, "" where there is none.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	tail := make([]byte, min(info.Size(), 1024))
	if _, err := f.ReadAt(tail, info.Size()-int64(len(tail))); err != nil {
		return ""
	}
	text := strings.TrimSpace(string(tail))
	return strings.ToValidUTF8(text[strings.LastIndexByte(text, '\n')+1:], "")
}

// Stop ends the router, where one answers, and returns when it has ended.
func Stop(ctx context.Context, c *Client) error {
	status, err := c.Status(ctx)
	if atelier.CodeOf(err) == atelier.Unavailable {
		return nil
	}
	if err != nil {
		return err
	}
	p, err := os.FindProcess(status.PID)
	if err == nil {
		err = p.Signal(syscall.SIGTERM)
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end the router: %w", err)
	}
	for {
		now, err := c.Status(ctx)
		if err != nil && ctx.Err() == nil || err == nil && now.PID != status.PID {
			return nil
		}
		t := time.NewTimer(20 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("the router has not ended: %w", ctx.Err())
		}
	}
}
