package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang/snappy"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
	"github.com/atelier-edge/atelier/internal/otlp"
	"github.com/atelier-edge/atelier/internal/wire"
)

// fixture is a Telemetry over a disk in memory with a gateway that the test sets.
type fixture struct {
	*Telemetry
	mu      sync.Mutex
	gateway atelier.GatewayStatus
	err     error
	modules []atelier.ModuleStatus
	hub     *silentHub
}

func newFixture(t *testing.T, fs durable.FS, interval time.Duration) *fixture {
	t.Helper()
	f := &fixture{hub: &silentHub{}}
	tel, err := Open(Options{
		Dir: spoolDir, Budget: 1 << 20, Interval: interval, StateDir: t.TempDir(), FS: fs, Link: f.hub, Log: slog.New(slog.DiscardHandler),
		Gateway: func(context.Context) (atelier.GatewayStatus, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.gateway, f.err
		},
		Modules: func() []atelier.ModuleStatus { return f.modules },
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Telemetry = tel
	return f
}

// measure takes one round and returns its metrics by name.
func (f *fixture) measure(t *testing.T) map[string]otlp.Metric {
	t.Helper()
	if err := f.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	list := contents(t, f.spool)
	return decode(t, list[len(list)-1].Batch)
}

func decode(t *testing.T, b Batch) map[string]otlp.Metric {
	t.Helper()
	plain, err := snappy.Decode(nil, b.Payload)
	if err != nil {
		t.Fatal(err)
	}
	r, err := otlp.Decode(plain)
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]otlp.Metric{}
	points := 0
	for _, m := range r.Resources[0].Metrics {
		byName[m.Name] = m
		points += len(m.Points) + len(m.Histograms)
	}
	if b.Samples != points {
		t.Errorf("the batch says that it holds %d measurements and holds %d", b.Samples, points)
	}
	return byName
}

// with returns the point that has the attributes, NaN for none.
func with(m otlp.Metric, attributes ...string) float64 {
points:
	for _, p := range m.Points {
		for i := 0; i < len(attributes); i += 2 {
			if attribute(p.Attributes, attributes[i]) != attributes[i+1] {
				continue points
			}
		}
		return p.Value
	}
	return math.NaN()
}

func attribute(list []otlp.Attribute, key string) string {
	for _, a := range list {
		if a.Key == key {
			return a.Value
		}
	}
	return ""
}

// Every metric that is sent stands in docs/telemetry.md, so that people can find out what it means.
func TestEveryMetricIsDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/telemetry.md")
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, durabletest.NewDisk(), time.Minute)
	f.gateway = gatewayStatus(1000, backend("r1", 1, 10))
	f.modules = []atelier.ModuleStatus{{Deployment: "d", Name: "digits", Current: &atelier.SlotStatus{Model: "digits", Version: 1, Standing: atelier.Stand(atelier.Serving, atelier.Because(atelier.ReasonAsDesired, ""))}}}
	var got map[string]otlp.Metric
	waitFor(t, "a round that knows how busy the processors were since the last one", func() bool {
		got = f.measure(t)
		return len(got["system.cpu.utilization"].Points) == 1
	})
	for _, want := range []string{"system.cpu.utilization", "system.cpu.time", "system.memory.usage", "system.filesystem.limit", "process.memory.usage", "atelier.endpoint.latency"} {
		if _, ok := got[want]; !ok {
			t.Errorf("%s is not measured", want)
		}
	}
	for name := range got {
		if !strings.Contains(string(doc), "`"+name+"`") {
			t.Errorf("%s is not documented", name)
		}
	}
	if rss := got["process.memory.usage"].Points[0].Value; rss < 1<<20 || rss > 1<<30 {
		t.Errorf("the agent takes %v bytes", rss)
	}
	if u := got["system.cpu.utilization"].Points[0].Value; u < 0 || u > 1 {
		t.Errorf("utilization is %v", u)
	}
}

func gatewayStatus(started int64, counters ...atelier.EndpointCounters) atelier.GatewayStatus {
	return atelier.GatewayStatus{Started: started, Counters: counters}
}

func backend(rollout string, version int, requests uint64) atelier.EndpointCounters {
	buckets := make([]uint64, len(atelier.LatencyBounds)+1)
	buckets[3] = requests
	return atelier.EndpointCounters{
		Endpoint: "digits", Deployment: "d", Rollout: rollout, Model: "digits", Version: version,
		Requests: map[string]uint64{"2xx": requests}, Buckets: buckets, Seconds: float64(requests) / 1000, InFlight: 1,
	}
}

