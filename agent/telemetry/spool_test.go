package telemetry

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/spool"
	"github.com/atelier-edge/atelier/internal/wire"
)

const spoolDir = "/state/spool"

func openTestSpool(t *testing.T, fs durable.FS) *Spool {
	t.Helper()
	s, err := OpenSpool(fs, spoolDir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// contents reads the whole spool.
func contents(t *testing.T, s *Spool) (list []spool.Entry) {
	t.Helper()
	for after := uint64(0); ; {
		e, ok, err := s.Next(after)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return list
		}
		list, after = append(list, e), e.Sequence
	}
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
