// Package telemetry stores what devices measure and answers PromQL about it.
//
// It holds one Prometheus TSDB for all workspaces. Each series carries its
// workspace in a hidden label that a query can neither name nor see (query.go),
// so that workspaces are strictly apart.
//
// Ingest promises that a batch which it has acknowledged is on disk, and that
// it has its effect once, however often and in whatever order its frame comes
// (journal.go, checkpoint.go). Everything that a device sends is hostile until
// checked: sizes, labels, numbers of series and times are bounded.
//
// The package knows neither MQTT nor who may query: the handlers' caller
// authorizes.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/compression"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Config says where measurements are kept and what bounds them. A field that
// is zero takes the value named beside it.
type Config struct {
	Dir       string        // the directory, made where it is missing
	Retention time.Duration // how long samples are kept; 30 days
	// Late is how old a sample may be when it comes, which is how long a device
	// may be away and lose nothing; 7 days.
	Late time.Duration

	// Block is how much time of samples a block on disk holds at first; up to half
	// as much again is in memory; 2 hours.
	Block time.Duration

	QueryTimeout time.Duration // of one query, waiting included; 30 seconds
	MaxSamples   int           // that one query may hold in memory; 20 million
	MaxQueries   int           // that run at once; 8

	MaxSeries int // that one device may write to within about two hours; 4000

	Now func() time.Time // time.Now
	// Metrics takes the figures of the store itself; nil for none.
	Metrics prometheus.Registerer
	Log     *slog.Logger // slog.Default()
	FS      durable.FS   // for the journal and the checkpoint; durable.OS{}
}

func (c *Config) defaults() {
	set(&c.Retention, 30*24*time.Hour)
	set(&c.Late, 7*24*time.Hour)
	set(&c.Block, 2*time.Hour)
	set(&c.QueryTimeout, 30*time.Second)
	set(&c.MaxSamples, 20_000_000)
	set(&c.MaxQueries, 8)
	set(&c.MaxSeries, 4000)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.FS == nil {
		c.FS = durable.OS{}
	}
}

func set[T int | time.Duration](v *T, otherwise T) {
	if *v == 0 {
		*v = otherwise
	}
}

// Store holds the measurements of all workspaces. Its methods are safe for concurrent use.
type Store struct {
	cfg      Config
	db       *tsdb.DB
	engine   *promql.Engine
	parser   parser.Parser
	slots    chan struct{} // holds a value for each query that runs
	queries  doorman
	journal  *journal
	synced   walPosition
	metadata metadata

	// gate is held for reading from a frame's way into the journal until the
	// TSDB has it, and for writing while the journal begins a new file: what an
	// older file holds is then in the TSDB.
	gate    sync.RWMutex
	closed  bool       // guarded by gate
	mu      sync.Mutex // guards devices
	devices map[string]*device

	checkpointing sync.Mutex
	stop          context.CancelFunc
	stopped       sync.WaitGroup
	stats         stats
}

