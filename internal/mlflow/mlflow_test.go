package mlflow

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestParse reads files that MLflow 3.17 wrote.
func TestParse(t *testing.T) {
	t.Parallel()
	spec := func(name, typ string, shape ...int64) atelier.TensorSpec {
		return atelier.TensorSpec{Name: name, Type: typ, Shape: shape}
	}
	for name, want := range map[string]Model{
		"frame.MLmodel": {
			Flavors: []string{"python_function", "sklearn"}, Columns: true,
			Inputs:  []atelier.TensorSpec{spec("length", "FP64", -1), spec("width", "FP64", -1), spec("height", "FP64", -1)},
			Outputs: []atelier.TensorSpec{spec("predictions", "INT64", -1)},
		},
		"tensor.MLmodel": {
			Flavors: []string{"python_function", "sklearn"},
			Inputs:  []atelier.TensorSpec{spec("input", "FP64", -1, 3)}, Outputs: []atelier.TensorSpec{spec("predictions", "INT64", -1)},
		},
		"bare.MLmodel": {Flavors: []string{"python_function", "sklearn"}},
	} {
		m, err := Parse(read(t, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(*m, want) {
			t.Errorf("%s: %+v, want %+v", name, *m, want)
		}
		if (m.Signature() == nil) != (want.Inputs == nil) {
			t.Errorf("%s: its signature is %+v", name, m.Signature())
		}
	}
}

// TestSignatures reads the kinds of columns that there are.
func TestSignatures(t *testing.T) {
	t.Parallel()
	of := func(inputs string) (*Model, error) {
		return Parse([]byte("flavors: {python_function: {}}\nsignature:\n  inputs: '" + inputs + "'\n  outputs: null\n"))
	}
	m, err := of(`[{"type":"boolean","name":"a"},{"type":"datetime","name":"b"},{"type":"binary","name":"c"},{"type":"string","name":"d"}]`)
	if err != nil || !reflect.DeepEqual(m.Datetimes, []string{"b"}) || !reflect.DeepEqual(m.Binaries, []string{"c"}) || m.Outputs != nil || !m.Columns {
		t.Errorf("%+v, %v", m, err)
	}
	// What no tensor stands for is left to MLflow.
	for _, nested := range []string{
		`[{"type":"array","items":{"type":"double"},"name":"a"}]`, `[{"type":"object","properties":{},"name":"a"}]`, `[{"type":{"odd":1},"name":"a"}]`,
		`[{"type":"tensor","tensor-spec":{"dtype":"complex128","shape":[-1]}}]`, `[{"type":"tensor","tensor-spec":{"dtype":"int8"}}]`,
	} {
		if m, err := of(nested); err != nil || m.Inputs != nil {
			t.Errorf("%s: %+v, %v", nested, m, err)
		}
	}
	for says, text := range map[string]string{
		"names no flavor":            "artifact_path: model\n",
		"is no YAML":                 "flavors: [",
		"python_function was":        "flavors: {spark: {}}\n",
		"inputs are no JSON":         "flavors: {python_function: {}}\nsignature: {inputs: 'x'}\n",
		"inputs are 0":               "flavors: {python_function: {}}\nsignature: {inputs: '[]'}\n",
		`outputs have "a" twice`:     `{"flavors": {"python_function": {}}, "signature": {"outputs": "[{\"type\":\"long\",\"name\":\"a\"},{\"type\":\"long\",\"name\":\"a\"}]"}}`,
		"inputs have a size of -2":   `{"flavors": {"python_function": {}}, "signature": {"inputs": "[{\"type\":\"tensor\",\"tensor-spec\":{\"dtype\":\"int8\",\"shape\":[-2]}}]"}}`,
		"bytes, at most 1048576 wer": strings.Repeat("#", MaxSize+1),
	} {
		if _, err := Parse([]byte(text)); atelier.CodeOf(err) != atelier.Invalid || !strings.Contains(err.Error(), says) {
			t.Errorf("%.80s: %v, want %q", text, err, says)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"frame.MLmodel", "tensor.MLmodel", "bare.MLmodel"} {
		f.Add(read(f, name))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Parse(text)
		if err != nil {
			if atelier.CodeOf(err) != atelier.Invalid {
				t.Fatal(err)
			}
			return
		}
		for _, s := range append(m.Inputs, m.Outputs...) {
			if s.Name == "" || s.Type == "" || s.Shape == nil {
				t.Fatalf("%+v", s)
			}
		}
	})
}
