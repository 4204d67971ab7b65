package telemetry

import (
	"cmp"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/otlp"
)

// served names a line of counters. Rollouts of the same version share one.
type served struct {
	Endpoint   string `json:"endpoint"`
	Deployment string `json:"deployment"` // id
	Model      string `json:"model"`
	Version    int    `json:"version"`
}

// totals are what was counted for one line.
type totals struct {
	Requests map[string]uint64 `json:"requests"` // by class: "2xx"
	Buckets  []uint64          `json:"buckets"`
	Seconds  float64           `json:"seconds"`
	inFlight int64
	// Fallbacks and Shadow are of versions that run beside another; see atelier.EndpointCounters.
	Fallbacks uint64                `json:"fallbacks,omitempty"`
	Shadow    *atelier.ShadowReport `json:"shadow,omitempty"` // without samples
}

func (t *totals) add(c *totals) {
	if t.Requests == nil {
		t.Requests = map[string]uint64{}
	}
	for class, n := range c.Requests {
		t.Requests[class] += n
	}
	if len(t.Buckets) < len(c.Buckets) {
		t.Buckets = append(t.Buckets, make([]uint64, len(c.Buckets)-len(t.Buckets))...)
	}
	for i, n := range c.Buckets {
		t.Buckets[i] += n
	}
	t.Seconds += c.Seconds
	t.inFlight += c.inFlight
	t.Fallbacks += c.Fallbacks
	if c.Shadow != nil {
		t.Shadow = sumOf(t.Shadow, c.Shadow)
	}
}

const (
	// maxRetired bounds how many lines of backends that are gone are kept.
	maxRetired = 256
	// toldAfter is in how many rounds a line is told after its last backend has lost its
	// route: often enough that its last value gets through, and no longer. A device that told
	// for ever what it once served would send more with every version.
	toldAfter = 20
)

// endpointCounters turns the gateway's counters, which it keeps for each
// backend and forgets with it, into totals that never fall while one gateway
// runs. The totals count from the gateway's start: a gateway that starts anew
// begins at zero with a later start, as OTLP's cumulative sums do.
//
// What a backend counted before the gateway forgot it is kept in a file, since a
// restarted agent could not know it, and a total that falls counts as a new start.
type endpointCounters struct {
	fs      durable.FS
	path    string
	log     *slog.Logger
	started int64 // Unix milliseconds; of the gateway that the rest is about
	live    map[string]liveBackend
	retired []*retiredLine // the last to lose a backend is the last
	silent  map[served]int // rounds since a line lost its last route, or since the agent started
}

type liveBackend struct {
	served served
	totals totals
}

const retiredFormat = 1

// retiredFile is the form of the file.
type retiredFile struct {
	Started int64          `json:"started"`
	Lines   []*retiredLine `json:"lines"`
}

type retiredLine struct {
	served
	totals
}

func newEndpointCounters(fsys durable.FS, dir string, log *slog.Logger) *endpointCounters {
	c := &endpointCounters{fs: fsys, path: filepath.Join(dir, "retired.json"), log: log}
	c.reset(0)
	var file retiredFile
	b, err := durable.ReadFile(fsys, c.path)
	if err == nil {
		err = durable.Decode(b, c.path, retiredFormat, &file)
	}
	if err != nil {
		if atelier.CodeOf(err) != atelier.NotFound {
			log.Warn("cannot read what earlier backends counted; rates may jump once", "file", c.path, "error", err)
		}
		return c
	}
	c.started = file.Started
	for _, l := range file.Lines {
		if l != nil {
			c.retire(l.served, &l.totals)
		}
	}
	return c
}

func (c *endpointCounters) reset(started int64) {
	c.started = started
	c.live = map[string]liveBackend{}
	c.retired, c.silent = nil, nil
}

