// Package mlflow reads what MLflow says of a model in its file MLmodel
// (mlflow.org/docs, "MLflow Models"): whether it can be called as a Python function,
// and its signature. It runs nothing of the model.
package mlflow

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	atelier "github.com/atelier-edge/atelier"
)

// File is the name of the file that Parse reads, at the root of a model's directory.
const File = "MLmodel"

// MaxSize is how many bytes of it are taken.
const MaxSize = 1 << 20

// maxTensors bounds the inputs, and the outputs, of a signature.
const maxTensors = 4096

// The names of what a signature leaves without one.
const (
	Input  = "input"
	Output = "predictions"
)

// Model is what Parse found.
type Model struct {
	// Flavors are the names under which the model can be loaded, sorted.
	Flavors []string
	// Columns is true where the inputs are columns of a table rather than tensors.
	Columns bool
	// Inputs and Outputs are nil where the signature does not say, or has what no tensor
	// stands for: lists, objects, maps. A column is a tensor of one dimension.
	Inputs, Outputs []atelier.TensorSpec
	// Datetimes and Binaries name the columns that are BYTES without being text.
	Datetimes, Binaries []string
}

// Signature returns inputs and outputs, nil where one is not known.
func (m *Model) Signature() *atelier.Signature {
	if m.Inputs == nil || m.Outputs == nil {
		return nil
	}
	return &atelier.Signature{Inputs: m.Inputs, Outputs: m.Outputs}
}

// form is the part of the file that is read.
type form struct {
	Flavors   map[string]yaml.Node `yaml:"flavors"`
	Signature *struct {
		Inputs  string `yaml:"inputs"`
		Outputs string `yaml:"outputs"`
	} `yaml:"signature"`
}

// column is an input or output as the signature's JSON has it.
type column struct {
	Type   json.RawMessage `json:"type"` // a word, or an object for what is nested
	Name   string          `json:"name"`
	Tensor *struct {
		Dtype string  `json:"dtype"`
		Shape []int64 `json:"shape"`
	} `json:"tensor-spec"`
}

// Parse reads the text of an MLmodel. Errors have the code Invalid.
func Parse(text []byte) (*Model, error) {
	bad := func(format string, args ...any) error {
		return atelier.Errorf(atelier.Invalid, File+" "+format, args...).
			WithRemedy("Register the directory as MLflow's save_model() wrote it.")
	}
	if len(text) > MaxSize {
		return nil, bad("has %d bytes, at most %d were expected", len(text), MaxSize)
	}
	var f form
	if err := yaml.Unmarshal(text, &f); err != nil {
		return nil, bad("is no YAML of a model: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if len(f.Flavors) == 0 {
		return nil, bad("names no flavor that the model could be loaded by")
	}
	m := &Model{}
	for name := range f.Flavors {
		m.Flavors = append(m.Flavors, name)
	}
	slices.Sort(m.Flavors)
	if _, ok := f.Flavors["python_function"]; !ok {
		return nil, bad("has the flavors %s, python_function was expected among them", strings.Join(m.Flavors, ", "))
	}
	if f.Signature == nil {
		return m, nil
	}
	if err := m.inputs(f.Signature.Inputs); err != nil {
		return nil, bad("has a signature whose inputs %v", err)
	}
	outputs, _, err := specs(f.Signature.Outputs, Output)
	if err != nil {
		return nil, bad("has a signature whose outputs %v", err)
	}
	m.Outputs = outputs
	return m, nil
}

func (m *Model) inputs(text string) error {
	inputs, columns, err := specs(text, Input)
	if err != nil || inputs == nil {
		return err
	}
	m.Inputs = inputs
	for i, c := range columns {
		if c.Tensor != nil {
			continue
		}
		m.Columns = true
		switch string(c.Type) {
		case `"datetime"`:
			m.Datetimes = append(m.Datetimes, inputs[i].Name)
		case `"binary"`:
			m.Binaries = append(m.Binaries, inputs[i].Name)
		}
	}
	return nil
}

// columnTypes are the datatypes of MLflow's column types (mlflow.types.DataType).
var columnTypes = map[string]string{
	"boolean": "BOOL", "integer": "INT32", "long": "INT64", "float": "FP32", "double": "FP64",
	"string": "BYTES", "binary": "BYTES", "datetime": "BYTES",
}

// tensorTypes are those of NumPy's names.
var tensorTypes = map[string]string{
	"bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
	"int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
	"float16": "FP16", "float32": "FP32", "float64": "FP64", "str": "BYTES", "object": "BYTES",
}

// specs reads one side of a signature. The specs are nil where it says nothing or
// has what no tensor stands for. one is the name of a single one that has none.
func specs(text, one string) ([]atelier.TensorSpec, []column, error) {
	if text == "" || text == "null" {
		return nil, nil, nil
	}
	var columns []column
	if err := json.Unmarshal([]byte(text), &columns); err != nil {
		return nil, nil, fmt.Errorf("are no JSON list of columns: %w", err)
	}
	if len(columns) == 0 || len(columns) > maxTensors {
		return nil, nil, fmt.Errorf("are %d, 1 to %d were expected", len(columns), maxTensors)
	}
	var found []atelier.TensorSpec
	names := map[string]bool{}
	for i, c := range columns {
		spec := atelier.TensorSpec{Name: c.Name, Shape: []int64{-1}}
		if c.Tensor != nil {
			spec.Type, spec.Shape = tensorTypes[c.Tensor.Dtype], c.Tensor.Shape
		} else {
			var word string
			if json.Unmarshal(c.Type, &word) == nil {
				spec.Type = columnTypes[word]
			}
		}
		if spec.Type == "" || spec.Shape == nil {
			return nil, nil, nil // lists, objects, any
		}
		for _, d := range spec.Shape {
			if d < -1 {
				return nil, nil, fmt.Errorf("have a size of %d in [%d]", d, i)
			}
		}
		if spec.Name == "" {
			if spec.Name = one; len(columns) > 1 {
				spec.Name = fmt.Sprintf("%s_%d", one, i)
			}
		}
		if names[spec.Name] {
			return nil, nil, fmt.Errorf("have %q twice", spec.Name)
		}
		names[spec.Name] = true
		found = append(found, spec)
	}
	return found, columns, nil
}
