// Package collect stores the records of requests that devices send, as Parquet files in
// the hub's content store.
//
// Ingest promises that a batch which it has acknowledged is on disk, and that each of its
// records comes to stand in one file once, however often its frame comes. A batch goes into
// a journal first, synced (journal.go). By size or time the journal becomes files
// (block.go): their content is committed to the content store, and one transaction then
// writes their rows and how far the devices' streams are in them. A file is visible when
// it is whole.
//
// What devices send is hostile until checked. Of a batch only its rollout is believed, and
// only where the device is selected by a deployment of its workspace that collects; model,
// version and digest come from the rollout's row. Values must be those of the model.
// The package knows no MQTT; its callers authorize.
package collect

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang/snappy"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/collect"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Config says what a Store works with. Fields are required unless a default stands beside them.
type Config struct {
	Store   store.Store
	Content *content.Store
	Dir     string        // of the journal
	Block   time.Duration // how long records may wait for others before they become a file; 15 minutes
	Bytes   int64         // of decoded batches that become files at once at most; 16 MiB
	Keep    time.Duration // how long files are kept; 30 days
	Limit   int64         // bytes of files in a workspace, beyond which the oldest go; 10 GiB
	Now     func() time.Time
	Log     *slog.Logger
	FS      durable.FS // of the journal; durable.OS{}
}

// The defaults.
const (
	DefaultBlock = 15 * time.Minute
	DefaultKeep  = 30 * 24 * time.Hour
	DefaultLimit = 10 << 30
	defaultBytes = 16 << 20
)

// Store stores recorded requests. Its methods are safe for concurrent use.
type Store struct {
	cfg     Config
	journal *journal
	full    chan struct{} // the journal holds enough for files

	sealing sync.Mutex // held while the journal becomes files

	mu      sync.Mutex
	devices map[string]*device
	since   time.Time // of the oldest batch that is in no file; zero where there is none
	waiting int64     // decoded bytes that are in no file

	refused, repeated atomic.Uint64
}

// device is how far each of a device's streams is stored.
type device struct {
	mu      sync.Mutex
	streams []catalog.StreamPosition
	buckets map[string]*bucket // by deployment
}

// maxStreams bounds the streams of a device: one for each deployment, and some of
// spools that were lost.
const maxStreams = 128

// maxBatch is the largest decoded batch that is taken; agents send at most 100 KiB.
const maxBatch = 128 << 10

// spareDisk are bytes that data leave free, for the database.
const spareDisk = 64 << 20

// Open opens the store and brings it to where it had acknowledged batches when it ended,
// however it ended.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	set(&cfg.Block, DefaultBlock)
	set(&cfg.Bytes, defaultBytes)
	set(&cfg.Keep, DefaultKeep)
	set(&cfg.Limit, DefaultLimit)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.FS == nil {
		cfg.FS = durable.OS{}
	}
	s := &Store{cfg: cfg, full: make(chan struct{}, 1), devices: map[string]*device{}}
	err := cfg.Store.View(ctx, func(tx store.Tx) error {
		return catalog.Workspaces.Each(tx, store.Query{}, func(w atelier.Workspace) error {
			return catalog.DataStreams.Each(tx, store.Query{Workspace: w.ID}, func(d catalog.DataStream) error {
				s.devices[d.ID] = &device{streams: d.Streams}
				return nil
			})
		})
	})
	if err != nil {
		return nil, err
	}
	s.journal, err = openJournal(cfg.FS, cfg.Dir, func(r *record, size int64) {
		d := s.device(r.Device)
		if r.Sequence > through(d.streams, r.Stream) {
			d.streams = advance(d.streams, r.Stream, r.Sequence)
			s.await(size)
		}
	})
	return s, err
}

func set[T int64 | time.Duration](v *T, otherwise T) {
	if *v == 0 {
		*v = otherwise
	}
}

// Close closes the journal. What is in no file yet becomes one after the next Open.
func (s *Store) Close() error { return s.journal.close() }

// Acked returns the last sequence that is stored of each stream of the device, never nil.
func (s *Store) Acked(deviceID string) map[string]uint64 {
	d := s.device(deviceID)
	d.mu.Lock()
	defer d.mu.Unlock()
	acked := make(map[string]uint64, len(d.streams))
	for _, p := range d.streams {
		acked[p.ID] = p.Through
	}
	return acked
}