// take counts what the gateway says and returns the totals of the lines that are
// to be told: those with a route, and those that lost theirs a short time ago.
func (c *endpointCounters) take(s *atelier.GatewayStatus) map[served]*totals {
	if s.Started != c.started {
		c.reset(s.Started)
	}
	now := make(map[string]liveBackend, len(s.Counters))
	lines := make(map[served]*totals, len(s.Counters))
	routed := make(map[served]bool, len(s.Counters))
	for i := range s.Counters {
		e := &s.Counters[i]
		b := liveBackend{
			served{e.Endpoint, e.Deployment, e.Model, e.Version},
			totals{Requests: e.Requests, Buckets: e.Buckets, Seconds: e.Seconds, inFlight: e.InFlight, Fallbacks: e.Fallbacks, Shadow: e.Shadow},
		}
		now[e.Endpoint+"/"+e.Rollout] = b
		lines[b.served] = &totals{}
		routed[b.served] = routed[b.served] || !e.Departed
	}
	gone := false
	for id, b := range c.live {
		if _, still := now[id]; !still {
			b.totals.inFlight = 0
			c.retire(b.served, &b.totals)
			gone = true
		}
	}
	c.live = now
	if gone {
		c.forget(lines)
		c.save()
	}
	for _, l := range c.retired {
		if lines[l.served] == nil {
			lines[l.served] = &totals{}
		}
		lines[l.served].add(&l.totals)
	}
	for _, b := range now {
		lines[b.served].add(&b.totals)
	}
	silent := map[served]int{}
	for k := range lines {
		if routed[k] {
			continue
		}
		if silent[k] = c.silent[k] + 1; silent[k] > toldAfter {
			delete(lines, k)
		}
	}
	c.silent = silent
	return lines
}

// retire adds to the line of a backend that is gone.
func (c *endpointCounters) retire(k served, t *totals) {
	l := &retiredLine{served: k}
	if i := slices.IndexFunc(c.retired, func(l *retiredLine) bool { return l.served == k }); i >= 0 {
		l = c.retired[i]
		c.retired = slices.Delete(c.retired, i, i+1)
	}
	l.add(t)
	c.retired = append(c.retired, l)
}

// forget keeps the lines within their bound: the first to go are those that lost their
// last backend longest ago. A line that has one again would fall, so it stays.
func (c *endpointCounters) forget(live map[served]*totals) {
	over := len(c.retired) - maxRetired
	c.retired = slices.DeleteFunc(c.retired, func(l *retiredLine) bool {
		if over <= 0 || live[l.served] != nil {
			return false
		}
		over--
		return true
	})
}

func (c *endpointCounters) save() {
	file := retiredFile{Started: c.started, Lines: c.retired}
	b, err := durable.Encode(retiredFormat, file)
	if err == nil {
		err = durable.WriteFile(c.fs, c.path, b, 0o600)
	}
	if err != nil {
		c.log.Warn("cannot keep what a backend counted; rates may jump when the agent restarts", "file", c.path, "error", err)
	}
}

// endpointMetrics makes metrics of the totals. names tells deployments' names by id.
func endpointMetrics(m *metrics, started int64, sums map[served]*totals, names map[string]string) {
	start := uint64(started) * 1e6
	keys := make([]served, 0, len(sums))
	for k := range sums {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b served) int {
		return cmp.Or(cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Deployment, b.Deployment),
			cmp.Compare(a.Model, b.Model), cmp.Compare(a.Version, b.Version))
	})
	var requests, inFlight []otlp.Point
	var latencies []otlp.HistogramPoint
	for _, k := range keys {
		t := sums[k]
		labels := k.labels(names)
		for _, class := range sortedKeys(t.Requests) {
			requests = append(requests, point(float64(t.Requests[class]), append(labels, "code", class)...))
		}
		inFlight = append(inFlight, point(float64(t.inFlight), labels...))
		latencies = appendHistogram(latencies, m.now, start, t.Buckets, t.Seconds, labels)
	}
	trialMetrics(m, start, keys, sums, names)
	m.sum("atelier.endpoint.requests", "{request}", "Requests that the endpoint answered, by class of status.", start, requests...)
	m.gauge("atelier.endpoint.requests.in_flight", "{request}", "Requests that are being answered.", inFlight...)
	m.histogram("atelier.endpoint.latency", "s", "Time that the gateway took to answer.", latencies...)
}

// labels are those of the line's metrics.
func (k served) labels(names map[string]string) []string {
	return []string{"endpoint", k.Endpoint, "deployment", cmp.Or(names[k.Deployment], k.Deployment), "model", k.Model, "version", strconv.Itoa(k.Version)}
}

// appendHistogram appends a point of a histogram, where something was counted.
func appendHistogram(to []otlp.HistogramPoint, now, start uint64, buckets []uint64, seconds float64, labels []string) []otlp.HistogramPoint {
	if len(buckets) != len(atelier.LatencyBounds)+1 {
		return to
	}
	count := uint64(0)
	for _, n := range buckets {
		count += n
	}
	return append(to, otlp.HistogramPoint{
		Attributes: point(0, labels...).Attributes, Start: start, Time: now,
		Count: count, Sum: seconds, Counts: buckets, Bounds: atelier.LatencyBounds,
	})
}

func sortedKeys(m map[string]uint64) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
