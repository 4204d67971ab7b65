// Package messages keeps what modules of devices send into their workspace, and what they
// report of themselves.
//
// Ingest promises that what it has acknowledged is on disk, and that a frame which comes
// again is stored once as long as the hub runs; after a crash of the hub, what it had not
// acknowledged yet may be there twice. Each device has a file store of its own, of a bounded
// size: the oldest go first, there and by age. What has outlived its time to live when it
// comes is not kept.
//
// What devices send is hostile until checked: names and sizes are, and a device that sends
// faster than it may is not acknowledged. The package knows no MQTT; its callers authorize.
package messages

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/spool"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Config says what a Store works with. Fields are required unless a default stands beside them.
type Config struct {
	Store store.Store
	Dir   string
	Keep  time.Duration // how long messages are kept; DefaultKeep
	Limit int64         // bytes of one device, beyond which the oldest go; DefaultLimit
	Now   func() time.Time
	FS    durable.FS // durable.OS{}
	Log   *slog.Logger
}

// The defaults.
const (
	DefaultKeep  = 7 * 24 * time.Hour
	DefaultLimit = 16 << 20
)

const (
	// MinLimit is the least that a device's messages can be bounded to.
	MinLimit   = 1 << 20
	maxOpen    = 256     // devices whose files are held open
	maxStreams = 256     // of a device: one for each way into the workspace, and some of queues that were lost
	rate       = 1 << 20 // bytes a second of one device
	burst      = 16 << 20
	recordHead = 26 + 8
)

// Store keeps messages. Its methods are safe for concurrent use.
type Store struct {
	cfg Config

	mu      sync.Mutex
	devices map[string]*device
	open    int

	refused, expired atomic.Uint64
}

// device is what is known of a device's messages.
type device struct {
	mu      sync.Mutex
	looked  bool         // the files were read once
	spool   *spool.Spool // nil while they are not open
	streams map[string]uint64
	order   []string // of streams, those that were used last at the end
	used    time.Time
	level   float64 // of the bucket that bounds its rate
	last    time.Time
}

// Open returns a store; Run makes it forget what is old.
func Open(cfg Config) (*Store, error) {
	if cfg.Keep == 0 {
		cfg.Keep = DefaultKeep
	}
	if cfg.Limit == 0 {
		cfg.Limit = DefaultLimit
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.FS == nil {
		cfg.FS = durable.OS{}
	}
	return &Store{cfg: cfg, devices: map[string]*device{}}, durable.MkdirAll(cfg.FS, cfg.Dir, 0o700)
}

// Close closes all files.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, d := range s.devices {
		d.mu.Lock()
		if d.spool != nil {
			errs = append(errs, d.spool.Close())
			d.spool = nil
		}
		d.mu.Unlock()
	}
	return errors.Join(errs...)
}

func (s *Store) dir(id string) string { return filepath.Join(s.cfg.Dir, id) }

// device returns what is known of a device, locked.
func (s *Store) device(id string) *device {
	s.mu.Lock()
	d := s.devices[id]
	if d == nil {
		d = &device{streams: map[string]uint64{}}
		s.devices[id] = d
	}
	s.mu.Unlock()
	d.mu.Lock()
	d.used = s.cfg.Now()
	return d
}

// files opens the device's files, which are made where make says so; nil where there are
// none. d is locked.
func (s *Store) files(id string, d *device, make bool) (*spool.Spool, error) {
	if d.spool != nil {
		return d.spool, nil
	}
	if !make {
		if _, err := s.cfg.FS.Stat(s.dir(id)); errors.Is(err, fs.ErrNotExist) {
			d.looked = true
			return nil, nil
		}
	}
	sp, err := spool.OpenVisiting(s.cfg.FS, s.dir(id), s.cfg.Limit, func(_ uint64, b spool.Batch) {
		if stream, sequence, _, ok := split(b.Payload); ok && !d.looked {
			d.advance(stream, sequence)
		}
	})
	if err != nil {
		return nil, err
	}
	d.spool, d.looked = sp, true
	s.mu.Lock()
	s.open++
	many := s.open > maxOpen
	s.mu.Unlock()
	if many {
		s.closeOne(id)
	}
	return sp, nil
}

