package collect

import (
	"context"
	"net"
	"reflect"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/collect"
)

// source asks one module for its records.
type source struct {
	line            *line
	rollout, socket string
	hurry           chan struct{} // the settings changed: try at once
	over            chan struct{}
	once            sync.Once

	mu       sync.Mutex
	settings atelier.Collection
	conn     net.Conn // nil while there is none
}

// Patience with a module.
const (
	dialFirst  = 100 * time.Millisecond // between attempts; doubles
	dialMost   = 5 * time.Second
	tellLimit  = 5 * time.Second // for the module to take settings
	socketKind = "unix"
)

func newSource(l *line, m *Module) *source {
	return &source{line: l, rollout: m.Rollout, socket: m.Socket, settings: m.Collection, hurry: make(chan struct{}, 1), over: make(chan struct{})}
}

// configure tells the module what to record from now on.
func (s *source) configure(c atelier.Collection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if reflect.DeepEqual(s.settings, c) {
		return
	}
	s.settings = c
	if s.conn != nil {
		s.tell()
	}
	select {
	case s.hurry <- struct{}{}:
	default:
	}
}

// tell sends the settings. A module that does not take them is asked anew. s.mu is held.
func (s *source) tell() {
	err := s.conn.SetWriteDeadline(time.Now().Add(tellLimit))
	if err == nil {
		err = collect.NewAgent(s.conn).Configure(s.settings)
	}
	if err != nil {
		_ = s.conn.Close() // reading ends by that
	}
}

// end stops recording.
func (s *source) end() { s.once.Do(func() { close(s.over) }) }

// run takes records until ctx ends or end is called.
func (s *source) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-s.over:
			cancel()
		case <-stop:
		}
	}()
	pause := dialFirst
	for ctx.Err() == nil {
		conn, err := new(net.Dialer).DialContext(ctx, socketKind, s.socket)
		if err == nil {
			pause = dialFirst
			s.take(ctx, conn)
		}
		// The module is being started, or is one of before that hands out nothing.
		select {
		case <-ctx.Done():
		case <-s.hurry:
		case <-time.After(pause):
		}
		pause = min(2*pause, dialMost)
	}
}

// take takes records over a connection until that ends.
func (s *source) take(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // reading ends by that
	defer stop()
	s.mu.Lock()
	s.conn = conn
	s.tell()
	s.mu.Unlock()
	agent := collect.NewAgent(conn)
	for {
		record, dropped, err := agent.Next()
		if err != nil {
			break
		}
		if record != nil {
			s.line.add(s.rollout, record)
		}
		s.line.drop(dropped)
	}
	s.mu.Lock()
	s.conn = nil
	s.mu.Unlock()
	_ = conn.Close() // only read from by now
}