// Forget drops what is known of a device's streams, once it is deleted. Its records stay.
func (s *Store) Forget(deviceID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.devices, deviceID)
}

func (s *Store) device(id string) *device {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.devices[id]
	if d == nil {
		d = &device{}
		s.devices[id] = d
	}
	return d
}

// Ingest stores one frame that came from a device of a workspace (its id). When it returns
// without an error, everything of the stream up to the Ack's Through is stored durably or
// refused for good. That also holds for a frame that came again, and for one that came too
// early, which is not stored: the Ack then tells the device what to send.
//
// Batches that the device may not send, and those that cannot be read, are counted and
// passed over: they would not get better by being sent again. Errors are *atelier.Error:
// those of wire.DecodeTelemetry; Exhausted where the device sends faster than it may;
// NoSpace, Unavailable.
func (s *Store) Ingest(ctx context.Context, workspace string, dev atelier.Device, frame []byte) (wire.Ack, error) {
	f, err := wire.DecodeTelemetry(frame)
	if err != nil {
		return wire.Ack{}, err
	}
	d := s.device(dev.ID)
	d.mu.Lock()
	defer d.mu.Unlock()
	stored := through(d.streams, f.Stream)
	if f.Sequence <= stored || f.Previous > stored {
		s.repeated.Add(1)
		return wire.Ack{Stream: f.Stream, Through: stored}, nil
	}
	r := record{
		Workspace: workspace, Device: dev.ID, Name: dev.Name, Stream: f.Stream, Sequence: f.Sequence,
		Received: s.cfg.Now().UnixMilli(), Encoding: f.Encoding, Payload: f.Payload,
	}
	size, err := s.admit(ctx, d, workspace, &dev, &r, len(frame))
	switch atelier.CodeOf(err) {
	case "":
	case atelier.Invalid, atelier.TooLarge, atelier.Unsupported, atelier.NotFound, atelier.Forbidden:
		if n := s.refused.Add(1); n&(n-1) == 0 { // once in a while
			s.cfg.Log.Warn("refused collected records", "device", dev.Name, "error", err, "batches_refused", n)
		}
		r.Payload, r.Encoding = nil, wire.Plain // its number is stored, so that the device goes on
	default:
		return wire.Ack{}, err
	}
	if free, err := s.cfg.Content.Free(); err == nil && free < spareDisk {
		return wire.Ack{}, atelier.Errorf(atelier.NoSpace, "the hub's disk has %s free, and %s stay in reserve; devices keep what they collect",
			atelier.FormatBytes(free), atelier.FormatBytes(spareDisk))
	}
	if err := s.journal.append(ctx, &r); err != nil {
		return wire.Ack{}, err
	}
	d.streams = advance(d.streams, f.Stream, f.Sequence)
	s.await(size)
	return wire.Ack{Stream: f.Stream, Through: f.Sequence}, nil
}

// admit checks that a device may send a batch, as far as that can be told before it is
// written. size is that of the decoded batch.
func (s *Store) admit(ctx context.Context, d *device, workspace string, dev *atelier.Device, r *record, frame int) (size int64, err error) {
	batch, size, err := r.batch()
	if err != nil {
		return 0, err
	}
	var o origin
	err = s.cfg.Store.View(ctx, func(tx store.Tx) (err error) {
		o, err = findOrigin(tx, workspace, batch.Rollout)
		return err
	})
	if err != nil {
		return 0, err
	}
	if o.collect == nil || !o.selector.Match(dev) {
		return 0, atelier.Errorf(atelier.Forbidden, "device %s sends records of deployment %s, which does not collect any on it", dev.Name, o.rollout.DeploymentName)
	}
	if d.buckets == nil {
		d.buckets = map[string]*bucket{}
	}
	b := d.buckets[o.rollout.Deployment]
	if b == nil {
		b = &bucket{}
		d.buckets[o.rollout.Deployment] = b
	}
	if !b.take(int64(frame), o.collect.Rate, s.cfg.Now()) {
		return 0, atelier.Errorf(atelier.Exhausted, "device %s sends records of %s faster than the %s a second that it may", dev.Name, o.rollout.DeploymentName, atelier.FormatBytes(o.collect.Rate))
	}
	return size, nil
}

