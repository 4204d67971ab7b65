package python

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving"
)

//go:embed predictor.py
var predictorSource []byte

// The kinds of models that are served without a script.
const (
	KindMLflow = "mlflow" // a directory that MLflow wrote
	KindPickle = "pickle" // a file that joblib or pickle wrote
)

// Source is a model that is served without a script. To load it runs code that is
// part of it, in the workers only.
type Source struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
	// Inputs and Outputs are what the model's signature says, nil where it does not.
	// Columns is true where the inputs are columns of a table.
	Inputs  []atelier.TensorSpec `json:"inputs,omitempty"`
	Outputs []atelier.TensorSpec `json:"outputs,omitempty"`
	Columns bool                 `json:"columns,omitempty"`
	// Datetimes and Binaries name columns that are BYTES and no text.
	Datetimes []string `json:"datetimes,omitempty"`
	Binaries  []string `json:"binaries,omitempty"`
}

// aboutPredictor is what a worker says of a model without a script.
type aboutPredictor struct {
	Platform string               `json:"platform"`
	Inputs   []atelier.TensorSpec `json:"inputs"`
	Outputs  []atelier.TensorSpec `json:"outputs"`
}

// Predictor runs a model without a script in a pool of Python processes. It
// implements serving.Engine.
type Predictor struct {
	pool  *Pool
	about *aboutPredictor
}

var _ serving.Invoker = (*Predictor)(nil)

// typeTensors is the type of a request, and of its answer, that is tensors: a uint32
// with the length of the JSON that follows, a list of names, datatypes and shapes,
// then the elements of each as Open Inference Protocol's binary form has them.
const typeTensors = "application/x-atelier-tensors"

// NewPredictor serves what p loaded. It closes p with itself.
func NewPredictor(p *Pool) (*Predictor, error) {
	about := p.about.Predictor
	if about == nil {
		return nil, atelier.Errorf(atelier.Internal, "a worker has loaded a model and says nothing of it")
	}
	for _, s := range slices.Concat(about.Inputs, about.Outputs) {
		if !slices.Contains(serving.Datatypes, serving.Datatype(s.Type)) {
			return nil, atelier.Errorf(atelier.Internal, "a worker says that %.80q is of the datatype %.20q, which there is none of", s.Name, s.Type)
		}
	}
	return &Predictor{p, about}, nil
}

// Platform implements serving.Engine.
func (p *Predictor) Platform() string { return p.about.Platform }

// Signature implements serving.Engine.
func (p *Predictor) Signature() *atelier.Signature {
	return &atelier.Signature{Inputs: p.about.Inputs, Outputs: p.about.Outputs}
}

// Close implements serving.Engine.
func (p *Predictor) Close() error {
	p.pool.Close()
	return nil
}

// Infer implements serving.Engine.
func (p *Predictor) Infer(ctx context.Context, inputs []serving.Tensor, outputs []int) ([]serving.Tensor, error) {
	body, err := appendTensors(p.about.Inputs, inputs)
	if err != nil {
		return nil, err
	}
	a, err := p.do(ctx, typeTensors, body)
	if err != nil {
		return nil, err
	}
	all, err := readTensors(p.about.Outputs, a.Body)
	if err != nil {
		return nil, err
	}
	results := make([]serving.Tensor, len(outputs))
	for i, o := range outputs {
		results[i] = all[o]
	}
	return results, nil
}

// Invoke implements serving.Invoker.
func (p *Predictor) Invoke(ctx context.Context, contentType string, body []byte) (serving.Answer, error) {
	a, err := p.do(ctx, contentType, body)
	if err != nil {
		return serving.Answer{}, err
	}
	answer := serving.Answer{Status: a.Status, Body: a.Body, ContentType: "application/json"}
	for _, h := range a.Headers {
		if h[0] == "Content-Type" {
			answer.ContentType = h[1]
		}
	}
	if a.Status >= http.StatusBadRequest {
		answer.Body, answer.ContentType = explained(a.Status, answer.ContentType, a.Body)
	}
	return answer, nil
}

// explained adds our fields to an error of MLflow's.
func explained(status int, contentType string, body []byte) ([]byte, string) {
	fields := map[string]json.RawMessage{}
	message := string(body) // where it is a sentence
	if contentType == "application/json" {
		if json.Unmarshal(body, &fields) != nil {
			return body, contentType
		}
		if json.Unmarshal(fields["message"], &message) != nil {
			return body, contentType
		}
	}
	text := func(s string) json.RawMessage {
		b, err := json.Marshal(s)
		if err != nil { // of a string: it does not happen
			return json.RawMessage(`""`)
		}
		return b
	}
	fields["message"], fields["error"], fields["code"] = text(message), text(message), text(string(codeFor(status)))
	if fields["error_code"] == nil {
		fields["error_code"] = text("BAD_REQUEST")
	}
	b, err := json.Marshal(fields)
	if err != nil {
		return body, contentType
	}
	return b, "application/json"
}