// Open opens the store, and brings it to where it had acknowledged frames when
// it ended, however it ended.
func Open(cfg Config) (*Store, error) {
	cfg.defaults()
	s := &Store{
		cfg: cfg, parser: parser.NewParser(parser.Options{}), slots: make(chan struct{}, cfg.MaxQueries),
		devices: map[string]*device{}, metadata: newMetadata(),
	}
	if err := durable.MkdirAll(cfg.FS, cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	// The TSDB makes its directory where there is none, and does not sync its name.
	if err := durable.MkdirAll(durable.OS{}, s.tsdbDir(), 0o700); err != nil {
		return nil, err
	}
	opts := tsdb.DefaultOptions()
	opts.RetentionDuration = cfg.Retention.Milliseconds()
	opts.OutOfOrderTimeWindow = cfg.Late.Milliseconds()
	opts.MinBlockDuration = cfg.Block.Milliseconds()
	opts.MaxBlockDuration = max(opts.MinBlockDuration, cfg.Retention.Milliseconds()/10)
	// A segment is allocated in full while its block is written: half a gigabyte by default.
	opts.MaxBlockChunkSegmentSize = 32 << 20
	opts.WALCompression = compression.Snappy
	db, err := tsdb.Open(s.tsdbDir(), slog.New(warnings{cfg.Log.Handler()}), cfg.Metrics, opts, nil)
	if err != nil {
		return nil, fmt.Errorf("open the telemetry store in %s: %w", cfg.Dir, err)
	}
	s.db = db
	s.engine = promql.NewEngine(promql.EngineOpts{
		Logger: cfg.Log, MaxSamples: cfg.MaxSamples, Timeout: cfg.QueryTimeout,
		NoStepSubqueryIntervalFn: func(int64) int64 { return defaultStep.Milliseconds() },
		EnableAtModifier:         true, EnableNegativeOffset: true, Parser: s.parser,
	})
	if err := s.recover(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.stopped.Go(func() { s.checkpointLoop(ctx) })
	return s, nil
}

func (s *Store) tsdbDir() string { return filepath.Join(s.cfg.Dir, "tsdb") }

// Close ends queries and writes, and closes the store.
func (s *Store) Close() error {
	s.stop()
	s.stopped.Wait()
	s.gate.Lock()
	closed := s.closed
	s.closed = true
	s.gate.Unlock()
	if closed {
		return nil
	}
	s.queries.close()
	err := s.checkpoint()
	return errors.Join(err, s.journal.close(), s.engine.Close(), s.db.Close())
}

// Acked returns the last sequence that is stored of each stream of the device,
// for wire.Welcome.
func (s *Store) Acked(deviceID string) map[string]uint64 {
	s.mu.Lock()
	d := s.devices[deviceID]
	s.mu.Unlock()
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	acked := make(map[string]uint64, len(d.streams))
	for _, st := range d.streams {
		acked[st.ID] = st.Through
	}
	return acked
}

// Forget drops what is known of a device's streams, once it is deleted. Its
// samples stay until their retention ends.
func (s *Store) Forget(deviceID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.devices, deviceID)
}

// Ingest stores one telemetry frame that came from a device of a workspace
// (its id). When it returns without an error, everything of the stream up to the
// Ack's Through is stored durably, and the Ack can be sent. That also holds for
// a frame that came again, and for one that came too early, which is not stored:
// the Ack then tells the device what to send.
//
// What a frame holds that cannot be stored (a time too far ahead, too many
// series) is counted and passed over: it would not get better by being sent again.
// Errors are *atelier.Error: those of wire.DecodeTelemetry, NoSpace, Unavailable.
func (s *Store) Ingest(ctx context.Context, workspace string, dev atelier.Device, frame []byte) (wire.Ack, error) {
	f, err := wire.DecodeTelemetry(frame)
	if err != nil {
		s.stats.damaged.Add(1)
		return wire.Ack{}, err
	}
	d := s.device(dev.ID)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return wire.Ack{}, atelier.Errorf(atelier.Unavailable, "the telemetry frame was not stored: %w", err)
	}
	through, known := d.through(f.Stream)
	if f.Sequence <= through {
		s.stats.repeated.Add(1)
		return wire.Ack{Stream: f.Stream, Through: through}, nil
	}
	if f.Previous > through {
		s.stats.early.Add(1)
		return wire.Ack{Stream: f.Stream, Through: through}, nil
	}
	now := s.cfg.Now().UnixMilli()
	r := record{
		Workspace: workspace, Device: dev.ID, Name: dev.Name, Stream: f.Stream, Sequence: f.Sequence,
		Received: now, Shift: d.clock.shift(f.Taken, f.Sent, now, s.cfg.Late.Milliseconds()), Encoding: f.Encoding, Payload: f.Payload,
	}
	if known { // of a stream that is new here nobody can tell what came before
		r.Lost = f.Sequence - 1 - through
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.closed {
		return wire.Ack{}, atelier.Errorf(atelier.Unavailable, "the telemetry store is closed")
	}
	if err := s.journal.append(ctx, &r); err != nil {
		return wire.Ack{}, err
	}
	if err := s.apply(d, &r); err != nil {
		return wire.Ack{}, err
	}
	return wire.Ack{Stream: f.Stream, Through: f.Sequence}, nil
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

// warnings lets through what the TSDB has to complain of, and not the many
// lines in which it tells how it starts and compacts.
type warnings struct{ slog.Handler }

func (w warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}

func (w warnings) WithAttrs(attrs []slog.Attr) slog.Handler {
	return warnings{w.Handler.WithAttrs(attrs)}
}

func (w warnings) WithGroup(name string) slog.Handler { return warnings{w.Handler.WithGroup(name)} }
