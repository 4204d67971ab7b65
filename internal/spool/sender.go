package spool

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/atelier-edge/atelier/internal/wire"
)

// Publisher is what the sender needs of the link to the hub.
type Publisher interface {
	// Publish sends payload to the hub. A nil error promises nothing about its arrival.
	Publish(ctx context.Context, channel wire.Channel, payload []byte) error
}

// window is how many batches may be on their way without an acknowledgement.
const window = 16

// Patience with the hub: without an acknowledgement for so long, everything
// that is not acknowledged is sent again. It doubles up to the larger.
const (
	minPatience = 5 * time.Second
	maxPatience = time.Minute
)

// Sender sends a spool's batches to the hub, in order and at most window of
// them ahead of the hub's acknowledgements, and again until those come. It
// sends only while Connected.
type Sender struct {
	spool *Spool
	link  Publisher
	clock func() wire.Clock
	log   *slog.Logger
	after func(time.Duration) <-chan time.Time

	channel wire.Channel
	pace    func(bytes int) time.Duration // nil for as fast as the link takes it

	mu        sync.Mutex
	connected bool
	restart   bool // begin again behind the last acknowledgement
	wake      chan struct{}
}

// NewSender returns a Sender; Run makes it send. clock reads the device's clocks.
func NewSender(spool *Spool, link Publisher, clock func() wire.Clock, log *slog.Logger) *Sender {
	return &Sender{spool: spool, link: link, clock: clock, log: log, after: time.After, wake: make(chan struct{}, 1), channel: wire.Telemetry}
}

// Over makes the sender use another channel. Before each frame it asks pace how long to
// wait; 0 is now, and counts the frame as sent. To be called before Run.
func (s *Sender) Over(channel wire.Channel, pace func(bytes int) time.Duration) {
	s.channel, s.pace = channel, pace
}

// Connected tells that the hub has welcomed the device, and what it has stored
// of each of the device's streams (wire.Welcome.Telemetry).
func (s *Sender) Connected(stored map[string]uint64) error {
	var err error
	for stream, through := range stored {
		if e := s.spool.Acknowledge(stream, through); e != nil {
			err = e
		}
	}
	s.set(true)
	return err
}

// Disconnected tells that the connection is gone.
func (s *Sender) Disconnected() { s.set(false) }

func (s *Sender) set(connected bool) {
	s.mu.Lock()
	s.connected, s.restart = connected, true
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Acked tells that the hub has stored everything of a stream through a number.
func (s *Sender) Acked(stream string, through uint64) error {
	return s.spool.Acknowledge(stream, through)
}

// flight is what one run of the sender has on its way.
type flight struct {
	stream   string
	last     uint64   // the newest that was sent
	pending  []uint64 // sent and not acknowledged, in order
	patience time.Duration
	hold     time.Duration // until the next frame may be sent; 0 where nothing waits for that
}

// Run sends until ctx ends.
func (s *Sender) Run(ctx context.Context) {
	f := flight{patience: minPatience}
	var timeout, held <-chan time.Time
	for {
		s.mu.Lock()
		connected, restart := s.connected, s.restart
		s.restart = false
		s.mu.Unlock()
		if restart {
			f, timeout = flight{patience: minPatience}, nil
		}
		if connected {
			progress, err := s.fill(ctx, &f)
			if err != nil && ctx.Err() == nil {
				s.log.Warn("cannot send what is in the spool, trying again", "wait", f.patience, "error", err)
			}
			if held = nil; f.hold > 0 {
				held = s.after(f.hold)
			}
			switch {
			case err == nil && len(f.pending) == 0:
				timeout = nil
			case progress || timeout == nil:
				timeout = s.after(f.patience)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-held:
		case <-s.spool.Changed():
		case <-timeout:
			f = flight{patience: min(2*f.patience, maxPatience)}
			timeout = nil
		}
	}
}

// fill sends what the window allows. progress tells that an acknowledgement
// came since the last call.
func (s *Sender) fill(ctx context.Context, f *flight) (progress bool, err error) {
	f.hold = 0
	acked := s.spool.acknowledged()
	if f.stream != acked.stream {
		*f = flight{stream: acked.stream, patience: f.patience}
	}
	for len(f.pending) > 0 && f.pending[0] <= acked.through {
		f.pending = f.pending[1:]
		f.patience, progress = minPatience, true
	}
	for len(f.pending) < window {
		e, ok, err := s.spool.Next(f.last)
		if err != nil || !ok {
			return progress, err
		}
		if e.Stream != f.stream {
			return progress, nil // begun anew meanwhile; its Changed comes
		}
		frame := wire.TelemetryFrame{
			Stream: e.Stream, Sequence: e.Sequence, Previous: e.Previous,
			Taken: e.Batch.Taken, Sent: s.clock(), Encoding: e.Batch.Encoding, Payload: e.Batch.Payload,
		}
		b, err := frame.Encode(nil)
		if err != nil {
			return progress, err
		}
		if s.pace != nil {
			if f.hold = s.pace(len(b)); f.hold > 0 {
				return progress, nil
			}
		}
		if err := s.link.Publish(ctx, s.channel, b); err != nil {
			return progress, err
		}
		f.last = e.Sequence
		f.pending = append(f.pending, e.Sequence)
	}
	return progress, nil
}
