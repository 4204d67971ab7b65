package otlp_test

import (
	"encoding/binary"
	"math"
	"reflect"
	"testing"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/otlp"
)

// MetricsData has the wire form of ExportMetricsServiceRequest: both hold
// resource_metrics as field 1. It comes without gRPC.

func ours() *otlp.Request {
	return &otlp.Request{Resources: []otlp.Resource{{
		Attributes: []otlp.Attribute{{Key: "service.name", Value: "atelier-agent"}, {Key: "empty", Value: ""}},
		Metrics: []otlp.Metric{
			{
				Name: "system.cpu.utilization", Description: "share of time in use", Unit: "1", Kind: otlp.Gauge,
				Points: []otlp.Point{{Attributes: []otlp.Attribute{{Key: "cpu", Value: "0"}}, Time: 7, Value: .25}, {Time: 8, Value: math.Inf(1)}},
			},
			{
				Name: "system.network.io", Unit: "By", Kind: otlp.Sum, Temporality: otlp.Cumulative, Monotonic: true,
				Points: []otlp.Point{{Start: 1, Time: 9, Value: 1 << 53}},
			},
			{Name: "level", Kind: otlp.Sum, Temporality: otlp.Delta, Points: []otlp.Point{{Time: 1}}},
			{
				Name: "latency", Unit: "s", Kind: otlp.Histogram, Temporality: otlp.Cumulative,
				Histograms: []otlp.HistogramPoint{{
					Attributes: []otlp.Attribute{{Key: "é", Value: "ü"}}, Start: 2, Time: 3,
					Count: 6, Sum: 1.5, Counts: []uint64{1, 2, 3}, Bounds: []float64{.1, 1},
				}},
			},
		},
	}}}
}

func str(k, v string) *common.KeyValue {
	return &common.KeyValue{Key: k, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: v}}}
}

func theirs() *metrics.MetricsData {
	sum := 1.5
	return &metrics.MetricsData{ResourceMetrics: []*metrics.ResourceMetrics{{
		Resource: &resource.Resource{Attributes: []*common.KeyValue{str("service.name", "atelier-agent"), str("empty", "")}},
		ScopeMetrics: []*metrics.ScopeMetrics{{Metrics: []*metrics.Metric{
			{
				Name: "system.cpu.utilization", Description: "share of time in use", Unit: "1",
				Data: &metrics.Metric_Gauge{Gauge: &metrics.Gauge{DataPoints: []*metrics.NumberDataPoint{
					{Attributes: []*common.KeyValue{str("cpu", "0")}, TimeUnixNano: 7, Value: &metrics.NumberDataPoint_AsDouble{AsDouble: .25}},
					{TimeUnixNano: 8, Value: &metrics.NumberDataPoint_AsDouble{AsDouble: math.Inf(1)}},
				}}},
			},
			{
				Name: "system.network.io", Unit: "By",
				Data: &metrics.Metric_Sum{Sum: &metrics.Sum{
					AggregationTemporality: metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE, IsMonotonic: true,
					DataPoints: []*metrics.NumberDataPoint{{StartTimeUnixNano: 1, TimeUnixNano: 9, Value: &metrics.NumberDataPoint_AsDouble{AsDouble: 1 << 53}}},
				}},
			},
			{
				Name: "level",
				Data: &metrics.Metric_Sum{Sum: &metrics.Sum{
					AggregationTemporality: metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA,
					DataPoints:             []*metrics.NumberDataPoint{{TimeUnixNano: 1, Value: &metrics.NumberDataPoint_AsDouble{}}},
				}},
			},
			{
				Name: "latency", Unit: "s",
				Data: &metrics.Metric_Histogram{Histogram: &metrics.Histogram{
					AggregationTemporality: metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE,
					DataPoints: []*metrics.HistogramDataPoint{{
						Attributes: []*common.KeyValue{str("é", "ü")}, StartTimeUnixNano: 2, TimeUnixNano: 3,
						Count: 6, Sum: &sum, BucketCounts: []uint64{1, 2, 3}, ExplicitBounds: []float64{.1, 1},
					}},
				}},
			},
		}}},
	}}}
}

func TestEncodeIsReadByTheGeneratedTypes(t *testing.T) {
	t.Parallel()
	var got metrics.MetricsData
	if err := proto.Unmarshal(ours().Encode(nil), &got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(&got, theirs()) {
		t.Fatalf("got %v\nwant %v", &got, theirs())
	}
}

func TestDecodeReadsTheGeneratedTypes(t *testing.T) {
	t.Parallel()
	b, err := proto.Marshal(theirs())
	if err != nil {
		t.Fatal(err)
	}
	got, err := otlp.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, ours()) {
		t.Fatalf("got %+v\nwant %+v", got, ours())
	}
}

