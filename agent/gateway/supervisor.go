package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Options say how the gateway is run.
type Options struct {
	Program string // path of atelier-gateway
	State   string // its directory for what must last
	Run     string // the directory of its control socket
	// Listen returns the address that it shall listen on. When that changes,
	// the gateway is started anew.
	Listen func() string
	Config string // path of the file that says so, for what people are told to do
	// Restarted is called when a gateway was found that was not known before.
	Restarted func()
	// Changed is called when Condition has changed.
	Changed func()
	Times   Times
	Log     *slog.Logger
}

// Socket is the path of the control socket in the run directory.
func Socket(run string) string { return filepath.Join(run, "gateway.sock") }

// The files in the gateway's state directory that are the supervisor's.
const (
	logFile    = "gateway.log"
	launchFile = "launch.json"
)

// logLimit is the size in bytes at which the gateway's log begins anew when the
// gateway is started, keeping one older file.
const logLimit = 1 << 20

// launch is how a gateway was started, so that a later agent knows.
type launch struct {
	PID    int    `json:"pid"`
	Listen string `json:"listen"`
}

// Supervisor keeps the gateway running.
type Supervisor struct {
	opts   Options
	client *Client

	mu        sync.Mutex
	condition atelier.Condition
	status    atelier.GatewayStatus
	child     chan struct{} // closed when the child that was started last has ended; nil before
	// toldCompared is how many copies of requests shadows had got when that was told last.
	toldCompared uint64
	toldAt       time.Time
}

// NewSupervisor returns a supervisor; Run starts it.
func NewSupervisor(opts Options) *Supervisor {
	s := &Supervisor{opts: opts, client: NewClient(Socket(opts.Run))}
	starting := atelier.Because(atelier.ReasonInProgress, "the gateway is being started")
	s.condition = atelier.Fails(atelier.ConditionGateway, starting).Following(s.condition, time.Now())
	return s
}

// Client returns a client of the gateway.
func (s *Supervisor) Client() *Client { return s.client }

// Condition says whether the gateway answers and has its address.
func (s *Supervisor) Condition() atelier.Condition {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.condition
}

// Address returns the address on which endpoints answer, "" where there is none.
func (s *Supervisor) Address() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status.Listen
}

// Run supervises the gateway until ctx ends; then it leaves it running.
func (s *Supervisor) Run(ctx context.Context) {
	var begun time.Time // when the gateway was started last
	var unstarted error // why that did not work
	failures := 0
	for ctx.Err() == nil {
		status, err := s.ask(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failures = 0
			s.found(status)
			if s.misplaced(status.PID) {
				s.opts.Log.Info("the gateway is started anew, with another address", "listen", s.opts.Listen())
				if err := Stop(ctx, s.client); err != nil {
					s.opts.Log.Warn("cannot stop the gateway", "error", err)
				}
				continue
			}
		case s.childRuns() && time.Since(begun) < s.opts.Times.Start:
			// It has not opened its socket yet.
			if !s.pause(ctx, s.opts.Times.Poll/20) {
				return
			}
			continue
		default:
			if failures > 0 && unstarted == nil || s.Condition().True() {
				s.lost(err)
			}
			if failures++; failures > 1 && !s.pause(ctx, min(s.opts.Times.Retry<<min(failures-2, 20), s.opts.Times.RetryMost)) {
				return
			}
			begun = time.Now()
			if unstarted = s.start(); unstarted != nil {
				s.lost(unstarted)
			}
			continue
		}
		if !s.pause(ctx, s.opts.Times.Poll) {
			return
		}
	}
}

func (s *Supervisor) ask(ctx context.Context) (atelier.GatewayStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return s.client.Status(ctx)
}