type idKey struct{}

// WithID returns a context with which a request's output is logged under id.
func WithID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, idKey{}, id)
}

// do has a worker answer, and makes errors of what it could not.
func (p *Predictor) do(ctx context.Context, contentType string, body []byte) (*Answer, error) {
	id, _ := ctx.Value(idKey{}).(string)
	a, err := p.pool.Do(ctx, &Request{ID: id, Method: http.MethodPost, Type: contentType, Body: body, Headers: func() [][2]string { return nil }})
	switch {
	case err != nil:
		return nil, err
	case a.Message != "":
		return nil, atelier.Errorf(codeFor(a.Status), "%s", a.Message).WithField(a.Field)
	case a.Failed:
		p.pool.opts.Log.Error("the model failed", "request", id, "error", a.Error)
		for line := range strings.Lines(a.Traceback) {
			p.pool.opts.Log.Error(strings.TrimRight(line, "\n"), "request", id)
		}
		return nil, atelier.Errorf(atelier.Internal, "the model failed: %s", a.Error).
			WithRemedy("The module's log has the traceback, under the request's id.")
	}
	return a, nil
}

// tensorHead is one tensor in the JSON of typeTensors.
type tensorHead struct {
	Name  string  `json:"name"`
	Type  string  `json:"datatype"`
	Shape []int64 `json:"shape"`
}

// appendTensors writes tensors, which are specs' in their order.
func appendTensors(specs []atelier.TensorSpec, tensors []serving.Tensor) ([]byte, error) {
	if len(tensors) != len(specs) {
		return nil, atelier.Errorf(atelier.Invalid, "%d inputs came, %d were expected", len(tensors), len(specs)).WithField("inputs")
	}
	heads, size := make([]tensorHead, len(tensors)), 0
	for i := range tensors {
		heads[i] = tensorHead{specs[i].Name, string(tensors[i].Type), tensors[i].Shape}
		size += len(tensors[i].Data)
	}
	head, err := json.Marshal(heads)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, 4+len(head)+size)
	b = append(binary.LittleEndian.AppendUint32(b, uint32(len(head))), head...)
	for i := range tensors {
		b = append(b, tensors[i].Data...)
		for _, s := range tensors[i].Strings {
			b = append(binary.LittleEndian.AppendUint32(b, uint32(len(s))), s...)
		}
	}
	return b, nil
}

// readTensors reads tensors that must be specs' in their order. What does not fit is
// the model's fault.
func readTensors(specs []atelier.TensorSpec, b []byte) ([]serving.Tensor, error) {
	bad := func(format string, args ...any) ([]serving.Tensor, error) {
		return nil, atelier.Errorf(atelier.Internal, "the model's answer %s", fmt.Sprintf(format, args...))
	}
	if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
		return bad("is cut off in its head")
	}
	head, rest := b[4:4+binary.LittleEndian.Uint32(b)], b[4+binary.LittleEndian.Uint32(b):]
	var heads []tensorHead
	if err := json.Unmarshal(head, &heads); err != nil {
		return bad("has a head that cannot be read: %v", err)
	}
	if len(heads) != len(specs) {
		return bad("has %d outputs, %d were expected", len(heads), len(specs))
	}
	tensors := make([]serving.Tensor, len(specs))
	for i, h := range heads {
		t := serving.Tensor{Type: serving.Datatype(h.Type), Shape: h.Shape}
		n, ok := serving.Elements(h.Shape)
		switch {
		case h.Name != specs[i].Name || h.Type != specs[i].Type:
			return bad("has %.80q of %.20s as output %d, %q of %s was expected", h.Name, h.Type, i, specs[i].Name, specs[i].Type)
		case !ok:
			return bad("has the shape %v, which no tensor can have", h.Shape)
		case t.Type == serving.Bytes:
			if t.Strings, rest, ok = readStrings(rest, n); !ok {
				return bad("is cut off in output %q", h.Name)
			}
		default:
			size := n * t.Type.Size()
			if size > int64(len(rest)) {
				return bad("is cut off in output %q", h.Name)
			}
			t.Data, rest = bytes.Clone(rest[:size]), rest[size:]
		}
		if t.Shape == nil {
			t.Shape = []int64{}
		}
		tensors[i] = t
	}
	if len(rest) > 0 {
		return bad("goes on for %d bytes after its end", len(rest))
	}
	return tensors, nil
}

// readStrings reads n elements of BYTES and returns what follows them.
func readStrings(b []byte, n int64) (texts []string, rest []byte, ok bool) {
	if n > int64(len(b)/4) { // each takes a length
		return nil, b, false
	}
	texts = make([]string, n)
	for i := range texts {
		if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
			return nil, b, false
		}
		size := binary.LittleEndian.Uint32(b)
		texts[i], b = string(b[4:4+size]), b[4+size:]
	}
	return texts, b, true
}
