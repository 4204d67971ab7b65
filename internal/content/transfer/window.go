package transfer

import "time"

// window decides how many bytes may be on their way. It needs no feedback but the
// arrival of data: enough for the measured rate over the shortest round trip that
// was seen, and 100 ms more for the receiver's and the sender's own delays. Some frames
// may be on their way in any case, where they come within a moment: a want for each
// frame is what hundreds of slow receivers would keep a sender busy with.
type window struct {
	frame int64 // the largest number of bytes in one frame
	most  int64

	rate   float64       // bytes a second
	trip   time.Duration // the shortest round trip, 0 before the first
	recall bool          // trip is that of an earlier fetch, the line may be another now
	stall  time.Duration // the longest silence that something came after all
	steady bool          // the rate has stopped to grow from sample to sample
	since  time.Time     // when the sample began
	amount int64         // bytes of the sample
}

const (
	slack        = 100 * time.Millisecond
	few          = 8    // frames that may be on their way where they come within ample
	opening      = 2    // by how much the window grows with each round trip at first
	growing      = 1.25 // a rate that grows by less from one sample to the next does not
	ample        = 750 * time.Millisecond
	sampleTime   = 10 * time.Millisecond
	shortestWait = 2 * time.Second
	firstWait    = 8 * time.Second // before anything came: the line may be slow
	longestWait  = 30 * time.Second
)

// size returns how many bytes may be on their way. As long as more brings more, that
// is several times what came in the last round trip: the rate then shows what was
// asked for, not what the way between the peers can do.
func (w *window) size() int64 {
	n := w.needed()
	if !w.steady {
		n = max(n, w.within(opening*w.trip))
	}
	n = max(n, min(few*w.frame, w.within(ample)))
	return max(2*w.frame, min(n, w.most))
}

// needed returns how many bytes on their way keep the line busy.
func (w *window) needed() int64 { return w.within(w.trip + slack) }

// within returns how many bytes come within d.
func (w *window) within(d time.Duration) int64 { return int64(w.rate * d.Seconds()) }

// step returns by how much the credit must have fallen behind to be worth a want:
// little, since what is on its way between two wants should stay near size, but for
// what the window has beyond what the line needs.
func (w *window) step() int64 {
	size := w.size()
	return max(w.frame, size/8, min(few/2*w.frame, size/2, size-w.needed()))
}

// patience returns how long nothing new may come before something is taken for
// lost, when that has happened tries times in a row already.
func (w *window) patience(tries int) time.Duration {
	d := max(shortestWait, 4*w.trip, min(2*w.stall, longestWait))
	if w.trip == 0 {
		d = firstWait
	}
	if w.rate > 0 {
		// On a slow line a single frame takes its time.
		if t := 4 * float64(w.frame) / w.rate; t < longestWait.Seconds() {
			d = max(d, time.Duration(t*float64(time.Second)))
		} else {
			d = longestWait
		}
	}
	return min(d<<min(tries, 4), max(longestWait, d))
}

// stalled takes in that after a silence that patience took for a loss what was on its
// way came: the peer, or this machine, is busy with others. Asking again makes it
// busier: what is on its way is then sent twice.
func (w *window) stalled(d time.Duration) { w.stall = max(w.stall, d) }

// answered takes in how long the first data of a round needed.
func (w *window) answered(d time.Duration) {
	if w.trip == 0 || w.recall || d < w.trip {
		w.trip, w.recall = max(d, 1), false
	}
}

// started begins a new sample: nothing was on its way before now.
func (w *window) started(now time.Time) { w.since, w.amount = now, 0 }

// arrived takes in that n bytes came. The rate follows at once when it grows, and
// slowly when it falls.
func (w *window) arrived(n int64, now time.Time) {
	w.amount += n
	took := now.Sub(w.since)
	if took < max(sampleTime, w.trip) {
		return
	}
	sample := float64(w.amount) / took.Seconds()
	w.steady = w.steady || w.trip > 0 && sample < growing*w.rate
	w.rate = max(sample, (7*w.rate+sample)/8)
	w.started(now)
}