// pause waits, shorter where the child ends meanwhile.
func (s *Supervisor) pause(ctx context.Context, d time.Duration) bool {
	s.mu.Lock()
	child := s.child
	s.mu.Unlock()
	select {
	case <-child: // never where it is nil
		s.mu.Lock()
		s.child = nil
		s.mu.Unlock()
		return ctx.Err() == nil
	default:
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-child:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
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

// found notes what the gateway says of itself.
func (s *Supervisor) found(status atelier.GatewayStatus) {
	s.mu.Lock()
	anew := s.status.PID != status.PID || s.status.Started != status.Started
	moved := s.status.Listen != status.Listen
	s.status = status
	compared := s.compared(&status, time.Now())
	s.mu.Unlock()
	if compared {
		s.opts.Changed()
	}
	if anew {
		s.opts.Log.Info("the gateway answers", "pid", status.PID, "listen", status.Listen)
		s.opts.Restarted()
	}
	switch {
	case status.Listen != "" && status.Error == "":
		s.set(true, atelier.Because(atelier.ReasonAsDesired, "the gateway listens on "+status.Listen), moved)
	case status.Listen == "" && status.Error == "": // it has only just started
	case strings.Contains(status.Error, syscall.EADDRINUSE.Error()):
		listen := s.opts.Listen()
		_, port, _ := net.SplitHostPort(listen) // it was checked when it was read
		s.set(false, atelier.Because(atelier.ReasonPortInUse, fmt.Sprintf("The gateway cannot listen on %s: %s.", listen, syscall.EADDRINUSE)).
			WithRemedy(fmt.Sprintf("See which program has it with 'ss -ltnp sport = :%s' and stop that, or change gateway.listen in %s.", port, s.opts.Config)), moved)
	default:
		s.set(false, atelier.Because(atelier.ReasonGatewayDown, status.Error), moved)
	}
}

// lost notes that there is no gateway.
func (s *Supervisor) lost(err error) {
	s.mu.Lock()
	s.status = atelier.GatewayStatus{}
	s.mu.Unlock()
	if last := lastLine(filepath.Join(s.opts.State, logFile)); last != "" {
		err = fmt.Errorf("%w; the last line of its log: %s", err, last)
	}
	s.set(false, atelier.BecauseOf(atelier.ReasonGatewayDown, err), false)
}

// set changes the condition, and tells of it.
func (s *Supervisor) set(good bool, why atelier.Why, moved bool) {
	s.mu.Lock()
	same := s.condition.True() == good && s.condition.Why() == why
	next := atelier.Fails(atelier.ConditionGateway, why)
	if good {
		next = atelier.Holds(atelier.ConditionGateway, why)
	}
	s.condition = next.Following(s.condition, time.Now())
	s.mu.Unlock()
	if !same || moved {
		if !good && !same {
			s.opts.Log.Warn("the gateway does not serve", "why", why)
		}
		s.opts.Changed()
	}
}

// misplaced reports whether the gateway with pid was started for another address
// than the one that it should have now.
func (s *Supervisor) misplaced(pid int) bool {
	b, err := os.ReadFile(filepath.Join(s.opts.State, launchFile))
	if err != nil {
		return false // somebody else started it: leave it alone
	}
	var l launch
	return json.Unmarshal(b, &l) == nil && l.PID == pid && l.Listen != s.opts.Listen()
}

// start starts the gateway in a session of its own.
func (s *Supervisor) start() error {
	failed := func(err error) error {
		return atelier.Errorf(atelier.Internal, "cannot start the gateway: %w", err).
			WithRemedy("Check that atelier-gateway is installed beside atelier-agent.")
	}
	for _, dir := range []string{s.opts.State, s.opts.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return failed(err)
		}
	}
	log, err := openLog(filepath.Join(s.opts.State, logFile))
	if err != nil {
		return failed(err)
	}
	defer func() { _ = log.Close() }() // the child has its own
	listen := s.opts.Listen()
	cmd := exec.Command(s.opts.Program, "--state", s.opts.State, "--listen", listen, "--control", Socket(s.opts.Run))
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return failed(err)
	}
	ended := make(chan struct{})
	go func() { // ends with the gateway; a gateway that outlives the agent is init's
		_ = cmd.Wait() // how it ended is in its log
		close(ended)
	}()
	s.mu.Lock()
	s.child = ended
	s.mu.Unlock()
	b, err := json.Marshal(launch{PID: cmd.Process.Pid, Listen: listen})
	if err == nil {
		err = os.WriteFile(filepath.Join(s.opts.State, launchFile), b, 0o600)
	}
	if err != nil {
		return atelier.Errorf(atelier.Internal, "note how the gateway was started: %w", err)
	}
	return nil
}

// openLog opens the gateway's log for appending.
func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > logLimit {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
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

// Stop ends the gateway, where one answers, and returns when it has ended.
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
		return fmt.Errorf("end the gateway: %w", err)
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
			return fmt.Errorf("the gateway has not ended: %w", ctx.Err())
		}
	}
}
