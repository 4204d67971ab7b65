package transfer

import (
	"testing"
	"time"
)

// What an earlier fetch knew of the distance does not outlive the first answer of the
// next one, be it longer.
func TestRoundTripOfAnEarlierFetch(t *testing.T) {
	t.Parallel()
	w := window{frame: 100_000, most: 8 << 20, rate: 12.5e6, trip: 10 * time.Millisecond, steady: true, recall: true}
	w.answered(100 * time.Millisecond)
	if w.trip != 100*time.Millisecond || w.size() != 2_500_000 {
		t.Errorf("the round trip is %v, the window %d", w.trip, w.size())
	}
	w.answered(150 * time.Millisecond) // one of the same fetch that waited
	w.answered(90 * time.Millisecond)
	if w.trip != 90*time.Millisecond {
		t.Errorf("the round trip is %v", w.trip)
	}
}

// Wants are few where frames come soon, and leave the line what it needs.
func TestWantsOfSlowLines(t *testing.T) {
	t.Parallel()
	for rate, frames := range map[float64]float64{20e3: 1, 200e3: 1, 500e3: 1.6, 1e6: 4, 12.5e6: 2.5} {
		for _, trip := range []time.Duration{time.Millisecond, 100 * time.Millisecond, 600 * time.Millisecond} {
			w := window{frame: 120_000, most: 8 << 20, rate: rate, trip: trip, steady: true}
			if most := int64(frames * 120_000); w.step() > max(most, w.size()/8) {
				t.Errorf("at %.0f B/s and %v a want is sent for each %d bytes, of %d on their way", rate, trip, w.step(), w.size())
			}
			if left := w.size() - w.step(); left < min(w.size()/2, w.needed()*7/8) {
				t.Errorf("at %.0f B/s and %v only %d bytes are on their way before a want", rate, trip, left)
			}
		}
	}
	fast, slow := window{frame: 120_000, most: 8 << 20, rate: 5e5, trip: 1}, window{frame: 120_000, most: 8 << 20, rate: 2e4, trip: 1}
	if fast.step() <= fast.frame || slow.size() != 2*slow.frame {
		t.Errorf("a want for each %d bytes at 500 kB/s, %d bytes on their way at 20 kB/s", fast.step(), slow.size())
	}
}
