package otlp

import (
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers; see the package comment for where they are defined.
const (
	requestResourceMetrics = 1

	resourceMetricsResource = 1
	resourceMetricsScope    = 2
	resourceAttributes      = 1
	scopeMetricsMetrics     = 2

	metricName        = 1
	metricDescription = 2
	metricUnit        = 3
	metricGauge       = 5
	metricSum         = 7
	metricHistogram   = 9
	metricExponential = 10
	metricSummary     = 11

	dataPoints      = 1 // of Gauge, Sum and Histogram alike
	dataTemporality = 2 // of Sum and Histogram
	dataMonotonic   = 3 // of Sum

	pointStart      = 2 // of NumberDataPoint and HistogramDataPoint
	pointTime       = 3
	numberDouble    = 4
	numberInt       = 6
	numberAttribute = 7

	histogramCount     = 4
	histogramSum       = 5
	histogramCounts    = 6
	histogramBounds    = 7
	histogramAttribute = 9

	keyValueKey   = 1
	keyValueValue = 2
	anyString     = 1
	anyBool       = 2
	anyInt        = 3
	anyDouble     = 4
)

// Encode appends r to dst in the wire form.
func (r *Request) Encode(dst []byte) []byte {
	for i := range r.Resources {
		dst = message(dst, requestResourceMetrics, r.Resources[i].encode)
	}
	return dst
}

func (r *Resource) encode(b []byte) []byte {
	b = message(b, resourceMetricsResource, func(b []byte) []byte {
		return attributes(b, resourceAttributes, r.Attributes)
	})
	return message(b, resourceMetricsScope, func(b []byte) []byte {
		for i := range r.Metrics {
			b = message(b, scopeMetricsMetrics, r.Metrics[i].encode)
		}
		return b
	})
}

func (m *Metric) encode(b []byte) []byte {
	b = text(b, metricName, m.Name)
	b = text(b, metricDescription, m.Description)
	b = text(b, metricUnit, m.Unit)
	field := protowire.Number(metricGauge)
	switch m.Kind {
	case Sum:
		field = metricSum
	case Histogram:
		field = metricHistogram
	}
	return message(b, field, m.encodeData)
}

func (m *Metric) encodeData(b []byte) []byte {
	if m.Kind == Histogram {
		for i := range m.Histograms {
			b = message(b, dataPoints, m.Histograms[i].encode)
		}
	} else {
		for i := range m.Points {
			b = message(b, dataPoints, m.Points[i].encode)
		}
	}
	if m.Kind != Gauge && m.Temporality != Unspecified {
		b = protowire.AppendTag(b, dataTemporality, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(m.Temporality))
	}
	if m.Kind == Sum && m.Monotonic {
		b = protowire.AppendTag(b, dataMonotonic, protowire.VarintType)
		b = protowire.AppendVarint(b, 1)
	}
	return b
}

func (p *Point) encode(b []byte) []byte {
	b = times(b, p.Start, p.Time)
	b = fixed(b, numberDouble, math.Float64bits(p.Value))
	return attributes(b, numberAttribute, p.Attributes)
}

func (p *HistogramPoint) encode(b []byte) []byte {
	b = times(b, p.Start, p.Time)
	b = fixed(b, histogramCount, p.Count)
	b = fixed(b, histogramSum, math.Float64bits(p.Sum))
	if len(p.Counts) > 0 {
		b = protowire.AppendTag(b, histogramCounts, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(8*len(p.Counts)))
		for _, c := range p.Counts {
			b = protowire.AppendFixed64(b, c)
		}
	}
	if len(p.Bounds) > 0 {
		b = protowire.AppendTag(b, histogramBounds, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(8*len(p.Bounds)))
		for _, v := range p.Bounds {
			b = protowire.AppendFixed64(b, math.Float64bits(v))
		}
	}
	return attributes(b, histogramAttribute, p.Attributes)
}

func times(b []byte, start, time uint64) []byte {
	if start != 0 {
		b = fixed(b, pointStart, start)
	}
	return fixed(b, pointTime, time)
}

func attributes(b []byte, field protowire.Number, list []Attribute) []byte {
	for _, a := range list {
		b = message(b, field, func(b []byte) []byte {
			b = text(b, keyValueKey, a.Key)
			return message(b, keyValueValue, func(b []byte) []byte {
				b = protowire.AppendTag(b, anyString, protowire.BytesType) // also when empty: it is a oneof
				return protowire.AppendString(b, a.Value)
			})
		})
	}
	return b
}

func text(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, s)
}

func fixed(b []byte, field protowire.Number, v uint64) []byte {
	b = protowire.AppendTag(b, field, protowire.Fixed64Type)
	return protowire.AppendFixed64(b, v)
}

// message appends an embedded message that fill writes. Its length is known
// only afterwards, so the bytes move up by the few that the length takes.
func message(b []byte, field protowire.Number, fill func([]byte) []byte) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	begin := len(b)
	b = fill(b)
	size := len(b) - begin
	var length [10]byte
	prefix := protowire.AppendVarint(length[:0], uint64(size))
	b = append(b, prefix...)
	copy(b[begin+len(prefix):], b[begin:begin+size])
	copy(b[begin:], prefix)
	return b
}
