package otlp

import (
	"math"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	atelier "github.com/atelier-edge/atelier"
)

// MaxElements bounds how many resources, metrics, points, attributes and
// buckets together Decode takes: a few bytes of input each cost many of memory.
const MaxElements = 64 << 10

// Decode reads a request. Unknown fields are passed over. Errors have the code
// Invalid, or TooLarge where there are more than MaxElements parts.
func Decode(b []byte) (*Request, error) {
	d := decoder{left: MaxElements}
	r := &Request{}
	err := fields(b, func(f field) error {
		if f.number != requestResourceMetrics {
			return nil
		}
		return d.into(f, "resource_metrics", func(b []byte) error {
			r.Resources = append(r.Resources, Resource{})
			return d.resource(b, &r.Resources[len(r.Resources)-1])
		})
	})
	if err != nil {
		return nil, err
	}
	r.Skipped = d.skipped
	return r, nil
}

// decoder counts what it allocates over one request.
type decoder struct {
	left, skipped int
}

// take accounts for n more elements.
func (d *decoder) take(n int) error {
	if d.left -= n; d.left < 0 {
		return atelier.Errorf(atelier.TooLarge, "OTLP request has more than %d resources, metrics, points, attributes and buckets", MaxElements).
			WithRemedy("Send fewer in one request.")
	}
	return nil
}

// into calls read with the embedded message that f must be.
func (d *decoder) into(f field, name string, read func([]byte) error) error {
	if f.kind != protowire.BytesType {
		return wrongType(name)
	}
	if err := d.take(1); err != nil {
		return err
	}
	return read(f.bytes)
}

func (d *decoder) resource(b []byte, r *Resource) error {
	return fields(b, func(f field) error {
		switch f.number {
		case resourceMetricsResource:
			return d.into(f, "resource", func(b []byte) error {
				return fields(b, func(f field) error {
					if f.number != resourceAttributes {
						return nil
					}
					return d.attribute(f, &r.Attributes)
				})
			})
		case resourceMetricsScope:
			return d.into(f, "scope_metrics", func(b []byte) error {
				return fields(b, func(f field) error {
					if f.number != scopeMetricsMetrics {
						return nil
					}
					return d.into(f, "metrics", func(b []byte) error { return d.metric(b, r) })
				})
			})
		}
		return nil
	})
}

func (d *decoder) metric(b []byte, r *Resource) error {
	m, known := Metric{}, false
	err := fields(b, func(f field) (err error) {
		switch f.number {
		case metricName:
			m.Name, err = f.text("name")
		case metricDescription:
			m.Description, err = f.text("description")
		case metricUnit:
			m.Unit, err = f.text("unit")
		case metricGauge, metricSum, metricHistogram:
			// The last one of a oneof wins.
			m.Points, m.Histograms, m.Temporality, m.Monotonic, known = nil, nil, Unspecified, false, true
			m.Kind = kindOf(f.number)
			err = d.into(f, "data", func(b []byte) error { return d.data(b, &m) })
		case metricExponential, metricSummary:
			known = false
		}
		return err
	})
	if err != nil {
		return err
	}
	if !known {
		d.skipped++
		return nil
	}
	r.Metrics = append(r.Metrics, m)
	return nil
}

func kindOf(f protowire.Number) Kind {
	switch f {
	case metricSum:
		return Sum
	case metricHistogram:
		return Histogram
	}
	return Gauge
}

func (d *decoder) data(b []byte, m *Metric) error {
	return fields(b, func(f field) error {
		switch {
		case f.number == dataPoints && m.Kind == Histogram:
			return d.into(f, "data_points", func(b []byte) error {
				m.Histograms = append(m.Histograms, HistogramPoint{})
				return d.histogram(b, &m.Histograms[len(m.Histograms)-1])
			})
		case f.number == dataPoints:
			return d.into(f, "data_points", func(b []byte) error {
				p, some, err := d.point(b)
				if err == nil && some {
					m.Points = append(m.Points, p)
				}
				return err
			})
		case f.number == dataTemporality && m.Kind != Gauge:
			if f.kind != protowire.VarintType {
				return wrongType("aggregation_temporality")
			}
			m.Temporality = Unspecified
			if f.value == uint64(Delta) || f.value == uint64(Cumulative) {
				m.Temporality = Temporality(f.value)
			}
		case f.number == dataMonotonic && m.Kind == Sum:
			if f.kind != protowire.VarintType {
				return wrongType("is_monotonic")
			}
			m.Monotonic = f.value != 0
		}
		return nil
	})
}

// point reads a NumberDataPoint; some is false for one without a value, which
// says that there is none.
func (d *decoder) point(b []byte) (p Point, some bool, err error) {
	err = fields(b, func(f field) (err error) {
		switch f.number {
		case pointStart:
			p.Start, err = f.fixed("start_time_unix_nano")
		case pointTime:
			p.Time, err = f.fixed("time_unix_nano")
		case numberDouble:
			var bits uint64
			bits, err = f.fixed("as_double")
			some = true
			p.Value = math.Float64frombits(bits)
		case numberInt:
			var bits uint64
			bits, err = f.fixed("as_int")
			some = true
			p.Value = float64(int64(bits))
		case numberAttribute:
			err = d.attribute(f, &p.Attributes)
		}
		return err
	})
	return p, some, err
}

