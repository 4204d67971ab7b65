package telemetry

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"

	atelier "github.com/atelier-edge/atelier"
)

// stats count over the hub's life.
type stats struct {
	frames, samples, repeated, early, damaged, lost atomic.Uint64
	refused                                         [reasons]atomic.Uint64
}

// Stats tells what came in since the hub started.
type Stats struct {
	Frames   uint64            // stored
	Samples  uint64            // stored
	Repeated uint64            // frames that had been stored before
	Early    uint64            // frames whose predecessor was missing
	Damaged  uint64            // frames that were none
	Lost     uint64            // batches that devices gave up
	Refused  map[string]uint64 // samples, by reason
}

// Stats returns the counters as they are now.
func (s *Store) Stats() Stats {
	st := Stats{
		Frames: s.stats.frames.Load(), Samples: s.stats.samples.Load(), Repeated: s.stats.repeated.Load(),
		Early: s.stats.early.Load(), Damaged: s.stats.damaged.Load(), Lost: s.stats.lost.Load(), Refused: map[string]uint64{},
	}
	for i := range s.stats.refused {
		st.Refused[reasonNames[i]] = s.stats.refused[i].Load()
	}
	return st
}

// apply brings a journalled record into the TSDB and notes that it is stored.
// Applying a record again changes nothing: the same samples have the same times.
// The device is locked.
func (s *Store) apply(d *device, r *record) error {
	c := newConverter(s, d, r)
	if request, err := decodePayload(r.Encoding, r.Payload); err != nil {
		// It came as it was sent (the frame's checksum was right), so it will not
		// get better by being sent again.
		c.refused[refusedMalformed]++
		s.cfg.Log.Warn("device sent telemetry that cannot be read", "device", r.Device, "error", err)
	} else {
		c.request(request)
	}
	app := s.db.Appender(context.Background())
	stored := 0
	for _, sm := range c.sorted() {
		_, err := app.Append(0, sm.series, sm.at, sm.value)
		switch {
		case err == nil:
			stored++
		case errors.Is(err, storage.ErrTooOldSample), errors.Is(err, storage.ErrOutOfBounds), errors.Is(err, storage.ErrOutOfOrderSample):
			c.refused[refusedLate]++
		case errors.Is(err, storage.ErrDuplicateSampleForTimestamp):
			c.refused[refusedDuplicate]++
		default:
			return s.cannotStore(errors.Join(err, app.Rollback()))
		}
	}
	lost, refused := d.lost+r.Lost, d.refused
	for i, n := range c.refused {
		refused[i] += n
	}
	if err := s.account(app, r, lost, refused); err != nil {
		return s.cannotStore(errors.Join(err, app.Rollback()))
	}
	if err := app.Commit(); err != nil {
		return s.cannotStore(err)
	}
	d.stored(r.Stream, r.Sequence)
	d.lost, d.refused = lost, refused
	s.stats.frames.Add(1)
	s.stats.samples.Add(uint64(stored))
	s.stats.lost.Add(r.Lost)
	for i, n := range c.refused {
		s.stats.refused[i].Add(n)
	}
	return nil
}

func (s *Store) cannotStore(err error) error {
	return atelier.Errorf(atelier.Unavailable, "cannot store telemetry: %w", err).
		WithRemedy("Check the disk of the hub; devices keep their measurements meanwhile.")
}

// account adds what the hub itself has to say about a device's telemetry to the
// device's workspace, as counters that begin with the hub.
func (s *Store) account(app storage.Appender, r *record, lost uint64, refused [reasons]uint64) error {
	add := func(name, reason string, v uint64) error {
		if v == 0 {
			return nil
		}
		b := labels.NewBuilder(labels.EmptyLabels())
		b.Set(model.MetricNameLabel, name).Set(workspaceLabel, r.Workspace).Set(deviceLabel, r.Name).Set(deviceIDLabel, r.Device)
		_, err := app.Append(0, b.Set("reason", reason).Labels(), r.Received, float64(v))
		if errors.Is(err, storage.ErrDuplicateSampleForTimestamp) || errors.Is(err, storage.ErrTooOldSample) || errors.Is(err, storage.ErrOutOfBounds) {
			return nil // two frames in one millisecond; the next one tells more
		}
		return err
	}
	err := add("atelier_hub_telemetry_lost_batches_total", "", lost)
	for i, n := range refused {
		err = errors.Join(err, add("atelier_hub_telemetry_refused_samples_total", reasonNames[i], n))
	}
	return err
}
