package telemetry

import (
	"slices"
	"strconv"
	"strings"

	"github.com/golang/snappy"
	"github.com/prometheus/common/model"
	"github.com/prometheus/otlptranslator"
	"github.com/prometheus/prometheus/model/labels"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/otlp"
	"github.com/atelier-edge/atelier/internal/wire"
)

// The labels that the hub sets on every series. A device's own attributes of
// the same name are kept under "exported_" and the name, as Prometheus does.
const (
	workspaceLabel = "__workspace__" // hidden; see query.go
	deviceLabel    = "device"        // the device's name
	deviceIDLabel  = "device_id"
)

// Bounds on what a device may name.
const (
	maxName   = 128 // bytes of a metric's or a label's name
	maxValue  = 256 // bytes of a label's value
	maxLabels = 24  // attributes of one series
	maxHelp   = 512 // bytes of a metric's description
)

// reason is why a sample was refused.
type reason int

const (
	refusedAhead     reason = iota // more than ten minutes in the future, after mapping
	refusedLate                    // older than Config.Late
	refusedSeries                  // one series too many
	refusedLabels                  // a name or a value that is too long or empty, or too many
	refusedKind                    // neither gauge, cumulative sum nor cumulative histogram
	refusedDuplicate               // another value at a time that has one
	refusedMalformed               // a payload that cannot be read; counts frames
	reasons
)

var reasonNames = [reasons]string{"ahead", "late", "series", "labels", "kind", "duplicate", "malformed"}

// sample is one value of one series.
type sample struct {
	series labels.Labels
	at     int64 // milliseconds since 1970, by the hub's clock
	value  float64
}

// decodePayload reads a frame's payload.
func decodePayload(encoding wire.Encoding, payload []byte) (*otlp.Request, error) {
	switch encoding {
	case wire.Snappy:
		n, err := snappy.DecodedLen(payload)
		if err != nil {
			return nil, atelier.Errorf(atelier.Invalid, "telemetry payload is no Snappy block: %w", err)
		}
		if n > wire.MaxTelemetry {
			return nil, atelier.Errorf(atelier.TooLarge, "telemetry payload has %d bytes when decoded, at most %d are allowed", n, wire.MaxTelemetry)
		}
		if payload, err = snappy.Decode(nil, payload); err != nil {
			return nil, atelier.Errorf(atelier.Invalid, "telemetry payload is no Snappy block: %w", err)
		}
	case wire.Plain:
	default:
		return nil, atelier.Errorf(atelier.Unsupported, "telemetry payload has encoding %d", encoding)
	}
	return otlp.Decode(payload)
}

// converter turns one record's metrics to samples.
type converter struct {
	rec     *record
	store   *Store
	device  *device
	namer   otlptranslator.MetricNamer
	labels  otlptranslator.LabelNamer
	builder *labels.Builder
	out     []sample
	refused [reasons]uint64
}

func newConverter(s *Store, d *device, r *record) *converter {
	return &converter{
		rec: r, store: s, device: d, builder: labels.NewBuilder(labels.EmptyLabels()),
		// The names that Prometheus' own OTLP receiver makes by default.
		namer:  otlptranslator.MetricNamer{WithMetricSuffixes: true},
		labels: otlptranslator.LabelNamer{},
	}
}

func (c *converter) request(r *otlp.Request) {
	c.refused[refusedKind] += uint64(r.Skipped)
	for i := range r.Resources {
		for j := range r.Resources[i].Metrics {
			c.metric(&r.Resources[i].Metrics[j])
		}
	}
}

func (c *converter) metric(m *otlp.Metric) {
	points := uint64(len(m.Points) + len(m.Histograms))
	kind, typ, ok := kindOf(m)
	if !ok {
		c.refused[refusedKind] += points
		return
	}
	if m.Name == "" || len(m.Name) > maxName || len(m.Unit) > maxName {
		c.refused[refusedLabels] += points
		return
	}
	name, err := c.namer.Build(otlptranslator.Metric{Name: m.Name, Unit: m.Unit, Type: kind})
	if err != nil || len(name) > maxName {
		c.refused[refusedLabels] += points
		return
	}
	c.store.metadata.set(c.rec.Workspace, name, Metadata{Type: typ, Help: clip(m.Description, maxHelp)})
	for i := range m.Points {
		p := &m.Points[i]
		if c.begin(name, p.Attributes) {
			c.add(p.Time, p.Value)
		}
	}
	for i := range m.Histograms {
		c.histogram(name, &m.Histograms[i])
	}
}

