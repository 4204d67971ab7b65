package spool

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/internal/durable/durabletest"
	"github.com/atelier-edge/atelier/internal/wire"
)

// lossyHub is a hub behind a link that loses, repeats and delays frames and
// acknowledgements. It stores what package hub/telemetry would.
type lossyHub struct {
	t       *testing.T
	mu      sync.Mutex
	rng     *rand.Rand
	sender  *Sender
	lossy   bool
	through map[string]uint64
	stored  []int // the batches, by their number of samples
	early   int
	held    [][]byte
}

func (h *lossyHub) Publish(_ context.Context, c wire.Channel, payload []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c != wire.Telemetry {
		h.t.Errorf("published on %s", c)
	}
	if h.lossy {
		switch h.rng.IntN(10) {
		case 0:
			return errors.New("the link is down")
		case 1:
			return nil // lost
		case 2:
			h.held = append(h.held, payload) // comes later
			return nil
		case 3:
			h.take(payload) // comes twice
		}
	}
	h.take(payload)
	if len(h.held) > 0 && h.rng.IntN(3) == 0 {
		late := h.held[0]
		h.held = h.held[1:]
		h.take(late)
	}
	return nil
}

// take does what the hub's Ingest does.
func (h *lossyHub) take(payload []byte) {
	f, err := wire.DecodeTelemetry(payload)
	if err != nil {
		h.t.Error(err)
		return
	}
	through := h.through[f.Stream]
	switch {
	case f.Sequence <= through:
	case f.Previous > through:
		h.early++
	default:
		through = f.Sequence
		h.through[f.Stream] = through
		h.stored = append(h.stored, int(f.Taken.Wall.UnixMilli()))
	}
	if !h.lossy || h.rng.IntN(5) > 0 {
		if err := h.sender.Acked(f.Stream, through); err != nil {
			h.t.Error(err)
		}
	}
}

func (h *lossyHub) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.stored)
}

// waitFor polls a condition.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen in time", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// quick makes a sender's patience a thousandth of what it is.
func quick(d time.Duration) <-chan time.Time { return time.After(d / 1000) }

func startSender(t *testing.T, s *Spool, link Publisher) *Sender {
	t.Helper()
	sender := NewSender(s, link, func() wire.Clock { return wire.Clock{BootID: "boot", Wall: time.UnixMilli(1)} }, slog.New(slog.DiscardHandler))
	sender.after = quick
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { sender.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return sender
}

func TestEverythingArrivesOnceOverALossyLink(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5) {
		s := openTestSpool(t, durabletest.NewDisk())
		hub := &lossyHub{t: t, rng: rand.New(rand.NewPCG(seed, 1)), lossy: true, through: map[string]uint64{}}
		hub.mu.Lock()
		hub.sender = startSender(t, s, hub)
		hub.mu.Unlock()
		const all = 200
		for n := 1; n <= all; n++ {
			if err := s.Append(testBatch(n, 100)); err != nil {
				t.Fatal(err)
			}
			if n == 50 {
				if err := hub.sender.Connected(nil); err != nil {
					t.Fatal(err)
				}
			}
			if n == 120 { // a cut
				hub.sender.Disconnected()
				if err := hub.sender.Connected(map[string]uint64{s.stream: hub.thrown(s.stream)}); err != nil {
					t.Fatal(err)
				}
			}
		}
		waitFor(t, "every batch stored", func() bool { return hub.count() == all && s.Stats().Pending == 0 })
		for i, n := range hub.stored {
			if n != i+1 {
				t.Fatalf("seed %d: stored %v", seed, hub.stored)
			}
		}
	}
}

func (h *lossyHub) thrown(stream string) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.through[stream]
}

// silentHub takes everything and says nothing.
type silentHub struct {
	mu     sync.Mutex
	frames []wire.TelemetryFrame
}

func (h *silentHub) Publish(_ context.Context, _ wire.Channel, payload []byte) error {
	f, err := wire.DecodeTelemetry(payload)
	h.mu.Lock()
	h.frames = append(h.frames, f)
	h.mu.Unlock()
	return err
}

func (h *silentHub) sequences() (list []uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.frames {
		list = append(list, f.Sequence)
	}
	return list
}

func TestSenderKeepsToItsWindow(t *testing.T) {
	t.Parallel()
	s := openTestSpool(t, durabletest.NewDisk())
	for n := 1; n <= 3*window; n++ {
		if err := s.Append(testBatch(n, 10)); err != nil {
			t.Fatal(err)
		}
	}
	hub := &silentHub{}
	sender := startSender(t, s, hub)
	never := make(chan time.Time)
	sender.after = func(time.Duration) <-chan time.Time { return never }
	if err := sender.Connected(nil); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a full window", func() bool { return len(hub.sequences()) == window })
	if err := sender.Acked(s.stream, 3); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "three more", func() bool { return len(hub.sequences()) == window+3 })
	for i, n := range hub.sequences() {
		if n != uint64(i+1) {
			t.Fatalf("sent %v", hub.sequences())
		}
	}
	// A new connection begins behind what the hub says that it has.
	sender.Disconnected()
	if err := sender.Connected(map[string]uint64{s.stream: 5}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the window again", func() bool { return len(hub.sequences()) == 2*window+3 })
	if got := hub.sequences()[window+3]; got != 6 {
		t.Errorf("began again with %d, want 6", got)
	}
}

func TestNothingIsSentWithoutAConnection(t *testing.T) {
	t.Parallel()
	s := openTestSpool(t, durabletest.NewDisk())
	hub := &silentHub{}
	sender := startSender(t, s, hub)
	if err := sender.Connected(nil); err != nil {
		t.Fatal(err)
	}
	sender.Disconnected()
	if err := s.Append(testBatch(1, 10)); err != nil {
		t.Fatal(err)
	}
	if err := sender.Connected(nil); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the batch", func() bool { return len(hub.sequences()) > 0 })
}
