package serving

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/collect"
)

// Model is an engine under a name: what requests are checked against and run on.
type Model struct {
	Name    string
	Version string
	Engine  Engine
	// slots bounds the inferences that run at a time, nil is no bound.
	slots chan struct{}
	// waiting bounds those that wait for a slot besides.
	waiting chan struct{}
	batch   *batcher // nil where requests run one by one
	// Deadline is how long a request may take from when it was read to its result; 0 is
	// no bound. It is not changed once requests come.
	Deadline time.Duration

	// Health is what the answer to a health probe says of the model. It is not changed
	// once requests come.
	Health atelier.ModuleHealth

	head atomic.Pointer[keptHead] // of requests with binary tensors
	rest atomic.Pointer[keptHead] // of those in JSON, without their numbers
}

// maxWaiting is how many requests may wait for their turn before more are
// turned away.
const maxWaiting = 256

// NewModel puts e under a name. At most concurrency inferences run at a time; 0
// means no bound.
func NewModel(name, version string, e Engine, concurrency int) *Model {
	m := &Model{Name: name, Version: version, Engine: e}
	if concurrency > 0 {
		m.slots = make(chan struct{}, concurrency)
		m.waiting = make(chan struct{}, maxWaiting+concurrency)
	}
	return m
}

// health is what the answer to a health probe says now.
func (m *Model) health() atelier.ModuleHealth {
	if s, ok := m.Engine.(Standby); ok {
		return s.Health()
	}
	return m.Health
}

// infer runs the model when it is its turn, and records what it was given and gave
// where ctx carries a sample.
func (m *Model) infer(ctx context.Context, inputs []Tensor, indices []int) ([]Tensor, error) {
	outputs, err := m.run(ctx, inputs, indices)
	if x := collect.From(ctx); x != nil {
		m.note(x, inputs, indices, outputs)
	}
	return outputs, err
}

// run runs the model when it is its turn.
func (m *Model) run(ctx context.Context, inputs []Tensor, outputs []int) ([]Tensor, error) {
	if m.Deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, m.Deadline)
		defer cancel()
	}
	if m.batch != nil {
		return m.batch.infer(ctx, inputs, outputs)
	}
	if m.slots == nil {
		return m.Engine.Infer(ctx, inputs, outputs)
	}
	select {
	case m.waiting <- struct{}{}:
		defer func() { <-m.waiting }()
	default:
		return nil, tooMany(m.Name)
	}
	select {
	case m.slots <- struct{}{}:
		defer func() { <-m.slots }()
	case <-ctx.Done():
		return nil, gaveUp(ctx)
	}
	return m.Engine.Infer(ctx, inputs, outputs)
}

// Close frees the engine once what runs has ended. No request may follow.
func (m *Model) Close() error {
	if m.batch != nil {
		m.batch.runners.Wait() // also for what nobody waits for any more
	}
	return m.Engine.Close()
}

// Warm runs the model once on zeros, so that no client waits for what an engine
// does only at its first inference.
func (m *Model) Warm(ctx context.Context) error {
	s := m.Engine.Signature()
	inputs, outputs := make([]Tensor, len(s.Inputs)), make([]int, len(s.Outputs))
	for i, spec := range s.Inputs {
		inputs[i] = Zeros(spec)
	}
	for i := range outputs {
		outputs[i] = i
	}
	_, err := m.infer(ctx, inputs, outputs)
	return err
}

// input finds an input of the signature by its name, and where it stands.
func (m *Model) input(name, field string) (int, error) {
	inputs := m.Engine.Signature().Inputs
	if i := slices.IndexFunc(inputs, func(s atelier.TensorSpec) bool { return s.Name == name }); i >= 0 {
		return i, nil
	}
	return 0, atelier.Errorf(atelier.Invalid, "%s is %.80q, the model's inputs are %s", field, name, names(inputs)).WithField(field)
}

// output is the same for outputs.
func (m *Model) output(name, field string) (int, error) {
	outputs := m.Engine.Signature().Outputs
	if i := slices.IndexFunc(outputs, func(s atelier.TensorSpec) bool { return s.Name == name }); i >= 0 {
		return i, nil
	}
	return 0, atelier.Errorf(atelier.Invalid, "%s is %.80q, the model's outputs are %s", field, name, names(outputs)).WithField(field)
}

// complete checks that each input came.
func (m *Model) complete(came []bool) error {
	for i, spec := range m.Engine.Signature().Inputs {
		if !came[i] {
			return atelier.Errorf(atelier.Invalid, "input %q is missing; the model's inputs are %s", spec.Name, names(m.Engine.Signature().Inputs)).
				WithField("inputs")
		}
	}
	return nil
}

func names(specs []atelier.TensorSpec) string {
	words := make([]string, len(specs))
	for i, s := range specs {
		words[i] = fmt.Sprintf("%q (%s %v)", s.Name, s.Type, s.Shape)
	}
	return strings.Join(words, ", ")
}

// checkShape checks the shape of a tensor that came against what the model takes;
// what names it to people.
func checkShape(shape []int64, spec *atelier.TensorSpec, what, field string) error {
	bad := func(why string) error {
		return atelier.Errorf(atelier.Invalid, "%s is %v for input %q, %v was expected (-1 stands for any size): %s", what, shape, spec.Name, spec.Shape, why).
			WithField(field)
	}
	if len(shape) != len(spec.Shape) {
		return bad(fmt.Sprintf("it has %d dimensions instead of %d", len(shape), len(spec.Shape)))
	}
	for i, d := range shape {
		if spec.Shape[i] >= 0 && spec.Shape[i] != d {
			return bad(fmt.Sprintf("dimension %d is %d instead of %d", i, d, spec.Shape[i]))
		}
	}
	if _, ok := Elements(shape); !ok {
		return bad(fmt.Sprintf("sizes must not be negative, nor the elements more than %d", MaxElements))
	}
	return nil
}
