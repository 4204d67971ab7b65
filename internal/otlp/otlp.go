// Package otlp reads and writes OTLP metrics: an ExportMetricsServiceRequest of
// the OpenTelemetry protocol, hand-sized over protowire, since the generated
// types alone would cost an agent 2 to 6 MB.
//
// It knows gauges, sums and explicit-bucket histograms, with attributes of
// resources and points. It keeps neither scopes, schema URLs, exemplars nor
// flags, and passes over exponential histograms and summaries (counted in
// Request.Skipped). Decode never panics and bounds what it allocates.
//
// The field numbers are those of opentelemetry-proto 1.x,
// opentelemetry/proto/metrics/v1/metrics.proto, common/v1/common.proto,
// resource/v1/resource.proto and collector/metrics/v1/metrics_service.proto.
package otlp

// Request is an ExportMetricsServiceRequest.
type Request struct {
	Resources []Resource
	// Skipped counts metrics of kinds that this package does not know. Encode ignores it.
	Skipped int
}

// Resource is a ResourceMetrics: who measured, and the metrics of all its scopes.
type Resource struct {
	Attributes []Attribute
	Metrics    []Metric
}

// Attribute is a KeyValue. Values of other simple types are turned to text when
// they are read; lists and maps are left out.
type Attribute struct {
	Key, Value string
}

// Kind is what a metric's points mean.
type Kind uint8

// The kinds.
const (
	Gauge     Kind = iota // a value as it is now; Points
	Sum                   // a total; Points
	Histogram             // a distribution over buckets; Histograms
)

// Temporality says what a sum's or a histogram's points cover.
type Temporality uint8

// The temporalities, with OTLP's numbers.
const (
	Unspecified Temporality = 0
	Delta       Temporality = 1 // since the last point
	Cumulative  Temporality = 2 // since Start
)

// Metric is a metric with its points.
type Metric struct {
	Name        string // in OpenTelemetry's form: "system.memory.usage"
	Description string
	Unit        string // UCUM: "s", "By", "1", "{request}"
	Kind        Kind
	Temporality Temporality // for Sum and Histogram
	Monotonic   bool        // for Sum: it never falls, except to begin anew with a later Start
	Points      []Point
	Histograms  []HistogramPoint
}

// Point is a NumberDataPoint.
type Point struct {
	Attributes  []Attribute
	Start, Time uint64 // nanoseconds since 1970
	Value       float64
}

// HistogramPoint is a HistogramDataPoint.
type HistogramPoint struct {
	Attributes  []Attribute
	Start, Time uint64 // nanoseconds since 1970
	Count       uint64
	Sum         float64
	// Counts are the counts of the buckets, not cumulative. There is one more
	// than Bounds, or none of both.
	Counts []uint64
	Bounds []float64 // upper bounds, inclusive, ascending
}
