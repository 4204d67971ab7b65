package serving

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	atelier "github.com/atelier-edge/atelier"
)

// How the latency of golden inputs is taken: over as many runs as there is time for,
// and at least some.
const (
	goldenTime = 2 * time.Second
	goldenRuns = 20
)

type (
	goldenResponse struct {
		Outputs []goldenOutput `json:"outputs"`
	}
	goldenOutput struct {
		Name       string         `json:"name"`
		Shape      []int64        `json:"shape"`
		Datatype   string         `json:"datatype"`
		Parameters map[string]any `json:"parameters"`
		Data       jsontext.Value `json:"data"`
	}
)

// goldenCase is a case as the engine takes it.
type goldenCase struct {
	name     string
	inputs   []Tensor
	outputs  []int
	expected []Tensor
}

// Prove runs the golden inputs, and returns the median time of an inference of them
// where g bounds it. Outputs that are not what is expected give an *atelier.Error
// with the code Conflict, which names the case, the output and the element, and so
// does a model that takes longer than it may; inputs that the model cannot take
// give Invalid.
func (m *Model) Prove(ctx context.Context, g *atelier.Golden) (time.Duration, error) {
	cases := make([]goldenCase, len(g.Cases))
	for i := range g.Cases {
		c, err := m.golden(&g.Cases[i])
		if err != nil {
			return 0, atelier.Errorf(atelier.Invalid, "golden input %q does not fit the model: %w", g.Cases[i].Name, err).
				WithRemedy("Record golden inputs of this model with 'atelier model golden'.")
		}
		cases[i] = c
		outputs, err := m.infer(ctx, c.inputs, c.outputs)
		if err != nil {
			return 0, atelier.Errorf(atelier.CodeOf(err), "golden input %q: %w", c.name, err)
		}
		for k := range outputs {
			if off := differs(&outputs[k], &c.expected[k], g.Of(&g.Cases[i])); off != "" {
				return 0, atelier.Errorf(atelier.Conflict, "golden input %q: output %q %s", c.name, m.Engine.Signature().Outputs[c.outputs[k]].Name, off)
			}
		}
	}
	if g.Latency() == 0 {
		return 0, nil
	}
	median, err := m.pace(ctx, cases)
	if err == nil && median > g.Latency() {
		err = atelier.Errorf(atelier.Conflict, "golden inputs take %v here at the median, at most %v were expected", median.Round(time.Microsecond), g.Latency())
	}
	return median, err
}