// closeOne closes the files of the device that was not used for the longest time.
func (s *Store) closeOne(but string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest *device
	for id, d := range s.devices {
		if id == but || !d.mu.TryLock() {
			continue // in use
		}
		if d.spool != nil && (oldest == nil || d.used.Before(oldest.used)) {
			if oldest != nil {
				oldest.mu.Unlock()
			}
			oldest = d
			continue
		}
		d.mu.Unlock()
	}
	if oldest == nil {
		return
	}
	defer oldest.mu.Unlock()
	if err := oldest.spool.Close(); err != nil {
		s.cfg.Log.Warn("messages' files cannot be closed", "error", err)
	}
	oldest.spool = nil
	s.open--
}

// advance notes that a stream is stored through a number.
func (d *device) advance(stream string, through uint64) {
	if through <= d.streams[stream] {
		return
	}
	if _, known := d.streams[stream]; !known {
		d.order = append(d.order, stream)
		if len(d.order) > maxStreams {
			delete(d.streams, d.order[0])
			d.order = d.order[1:]
		}
	}
	d.streams[stream] = through
}

// Acked returns the last sequence that is stored of each stream of the device, never nil.
func (s *Store) Acked(id string) map[string]uint64 {
	d := s.device(id)
	defer d.mu.Unlock()
	if !d.looked {
		if _, err := s.files(id, d, false); err != nil {
			s.cfg.Log.Error("a device's messages cannot be read", "device", id, "error", err)
		}
	}
	acked := make(map[string]uint64, len(d.streams))
	for stream, through := range d.streams {
		acked[stream] = through
	}
	return acked
}

// Forget removes the messages of a device, once it is deleted.
func (s *Store) Forget(id string) {
	if !atelier.IsID(id) {
		return // it becomes a path
	}
	d := s.device(id)
	defer d.mu.Unlock()
	if d.spool != nil {
		_ = d.spool.Close() // its files go
		d.spool = nil
		s.mu.Lock()
		s.open--
		s.mu.Unlock()
	}
	if err := os.RemoveAll(s.dir(id)); err != nil {
		s.cfg.Log.Error("the messages of a deleted device cannot be removed", "device", id, "error", err)
	}
	s.mu.Lock()
	delete(s.devices, id)
	s.mu.Unlock()
}

// Ingest stores one frame that came from a device of a workspace (its id). When it returns
// without an error, everything of the stream up to the Ack's Through is stored durably, or
// refused or outlived for good. Errors are *atelier.Error: those of wire.DecodeTelemetry;
// Exhausted where the device sends faster than it may; NoSpace, Unavailable.
func (s *Store) Ingest(ctx context.Context, workspace string, dev atelier.Device, frame []byte) (wire.Ack, error) {
	f, err := wire.DecodeTelemetry(frame)
	if err != nil {
		return wire.Ack{}, err
	}
	d := s.device(dev.ID)
	defer d.mu.Unlock()
	if !d.looked {
		if _, err := s.files(dev.ID, d, false); err != nil {
			return wire.Ack{}, err
		}
	}
	stored := d.streams[f.Stream]
	if f.Sequence <= stored || f.Previous > stored {
		return wire.Ack{Stream: f.Stream, Through: stored}, nil
	}
	now := s.cfg.Now()
	if !d.take(len(frame), now) {
		return wire.Ack{}, atelier.Errorf(atelier.Exhausted, "device %s sends messages faster than the %s a second that it may", dev.Name, atelier.FormatBytes(rate))
	}
	keep, twins, err := s.sift(&f)
	if err != nil {
		if n := s.refused.Add(1); n&(n-1) == 0 { // once in a while
			s.cfg.Log.Warn("refused messages", "device", dev.Name, "error", err, "batches_refused", n)
		}
	}
	for i := range twins {
		if err := s.reported(ctx, workspace, &dev, &twins[i], now); err != nil {
			return wire.Ack{}, err
		}
	}
	if len(keep) > 0 {
		sp, err := s.files(dev.ID, d, true)
		if err != nil {
			return wire.Ack{}, err
		}
		record := append([]byte(f.Stream), make([]byte, 8)...)
		binary.BigEndian.PutUint64(record[26:], f.Sequence)
		count := 0
		for i := range keep {
			b, err := wire.AppendMessages(record[recordHead:], &keep[i])
			if err != nil || recordHead+len(b) > wire.MaxTelemetryPayload {
				s.refused.Add(1)
				continue
			}
			record = append(record[:recordHead], b...)
			count++
		}
		if err := sp.Append(spool.Batch{Taken: wire.Clock{Wall: now}, Encoding: wire.Plain, Payload: record, Samples: count}); err != nil {
			return wire.Ack{}, err
		}
	}
	d.advance(f.Stream, f.Sequence)
	return wire.Ack{Stream: f.Stream, Through: f.Sequence}, nil
}

