// Package enginetest is the conformance suite of serving engines, with a small
// writer of ONNX files for tests. An engine joins by one call of Run.
package enginetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving"
)

// Open loads the ONNX model at path in the engine under test.
type Open func(path string) (serving.Engine, error)

// Run tests an engine.
func Run(t *testing.T, open Open) {
	load := func(t *testing.T, model []byte) serving.Engine {
		t.Helper()
		e, err := open(write(t, model))
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		t.Cleanup(func() {
			if err := e.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
		return e
	}
	t.Run("datatypes", func(t *testing.T) {
		t.Parallel()
		for _, typ := range serving.Datatypes {
			t.Run(string(typ), func(t *testing.T) { testDatatype(t, load(t, Identity(typ)), typ) })
		}
	})
	t.Run("signature", func(t *testing.T) { t.Parallel(); testSignature(t, load(t, Affine(1))) })
	t.Run("outputs", func(t *testing.T) { t.Parallel(); testOutputs(t, load(t, Affine(1))) })
	t.Run("refusals", func(t *testing.T) { t.Parallel(); testRefusals(t, load(t, Affine(1))) })
	t.Run("concurrency", func(t *testing.T) { t.Parallel(); testConcurrency(t, load(t, Affine(1))) })
	t.Run("rows", func(t *testing.T) {
		t.Parallel()
		e := load(t, Perceptron(20, 30, 5))
		if rows, ok := e.(serving.RowEngine); ok {
			testRows(t, rows)
			testBatching(t, e)
		} else {
			t.Log("the engine runs one request at a time")
		}
	})
	t.Run("broken model", func(t *testing.T) {
		t.Parallel()
		for name, model := range map[string][]byte{
			"empty": nil, "noise": []byte("no model at all"), "torn": Affine(1)[:60],
			"operator": Graph{
				Inputs:  []atelier.TensorSpec{{Name: "x", Type: "FP32", Shape: []int64{1}}},
				Outputs: []atelier.TensorSpec{{Name: "y", Type: "FP32", Shape: []int64{1}}},
				Nodes:   []Node{{"NoSuchOperator", []string{"x"}, []string{"y"}}},
			}.ONNX(),
		} {
			if e, err := open(write(t, model)); atelier.CodeOf(err) != atelier.Corrupt {
				t.Errorf("%s: %v, %v, want code corrupt", name, e, err)
			}
		}
		if _, err := open(filepath.Join(t.TempDir(), "missing.onnx")); err == nil {
			t.Error("a missing file was opened")
		}
	})
}

func write(t *testing.T, model []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := os.WriteFile(path, model, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func testDatatype(t *testing.T, e serving.Engine, typ serving.Datatype) {
	for _, shape := range [][]int64{{2, 3}, {1, 1}, {0, 3}} {
		n, _ := serving.Elements(shape)
		in := serving.Tensor{Type: typ, Shape: shape}
		if typ == serving.Bytes {
			in.Strings = []string{"", "a", "Grüße", "three words here", "\xff\xfe", "end"}[:n]
		} else {
			in.Data = make([]byte, n*typ.Size())
			for i := range in.Data {
				in.Data[i] = byte(i * 37 % 0x70) // no NaN, which may come back as another
				if typ == serving.Bool {
					in.Data[i] = byte(i % 2)
				}
			}
		}
		got, err := e.Infer(t.Context(), []serving.Tensor{in}, []int{0})
		if err != nil {
			t.Fatalf("shape %v: %v", shape, err)
		}
		if len(got) != 1 || got[0].Type != typ || !slices.Equal(got[0].Shape, shape) ||
			!bytes.Equal(got[0].Data, in.Data) || !slices.Equal(got[0].Strings, in.Strings) {
			t.Errorf("got %+v, want the same as %+v", got, in)
		}
	}
}

func testSignature(t *testing.T, e serving.Engine) {
	s := e.Signature()
	want := atelier.TensorSpec{Name: "x", Type: "FP32", Shape: []int64{-1, 4}}
	if len(s.Inputs) != 1 || s.Inputs[0].Name != "x" || s.Inputs[0].Type != want.Type || !slices.Equal(s.Inputs[0].Shape, want.Shape) {
		t.Errorf("inputs = %+v, want %+v", s.Inputs, want)
	}
	if len(s.Outputs) != 2 || s.Outputs[0].Name != "y" || s.Outputs[1].Name != "z" {
		t.Errorf("outputs = %+v, want y and z", s.Outputs)
	}
	if e.Platform() == "" {
		t.Error("no platform")
	}
}

// Floats makes an FP32 tensor.
func Floats(shape []int64, values ...float32) serving.Tensor {
	t := serving.Tensor{Type: serving.FP32, Shape: shape}
	for _, v := range values {
		t.Data = binary.LittleEndian.AppendUint32(t.Data, math.Float32bits(v))
	}
	return t
}

func testOutputs(t *testing.T, e serving.Engine) {
	in := []serving.Tensor{Floats([]int64{1, 4}, 1, 2, 3, 4)}
	y, z := Floats([]int64{1, 4}, 3, 5, 7, 9), Floats([]int64{1, 4}, -1, -2, -3, -4)
	for _, c := range []struct {
		outputs []int
		want    []serving.Tensor
	}{{[]int{0, 1}, []serving.Tensor{y, z}}, {[]int{1}, []serving.Tensor{z}}, {[]int{1, 0}, []serving.Tensor{z, y}}, {nil, nil}} {
		got, err := e.Infer(t.Context(), in, c.outputs)
		if err != nil || len(got) != len(c.want) {
			t.Fatalf("outputs %v: %v, %v", c.outputs, got, err)
		}
		for i := range got {
			if !bytes.Equal(got[i].Data, c.want[i].Data) {
				t.Errorf("outputs %v: tensor %d = %v, want %v", c.outputs, i, got[i], c.want[i])
			}
		}
	}
}

func testRefusals(t *testing.T, e serving.Engine) {
	good := Floats([]int64{1, 4}, 1, 2, 3, 4)
	for name, c := range map[string]struct {
		inputs  []serving.Tensor
		outputs []int
	}{
		"no input":        {nil, []int{0}},
		"two inputs":      {[]serving.Tensor{good, good}, []int{0}},
		"datatype":        {[]serving.Tensor{{Type: serving.FP64, Shape: []int64{1, 4}, Data: make([]byte, 32)}}, []int{0}},
		"shape":           {[]serving.Tensor{Floats([]int64{1, 3}, 1, 2, 3)}, []int{0}},
		"rank":            {[]serving.Tensor{Floats([]int64{4}, 1, 2, 3, 4)}, []int{0}},
		"negative size":   {[]serving.Tensor{Floats([]int64{-1, -4}, 1, 2, 3, 4)}, []int{0}},
		"huge shape":      {[]serving.Tensor{Floats([]int64{1 << 62, 4}, 1)}, []int{0}},
		"too little data": {[]serving.Tensor{Floats([]int64{2, 4}, 1)}, []int{0}},
		"no such output":  {[]serving.Tensor{good}, []int{2}},
		"negative output": {[]serving.Tensor{good}, []int{-1}},
	} {
		if got, err := e.Infer(t.Context(), c.inputs, c.outputs); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%s: %v, %v, want code invalid", name, got, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Infer(ctx, []serving.Tensor{good}, []int{0}); atelier.CodeOf(err) != atelier.Timeout {
		t.Errorf("ended context: %v, want code timeout", err)
	}
}

func testConcurrency(t *testing.T, e serving.Engine) {
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				v := float32(g*1000 + i)
				ctx, cancel := context.WithCancel(t.Context())
				got, err := e.Infer(ctx, []serving.Tensor{Floats([]int64{1, 4}, v, v, v, v)}, []int{0})
				cancel()
				want := 2*v + 1
				if err != nil || math.Float32frombits(binary.LittleEndian.Uint32(got[0].Data)) != want {
					t.Errorf("%v, %v, want %v", got, err, want)
					return
				}
			}
		})
	}
	wg.Wait()
}