// kindOf says what becomes of a metric; ok is false for one that is not stored.
func kindOf(m *otlp.Metric) (kind otlptranslator.MetricType, typ model.MetricType, ok bool) {
	switch {
	case m.Kind == otlp.Gauge:
		return otlptranslator.MetricTypeGauge, model.MetricTypeGauge, true
	case m.Temporality != otlp.Cumulative:
		return 0, "", false // a delta that is lost or doubled would be lost or doubled for good
	case m.Kind == otlp.Histogram:
		return otlptranslator.MetricTypeHistogram, model.MetricTypeHistogram, true
	case m.Monotonic:
		return otlptranslator.MetricTypeMonotonicCounter, model.MetricTypeCounter, true
	}
	return otlptranslator.MetricTypeNonMonotonicCounter, model.MetricTypeGauge, true
}

// histogram makes the series of a classic histogram.
func (c *converter) histogram(name string, p *otlp.HistogramPoint) {
	if !c.begin(name, p.Attributes) {
		return
	}
	part := func(suffix, le string, v float64) {
		c.builder.Set(model.MetricNameLabel, name+suffix)
		c.builder.Set(labels.BucketLabel, le)
		c.add(p.Time, v)
	}
	total := uint64(0)
	for i, bound := range p.Bounds {
		total += p.Counts[i]
		part("_bucket", strconv.FormatFloat(bound, 'f', -1, 64), float64(total))
	}
	part("_bucket", "+Inf", float64(p.Count))
	part("_count", "", float64(p.Count))
	part("_sum", "", p.Sum)
}

// begin sets the builder to a series' labels; false where they are out of bounds.
func (c *converter) begin(name string, attributes []otlp.Attribute) bool {
	c.builder.Reset(labels.EmptyLabels())
	if len(attributes) > maxLabels {
		c.refused[refusedLabels]++
		return false
	}
	for _, a := range attributes {
		key, err := c.labels.Build(a.Key)
		if err != nil || len(key) > maxName || len(a.Value) > maxValue || strings.HasPrefix(key, "__") {
			c.refused[refusedLabels]++
			return false
		}
		switch key {
		case deviceLabel, deviceIDLabel, labels.BucketLabel:
			key = "exported_" + key
		}
		c.builder.Set(key, a.Value)
	}
	c.builder.Set(model.MetricNameLabel, name)
	c.builder.Set(workspaceLabel, c.rec.Workspace)
	c.builder.Set(deviceLabel, c.rec.Name)
	c.builder.Set(deviceIDLabel, c.rec.Device)
	return true
}

// add adds a value of the builder's series, measured at nanos by the device's clock.
func (c *converter) add(nanos uint64, value float64) {
	at := int64(nanos/1e6) + c.rec.Shift // below 2⁶⁴/10⁶ plus the year 9999: no overflow
	switch {
	case at > c.rec.Received+ahead.Milliseconds():
		c.refused[refusedAhead]++
		return
	case at < c.rec.Received-c.store.cfg.Late.Milliseconds():
		c.refused[refusedLate]++
		return
	}
	series := c.builder.Labels()
	if !c.device.series.admit(series.Hash(), c.rec.Received, c.store.cfg.MaxSeries) {
		c.refused[refusedSeries]++
		return
	}
	c.out = append(c.out, sample{series, at, value})
}

// sorted returns the samples in the order of their times, which keeps a batch
// of several rounds in order for each series.
func (c *converter) sorted() []sample {
	slices.SortStableFunc(c.out, func(a, b sample) int { return int(max(-1, min(1, a.at-b.at))) })
	return c.out
}

// clip shortens s to at most n bytes, between characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}