// pace returns the median time of an inference.
func (m *Model) pace(ctx context.Context, cases []goldenCase) (time.Duration, error) {
	var took []time.Duration
	for begin := time.Now(); len(took) < goldenRuns || len(took) < len(cases) && time.Since(begin) < goldenTime; {
		c := &cases[len(took)%len(cases)]
		at := time.Now()
		if _, err := m.infer(ctx, c.inputs, c.outputs); err != nil {
			return 0, err
		}
		took = append(took, time.Since(at))
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}

// golden reads a case.
func (m *Model) golden(c *atelier.GoldenCase) (goldenCase, error) {
	req, inputs, err := m.decodeInfer(c.Request, nil)
	if err != nil {
		return goldenCase{}, err
	}
	if len(req.Outputs) > 0 {
		return goldenCase{}, atelier.Errorf(atelier.Invalid, "its request names outputs; its response says which are looked at").WithField("request.outputs")
	}
	var res goldenResponse
	if err := decodeJSON(c.Response, &res); err != nil {
		return goldenCase{}, fmt.Errorf("its response: %w", err)
	}
	if len(res.Outputs) == 0 {
		return goldenCase{}, atelier.Errorf(atelier.Invalid, "its response has no outputs").WithField("response.outputs")
	}
	out := goldenCase{name: c.Name, inputs: inputs}
	for i := range res.Outputs {
		o := &res.Outputs[i]
		field := fmt.Sprintf("response.outputs[%d]", i)
		at, err := m.output(o.Name, field+".name")
		if err != nil {
			return goldenCase{}, err
		}
		spec := &m.Engine.Signature().Outputs[at]
		switch {
		case slices.Contains(out.outputs, at):
			return goldenCase{}, atelier.Errorf(atelier.Invalid, "output %q is in its response twice", o.Name).WithField(field + ".name")
		case o.Datatype != spec.Type:
			return goldenCase{}, atelier.Errorf(atelier.Invalid, "%s.datatype is %.20q for output %q, %s was expected", field, o.Datatype, o.Name, spec.Type).WithField(field + ".datatype")
		case o.Shape == nil || o.Data == nil:
			return goldenCase{}, atelier.Errorf(atelier.Invalid, "%s has no shape or no data, both were expected", field).WithField(field)
		}
		expected, err := parseData(o.Data, Datatype(o.Datatype), o.Shape, field+".data")
		if err != nil {
			return goldenCase{}, err
		}
		out.outputs, out.expected = append(out.outputs, at), append(out.expected, expected)
	}
	return out, nil
}

// differs says in what got is not what was expected, "" where it is.
func differs(got, want *Tensor, tolerance atelier.Tolerance) string {
	if !slices.Equal(got.Shape, want.Shape) {
		return fmt.Sprintf("has the shape %v, %v was expected", got.Shape, want.Shape)
	}
	worst, at, count := -1.0, 0, 0
	n := len(want.Strings)
	if size := int(want.Type.Size()); size > 0 {
		n = len(want.Data) / size
	}
	for i := range n {
		if off := distance(got, want, i, tolerance); off > 0 {
			count++
			if off > worst {
				worst, at = off, i
			}
		}
	}
	if count == 0 {
		return ""
	}
	text := fmt.Sprintf("is %s at element %d, %s was expected", got.element(at), at, want.element(at))
	if count > 1 {
		text += fmt.Sprintf(" (%d of %d elements are off; this one most)", count, n)
	}
	return text
}

// distance returns by how much element i is off beyond the tolerance, 0 where it is
// not.
func distance(got, want *Tensor, i int, tolerance atelier.Tolerance) float64 {
	switch want.Type {
	case Bytes:
		if got.Strings[i] != want.Strings[i] {
			return math.Inf(1)
		}
		return 0
	case FP16, BF16, FP32, FP64:
		a, b := got.float(i), want.float(i)
		if a == b || math.IsNaN(a) && math.IsNaN(b) {
			return 0
		}
		off := math.Abs(a-b) - tolerance.Absolute - tolerance.Relative*math.Abs(b)
		if math.IsNaN(off) {
			return math.Inf(1) // one of them is not a number
		}
		return max(off, 0)
	}
	a, b := got.bits(i), want.bits(i)
	low, high := cmp.Compare(a, b), a-b
	if want.Type.signed() {
		low = cmp.Compare(int64(a), int64(b))
	}
	if low < 0 {
		high = b - a
	}
	if want.Type == Bool && high != 0 {
		return math.Inf(1)
	}
	if high > uint64(tolerance.Integer) {
		return float64(high - uint64(tolerance.Integer))
	}
	return 0
}

// signed reports whether the datatype's numbers may be negative.
func (d Datatype) signed() bool { return d == Int8 || d == Int16 || d == Int32 || d == Int64 }

// bits returns element i of whole numbers and truth values, its sign extended.
func (t *Tensor) bits(i int) uint64 {
	switch t.Type {
	case Bool, Uint8:
		return uint64(t.Data[i])
	case Int8:
		return uint64(int8(t.Data[i]))
	case Uint16:
		return uint64(binary.LittleEndian.Uint16(t.Data[2*i:]))
	case Int16:
		return uint64(int16(binary.LittleEndian.Uint16(t.Data[2*i:])))
	case Uint32:
		return uint64(binary.LittleEndian.Uint32(t.Data[4*i:]))
	case Int32:
		return uint64(int32(binary.LittleEndian.Uint32(t.Data[4*i:])))
	}
	return binary.LittleEndian.Uint64(t.Data[8*i:])
}

// float returns element i of numbers with a fraction.
func (t *Tensor) float(i int) float64 {
	switch t.Type {
	case FP16:
		return float64(fromHalf(binary.LittleEndian.Uint16(t.Data[2*i:])))
	case BF16:
		return float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(t.Data[2*i:])) << 16))
	case FP32:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(t.Data[4*i:])))
	}
	return math.Float64frombits(binary.LittleEndian.Uint64(t.Data[8*i:]))
}

// element writes element i for people.
func (t *Tensor) element(i int) string {
	switch t.Type {
	case Bytes:
		return fmt.Sprintf("%.60q", t.Strings[i])
	case FP16, BF16, FP32, FP64:
		return fmt.Sprintf("%.6g", t.float(i))
	case Bool:
		return fmt.Sprint(t.Data[i] != 0)
	}
	if t.Type.signed() {
		return fmt.Sprint(int64(t.bits(i)))
	}
	return fmt.Sprint(t.bits(i))
}
