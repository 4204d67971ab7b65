package collect

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/golang/snappy"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/telemetry"
	"github.com/atelier-edge/atelier/internal/collect"
	"github.com/atelier-edge/atelier/internal/wire"
)

// line brings the records of one deployment from its modules to the hub.
type line struct {
	dir    string
	spool  *telemetry.Spool
	sender *telemetry.Sender
	bucket bucket
	clock  func() wire.Clock
	log    *slog.Logger

	// What follows belongs to the Collector, which holds its mutex.
	name    string             // of the deployment; "" where the device has it no more
	sources map[string]*source // by rollout
	ctx     context.Context
	cancel  context.CancelFunc
	group   sync.WaitGroup

	mu      sync.Mutex
	batches map[string][]byte // by rollout: what is not in the spool yet
	counts  map[string]int    // of records in them
	records uint64
	dropped uint64 // by modules, and what the spool did not take
	warned  time.Time
}

const (
	// flushEvery is how long a record may wait for others before it goes to the disk.
	flushEvery = time.Second
	// batchBytes fits a frame however little it can be compressed.
	batchBytes = 100 << 10
	// warnEvery keeps a full disk from filling the log.
	warnEvery = time.Minute
)

// start lets the line send, and write what comes, until ctx ends or stop is called.
func (l *line) start(ctx context.Context, all *sync.WaitGroup) {
	l.ctx, l.cancel = context.WithCancel(ctx)
	for _, part := range []func(context.Context){l.sender.Run, l.write} {
		l.group.Add(1)
		all.Go(func() {
			defer l.group.Done()
			part(l.ctx)
		})
	}
}

// stop ends what start and follow began, and waits for that.
func (l *line) stop() {
	l.cancel()
	l.group.Wait()
}

// follow makes the sources those of the modules.
func (l *line) follow(modules []Module) {
	l.name = ""
	wanted := map[string]bool{}
	for i := range modules {
		m := &modules[i]
		l.name = m.Name
		l.spool.SetBudget(m.Collection.Disk)
		l.bucket.set(m.Collection.Rate)
		if !m.Collection.On() {
			continue
		}
		wanted[m.Rollout] = true
		s := l.sources[m.Rollout]
		if s == nil {
			s = newSource(l, m)
			l.sources[m.Rollout] = s
			l.group.Add(1)
			go func() {
				defer l.group.Done()
				s.run(l.ctx)
			}()
		}
		s.configure(m.Collection)
	}
	for rollout, s := range l.sources {
		if !wanted[rollout] {
			s.end()
			delete(l.sources, rollout)
		}
	}
}

// write puts what came into the spool, once a second where it is not much.
func (l *line) write(ctx context.Context) {
	ticker := time.NewTicker(flushEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			l.flush()
		case <-ctx.Done():
			l.flush()
			return
		}
	}
}

// add takes an encoded record.
func (l *line) add(rollout string, record []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.batches[rollout]
	if len(b)+len(record)+16 > batchBytes {
		l.put(rollout)
		b = nil
	}
	if len(b) == 0 {
		b = collect.AppendBatch(b, rollout)
	}
	l.batches[rollout] = collect.AppendRecord(b, record)
	l.counts[rollout]++
}

func (l *line) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for rollout := range l.batches {
		l.put(rollout)
	}
}

// put puts a batch into the spool. What it does not take is counted. l.mu is held.
func (l *line) put(rollout string) {
	n := l.counts[rollout]
	payload := snappy.Encode(nil, l.batches[rollout])
	delete(l.batches, rollout)
	delete(l.counts, rollout)
	if n == 0 {
		return
	}
	if err := l.spool.Append(telemetry.Batch{Taken: l.clock(), Encoding: wire.Snappy, Payload: payload, Samples: n}); err != nil {
		if now := time.Now(); now.Sub(l.warned) > warnEvery {
			l.warned = now
			l.log.Warn("collected records cannot be kept", "records", n, "error", err)
		}
		return // the spool has counted them
	}
	l.records += uint64(n)
}

// drop counts records that a module could not hand over.
func (l *line) drop(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropped += n
}

// empty reports whether the hub has all that came.
func (l *line) empty() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.batches) == 0 && l.spool.Stats().Pending == 0
}

func (l *line) stats() telemetry.Collected {
	s := l.spool.Stats()
	l.mu.Lock()
	defer l.mu.Unlock()
	return telemetry.Collected{Deployment: l.name, Records: l.records, Dropped: l.dropped + s.Dropped.Samples, Pending: s.Pending, Bytes: s.Bytes}
}

// bucket is a token bucket of one second, or of one frame where that is more.
type bucket struct {
	mu    sync.Mutex
	rate  float64 // bytes a second
	level float64
	last  time.Time
}

func (b *bucket) set(rate int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rate = float64(max(rate, atelier.MinCollectionRate))
}

// take takes n bytes, or says how long until there are as many.
func (b *bucket) take(n int, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	most := max(b.rate, wire.MaxPacket)
	if b.last.IsZero() {
		b.level = most
	} else {
		b.level = min(most, b.level+b.rate*now.Sub(b.last).Seconds())
	}
	b.last = now
	if missing := float64(n) - b.level; missing > 0 {
		return time.Duration(missing/b.rate*float64(time.Second)) + time.Millisecond
	}
	b.level -= float64(n)
	return 0
}
