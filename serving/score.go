package serving

import (
	"context"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"

	atelier "github.com/atelier-edge/atelier"
)

// scoreRequest is the body of POST /score: values by input name, or, for a model
// with one input, the value of that input alone. Values are nested as the tensor
// is; datatypes are the model's.
type scoreRequest struct {
	Inputs map[string]jsontext.Value `json:"inputs"`
	Data   jsontext.Value            `json:"data"`
}

// score answers POST /score: {"outputs": {name: nested values}}.
func (m *Model) score(ctx context.Context, body []byte) ([]byte, error) {
	var req scoreRequest
	if err := decodeJSON(body, &req); err != nil {
		return nil, err
	}
	s := m.Engine.Signature()
	switch {
	case req.Inputs == nil && req.Data == nil:
		return nil, atelier.Errorf(atelier.Invalid, "neither inputs nor data came").
			WithRemedy(`Send {"inputs": {name: values}} with the model's inputs %s.`, names(s.Inputs)).WithField("inputs")
	case req.Inputs != nil && req.Data != nil:
		return nil, atelier.Errorf(atelier.Invalid, "both inputs and data came, one of them was expected").WithField("data")
	case req.Data != nil && len(s.Inputs) != 1:
		return nil, atelier.Errorf(atelier.Invalid, "data came, but the model has %d inputs: %s", len(s.Inputs), names(s.Inputs)).
			WithRemedy(`Send {"inputs": {name: values}}.`).WithField("data")
	}
	tensors, came := make([]Tensor, len(s.Inputs)), make([]bool, len(s.Inputs))
	read := func(at int, raw jsontext.Value, field string) (err error) {
		came[at] = true
		if tensors[at], err = parseData(raw, Datatype(s.Inputs[at].Type), nil, field); err != nil {
			return err
		}
		return checkShape(tensors[at].Shape, &s.Inputs[at], "the shape of "+field, field)
	}
	if req.Data != nil {
		if err := read(0, req.Data, "data"); err != nil {
			return nil, err
		}
	}
	for name, raw := range req.Inputs {
		at, err := m.input(name, "inputs")
		if err != nil {
			return nil, err
		}
		if err := read(at, raw, fmt.Sprintf("inputs.%s", name)); err != nil {
			return nil, err
		}
	}
	if err := m.complete(came); err != nil {
		return nil, err
	}
	all := make([]int, len(s.Outputs))
	for i := range all {
		all[i] = i
	}
	outputs, err := m.infer(ctx, tensors, all)
	if err != nil {
		return nil, err
	}
	return m.appendOutputs([]byte(`{"outputs":`), outputs)
}

// appendOutputs appends all outputs by their names, and a brace.
func (m *Model) appendOutputs(b []byte, outputs []Tensor) (_ []byte, err error) {
	specs := m.Engine.Signature().Outputs
	b = append(b, '{')
	for i := range outputs {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(quoted(b, specs[i].Name), ':')
		if b, err = appendNested(b, &outputs[i], specs[i].Name); err != nil {
			return nil, err
		}
	}
	return append(b, "}}"...), nil
}
