package transfer

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pacer lets rate bytes a second pass, and nothing before it opens.
type pacer struct {
	mu     sync.Mutex
	rate   float64
	opens  time.Time
	tokens float64
	filled time.Time
	taken  int64
	asked  int
}

func (p *pacer) pace(_ string, bytes int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	now := time.Now()
	if now.Before(p.opens) {
		return min(p.opens.Sub(now), 5*time.Second)
	}
	p.tokens = min(DefaultMaxFrame, p.tokens+p.rate*now.Sub(p.filled).Seconds())
	p.filled = now
	if p.tokens < float64(bytes) {
		return time.Duration((float64(bytes)-p.tokens)/p.rate*1e9) + 1 // never 0
	}
	p.tokens -= float64(bytes)
	p.taken += int64(bytes)
	return 0
}

// counts returns the bytes that were taken, and how often it was asked.
func (p *pacer) counts() (taken int64, asked int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken, p.asked
}

// TestPacedTransfers: a transfer takes as long as its budget says, sends nothing
// before it may, goes on by itself, and nothing comes twice.
func TestPacedTransfers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rate float64
		wait time.Duration
	}{
		"fast":      {rate: 10e6},
		"slow":      {rate: 50e3},
		"very slow": {rate: 5e3}, // slower than the receiver's patience for a frame
		"later":     {rate: 10e6, wait: 9 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				content := sample(2*smallestChunk+12345, 9)
				p := &pacer{rate: c.rate, opens: time.Now().Add(c.wait), filled: time.Now().Add(c.wait)}
				w := start(t, content)
				w.sopts.Pace = p.pace
				w.startSender()
				began := time.Now()
				if _, err := w.recv.Fetch(t.Context(), fileOf(content), nil, nil); err != nil {
					t.Fatal(err)
				}
				w.check(content, true)
				took, size := time.Since(began)-c.wait, float64(len(content))
				if least := (size - DefaultMaxFrame) / c.rate; took.Seconds() < least || took.Seconds() > 1.1*size/c.rate+6 {
					t.Errorf("%.0f bytes at %.0f a second took %s", size, c.rate, took)
				}
				taken, asked := p.counts()
				if sent := w.down.sent(); float64(sent) > size+DefaultMaxFrame || taken < sent {
					t.Errorf("%d bytes were sent, %d were taken off the budget, the content has %d", sent, taken, len(content))
				}
				if most := 20 + int(c.wait/(4*time.Second)) + 4*int(size/(DefaultMaxFrame-dataHeader)); asked > most {
					t.Errorf("the budget was asked for %d times, at most %d were expected", asked, most)
				}
			})
		})
	}
}

// TestPacedTransferIsDropped: what waits for its budget ends with its transfer.
func TestPacedTransferIsDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		content := sample(1000, 10)
		p := &pacer{rate: 1e6, opens: time.Now().Add(time.Hour)}
		w := start(t, content)
		w.sopts.Pace = p.pace
		w.startSender()
		go func() { _, _ = w.recv.Fetch(t.Context(), fileOf(content), nil, nil) }() // the test's end ends it
		time.Sleep(time.Minute)
		if _, asked := p.counts(); asked == 0 || w.sender.Active() != 1 {
			t.Fatalf("asked %d times, %d transfers", asked, w.sender.Active())
		}
		w.stop()
		_, before := p.counts()
		time.Sleep(2 * time.Hour)
		if _, asked := p.counts(); w.down.sent() > 0 || asked != before {
			t.Errorf("after its end %d bytes were sent, and it was asked %d times more", w.down.sent(), asked-before)
		}
	})
}
