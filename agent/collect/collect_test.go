package collect

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/golang/snappy"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/collect"
	"github.com/atelier-edge/atelier/internal/wire"
)

const (
	deployment = "01jz0000000000000000000d01"
	rollout    = "01jz0000000000000000000r01"
)

// hub takes frames and acknowledges them while it answers.
type hub struct {
	t *testing.T

	mu       sync.Mutex
	c        *Collector
	silent   bool
	through  map[string]uint64
	requests []string
	masked   int
}

func (h *hub) Publish(_ context.Context, ch wire.Channel, payload []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	f, err := wire.DecodeTelemetry(payload)
	if err != nil || ch != wire.Data {
		h.t.Errorf("a frame on %s: %v", ch, err)
		return nil
	}
	if h.silent {
		return nil
	}
	if through := h.through[f.Stream]; f.Sequence > through && f.Previous <= through {
		plain, err := snappy.Decode(nil, f.Payload)
		if err != nil {
			h.t.Error(err)
		}
		batch, err := collect.DecodeBatch(plain)
		if err != nil || batch.Rollout != rollout {
			h.t.Errorf("a batch of %q: %v", batch.Rollout, err)
		}
		for _, encoded := range batch.Records {
			r, err := collect.DecodeRecord(encoded)
			if err != nil {
				h.t.Error(err)
				continue
			}
			h.requests = append(h.requests, r.Request)
			for _, v := range r.Inputs {
				if v.Masked {
					h.masked++
				}
			}
		}
		h.through[f.Stream] = f.Sequence
	}
	c, stream, through := h.c, f.Stream, h.through[f.Stream]
	go func() { // acknowledgements come another way
		if err := c.Acked(stream, through); err != nil {
			h.t.Error(err)
		}
	}()
	return nil
}

func (h *hub) has() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.requests)
}

func (h *hub) answers(yes bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.silent = !yes
}

// device is a module with its agent.
type device struct {
	t       *testing.T
	dir     string
	hub     *hub
	sampler *collect.Sampler
	c       *Collector
	stop    func()

	mu      sync.Mutex
	modules []Module
}

func newDevice(t *testing.T) *device {
	t.Helper()
	d := &device{t: t, dir: filepath.Join(t.TempDir(), "data"), hub: &hub{t: t, through: map[string]uint64{}}}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := collect.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	d.sampler = collect.NewSampler(slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- d.sampler.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		d.sampler.Close(ctx)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	d.modules = []Module{{Deployment: deployment, Name: "digits", Rollout: rollout, Socket: socket, Collection: atelier.Collection{Share: 1}.Complete()}}
	d.start()
	t.Cleanup(func() { d.stop() })
	return d
}

// start starts an agent.
func (d *device) start() {
	d.t.Helper()
	c, err := Open(Options{Dir: d.dir, Link: d.hub, Log: slog.New(slog.DiscardHandler), Modules: func() []Module {
		d.mu.Lock()
		defer d.mu.Unlock()
		return slices.Clone(d.modules)
	}})
	if err != nil {
		d.t.Fatal(err)
	}
	d.hub.mu.Lock()
	d.c, d.hub.c = c, c
	d.hub.mu.Unlock()
	ctx, cancel := context.WithCancel(context.WithoutCancel(d.t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	d.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			d.t.Error(err)
		}
	})
}

// change changes what is collected.
func (d *device) change(fn func([]Module) []Module) {
	d.mu.Lock()
	d.modules = fn(d.modules)
	d.mu.Unlock()
	d.c.Wake()
}

// ask makes a request; it reports whether that is recorded.
func (d *device) ask(id string) bool {
	x := d.sampler.Begin(collect.DialectV2, id)
	x.Input(collect.Tensor{Name: "x", Type: "UINT8", Shape: []int64{1}, Data: []byte{7}})
	x.End(200)
	return x != nil
}

func (d *device) until(what string, is func() bool) {
	d.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.t.Fatalf("%s never came to be", what)
		}
	}
}

