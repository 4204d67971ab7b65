package telemetry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/telemetry"
	"github.com/atelier-edge/atelier/internal/otlp"
	"github.com/atelier-edge/atelier/internal/wire"
)

const (
	wsA = "01jz0000000000000000000001"
	wsB = "01jz0000000000000000000002"
)

var (
	devA = atelier.Device{Meta: atelier.Meta{ID: "01jz00000000000000000000d1", Name: "press-1"}}
	devB = atelier.Device{Meta: atelier.Meta{ID: "01jz00000000000000000000d2", Name: "press-1"}}
	// start is when the tests' clocks begin.
	start = time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
)

// clock is a clock that a test moves.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func open(t testing.TB, dir string, c *clock, change ...func(*telemetry.Config)) *telemetry.Store {
	t.Helper()
	cfg := telemetry.Config{Dir: dir, Now: c.Now, Log: slog.New(slog.DiscardHandler), Retention: 10 * 365 * 24 * time.Hour}
	for _, f := range change {
		f(&cfg)
	}
	s, err := telemetry.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// frame is a device's frame in the making.
type frame struct {
	wire.TelemetryFrame
}

func newFrame(stream string, sequence uint64, at time.Time, metrics ...otlp.Metric) frame {
	r := otlp.Request{Resources: []otlp.Resource{{Metrics: metrics}}}
	clock := wire.Clock{BootID: "boot", Monotone: at.Sub(start) + time.Hour, Wall: at}
	return frame{wire.TelemetryFrame{
		Stream: stream, Sequence: sequence, Previous: sequence - 1, Taken: clock, Sent: clock,
		Encoding: wire.Snappy, Payload: snappy.Encode(nil, r.Encode(nil)),
	}}
}

func (f frame) bytes(t testing.TB) []byte {
	t.Helper()
	b, err := f.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func gauge(name string, at time.Time, v float64, attributes ...string) otlp.Metric {
	p := otlp.Point{Time: uint64(at.UnixNano()), Value: v}
	for i := 0; i+1 < len(attributes); i += 2 {
		p.Attributes = append(p.Attributes, otlp.Attribute{Key: attributes[i], Value: attributes[i+1]})
	}
	return otlp.Metric{Name: name, Kind: otlp.Gauge, Points: []otlp.Point{p}}
}

func ingest(t testing.TB, s *telemetry.Store, ws string, d atelier.Device, f frame) wire.Ack {
	t.Helper()
	ack, err := s.Ingest(t.Context(), ws, d, f.bytes(t))
	if err != nil {
		t.Fatal(err)
	}
	return ack
}

// get asks a workspace's API and returns status and body.
func get(t testing.TB, s *telemetry.Store, ws, path string, form url.Values) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/v1/"+path+"?"+form.Encode(), nil)
	s.Handler(ws).ServeHTTP(w, r)
	b, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(b)
}