func (d *decoder) histogram(b []byte, p *HistogramPoint) error {
	err := fields(b, func(f field) (err error) {
		switch f.number {
		case pointStart:
			p.Start, err = f.fixed("start_time_unix_nano")
		case pointTime:
			p.Time, err = f.fixed("time_unix_nano")
		case histogramCount:
			p.Count, err = f.fixed("count")
		case histogramSum:
			var bits uint64
			bits, err = f.fixed("sum")
			p.Sum = math.Float64frombits(bits)
		case histogramCounts:
			err = d.repeated(f, "bucket_counts", func(v uint64) { p.Counts = append(p.Counts, v) })
		case histogramBounds:
			err = d.repeated(f, "explicit_bounds", func(v uint64) { p.Bounds = append(p.Bounds, math.Float64frombits(v)) })
		case histogramAttribute:
			err = d.attribute(f, &p.Attributes)
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(p.Counts) != len(p.Bounds)+1 && len(p.Counts)+len(p.Bounds) > 0 {
		return atelier.Errorf(atelier.Invalid, "OTLP histogram has %d bounds and %d counts; there must be one count more than bounds", len(p.Bounds), len(p.Counts))
	}
	for i, v := range p.Bounds {
		if math.IsNaN(v) || i > 0 && v <= p.Bounds[i-1] {
			return atelier.Errorf(atelier.Invalid, "OTLP histogram's bounds do not ascend")
		}
	}
	return nil
}

// repeated reads a repeated fixed64, packed or not.
func (d *decoder) repeated(f field, name string, add func(uint64)) error {
	if f.kind == protowire.Fixed64Type {
		if err := d.take(1); err != nil {
			return err
		}
		add(f.value)
		return nil
	}
	if f.kind != protowire.BytesType || len(f.bytes)%8 != 0 {
		return wrongType(name)
	}
	if err := d.take(len(f.bytes) / 8); err != nil {
		return err
	}
	for b := f.bytes; len(b) > 0; {
		v, n := protowire.ConsumeFixed64(b)
		add(v)
		b = b[n:]
	}
	return nil
}

func (d *decoder) attribute(f field, list *[]Attribute) error {
	return d.into(f, "attributes", func(b []byte) error {
		a, simple := Attribute{}, true
		err := fields(b, func(f field) (err error) {
			switch f.number {
			case keyValueKey:
				a.Key, err = f.text("key")
			case keyValueValue:
				if f.kind != protowire.BytesType {
					return wrongType("value")
				}
				a.Value, simple, err = anyValue(f.bytes)
			}
			return err
		})
		if err == nil && simple {
			*list = append(*list, a)
		}
		return err
	})
}

// anyValue turns an AnyValue to text; simple is false for a list, a map or bytes.
func anyValue(b []byte) (s string, simple bool, err error) {
	simple = true
	err = fields(b, func(f field) (err error) {
		simple = true
		switch f.number {
		case anyString:
			s, err = f.text("string_value")
		case anyBool:
			if f.kind != protowire.VarintType {
				return wrongType("bool_value")
			}
			s = strconv.FormatBool(f.value != 0)
		case anyInt:
			if f.kind != protowire.VarintType {
				return wrongType("int_value")
			}
			s = strconv.FormatInt(int64(f.value), 10)
		case anyDouble:
			if f.kind != protowire.Fixed64Type {
				return wrongType("double_value")
			}
			s = strconv.FormatFloat(math.Float64frombits(f.value), 'g', -1, 64)
		default:
			simple = false
		}
		return err
	})
	return s, simple, err
}

// field is one field of a message.
type field struct {
	number protowire.Number
	kind   protowire.Type
	value  uint64 // of a varint or fixed64
	bytes  []byte // of a length-delimited field
}

func (f field) text(name string) (string, error) {
	if f.kind != protowire.BytesType {
		return "", wrongType(name)
	}
	if !utf8.Valid(f.bytes) {
		return "", atelier.Errorf(atelier.Invalid, "OTLP field %s is no valid UTF-8", name)
	}
	return string(f.bytes), nil
}

func (f field) fixed(name string) (uint64, error) {
	if f.kind != protowire.Fixed64Type {
		return 0, wrongType(name)
	}
	return f.value, nil
}

// fields calls each with every field of the message in b.
func fields(b []byte, each func(field) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return malformed(n)
		}
		b = b[n:]
		f := field{number: number, kind: kind}
		switch kind {
		case protowire.VarintType:
			f.value, n = protowire.ConsumeVarint(b)
		case protowire.Fixed64Type:
			f.value, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return malformed(n)
		}
		b = b[n:]
		if err := each(f); err != nil {
			return err
		}
	}
	return nil
}

func malformed(n int) error {
	return atelier.Errorf(atelier.Invalid, "OTLP request is malformed: %w", protowire.ParseError(n))
}

func wrongType(name string) error {
	return atelier.Errorf(atelier.Invalid, "OTLP field %s has the wrong wire type", name)
}
