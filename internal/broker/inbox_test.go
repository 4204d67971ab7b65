package broker

import (
	"context"
	"crypto/x509"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/internal/wire"
)

// scripted is a Handler made of functions.
type scripted struct {
	receive  func(Message)
	presence func(device string, connected bool)
}

func (s scripted) Admit(context.Context, string, *x509.Certificate) error { return nil }
func (s scripted) Receive(_ context.Context, m Message)                   { s.receive(m) }
func (s scripted) Refused(string, string)                                 {}
func (s scripted) Presence(_ context.Context, d string, c bool)           { s.presence(d, c) }

func TestInboxKeepsOrderAndPresence(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var got []string
	done := make(chan struct{})
	say := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, s)
		if s == "2" {
			close(done)
		}
	}
	var count counters
	in := newInbox(scripted{
		receive:  func(m Message) { say(string(m.Payload)) },
		presence: func(_ string, c bool) { say(strconv.FormatBool(c)) },
	}, &count)
	in.message(Message{"d", wire.Control, []byte("1")})
	in.presence("d", true)
	in.presence("d", false)
	in.presence("d", true) // takes the place of both
	in.message(Message{"d", wire.Control, []byte("2")})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { in.run(ctx); close(ended) }()
	<-done
	cancel()
	<-ended
	if len(got) != 3 || got[0] != "1" || got[1] != "true" || got[2] != "2" {
		t.Errorf("handled %v", got)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.queues) != 0 || in.bytes != 0 {
		t.Errorf("%d queues with %d bytes remain", len(in.queues), in.bytes)
	}
}

func TestInboxBounds(t *testing.T) {
	t.Parallel()
	var count counters
	in := newInbox(scripted{}, &count)
	for range queueLength + 10 {
		in.message(Message{"many", wire.Control, []byte("x")})
	}
	if n := count.dropped.Load(); n != 10 {
		t.Errorf("%d of 10 messages too many were dropped", n)
	}
	big := make([]byte, 1<<20)
	for range 20 {
		in.message(Message{"large", wire.Content, big})
	}
	if q := in.queues[queueKey{"large", wire.Content}]; q.bytes > queueBytes {
		t.Errorf("a queue holds %d bytes", q.bytes)
	}
	for i := range 200 {
		in.message(Message{strconv.Itoa(i), wire.Content, big})
	}
	if in.bytes > inboxBytes {
		t.Errorf("all queues hold %d bytes", in.bytes)
	}
	if len(in.queues) > 2+inboxBytes>>20 {
		t.Errorf("%d queues remain, some of them without a message", len(in.queues))
	}
}

// A queue's worker may be slow; others take the rest.
func TestInboxTurns(t *testing.T) {
	t.Parallel()
	var count counters
	release, quick := make(chan struct{}), make(chan struct{})
	in := newInbox(scripted{receive: func(m Message) {
		if m.Device == "slow" {
			<-release
			return
		}
		close(quick)
	}}, &count)
	for range queueLength {
		in.message(Message{"slow", wire.Control, []byte("x")})
	}
	in.message(Message{"quick", wire.Control, []byte("x")})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { in.run(ctx); close(ended) }()
	select {
	case <-quick:
	case <-time.After(10 * time.Second):
		t.Error("a message waits behind another device's")
	}
	close(release)
	cancel()
	<-ended
}