// query returns the data of an instant query.
func query(t *testing.T, s *telemetry.Store, ws, expr string, at time.Time) string {
	t.Helper()
	status, body := get(t, s, ws, "query", url.Values{"query": {expr}, "time": {fmt.Sprint(float64(at.UnixMilli()) / 1000)}})
	if status != http.StatusOK {
		t.Fatalf("%s: %d %s", expr, status, body)
	}
	var answer struct {
		Data struct {
			Result json.RawMessage `json:"result"`
		} `json:"data"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatal(err)
	}
	return string(answer.Data.Result)
}

// value returns the value of an expression with one result, NaN for none.
func value(t *testing.T, s *telemetry.Store, ws, expr string, at time.Time) float64 {
	t.Helper()
	var samples []struct {
		Value [2]any `json:"value"`
	}
	if err := json.Unmarshal([]byte(query(t, s, ws, expr, at)), &samples); err != nil {
		t.Fatal(err)
	}
	switch len(samples) {
	case 0:
		return math.NaN()
	case 1:
		var v float64
		if _, err := fmt.Sscan(samples[0].Value[1].(string), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	t.Fatalf("%s has %d results", expr, len(samples))
	return 0
}

func TestNamesAndLabels(t *testing.T) {
	t.Parallel()
	c := &clock{start}
	s := open(t, t.TempDir(), c)
	at := uint64(start.UnixNano())
	labels := []otlp.Attribute{{Key: "endpoint", Value: "digits"}, {Key: "device", Value: "forged"}, {Key: "cpu.mode", Value: "user"}}
	f := newFrame(atelier.NewID(), 1, start,
		otlp.Metric{Name: "system.memory.usage", Unit: "By", Description: "in use", Points: []otlp.Point{{Time: at, Value: 1, Attributes: labels}}},
		otlp.Metric{Name: "atelier.endpoint.requests", Unit: "{request}", Kind: otlp.Sum, Temporality: otlp.Cumulative, Monotonic: true, Points: []otlp.Point{{Time: at, Value: 2}}},
		otlp.Metric{Name: "atelier.endpoint.latency", Unit: "s", Kind: otlp.Histogram, Temporality: otlp.Cumulative, Histograms: []otlp.HistogramPoint{
			{Time: at, Count: 6, Sum: 1.5, Counts: []uint64{1, 2, 3}, Bounds: []float64{.1, 1}},
		}},
		otlp.Metric{Name: "delta", Kind: otlp.Sum, Temporality: otlp.Delta, Points: []otlp.Point{{Time: at, Value: 2}}},
	)
	if ack := ingest(t, s, wsA, devA, f); ack != (wire.Ack{Stream: f.Stream, Through: 1}) {
		t.Fatalf("got %+v", ack)
	}
	for expr, want := range map[string]string{
		"system_memory_usage_bytes": `[{"metric":{"__name__":"system_memory_usage_bytes","cpu_mode":"user","device":"press-1","device_id":"` + devA.ID +
			`","endpoint":"digits","exported_device":"forged"},"value":[1748779200,"1"]}]`,
		"sum(atelier_endpoint_requests_total)":                                          `[{"metric":{},"value":[1748779200,"2"]}]`,
		`sum by(le) (atelier_endpoint_latency_seconds_bucket{le="1"})`:                  `[{"metric":{"le":"1"},"value":[1748779200,"3"]}]`,
		`sum by(le) (atelier_endpoint_latency_seconds_bucket{le="+Inf"})`:               `[{"metric":{"le":"+Inf"},"value":[1748779200,"6"]}]`,
		`sum(atelier_endpoint_latency_seconds_sum)`:                                     `[{"metric":{},"value":[1748779200,"1.5"]}]`,
		`sum(atelier_hub_telemetry_refused_samples_total{reason="kind"})`:               `[{"metric":{},"value":[1748779200,"1"]}]`,
		`{__name__=~"delta.*"}`:                                                         `[]`,
		`histogram_quantile(0.5, sum by(le) (atelier_endpoint_latency_seconds_bucket))`: `[{"metric":{},"value":[1748779200,"1"]}]`,
	} {
		if got := query(t, s, wsA, expr, start); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", expr, got, want)
		}
	}
	if _, body := get(t, s, wsA, "metadata", url.Values{"metric": {"system_memory_usage_bytes"}}); body != `{"status":"success","data":{"system_memory_usage_bytes":[{"type":"gauge","help":"in use","unit":""}]}}` {
		t.Error(body)
	}
	if _, body := get(t, s, wsB, "metadata", nil); strings.Contains(body, "system") {
		t.Error("another workspace's metrics are described:", body)
	}
}

// Frames come twice, in the wrong order, with holes; each has its effect once.
func TestExactlyOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := &clock{start}
	s := open(t, dir, c)
	stream := atelier.NewID()
	frames := make([]frame, 10)
	for i := range frames {
		at := start.Add(time.Duration(i) * 15 * time.Second)
		frames[i] = newFrame(stream, uint64(i+1), at, gauge("g", at, float64(i)))
	}
	end := start.Add(3 * time.Minute)
	send := func(i int, want uint64) {
		t.Helper()
		c.now = c.now.Add(time.Second)
		if ack := ingest(t, s, wsA, devA, frames[i]); ack.Through != want {
			t.Fatalf("frame %d: acknowledged through %d, want %d", i+1, ack.Through, want)
		}
	}
	send(0, 1)
	send(0, 1)
	send(2, 1) // too early
	send(1, 2)
	send(2, 3)
	send(0, 3)
	frames[5].Previous = 3 // 4 and 5 were dropped
	send(5, 6)
	send(6, 7)
	if got := value(t, s, wsA, "count_over_time(g[1h])", end); got != 5 {
		t.Errorf("%v samples, want 5", got)
	}
	if got := value(t, s, wsA, "atelier_hub_telemetry_lost_batches_total", c.now); got != 2 {
		t.Errorf("%v batches lost, want 2", got)
	}
	if got := s.Acked(devA.ID); len(got) != 1 || got[stream] != 7 {
		t.Errorf("acknowledged %v", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, c)
	if got := s.Acked(devA.ID); len(got) != 1 || got[stream] != 7 {
		t.Errorf("after a restart: acknowledged %v", got)
	}
	send(6, 7)
	send(7, 8)
	if got := value(t, s, wsA, "count_over_time(g[1h])", end); got != 6 {
		t.Errorf("after a restart: %v samples, want 6", got)
	}
	if _, body := get(t, s, wsA, "metadata", nil); !strings.Contains(body, `"g":[`) {
		t.Error("after a restart: metrics are not described any more:", body)
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	day := 24 * time.Hour
	for name, tc := range map[string]struct {
		taken, sent wire.Clock
		sample      time.Duration // by the device's clock, from start
		want        time.Duration // where the sample shall be, from start
		refused     string
	}{
		"a right clock": {
			taken: wire.Clock{BootID: "b", Monotone: time.Hour, Wall: start}, sent: wire.Clock{BootID: "b", Monotone: time.Hour, Wall: start},
		},
		"a sample from three days ago, in an earlier boot": {
			taken: wire.Clock{BootID: "a", Monotone: time.Hour, Wall: start.Add(-3 * day)}, sent: wire.Clock{BootID: "b", Monotone: time.Hour, Wall: start},
			sample: -3 * day, want: -3 * day,
		},
		"a clock that is ten years ahead": {
			taken: wire.Clock{BootID: "b", Monotone: time.Hour, Wall: start.Add(3650 * day)}, sent: wire.Clock{BootID: "b", Monotone: 2 * time.Hour, Wall: start.Add(3650*day + time.Hour)},
			sample: 3650 * day, want: -time.Hour,
		},
		"a clock that was set from 1970 to now after the sample": {
			taken: wire.Clock{BootID: "b", Monotone: time.Minute, Wall: time.Unix(60, 0)}, sent: wire.Clock{BootID: "b", Monotone: 2 * time.Minute, Wall: start},
			sample: time.Unix(60, 0).Sub(start), want: -time.Minute,
		},
		"a sample ten years ahead of the device's own clock": {
			taken: wire.Clock{BootID: "b", Monotone: time.Hour, Wall: start}, sent: wire.Clock{BootID: "b", Monotone: time.Hour, Wall: start},
			sample: 3650 * day, refused: "ahead",
		},
		"a sample older than the window": {
			taken: wire.Clock{BootID: "a", Monotone: time.Hour, Wall: start.Add(-8 * day)}, sent: wire.Clock{BootID: "b", Monotone: time.Hour, Wall: start},
			sample: -8 * day, refused: "late",
		},
		"no boot id and a clock that is off": {
			taken: wire.Clock{Wall: start.Add(-5 * time.Hour)}, sent: wire.Clock{Wall: start.Add(-5 * time.Hour)},
			sample: -5 * time.Hour, want: 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &clock{start}
			s := open(t, t.TempDir(), c)
			// Another device has been there all the time: the TSDB knows the present.
			ingest(t, s, wsA, devB, newFrame(atelier.NewID(), 1, start, gauge("g", start, 1)))
			f := newFrame(atelier.NewID(), 1, start, gauge("odd", start.Add(tc.sample), 7))
			f.Taken, f.Sent = tc.taken, tc.sent
			ingest(t, s, wsA, devA, f)
			got := value(t, s, wsA, "max_over_time(timestamp(odd)[9d:1m])", start.Add(20*time.Minute))
			if tc.refused != "" {
				if !math.IsNaN(got) {
					t.Errorf("the sample is there, at %v", got)
				}
				if n := value(t, s, wsA, `atelier_hub_telemetry_refused_samples_total{reason="`+tc.refused+`"}`, start); n != 1 {
					t.Errorf("refused %v times as %s, want once", n, tc.refused)
				}
			} else if want := float64(start.Add(tc.want).Unix()); got != want {
				t.Errorf("the sample is at %v, want %v (%v off)", got, want, got-want)
			}
			// Whatever it was, the next sample of everybody is taken.
			c.now = start.Add(15 * time.Second)
			ingest(t, s, wsA, devB, newFrame(atelier.NewID(), 1, c.now, gauge("g", c.now, 2)))
			if got := value(t, s, wsA, "g", c.now); got != 2 {
				t.Errorf("the next sample reads %v, want 2", got)
			}
		})
	}
}

// What was measured before a reboot and arrives after it stands where it belongs,
// whatever the clocks said in either boot.
func TestTimesAcrossReboots(t *testing.T) {
	t.Parallel()
	const years = 3650 * 24 * time.Hour
	for name, tc := range map[string]struct {
		before      *wire.Clock // of a frame that came an hour before start
		taken, sent wire.Clock
		want        time.Duration // from start
	}{
		"both begin in 1970": {
			before: &wire.Clock{BootID: "a", Monotone: 10 * time.Minute, Wall: time.Unix(600, 0)},
			taken:  wire.Clock{BootID: "a", Monotone: 40 * time.Minute, Wall: time.Unix(2400, 0)},
			sent:   wire.Clock{BootID: "b", Monotone: 5 * time.Minute, Wall: time.Unix(300, 0)}, want: -30 * time.Minute,
		},
		"ten years ahead, then right": {
			before: &wire.Clock{BootID: "a", Monotone: 10 * time.Minute, Wall: start.Add(years)},
			taken:  wire.Clock{BootID: "a", Monotone: 40 * time.Minute, Wall: start.Add(years + 30*time.Minute)},
			sent:   wire.Clock{BootID: "b", Monotone: 5 * time.Minute, Wall: start}, want: -30 * time.Minute,
		},
		"right and unknown to the hub, then ten years ahead": {
			taken: wire.Clock{BootID: "a", Monotone: time.Hour, Wall: start.Add(-2 * time.Hour)},
			sent:  wire.Clock{BootID: "b", Monotone: 5 * time.Minute, Wall: start.Add(years)}, want: -2 * time.Hour,
		},
		"ten years behind in both, unknown to the hub": {
			taken: wire.Clock{BootID: "a", Monotone: time.Hour, Wall: start.Add(-years - time.Hour)},
			sent:  wire.Clock{BootID: "b", Monotone: 5 * time.Minute, Wall: start.Add(-years)}, want: -time.Hour,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &clock{start.Add(-time.Hour)}
			s := open(t, t.TempDir(), c)
			stream := atelier.NewID()
			first := newFrame(stream, 1, c.now)
			if tc.before != nil {
				first.Taken, first.Sent = *tc.before, *tc.before
			}
			ingest(t, s, wsA, devA, first)
			c.now = start
			f := newFrame(stream, 2, start, gauge("odd", tc.taken.Wall, 7))
			f.Taken, f.Sent = tc.taken, tc.sent
			ingest(t, s, wsA, devA, f)
			got := value(t, s, wsA, "max_over_time(timestamp(odd)[9d:1m])", start.Add(20*time.Minute))
			if want := float64(start.Add(tc.want).Unix()); got != want {
				t.Errorf("the sample is at %v, want %v", got, want)
			}
		})
	}
}

func TestHostileDevices(t *testing.T) {
	t.Parallel()
	c := &clock{start}
	s := open(t, t.TempDir(), c, func(cfg *telemetry.Config) { cfg.MaxSeries = 100 })
	stream, sequence := atelier.NewID(), uint64(0)
	send := func(f func(*frame), metrics ...otlp.Metric) {
		t.Helper()
		sequence++
		fr := newFrame(stream, sequence, start, metrics...)
		if f != nil {
			f(&fr)
		}
		if ack := ingest(t, s, wsA, devA, fr); ack.Through != sequence {
			t.Fatalf("acknowledged through %d, want %d: it would come for ever", ack.Through, sequence)
		}
	}
	refused := func(reason string) float64 {
		t.Helper()
		return float64(s.Stats().Refused[reason])
	}
	var many []otlp.Metric
	for i := range 500 {
		many = append(many, gauge("many", start, 1, "i", fmt.Sprint(i)))
	}
	send(nil, many...)
	if n := value(t, s, wsA, "count(many)", start); n != 100 || refused("series") != 400 {
		t.Errorf("%v series, %v refused; want 100 and 400", n, refused("series"))
	}
	long := strings.Repeat("x", 300)
	var wide []string
	for i := range 30 {
		wide = append(wide, fmt.Sprint("l", i), "v")
	}
	send(nil, gauge("many", start, 1, "i", long), gauge("many", start, 1, long, "i"), gauge(long, start, 1), gauge("", start, 1),
		gauge("many", start, 1, wide...), gauge("many", start, 1, "__workspace__", wsB), gauge("many", start, 1, "__name__", "other"))
	if n := refused("labels"); n < 5 {
		t.Errorf("%v samples refused for their labels", n)
	}
	send(func(f *frame) { f.Payload = []byte("no snappy") })
	send(func(f *frame) { f.Encoding, f.Payload = wire.Plain, []byte("no protobuf") })
	send(func(f *frame) { f.Payload = snappy.Encode(nil, make([]byte, 2<<20)) }) // a bomb
	if n := refused("malformed"); n != 3 {
		t.Errorf("%v frames refused as malformed, want 3", n)
	}
	if got := query(t, s, wsB, `{__name__=~".+"}`, start); got != "[]" {
		t.Errorf("a device wrote into another workspace: %s", got)
	}
	if _, err := s.Ingest(t.Context(), wsA, devA, []byte("no frame")); atelier.CodeOf(err) != atelier.Invalid {
		t.Errorf("got %v for what is no frame", err)
	}
	for range 10 { // streams without end
		ingest(t, s, wsA, devA, newFrame(atelier.NewID(), 1, start))
	}
	if n := len(s.Acked(devA.ID)); n != 4 {
		t.Errorf("%d streams are remembered, want 4", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Ingest(ctx, wsA, devA, newFrame(stream, 99, start).bytes(t)); atelier.CodeOf(err) != atelier.Unavailable {
		t.Errorf("got %v with an ended context", err)
	}
}
