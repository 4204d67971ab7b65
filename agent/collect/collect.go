// Package collect takes the records of requests that the modules of a device sample, keeps
// them in bounded spools on disk, and sends them to the hub until it has acknowledged them.
//
// Each deployment has a spool of its own, with its budget of disk and of bandwidth: one
// that is busy takes nothing from another. Values that are masked never come here: the
// modules leave them out. What a module could not hand over, and what a spool gave up
// because it was full, is counted. A kill of the agent loses at most what came within the
// last second.
package collect

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/telemetry"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Module is a module whose requests are to be recorded.
type Module struct {
	Deployment string // id
	Name       string // of the deployment
	Rollout    string
	Socket     string // at which the module hands out records
	Collection atelier.Collection
}

// Options say what to collect and where to keep it.
type Options struct {
	Dir string // the spools' directory
	// Modules returns the modules whose requests are to be recorded.
	Modules func() []Module
	Link    telemetry.Publisher
	Clock   func() wire.Clock // telemetry.ReadClock where nil
	Log     *slog.Logger
}

// Collector collects. Its methods are safe for concurrent use.
type Collector struct {
	opts Options
	wake chan struct{}

	mu        sync.Mutex
	connected bool
	lines     map[string]*line // by deployment
}

// upkeepEvery is how often spools are looked at that may have become empty.
const upkeepEvery = 5 * time.Second

// Open opens the spools that are there; Run makes it collect and send.
func Open(opts Options) (*Collector, error) {
	if opts.Clock == nil {
		opts.Clock = telemetry.ReadClock
	}
	c := &Collector{opts: opts, wake: make(chan struct{}, 1), lines: map[string]*line{}}
	if err := durable.MkdirAll(durable.OS{}, opts.Dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(opts.Dir)
	if err != nil {
		return nil, durable.Explain(err, "read "+opts.Dir)
	}
	for _, e := range entries {
		if !e.IsDir() || !atelier.IsID(e.Name()) {
			continue
		}
		if c.lines[e.Name()], err = c.open(e.Name()); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Wake tells that the modules, or what is to be collected of them, may have changed.
func (c *Collector) Wake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Connected tells that the hub has welcomed the device, and what it has stored of each
// stream of records (wire.Welcome.Data); nil of a hub that takes none.
func (c *Collector) Connected(stored map[string]uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connected = stored != nil
	var errs []error
	for _, l := range c.lines {
		if c.connected {
			errs = append(errs, l.sender.Connected(stored))
		}
	}
	return errors.Join(errs...)
}

// Disconnected tells that the connection is gone.
func (c *Collector) Disconnected() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connected = false
	for _, l := range c.lines {
		l.sender.Disconnected()
	}
}

// Acked tells that the hub has stored everything of a stream through a number. Other
// streams than those of records are ignored.
func (c *Collector) Acked(stream string, through uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, l := range c.lines {
		errs = append(errs, l.sender.Acked(stream, through))
	}
	return errors.Join(errs...)
}

// Stats counts what was collected.
func (c *Collector) Stats() []telemetry.Collected {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []telemetry.Collected
	for _, l := range c.lines {
		if l.name != "" { // otherwise it only sends what is left of a deployment that is gone
			all = append(all, l.stats())
		}
	}
	return all
}

// Run collects and sends until ctx ends, and closes the spools.
func (c *Collector) Run(ctx context.Context) error {
	var group sync.WaitGroup
	ticker := time.NewTicker(upkeepEvery)
	defer ticker.Stop()
	c.mu.Lock()
	for _, l := range c.lines {
		l.start(ctx, &group)
	}
	c.mu.Unlock()
	for ctx.Err() == nil {
		c.reconcile(ctx, &group)
		select {
		case <-ctx.Done():
		case <-c.wake:
		case <-ticker.C:
		}
	}
	group.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, l := range c.lines {
		errs = append(errs, l.spool.Close())
	}
	return errors.Join(errs...)
}

// reconcile makes the lines those of the modules. What is left of a deployment that is
// gone is sent before its spool is removed.
func (c *Collector) reconcile(ctx context.Context, group *sync.WaitGroup) {
	modules := c.opts.Modules()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range modules {
		m := &modules[i]
		if c.lines[m.Deployment] != nil || !atelier.IsID(m.Deployment) {
			continue
		}
		l, err := c.open(m.Deployment)
		if err != nil {
			c.opts.Log.Error("no data can be collected", "deployment", m.Name, "error", err)
			continue // tried again with the next look
		}
		c.lines[m.Deployment] = l
		l.start(ctx, group)
		if c.connected {
			_ = l.sender.Connected(nil) // of no stream is anything known
		}
	}
	for deployment, l := range c.lines {
		mine := slices.DeleteFunc(slices.Clone(modules), func(m Module) bool { return m.Deployment != deployment })
		l.follow(mine)
		if len(mine) == 0 && l.empty() {
			l.stop()
			if err := l.remove(); err != nil {
				c.opts.Log.Warn("a spool cannot be removed", "error", err)
			}
			delete(c.lines, deployment)
		}
	}
}

func (c *Collector) open(deployment string) (*line, error) {
	dir := filepath.Join(c.opts.Dir, deployment)
	spool, err := telemetry.OpenSpool(durable.OS{}, dir, atelier.DefaultCollectionDisk)
	if err != nil {
		return nil, err
	}
	l := &line{
		dir: dir, spool: spool, clock: c.opts.Clock, log: c.opts.Log, sources: map[string]*source{}, batches: map[string][]byte{}, counts: map[string]int{},
		bucket: bucket{rate: atelier.DefaultCollectionRate},
	}
	l.sender = telemetry.NewSender(spool, c.opts.Link, c.opts.Clock, c.opts.Log)
	l.sender.Over(wire.Data, func(n int) time.Duration { return l.bucket.take(n, time.Now()) })
	return l, nil
}

// remove removes the spool, which is empty.
func (l *line) remove() error {
	if err := l.spool.Close(); err != nil {
		return err
	}
	if err := os.RemoveAll(l.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return durable.Explain(err, "remove "+l.dir)
	}
	return nil
}