func TestRecordsReachTheHubOnce(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.until("sampling", func() bool { return d.ask("first") })
	d.until("a full spool", func() bool { s := d.c.Stats(); return len(s) == 1 && s[0].Pending > 0 })
	if err := d.c.Connected(nil); err != nil { // a hub that takes no records
		t.Fatal(err)
	}
	if got := d.hub.has(); len(got) > 0 {
		t.Errorf("a hub that takes none was sent %v", got)
	}
	// The agent ends, and another one sends what the first one had.
	d.stop()
	d.hub.answers(false)
	d.start()
	if err := d.c.Connected(map[string]uint64{}); err != nil {
		t.Fatal(err)
	}
	d.hub.answers(true)
	// The module may not have noticed yet that the first one is gone, and hand it records.
	again := func() bool { return d.ask("second") }
	d.until("sampling anew", again)
	d.c.Disconnected()
	if err := d.c.Connected(map[string]uint64{}); err != nil {
		t.Fatal(err)
	}
	d.until("both requests at the hub", func() bool {
		again()
		got := d.hub.has()
		return slices.Contains(got, "first") && slices.Contains(got, "second")
	})
	got := d.hub.has()
	slices.Sort(got)
	if len(slices.Compact(got)) != 2 || slices.Contains(d.hub.has()[1:], "first") {
		t.Errorf("the hub has %v", d.hub.has())
	}
}

func TestSettingsChangeWithoutRestart(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	if err := d.c.Connected(map[string]uint64{}); err != nil {
		t.Fatal(err)
	}
	d.until("sampling", func() bool { return d.ask("plain") })
	d.change(func(m []Module) []Module { m[0].Collection.Mask = []string{"inputs.x"}; return m })
	d.until("a masked record", func() bool {
		d.ask("masked")
		d.hub.mu.Lock()
		defer d.hub.mu.Unlock()
		return d.hub.masked > 0
	})
	d.change(func(m []Module) []Module { m[0].Collection.Share = 0; return m })
	d.until("an end of sampling", func() bool { return !d.ask("late") })
	if s := d.c.Stats(); len(s) != 1 || s[0].Records == 0 || s[0].Deployment != "digits" {
		t.Errorf("the counts are %+v", s)
	}
	// Once the hub has everything of a deployment that is gone, so is its spool.
	d.change(func([]Module) []Module { return nil })
	d.until("the end of the spool", func() bool {
		d.c.Wake()
		_, err := os.Stat(filepath.Join(d.dir, deployment))
		return os.IsNotExist(err)
	})
}

// Over any span no more passes than the rate allows, and a burst.
func TestTheRateIsKept(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		rate := int64(1<<10 + rng.IntN(1<<20))
		var b bucket
		b.set(rate)
		now := time.Unix(1000, 0)
		begin := now
		var sent float64
		for range 500 {
			n := 1 + rng.IntN(wire.MaxPacket)
			for wait := b.take(n, now); wait > 0; wait = b.take(n, now) {
				now = now.Add(wait)
			}
			sent += float64(n)
			most := max(float64(rate), wire.MaxPacket) + float64(rate)*now.Sub(begin).Seconds()
			if sent > most+1 {
				t.Fatalf("seed %d: %.0f bytes in %v at %d/s", seed, sent, now.Sub(begin), rate)
			}
		}
		if used := sent / (float64(rate) * now.Sub(begin).Seconds()); used < 0.9 {
			t.Errorf("seed %d: only %.0f%% of the rate was used", seed, 100*used)
		}
	}
}

// A hub that is away for long costs the disk no more than the budget, and what goes for
// that is counted.
func TestTheBudgetIsKept(t *testing.T) {
	t.Parallel()
	c, err := Open(Options{Dir: filepath.Join(t.TempDir(), "data"), Log: slog.New(slog.DiscardHandler), Modules: func() []Module { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.open(deployment)
	if err != nil {
		t.Fatal(err)
	}
	l.name = "digits"
	l.spool.SetBudget(atelier.MinCollectionDisk)
	const all = 300
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range all {
		r := collect.Record{Time: time.Unix(1, 0), Request: fmt.Sprint(i), Inputs: []collect.Value{{Name: "x", Type: "UINT8", Shape: []int64{20 << 10}, Data: make([]byte, 20<<10)}}}
		for j := range r.Inputs[0].Data {
			r.Inputs[0].Data[j] = byte(rng.Uint32())
		}
		l.add(rollout, r.Encode(nil))
	}
	l.flush()
	s := l.stats()
	if s.Bytes > atelier.MinCollectionDisk || s.Dropped == 0 || s.Records != all || s.Pending == 0 {
		t.Errorf("of %d records: %+v", all, s)
	}
	if err := l.spool.Close(); err != nil {
		t.Fatal(err)
	}
}
