package serving

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"

	atelier "github.com/atelier-edge/atelier"
)

// Batch makes the model run requests together that come while it is busy, at most
// as many runs at a time as NewModel was told. note hears, for people, why that
// ends where the model shows later that its rows cannot be told apart; it may be
// nil. Batch is called before the first request.
//
// The error has the code Unsupported where the model cannot run rows together: its
// signature has a first dimension that is fixed, or rows that ran together had other
// results than alone. Then requests run one by one.
func (m *Model) Batch(ctx context.Context, b Batching, note func(why string)) error {
	if b.MaxRows < 2 {
		return nil
	}
	engine, ok := m.Engine.(RowEngine)
	if !ok {
		return noBatching("its engine runs one request at a time")
	}
	if why := fixedRows(m.Engine.Signature()); why != "" {
		return noBatching("%s", why)
	}
	if err := tellApart(ctx, engine); err != nil {
		return err
	}
	m.batch = &batcher{engine: engine, model: m.Name, Batching: b, note: note, most: max(cap(m.slots), 1), changed: make(chan struct{}, 1)}
	return nil
}

// Waiting returns how many requests wait for their turn.
func (m *Model) Waiting() int {
	if m.batch == nil {
		return max(0, len(m.waiting)-len(m.slots))
	}
	m.batch.mu.Lock()
	defer m.batch.mu.Unlock()
	return len(m.batch.waiting)
}

func noBatching(format string, args ...any) error {
	return atelier.Errorf(atelier.Unsupported, "requests cannot be run together: "+format, args...).
		WithRemedy("Serve the model without --max-batch, or export it with a first dimension that counts independent rows in all inputs and outputs.")
}

// fixedRows says which input or output cannot have any number of rows, "" for none.
func fixedRows(s *atelier.Signature) string {
	look := func(what string, specs []atelier.TensorSpec) string {
		for _, spec := range specs {
			if len(spec.Shape) == 0 || spec.Shape[0] >= 0 {
				return fmt.Sprintf("%s %q has the shape %v, whose first dimension is not free", what, spec.Name, spec.Shape)
			}
		}
		return ""
	}
	if len(s.Inputs) == 0 {
		return "the model has no input"
	}
	if why := look("input", s.Inputs); why != "" {
		return why
	}
	return look("output", s.Outputs)
}

// probes is how many rows tellApart looks at.
const probes = 3

// tellApart runs rows alone and together, and returns an error where that makes a
// difference. It shows most models up whose rows are not independent; a proof it is
// not. A model that refuses the rows made up here is not judged.
func tellApart(ctx context.Context, e RowEngine) error {
	s := e.Signature()
	all := make([]int, len(s.Outputs))
	for i := range all {
		all[i] = i
	}
	parts, alone := make([][]Tensor, probes), make([][]Tensor, probes)
	for row := range parts {
		for i, spec := range s.Inputs {
			parts[row] = append(parts[row], madeUp(spec, row*len(s.Inputs)+i))
		}
		var err error
		if alone[row], err = e.Infer(ctx, parts[row], all); err != nil {
			return ctx.Err()
		}
	}
	together, err := e.InferRows(ctx, parts, all)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return noBatching("the model takes rows alone, but not together: %w", err)
	}
	for i := range together {
		name := s.Outputs[i].Name
		if shape := together[i].Shape; len(shape) == 0 || shape[0] != probes {
			return noBatching("output %q has the shape %v for %d rows", name, shape, probes)
		}
		for row := range alone {
			if got := slice(&together[i], int64(row), 1); !alike(&alone[row][i], &got) {
				return noBatching("output %q of a row depends on the rows beside it", name)
			}
		}
	}
	return nil
}

// madeUp returns one row for spec. Its numbers are small, so that they may be indices too,
// and differ between seeds.
func madeUp(spec atelier.TensorSpec, seed int) Tensor {
	t := Zeros(spec)
	for i := range t.Strings {
		t.Strings[i] = string(rune('a' + (seed+i)%3))
	}
	size := int(t.Type.Size())
	for i := 0; size > 0 && i < len(t.Data)/size; i++ {
		to := t.Data[i*size:]
		f := float32((seed*7+i*5)%17)/8 - 1
		switch t.Type {
		case FP16:
			binary.LittleEndian.PutUint16(to, toHalf(f))
		case BF16:
			binary.LittleEndian.PutUint16(to, toBrain(f))
		case FP32:
			binary.LittleEndian.PutUint32(to, math.Float32bits(f))
		case FP64:
			binary.LittleEndian.PutUint64(to, math.Float64bits(float64(f)))
		default:
			to[0] = byte((seed + i) % 2)
		}
	}
	return t
}

// tolerance is how far a float may be off, of the largest in its tensor: kernels sum
// in another order when there are more rows.
const tolerance = 1e-3

// alike reports whether a and b are the same, floats up to the tolerance.
func alike(a, b *Tensor) bool {
	if a.Type != b.Type || !equalShape(a.Shape, b.Shape) {
		return false
	}
	for i := range a.Strings {
		if a.Strings[i] != b.Strings[i] {
			return false
		}
	}
	switch a.Type {
	case FP16, BF16, FP32, FP64:
	default:
		return bytes.Equal(a.Data, b.Data)
	}
	n, _ := Elements(a.Shape)
	largest, coarse := 0.0, tolerance
	if a.Type == FP16 || a.Type == BF16 {
		coarse *= 10
	}
	for i := range n {
		if f := math.Abs(float(a, i)); f <= math.MaxFloat64 {
			largest = max(largest, f)
		}
	}
	for i := range n {
		x, y := float(a, i), float(b, i)
		same := x == y || math.IsNaN(x) && math.IsNaN(y)
		if !same && !(math.Abs(x-y) <= coarse*largest) { // also where one is NaN
			return false
		}
	}
	return true
}
