package rtl_test

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/atelier-edge/atelier/fpga/overlay"
	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/fpga/reference"
	"github.com/atelier-edge/atelier/fpga/rtl"
)

func read[T any](t *testing.T, path string) (v T) {
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

// The networks that are compared on digits: the demo's classifier, and one of convolutions.
const (
	perceptron    = "../../examples/digits/digits-v2.onnx"
	convolutional = "../overlay/testdata/digits-conv.onnx"
)

// classifier compiles a digits classifier.
func classifier(t *testing.T, g program.Geometry, path string) *overlay.Compiled {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := overlay.Compile(b, overlay.Options{Geometry: g, Calibration: read[[][]float64](t, "../overlay/testdata/calibration.json")})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// heldOut returns as many inputs as are asked for: the held-out digits, and then the
// same with noise on every pixel, since there are 599 of them only.
func heldOut(t *testing.T, c *overlay.Compiled, count int) (all [][]int8) {
	t.Helper()
	digits := read[struct{ Pixels [][]float64 }](t, "../../examples/digits/held-out.json").Pixels
	r := rand.New(rand.NewPCG(20, 26))
	for k := range count {
		x := make([]int8, 64)
		for i, v := range digits[k%len(digits)] {
			if k >= len(digits) {
				v += r.NormFloat64() * 3
			}
			x[i] = c.Model.In.Quantise(v)
		}
		all = append(all, x)
	}
	return all
}

// digits compares the classifier on a device with the reference, on so many inputs.
func digits(t *testing.T, d program.Device, g program.Geometry, path string, count int) {
	t.Helper()
	c := classifier(t, g, path)
	if err := c.Model.Program.Load(d); err != nil {
		t.Fatal(err)
	}
	if diff := differs(d, c.Model.Program, c.Network, heldOut(t, c, count)); diff != "" {
		t.Fatal(diff)
	}
	t.Logf("%s: %d inputs, no difference, %d cycles each", path, count, c.Model.Cycles)
}

// TestDigits compares the RTL with the reference on held-out digits.
func TestDigits(t *testing.T) {
	t.Parallel()
	g := hx8k(8)
	s := start(t, build(t, rtl.Design{Geometry: g, UUID: uuid, Fast: true}))
	digits(t, s, g, perceptron, amount(2_000, 20_000))
	digits(t, s, g, convolutional, 2_000)
}

// TestWholeTransaction tells what an inference over SPI takes, the link included.
func TestWholeTransaction(t *testing.T) {
	t.Parallel()
	g := hx8k(8)
	s := start(t, build(t, rtl.Design{Front: rtl.SPI, Geometry: g, UUID: uuid}))
	c := classifier(t, g, perceptron)
	if err := c.Model.Program.Load(s); err != nil {
		t.Fatal(err)
	}
	x := heldOut(t, c, 1)[0]
	before, err := s.Cycles()
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Model.Program.Infer(s, x)
	if err != nil {
		t.Fatal(err)
	}
	after, err := s.Cycles()
	if err != nil {
		t.Fatal(err)
	}
	if want := reference.ArgMax(c.Network.Infer(x)); got.ArgMax != want {
		t.Errorf("the digit is %d, the reference says %d", got.ArgMax, want)
	}
	t.Logf("%d cycles of the clock with SCK at an eighth of it, %d of them computing", after-before, got.Cycles)
}
