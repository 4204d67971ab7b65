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

// deviceClock maps a device's times to the hub's. It remembers the last boots,
// the newest last: what was measured in one may come in the next.
type deviceClock struct {
	boots []boot
}

// boot is one run of the device's machine.
type boot struct {
	id   string
	at   int64 // the hub's time when it began, in milliseconds; the smallest estimate
	seen int64 // when it was estimated last
}

// maxBoots bounds the boots that are remembered.
const maxBoots = 4

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
// at received. late is how old a sample may be, in milliseconds.
//
// A wall clock that is off now is corrected by the hub's: the monotonic clock
// gives the time when the device booted, the frame with the shortest way the best
// estimate of it. A batch that waited since Taken is corrected by how far the
// wall clock was set in the meantime, which the monotonic clock tells; where the
// device was started anew since, by what is known of that boot. Of a boot that the
// hub never heard of nothing is known: its clock is taken to have been as wrong as
// the present one, or right where only that fits.
func (c *deviceClock) shift(taken, sent wire.Clock, received, late int64) int64 {
	hub := received
	if sent.BootID != "" {
		hub = c.estimate(sent, received) + sent.Monotone.Milliseconds()
	}
	total := hub - sent.Wall.UnixMilli()
	switch {
	case taken.BootID == "" || sent.BootID == "":
	case taken.BootID == sent.BootID:
		total += (sent.Wall.UnixMilli() - sent.Monotone.Milliseconds()) - (taken.Wall.UnixMilli() - taken.Monotone.Milliseconds())
	default:
		wall := taken.Wall.UnixMilli()
		fits := func(at int64) bool { return at <= received+agree && at >= received-late }
		if i := c.find(taken.BootID); i >= 0 {
			total = c.boots[i].at + taken.Monotone.Milliseconds() - wall
		} else if !fits(wall+total) && fits(wall) {
			total = 0
		}
	}
	if -agree <= total && total <= agree {
		return 0
	}
	return total
}

// estimate returns when the present boot began, by the hub's time.
func (c *deviceClock) estimate(sent wire.Clock, received int64) int64 {
	b := boot{id: sent.BootID, at: received - sent.Monotone.Milliseconds(), seen: received}
	if i := c.find(b.id); i >= 0 {
		known := c.boots[i]
		b.at = min(b.at, known.at+max(received-known.seen, 0)/drift)
		c.boots = slices.Delete(c.boots, i, i+1)
	} else if len(c.boots) == maxBoots {
		c.boots = slices.Delete(c.boots, 0, 1)
	}
	c.boots = append(c.boots, b)
	return b.at
}

func (c *deviceClock) find(id string) int {
	return slices.IndexFunc(c.boots, func(b boot) bool { return b.id == id })
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
