package serving

import (
	"context"

	"github.com/atelier-edge/atelier/internal/collect"
)

// SetSampler lets s record requests; to be called before the first of them.
func (h *Handler) SetSampler(s *collect.Sampler) { h.sampler = s }

// Sampled answers a request by answer, and records it where it is chosen for that. id is
// the request's. Whoever calls Infer or Score without it is not recorded.
func (h *Handler) Sampled(ctx context.Context, dialect, id string, answer func(context.Context) Answer) Answer {
	x := h.sampler.Begin(dialect, id)
	if x == nil {
		return answer(ctx)
	}
	a := answer(collect.With(ctx, x))
	x.End(a.Status)
	return a
}

// note records what the model was given and gave.
func (m *Model) note(x *collect.Sample, inputs []Tensor, indices []int, outputs []Tensor) {
	s := m.Engine.Signature()
	for i := range inputs {
		x.Input(collected(s.Inputs[i].Name, &inputs[i]))
	}
	for i := range outputs {
		x.Output(collected(s.Outputs[indices[i]].Name, &outputs[i]))
	}
}

func collected(name string, t *Tensor) collect.Tensor {
	return collect.Tensor{Name: name, Type: string(t.Type), Shape: t.Shape, Data: t.Data, Strings: t.Strings}
}