// sift returns what of a frame is to be kept, and what modules report.
func (s *Store) sift(f *wire.TelemetryFrame) (keep, twins []wire.ModuleMessage, err error) {
	if f.Encoding != wire.Plain {
		return nil, nil, atelier.Errorf(atelier.Unsupported, "a batch of messages has encoding %d, 0 was expected", f.Encoding)
	}
	all, err := wire.DecodeMessages(f.Payload)
	if err != nil {
		return nil, nil, err
	}
	old := f.Sent.Wall.Sub(f.Taken.Wall)
	if f.Sent.BootID != "" && f.Sent.BootID == f.Taken.BootID {
		old = f.Sent.Monotone - f.Taken.Monotone
	}
	for i := range all {
		switch m := &all[i]; {
		case m.Kind == wire.FromTwin:
			twins = append(twins, *m)
		case m.TTL > 0 && old > time.Duration(m.TTL)*time.Second:
			s.expired.Add(1)
		default:
			keep = append(keep, *m)
		}
	}
	return keep, twins, nil
}

// take bounds what a device sends.
func (d *device) take(n int, now time.Time) bool {
	if d.last.IsZero() {
		d.level = burst
	} else {
		d.level = min(burst, d.level+rate*now.Sub(d.last).Seconds())
	}
	d.last = now
	if float64(n) > d.level {
		return false
	}
	d.level -= float64(n)
	return true
}

// reported notes what a module of a device reports of itself. What comes from a module
// that the device has not, or cannot be read, is passed over.
func (s *Store) reported(ctx context.Context, workspace string, dev *atelier.Device, m *wire.ModuleMessage, now time.Time) error {
	properties, err := atelier.MergePatch(nil, m.Payload)
	if err != nil {
		s.refused.Add(1)
		return nil //nolint:nilerr // it would not get better by being sent again
	}
	return s.cfg.Store.Update(ctx, store.By{Actor: "device:" + dev.Name}, func(tx store.Tx) error {
		d, err := catalog.Deployments.Find(tx, workspace, "", m.Module)
		if atelier.CodeOf(err) == atelier.NotFound || err == nil && !d.Selector.Match(dev) {
			s.refused.Add(1)
			return nil
		}
		if err != nil {
			return err
		}
		t, err := catalog.ReportedTwins.Find(tx, workspace, d.ID, dev.ID)
		fresh := atelier.CodeOf(err) == atelier.NotFound
		if err != nil && !fresh {
			return err
		}
		t.Reported = atelier.ReportedTwin{Version: m.Version, Properties: properties, Time: time.UnixMilli(m.Time).UTC(), Received: now.UTC()}
		if fresh {
			t.Name = dev.ID
			_, err = catalog.ReportedTwins.Insert(tx, workspace, d.ID, t)
		} else {
			_, err = catalog.ReportedTwins.Update(tx, workspace, t)
		}
		return err
	})
}

// Run forgets what is old until ctx ends.
func (s *Store) Run(ctx context.Context) {
	ticker := time.NewTicker(min(time.Hour, max(s.cfg.Keep/4, time.Second)))
	defer ticker.Stop()
	for {
		if err := s.expire(); err != nil {
			s.cfg.Log.Error("old messages stay; it is tried again", "error", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Store) expire() error {
	list, err := s.cfg.FS.ReadDir(s.cfg.Dir)
	if err != nil {
		return durable.Explain(err, "read "+s.cfg.Dir)
	}
	var errs []error
	for _, e := range list {
		if !e.IsDir() || !atelier.IsID(e.Name()) {
			continue
		}
		d := s.device(e.Name())
		sp, err := s.files(e.Name(), d, false)
		if err == nil && sp != nil {
			_, err = sp.Expire(s.cfg.Now().Add(-s.cfg.Keep))
		}
		d.mu.Unlock()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// split reads a record.
func split(record []byte) (stream string, sequence uint64, batch []byte, ok bool) {
	if len(record) <= recordHead {
		return "", 0, nil, false
	}
	return string(record[:26]), binary.BigEndian.Uint64(record[26:]), record[recordHead:], true
}