// The totals never fall while one gateway runs, whatever it forgets, also over a
// restart of the agent; a new gateway begins a new count with a later start.
func TestEndpointTotals(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	f := newFixture(t, disk, time.Minute)
	step := func(status atelier.GatewayStatus, version string, want float64) otlp.Metric {
		t.Helper()
		f.gateway = status
		m := f.measure(t)
		requests := m["atelier.endpoint.requests"]
		if got := with(requests, "endpoint", "digits", "deployment", "digits-prod", "model", "digits", "version", version, "code", "2xx"); got != want {
			t.Errorf("version %s: %v requests, want %v", version, got, want)
		}
		if requests.Kind != otlp.Sum || !requests.Monotonic || requests.Temporality != otlp.Cumulative || requests.Points[0].Start != uint64(status.Started)*1e6 {
			t.Errorf("got %+v", requests)
		}
		for _, h := range m["atelier.endpoint.latency"].Histograms {
			if attribute(h.Attributes, "version") == version && (float64(h.Count) != want || float64(h.Counts[3]) != want || math.Abs(h.Sum-want/1000) > 1e-9) {
				t.Errorf("version %s: latencies %+v, want %v", version, h, want)
			}
		}
		return requests
	}
	f.modules = []atelier.ModuleStatus{{Deployment: "d", Name: "digits-prod"}}
	step(gatewayStatus(1000, backend("r1", 1, 10)), "1", 10)
	step(gatewayStatus(1000, backend("r1", 1, 15), backend("r2", 1, 5)), "1", 20) // a new rollout of the same version
	step(gatewayStatus(1000, backend("r2", 1, 7)), "1", 22)                       // the old one is forgotten
	step(gatewayStatus(1000, backend("r3", 2, 1)), "1", 22)                       // and the next
	step(gatewayStatus(1000, backend("r3", 2, 4)), "2", 4)
	disk.Restart(nil)
	f2 := newFixture(t, disk, time.Minute)
	f2.modules = f.modules
	f = f2
	step(gatewayStatus(1000, backend("r3", 2, 6)), "1", 22)
	step(gatewayStatus(1000, backend("r3", 2, 6)), "2", 6)
	step(gatewayStatus(2000, backend("r3", 2, 3)), "2", 3)
	f.err = errors.New("no gateway")
	m := f.measure(t)
	if _, ok := m["atelier.endpoint.requests"]; ok || with(m["atelier.gateway.up"]) != 0 {
		t.Error("a gateway that does not answer is not told from one without requests")
	}
}

// What a device tells does not grow with the versions that it has served: a line is
// told for a while after its route is gone, whether the gateway still remembers its
// backend or not, and goes on from there when the version comes back.
func TestEndpointsOfThePast(t *testing.T) {
	t.Parallel()
	f := newFixture(t, durabletest.NewDisk(), time.Minute)
	const remembered = 2 * toldAfter // backends, by the gateway
	var counters []atelier.EndpointCounters
	for version := 1; version <= 4*toldAfter; version++ {
		for i := range counters {
			counters[i].Departed, counters[i].InFlight = true, 0
		}
		counters = append(counters, backend(fmt.Sprint("r", version), version, 5))
		counters = counters[max(0, len(counters)-remembered):]
		f.gateway = gatewayStatus(1000, counters...)
		m := f.measure(t)["atelier.endpoint.requests"]
		for v := 1; v <= version; v++ {
			got, want := with(m, "version", fmt.Sprint(v)), 5.0
			if v < version-toldAfter {
				want = math.NaN()
			}
			if got != want && !(math.IsNaN(got) && math.IsNaN(want)) {
				t.Fatalf("with version %d, version %d is told as %v, expected was %v", version, v, got, want)
			}
		}
	}
	f.gateway = gatewayStatus(1000, backend("again", 1, 2))
	if got := with(f.measure(t)["atelier.endpoint.requests"], "version", "1"); got != 7 {
		t.Errorf("version 1 came back with %v requests, expected were 5 and 2 more", got)
	}
}