func TestDecodeOfWhatTheAgentNeverSends(t *testing.T) {
	t.Parallel()
	data := &metrics.MetricsData{ResourceMetrics: []*metrics.ResourceMetrics{{
		SchemaUrl: "https://example.org/schema",
		ScopeMetrics: []*metrics.ScopeMetrics{
			{Scope: &common.InstrumentationScope{Name: "a"}, Metrics: []*metrics.Metric{
				{Name: "exp", Data: &metrics.Metric_ExponentialHistogram{ExponentialHistogram: &metrics.ExponentialHistogram{}}},
				{Name: "none"},
			}},
			{Scope: &common.InstrumentationScope{Name: "b"}, Metrics: []*metrics.Metric{{
				Name: "g", Data: &metrics.Metric_Gauge{Gauge: &metrics.Gauge{DataPoints: []*metrics.NumberDataPoint{
					{Flags: 1, TimeUnixNano: 1},
					{TimeUnixNano: 2, Value: &metrics.NumberDataPoint_AsInt{AsInt: -3}, Attributes: []*common.KeyValue{
						{Key: "b", Value: &common.AnyValue{Value: &common.AnyValue_BoolValue{BoolValue: true}}},
						{Key: "i", Value: &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: -1}}},
						{Key: "d", Value: &common.AnyValue{Value: &common.AnyValue_DoubleValue{DoubleValue: .5}}},
						{Key: "l", Value: &common.AnyValue{Value: &common.AnyValue_ArrayValue{ArrayValue: &common.ArrayValue{}}}},
					}},
				}}},
			}}},
		},
	}}}
	b, err := proto.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	got, err := otlp.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	want := &otlp.Request{Skipped: 2, Resources: []otlp.Resource{{Metrics: []otlp.Metric{{Name: "g", Points: []otlp.Point{{
		Time: 2, Value: -3, Attributes: []otlp.Attribute{{Key: "b", Value: "true"}, {Key: "i", Value: "-1"}, {Key: "d", Value: "0.5"}},
	}}}}}}}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v\nwant %+v", got, want)
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	histogram := func(p otlp.HistogramPoint) []byte {
		r := otlp.Request{Resources: []otlp.Resource{{Metrics: []otlp.Metric{{Name: "h", Kind: otlp.Histogram, Histograms: []otlp.HistogramPoint{p}}}}}}
		return r.Encode(nil)
	}
	var bomb []byte
	for range otlp.MaxElements + 1 {
		bomb = append(bomb, 0x0a, 0)
	}
	whole := ours().Encode(nil)
	for name, c := range map[string]struct {
		in   []byte
		code atelier.Code
	}{
		"a torn end":           {whole[:len(whole)-1], atelier.Invalid},
		"a wrong type":         {binary.AppendUvarint([]byte{0x08}, 3), atelier.Invalid},
		"too many parts":       {bomb, atelier.TooLarge},
		"one count too few":    {histogram(otlp.HistogramPoint{Counts: []uint64{1}, Bounds: []float64{1}}), atelier.Invalid},
		"bounds that descend":  {histogram(otlp.HistogramPoint{Counts: []uint64{1, 1, 1}, Bounds: []float64{2, 1}}), atelier.Invalid},
		"text that is no text": {(&otlp.Request{Resources: []otlp.Resource{{Metrics: []otlp.Metric{{Name: "\xff"}}}}}).Encode(nil), atelier.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, err := otlp.Decode(c.in); atelier.CodeOf(err) != c.code {
				t.Fatalf("got %+v, %v; want code %s", got, err, c.code)
			}
		})
	}
}

// Whatever Decode takes, the generated types take too (but for what only they
// check), and what it makes of it survives another round.
func FuzzDecode(f *testing.F) {
	f.Add(ours().Encode(nil))
	b, err := proto.Marshal(theirs())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0x0a, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := otlp.Decode(b)
		if err != nil {
			return
		}
		again, err := otlp.Decode(got.Encode(nil))
		if err != nil {
			t.Fatalf("cannot read back %+v: %v", got, err)
		}
		got.Skipped = 0
		first, second := got.Encode(nil), again.Encode(nil) // NaN differs from itself, its encoding does not
		if string(first) != string(second) {
			t.Fatalf("got %+v, then %+v", got, again)
		}
	})
}
