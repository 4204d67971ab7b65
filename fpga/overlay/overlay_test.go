package overlay_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/overlay"
	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/fpga/sim"
	"github.com/atelier-edge/atelier/serving"
	"github.com/atelier-edge/atelier/serving/onnxruntime"
)

const (
	repository = "../.."
	digits     = repository + "/examples/digits/"
)

var library *onnxruntime.Library // ONNX Runtime as the build pins it

func TestMain(m *testing.M) {
	dir, err := filepath.Abs(repository + "/.cache/onnxruntime")
	if err == nil {
		var out []byte
		if out, err = exec.Command(repository+"/scripts/fetch-runtime", dir).CombinedOutput(); err != nil {
			err = fmt.Errorf("%w\n%s", err, out)
		}
	}
	if err == nil {
		library, err = onnxruntime.Load(filepath.Join(dir, "libonnxruntime.so"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

var geometry = program.Geometry{Lanes: 8, Activations: 10, Biases: 8, Program: 6, Weights: 10, Tables: 9}

func read[T any](t testing.TB, path string) (v T) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func model(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// runtime returns a function that runs the model in ONNX Runtime.
func runtime(t testing.TB, path string) func(x []float64) (map[string][]float64, error) {
	t.Helper()
	m, err := library.Open(path, onnxruntime.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	var all []int
	for i := range m.Signature().Outputs {
		all = append(all, i)
	}
	return func(x []float64) (map[string][]float64, error) {
		in := serving.Tensor{Type: serving.FP32, Shape: []int64{1, int64(len(x))}}
		for _, v := range x {
			in.Data = binary.LittleEndian.AppendUint32(in.Data, math.Float32bits(float32(v)))
		}
		outs, err := m.Infer(context.Background(), []serving.Tensor{in}, all)
		if err != nil {
			return nil, err
		}
		results := map[string][]float64{}
		for i, o := range outs {
			var values []float64
			for b := o.Data; len(b) > 0; {
				if o.Type == serving.Int64 {
					values, b = append(values, float64(int64(binary.LittleEndian.Uint64(b)))), b[8:]
				} else {
					values, b = append(values, float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))), b[4:]
				}
			}
			results[m.Signature().Outputs[i].Name] = values
		}
		return results, nil
	}
}

// TestDigits compiles the digits classifiers and compares them with ONNX Runtime on
// digits that nobody trained on or calibrated with.
func TestDigits(t *testing.T) {
	t.Parallel()
	held := read[struct {
		Pixels [][]float64
		Digits []float64
	}](t, digits+"held-out.json")
	calibration := read[[][]float64](t, "testdata/calibration.json")
	for _, path := range []string{digits + "digits-v1.onnx", digits + "digits-v2.onnx", "testdata/digits-qdq.onnx", "testdata/digits-qoperator.onnx",
		"testdata/digits-conv.onnx", "testdata/digits-conv-qdq.onnx", "testdata/digits-conv-qoperator.onnx", "testdata/digits-residual.onnx"} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			run := runtime(t, path)
			geometry := geometry
			if strings.Contains(path, "residual") { // it holds two images at once
				geometry.Activations, geometry.Weights = 11, 11
			}
			o := overlay.Options{Geometry: geometry, Runtime: run, Calibration: calibration}
			c, err := overlay.Compile(model(t, path), o)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d cycles; on %d calibration inputs probabilities differ by %.4f at most, the digit %d times", c.Model.Cycles, c.Report.Inputs, c.Report.Largest["probabilities"], c.Report.Differs)
			if c.Report.Largest["probabilities"] > 0.15 || c.Report.Largest["probabilities"] == 0 || c.Report.Clipped > 0 {
				t.Errorf("the report says %+v", c.Report)
			}
			processor, err := sim.New(geometry, [16]byte{})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Model.Program.Load(processor); err != nil {
				t.Fatal(err)
			}
			right, wanted := 0, 0
			for k, x := range held.Pixels {
				q := c.Model.Arrange(x)
				got, err := c.Model.Program.Infer(processor, q)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(got.Outputs, c.Network.Infer(q)) || got.Cycles != c.Model.Cycles {
					t.Fatalf("digit %d: the processor gives %v in %d cycles, the reference %v; %d were predicted", k, got.Outputs, got.Cycles, c.Network.Infer(q), c.Model.Cycles)
				}
				if c.Model.Results(got.Outputs, got.ArgMax)["digit"][0] == held.Digits[k] {
					right++
				}
				want, err := run(x)
				if err != nil {
					t.Fatal(err)
				}
				if want["digit"][0] == held.Digits[k] {
					wanted++
				}
			}
			got, want := 100*float64(right)/float64(len(held.Digits)), 100*float64(wanted)/float64(len(held.Digits))
			t.Logf("%.2f %% of %d held-out digits are right, %.2f %% in ONNX Runtime", got, len(held.Digits), want)
			if math.Abs(got-want) > 0.3 {
				t.Errorf("the compiled model is right on %.2f %%, the original on %.2f %%", got, want)
			}
		})
	}
}

// TestUnsupportedNodesAreNamed compiles a network with an activation that the overlay does not have.
func TestUnsupportedNodesAreNamed(t *testing.T) {
	t.Parallel()
	b := slices.Clone(model(t, digits+"digits-v2.onnx"))
	at := strings.Index(string(b), "Relu")
	copy(b[at:], "Selu")
	_, err := overlay.Compile(b, overlay.Options{Geometry: geometry, Calibration: [][]float64{make([]float64, 64)}})
	if atelier.CodeOf(err) != atelier.Unsupported || !strings.Contains(err.Error(), `Selu that gives "z0"`) {
		t.Errorf("an unknown operator gives %v", err)
	}
}

func TestCompileRefuses(t *testing.T) {
	t.Parallel()
	b := model(t, digits+"digits-v2.onnx")
	small := geometry
	small.Weights = 5
	for name, c := range map[string]struct {
		model []byte
		o     overlay.Options
		code  atelier.Code
	}{
		"no calibration":    {b, overlay.Options{Geometry: geometry}, atelier.Invalid},
		"wrong calibration": {b, overlay.Options{Geometry: geometry, Calibration: [][]float64{{1}}}, atelier.Invalid},
		"no room":           {b, overlay.Options{Geometry: small, Calibration: [][]float64{make([]float64, 64)}}, atelier.TooLarge},
		"no model":          {b[:100], overlay.Options{Geometry: geometry}, atelier.Invalid},
		"no geometry":       {b, overlay.Options{}, atelier.Invalid},
	} {
		if _, err := overlay.Compile(c.model, c.o); atelier.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want code %s", name, err, c.code)
		}
	}
}

func FuzzCompile(f *testing.F) {
	for _, path := range []string{digits + "digits-v1.onnx", "testdata/digits-qdq.onnx", "testdata/digits-qoperator.onnx"} {
		f.Add(model(f, path))
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = overlay.Compile(b, overlay.Options{Geometry: geometry, Calibration: [][]float64{make([]float64, 64)}})
	})
}
