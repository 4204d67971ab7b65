package telemetry

import (
	"slices"
	"sync"
	"time"

	"github.com/atelier-edge/atelier/internal/wire"
)

// maxStreams bounds how many streams of a device are remembered. A device has
// one at a time, and another after it has lost its spool.
const maxStreams = 4

// device is what the store knows of one device.
type device struct {
	mu      sync.Mutex
	streams []stream // the newest last
	clock   deviceClock
	series  seriesWindow
	lost    uint64 // batches that never came, since the hub started
	refused [reasons]uint64
}

// stream is how far one stream of a device is stored.
type stream struct {
	ID      string `json:"id"`
	Through uint64 `json:"through"`
}

// through returns the last sequence that is stored of a stream, and whether
// anything is.
func (d *device) through(id string) (sequence uint64, known bool) {
	for _, st := range d.streams {
		if st.ID == id {
			return st.Through, true
		}
	}
	return 0, false
}

func (d *device) stored(id string, sequence uint64) {
	i := slices.IndexFunc(d.streams, func(st stream) bool { return st.ID == id })
	if i >= 0 {
		d.streams = slices.Delete(d.streams, i, i+1)
	} else if len(d.streams) == maxStreams {
		d.streams = slices.Delete(d.streams, 0, 1)
	}
	d.streams = append(d.streams, stream{id, sequence})
}

// deviceClock maps a device's times to the hub's.
type deviceClock struct {
	boot string
	at   int64 // the hub's time when the device booted, in milliseconds; the smallest estimate
	seen int64 // when it was estimated last
}

const (
	// agree is how far apart two clocks may be, in milliseconds, and still count
	// as telling the same time: a frame takes its time on the way.
	agree = 2000
	// drift is how many milliseconds pass before the estimate of a boot time may
	// have grown by one: clocks of cheap boards are off by up to 100 ppm.
	drift = 10_000
	// ahead is how far in the future a sample may lie after mapping.
	ahead = 10 * time.Minute
)

// shift returns how many milliseconds to add to the times in a frame that came
// at received.
//
// A batch that waited since Taken is corrected by how far the device's wall
// clock was set in the meantime, which its monotonic clock tells. A wall clock that
// is off now is corrected by the hub's: the monotonic clock gives the time when
// the device booted, the frame with the shortest way the best estimate of it.
func (c *deviceClock) shift(taken, sent wire.Clock, received int64) int64 {
	var step int64
	if taken.BootID != "" && taken.BootID == sent.BootID {
		step = (sent.Wall.UnixMilli() - sent.Monotone.Milliseconds()) - (taken.Wall.UnixMilli() - taken.Monotone.Milliseconds())
	}
	hub := received
	if sent.BootID != "" {
		at := received - sent.Monotone.Milliseconds()
		if c.boot == sent.BootID {
			at = min(at, c.at+max(received-c.seen, 0)/drift)
		}
		*c = deviceClock{boot: sent.BootID, at: at, seen: received}
		hub = at + sent.Monotone.Milliseconds()
	}
	total := step + hub - sent.Wall.UnixMilli()
	if -agree <= total && total <= agree {
		return 0
	}
	return total
}

// seriesWindow counts the series that a device wrote to within the last one to
// two hours, which is about as long as the TSDB holds them in memory.
type seriesWindow struct {
	since           int64
	current, before map[uint64]struct{} // hashes of series, in this hour and in the last
	count           int                 // of both together
}

const windowLength = int64(time.Hour / time.Millisecond)

// admit reports whether a series may be written to, with at most limit of them.
func (w *seriesWindow) admit(hash uint64, now int64, limit int) bool {
	if w.current == nil || now-w.since >= windowLength {
		w.before, w.current, w.since = w.current, map[uint64]struct{}{}, now
		w.count = len(w.before)
	}
	if _, known := w.current[hash]; known {
		return true
	}
	if _, known := w.before[hash]; !known {
		if w.count >= limit {
			return false
		}
		w.count++
	}
	w.current[hash] = struct{}{}
	return true
}