// The oldest lines are forgotten, and none that has a backend: it would fall.
func TestRetiredLinesAreBounded(t *testing.T) {
	t.Parallel()
	c := newEndpointCounters(durabletest.NewDisk(), spoolDir, slog.New(slog.DiscardHandler))
	take := func(counters ...atelier.EndpointCounters) map[served]*totals {
		s := gatewayStatus(1000, counters...)
		return c.take(&s)
	}
	take(backend("first", 1, 5))
	for version := 2; version <= 2+2*maxRetired; version++ {
		sums := take(backend("second", 1, 1), backend(fmt.Sprint("r", version), version, 1))
		if got := sums[served{"digits", "d", "digits", 1}].Requests["2xx"]; got != 6 {
			t.Fatalf("version 1 fell to %d requests", got)
		}
		if len(c.retired) > maxRetired {
			t.Fatalf("%d lines are kept", len(c.retired))
		}
	}
	if last := c.retired[len(c.retired)-1].Version; last != 1+2*maxRetired {
		t.Errorf("version %d was retired last, expected was %d", last, 1+2*maxRetired)
	}
}

func TestModules(t *testing.T) {
	t.Parallel()
	f := newFixture(t, durabletest.NewDisk(), time.Minute)
	slot := func(version, restarts int, state atelier.ModuleState) *atelier.SlotStatus {
		return &atelier.SlotStatus{Model: "digits", Version: version, Standing: atelier.Stand(state, atelier.Because(atelier.ReasonInProgress, "")), Restarts: restarts}
	}
	f.modules = []atelier.ModuleStatus{
		{Deployment: "d", Name: "a", Current: slot(1, 2, atelier.Serving), Candidate: slot(2, 3, atelier.BackOff)},
		{Deployment: "e", Name: "b", Current: slot(1, 2, atelier.Serving), Candidate: slot(1, 3, atelier.Fetching)},
		{Deployment: "f", Name: "c"},
	}
	m := f.measure(t)
	restarts, states := m["atelier.module.restarts"], m["atelier.module.state"]
	for _, c := range []struct {
		metric     otlp.Metric
		attributes []string
		want       float64
	}{
		{restarts, []string{"deployment", "a", "version", "1"}, 2},
		{restarts, []string{"deployment", "a", "version", "2"}, 3},
		{restarts, []string{"deployment", "b"}, 5},
		{states, []string{"deployment", "a", "slot", "current", "state", "Serving"}, 1},
		{states, []string{"deployment", "a", "slot", "current", "state", "BackOff"}, 0},
		{states, []string{"deployment", "a", "slot", "candidate", "state", "BackOff"}, 1},
	} {
		if got := with(c.metric, c.attributes...); got != c.want {
			t.Errorf("%s %v is %v, want %v", c.metric.Name, c.attributes, got, c.want)
		}
	}
	if len(restarts.Points) != 3 {
		t.Errorf("%d restarts, want 3", len(restarts.Points))
	}
}

// Many measurements go into several batches, each of which fits a packet.
func TestLargeRounds(t *testing.T) {
	t.Parallel()
	f := newFixture(t, durabletest.NewDisk(), time.Minute)
	m := metrics{now: 1}
	for i := range 40 {
		var points []otlp.Point
		for j := range 400 {
			points = append(points, point(float64(i*j)*1.1, "key", strings.Repeat(string(rune('a'+i%26)), 5), "n", string(rune(1000+j))))
		}
		m.gauge("large."+strings.Repeat("x", i), "", "", points...)
	}
	if err := f.spoolBatch(ReadClock(), m.list); err != nil {
		t.Fatal(err)
	}
	points := 0
	list := contents(t, f.spool)
	for _, e := range list {
		for _, m := range decode(t, e.Batch) {
			points += len(m.Points)
		}
	}
	if points != 40*400 || len(list) < 2 {
		t.Errorf("%d points in %d batches", points, len(list))
	}
}

func TestRunMeasuresSendsAndEnds(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	f := newFixture(t, disk, time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	if err := f.Connected(nil); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the first round", func() bool { return len(f.hub.sequences()) == 1 })
	f.SetInterval(time.Millisecond)
	waitFor(t, "three rounds", func() bool { return f.spool.Stats().Pending >= 3 })
	f.SetInterval(time.Hour)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	f.hub.mu.Lock()
	frame := f.hub.frames[0]
	f.hub.mu.Unlock()
	if frame.Taken.BootID != frame.Sent.BootID || frame.Sent.Monotone < frame.Taken.Monotone || frame.Encoding != wire.Snappy {
		t.Errorf("got %+v", frame)
	}
	pending := f.spool.Stats().Pending
	disk.Restart(nil)
	if n := len(contents(t, openTestSpool(t, disk))); n != pending {
		t.Errorf("%d batches after the end, want %d", n, pending)
	}
}
