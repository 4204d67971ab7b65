// Package difference makes differences between contents of the hub, one at a time
// and in the background, and keeps them for all devices that can use them.
//
// What it promises: nobody waits for a difference who does not want to. A difference
// is made once for a pair of contents; it has brought the target back, here, before
// anybody is told of it, and whoever sends it reads it through against its digest
// before. One that saves less than a twentieth is dropped, and that is remembered.
// What is kept stays below a limit in bytes, the least recently used goes first, and
// survives restarts and power cuts; nothing of it is ever missed, since all of it can
// be made again.
//
// It knows no device: who may have a target, and who holds a base, is judged by its
// users.
package difference

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/content/delta"
	"github.com/atelier-edge/atelier/internal/content/transfer"
	"github.com/atelier-edge/atelier/internal/durable"
)

// pair names a difference: what it brings, and what whoever gets it must hold. With
// an empty Base it is the target, compressed.
type pair struct {
	Target atelier.Digest `json:"target"`
	Base   atelier.Digest `json:"base,omitempty"`
}

// Options say what a Cache works with. FS, Dir and Contents are required.
type Options struct {
	FS       durable.FS
	Dir      string         // is the Cache's alone
	Contents *content.Store // has targets and bases
	Limit    int64          // bytes that differences take on disk at most; 4 GiB
	Log      *slog.Logger   // nil for none
	Now      func() time.Time
}

// Cache makes and keeps differences. Its methods are safe for concurrent use.
type Cache struct {
	opts  Options
	store *content.Store // has the differences
	wake  chan struct{}
	// encode and decode are those of delta, except in tests that make a difference many
	// times: both are slow.
	encode func(context.Context, io.Writer, delta.File, []delta.File, delta.Options) (delta.Result, error)
	decode func(context.Context, io.Writer, io.Reader, int64, func(atelier.Digest) (io.ReaderAt, int64, error)) error

	mu      sync.Mutex
	entries map[pair]*entry
	jobs    map[pair]*job
	asked   uint64 // jobs ever
	stats   Stats
}

// entry is what is known of a pair.
type entry struct {
	pair
	Difference atelier.Digest `json:"difference,omitempty"` // "" where it is not worth it
	Size       int64          `json:"size_bytes,omitempty"`
	Decoding   time.Duration  `json:"decoding_ns,omitempty"`
	Used       time.Time      `json:"used"`
	passing    bool           // it may work another time: not written down
	again      time.Time      // from when on it is worth another try; zero for never
}

// Stats tell what a Cache did since it was opened, and what it holds.
type Stats struct {
	Made, Useless, Failed uint64 // differences that were made, that would save too little, that could not be made
	Found                 uint64 // times that one was there when it was asked for
	Kept                  int    // differences on disk
	Bytes                 int64  // that they take
}

const (
	indexFile   = "index.json"
	indexFormat = 1
	// maxEntries bounds the index; of those that are not worth it, the oldest go.
	maxEntries = 4096
)

// index is the file that says which difference is of what.
type index struct {
	Entries []*entry `json:"entries"`
}

// Open opens the cache in o.Dir. What cannot be read there is dropped: it can be
// made again.
func Open(o Options) (*Cache, error) {
	if o.Limit <= 0 {
		o.Limit = 4 << 30
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	store, err := content.Open(o.FS, o.Dir)
	if err != nil {
		return nil, err
	}
	c := &Cache{opts: o, store: store, wake: make(chan struct{}, 1), encode: delta.Encode, decode: delta.Decode, entries: map[pair]*entry{}, jobs: map[pair]*job{}}
	c.read()
	return c, c.reconcile()
}

func (c *Cache) path() string { return filepath.Join(c.opts.Dir, indexFile) }

func (c *Cache) read() {
	b, err := durable.ReadFile(c.opts.FS, c.path())
	if atelier.CodeOf(err) == atelier.NotFound {
		return
	}
	var x index
	if err == nil {
		err = durable.Decode(b, c.path(), indexFormat, &x)
	}
	if err != nil {
		c.opts.Log.Warn("the list of differences cannot be read; they are made again when they are needed", "error", err)
		return
	}
	for _, e := range x.Entries {
		if e != nil {
			c.entries[e.pair] = e
		}
	}
}

// reconcile drops what the index names and is not there, and what is there and the
// index does not name.
func (c *Cache) reconcile() error {
	sizes := map[atelier.Digest]int64{}
	err := c.store.Walk(func(info content.Info) error {
		sizes[info.Digest] = info.Size
		return nil
	})
	if err != nil {
		return err
	}
	named := map[atelier.Digest]bool{}
	for p, e := range c.entries {
		if size, ok := sizes[e.Difference]; e.Difference != "" && (!ok || size != e.Size) {
			delete(c.entries, p)
		}
		named[e.Difference] = true
	}
	for d := range sizes {
		if !named[d] {
			if err := c.store.Delete(d); err != nil {
				return err
			}
		}
	}
	return nil
}

// save writes the index. c.mu is held.
func (c *Cache) save() error {
	var x index
	for _, e := range c.entries {
		if !e.passing {
			x.Entries = append(x.Entries, e)
		}
	}
	slices.SortFunc(x.Entries, func(a, b *entry) int { return b.Used.Compare(a.Used) })
	b, err := durable.Encode(indexFormat, x)
	if err != nil {
		return err
	}
	return durable.WriteFile(c.opts.FS, c.path(), b, 0o600)
}

// Stats tells what the Cache did and holds.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	for _, e := range c.entries {
		if e.Difference != "" {
			s.Kept++
			s.Bytes += e.Size
		}
	}
	return s
}