// bucket bounds what a device sends of a deployment: agents keep the same rate, so that
// only one that does not is bounded here.
type bucket struct {
	level float64
	last  time.Time
}

func (b *bucket) take(n, rate int64, now time.Time) bool {
	const slack = 1.25 // of clocks that do not run alike
	perSecond := float64(rate) * slack
	most := max(4*perSecond, 8*wire.MaxPacket) // and of frames that a broker holds up and brings together
	if b.last.IsZero() {
		b.level = most
	} else {
		b.level = min(most, b.level+perSecond*now.Sub(b.last).Seconds())
	}
	b.last = now
	if float64(n) > b.level {
		return false
	}
	b.level -= float64(n)
	return true
}

// await counts a batch that is in no file yet.
func (s *Store) await(size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.IsZero() {
		s.since = s.cfg.Now()
	}
	if s.waiting += size; s.waiting >= s.cfg.Bytes {
		select {
		case s.full <- struct{}{}:
		default:
		}
	}
}

// batch decodes what a record carries; nothing where it was refused.
func (r *record) batch() (b collect.Batch, size int64, err error) {
	payload := r.Payload
	if r.Encoding == wire.Snappy {
		n, err := snappy.DecodedLen(payload)
		if err != nil || n > maxBatch {
			return b, 0, atelier.Errorf(atelier.Invalid, "a batch of records cannot be decompressed, or has more than %d bytes", maxBatch)
		}
		if payload, err = snappy.Decode(nil, payload); err != nil {
			return b, 0, atelier.Errorf(atelier.Invalid, "a batch of records cannot be decompressed: %w", err)
		}
	}
	b, err = collect.DecodeBatch(payload)
	return b, int64(len(payload)), err
}

// origin is where records come from.
type origin struct {
	rollout  atelier.Rollout
	version  atelier.Version
	collect  *atelier.Collection // nil where the deployment collects nothing, or is gone
	selector atelier.Selector
}

// findOrigin returns what a rollout of the workspace ran; NotFound where there is none.
func findOrigin(tx store.Tx, workspace, rollout string) (o origin, err error) {
	if o.rollout, err = catalog.Rollouts.Get(tx, workspace, rollout); err != nil {
		return o, err
	}
	// A version that is deleted leaves records of which nobody knows the types.
	if o.version, err = catalog.Versions.Get(tx, workspace, o.rollout.VersionID); err != nil {
		return o, err
	}
	d, err := catalog.Deployments.Get(tx, workspace, o.rollout.Deployment)
	if atelier.CodeOf(err) == atelier.NotFound {
		return o, nil
	}
	o.collect, o.selector = d.Collect, d.Selector
	return o, err
}

func through(streams []catalog.StreamPosition, id string) uint64 {
	for _, p := range streams {
		if p.ID == id {
			return p.Through
		}
	}
	return 0
}

// advance returns streams with a newer position of one, which goes to the end.
func advance(streams []catalog.StreamPosition, id string, through uint64) []catalog.StreamPosition {
	next := slices.DeleteFunc(slices.Clone(streams), func(p catalog.StreamPosition) bool { return p.ID == id })
	if len(next) >= maxStreams {
		next = next[1:]
	}
	return append(next, catalog.StreamPosition{ID: id, Through: through})
}

// Run makes files of what came, and removes old ones, until ctx ends.
func (s *Store) Run(ctx context.Context) {
	look := time.NewTicker(min(time.Minute, max(s.cfg.Block/4, 50*time.Millisecond)))
	defer look.Stop()
	var retained time.Time
	for {
		now := s.cfg.Now()
		s.mu.Lock()
		due := !s.since.IsZero() && (now.Sub(s.since) >= s.cfg.Block || s.waiting >= s.cfg.Bytes)
		s.mu.Unlock()
		var errs []error
		if due {
			errs = append(errs, s.Flush(ctx))
		}
		if now.Sub(retained) >= min(time.Hour, s.cfg.Keep/4) || due {
			retained = now
			errs = append(errs, s.retain(ctx))
		}
		if err := errors.Join(errs...); err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("collected records stay in the journal, or old ones stay; it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		case <-s.full:
		}
	}
}