// Find returns the difference that brings target to whoever has base, or a channel
// that is closed when it is made or given up, and begins to make it; neither where it
// is not worth it, or too many others are being asked for. With no base it is the
// target, compressed.
func (c *Cache) Find(target, base atelier.Digest) (*transfer.Difference, <-chan struct{}) {
	p := pair{target, base}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.known(p)
	if e == nil {
		return nil, c.ask(p, true)
	}
	e.Used = c.opts.Now()
	if e.Difference == "" {
		return nil, nil
	}
	blob, err := c.store.Open(e.Difference)
	if err != nil {
		c.opts.Log.Warn("a difference cannot be read; it is made again", "target", p.Target, "base", p.Base, "error", err)
		delete(c.entries, p)
		return nil, c.ask(p, true)
	}
	c.stats.Found++
	d := &transfer.Difference{Blob: blob, Digest: e.Difference, Decoding: e.Decoding, Spoiled: func() { c.spoiled(p, e) }}
	if p.Base != "" {
		d.Bases = []atelier.Digest{p.Base}
	}
	return d, nil
}

// Prepare begins to make the difference of target to base, after those that somebody
// waits for.
func (c *Cache) Prepare(target, base atelier.Digest) {
	p := pair{target, base}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known(p) == nil {
		c.ask(p, false)
	}
}

// known returns what is known of a pair, nil where it is worth a try. c.mu is held.
func (c *Cache) known(p pair) *entry {
	e := c.entries[p]
	if e != nil && !e.again.IsZero() && !c.opts.Now().Before(e.again) {
		delete(c.entries, p)
		return nil
	}
	return e
}

// tryAgain is how long a pair rests that could not be made for lack of space, or of one
// of its contents: each device that asks would begin it anew.
const tryAgain = 5 * time.Minute

// spoiled drops a difference whose bytes are not what they were.
func (c *Cache) spoiled(p pair, e *entry) {
	c.opts.Log.Error("a difference on this hub's disk is damaged; it is made again", "why",
		atelier.Because(atelier.ReasonDigestMismatch, "The difference "+string(e.Difference)+" in "+c.opts.Dir+" is not what its digest says."))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries[p] == e {
		c.drop(e)
	}
}

// drop forgets a pair; first in the index, so that it names nothing that is gone.
// What then cannot be deleted goes when the cache is opened again. c.mu is held.
func (c *Cache) drop(e *entry) {
	delete(c.entries, e.pair)
	err := c.save()
	if err == nil && e.Difference != "" && !c.names(e.Difference) {
		err = c.store.Delete(e.Difference)
	}
	if err != nil {
		c.opts.Log.Warn("a difference cannot be removed", "digest", e.Difference, "error", err)
	}
}

// names reports whether another pair has the same difference. c.mu is held.
func (c *Cache) names(d atelier.Digest) bool {
	for _, e := range c.entries {
		if e.Difference == d {
			return true
		}
	}
	return false
}

// note takes in what became of a pair, and makes room. c.mu is held.
func (c *Cache) note(e *entry) error {
	e.Used = c.opts.Now()
	c.entries[e.pair] = e
	var all []*entry
	var bytes int64
	for _, o := range c.entries {
		all = append(all, o)
		bytes += o.Size
	}
	slices.SortFunc(all, func(a, b *entry) int {
		return cmp.Or(a.Used.Compare(b.Used), cmp.Compare(a.Target, b.Target), cmp.Compare(a.Base, b.Base))
	})
	for _, o := range all {
		if bytes <= c.opts.Limit && len(c.entries) <= maxEntries {
			break
		}
		if o != e && (o.Size > 0 || len(c.entries) > maxEntries) {
			bytes -= o.Size
			c.drop(o)
		}
	}
	return c.save()
}

// Run makes differences until ctx ends.
func (c *Cache) Run(ctx context.Context) error {
	worked := false
	for ctx.Err() == nil {
		c.mu.Lock()
		j := c.next()
		if j != nil {
			j.began = c.opts.Now()
		}
		c.mu.Unlock()
		if j == nil {
			if worked {
				debug.FreeOSMemory() // coding takes tens of megabytes, which the runtime would keep for minutes
				worked = false
			}
			select {
			case <-ctx.Done():
			case <-c.wake:
			}
			continue
		}
		e, err := c.build(ctx, j)
		c.finish(ctx, j, e, err)
		worked = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, j := range c.jobs {
		close(j.ready)
	}
	clear(c.jobs)
	return c.save() // when each was used last
}

// finish notes what became of a job and tells those who wait.
func (c *Cache) finish(ctx context.Context, j *job, e *entry, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.jobs, j.pair)
	defer close(j.ready)
	switch {
	case ctx.Err() != nil:
		return
	case err == nil && e.Difference == "":
		c.stats.Useless++
	case err == nil:
		c.stats.Made++
	default:
		c.stats.Failed++
		c.opts.Log.Warn("a difference cannot be made; content is sent as it is", "target", j.pair.Target, "base", j.pair.Base, "error", err)
		e = &entry{pair: j.pair, passing: true}
		if code := atelier.CodeOf(err); code == atelier.NoSpace || code == atelier.NotFound {
			e.again = c.opts.Now().Add(tryAgain)
		}
	}
	if err := c.note(e); err != nil {
		c.opts.Log.Warn("a difference cannot be written down; it is made again after a restart", "error", err)
	}
}
