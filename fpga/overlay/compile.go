// Package overlay compiles ONNX models to programs for the overlay, the soft neural
// processor of FPGA hosts: multi-layer perceptrons and convolutional networks, quantised already or quantised
// here with the help of a calibration set. What it cannot compile it names.
package overlay

import (
	"fmt"
	"math"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/fpga/reference"
)

// Quantisation says what number a value q stands for: Scale·(q − Zero).
type Quantisation struct {
	Scale float64 `json:"scale"`
	Zero  int8    `json:"zero"`
}

// Quantise returns the value nearest to x, the even one of two.
func (q Quantisation) Quantise(x float64) int8 {
	return int8(min(max(math.RoundToEven(x/q.Scale)+float64(q.Zero), -128), 127))
}

// Real returns the number that v stands for.
func (q Quantisation) Real(v int8) float64 { return q.Scale * (float64(v) - float64(q.Zero)) }

// OutputKind says how the host makes an output of the network's results.
type OutputKind string

// The kinds of outputs. Softmax is computed on the host; ArgMax comes from the overlay.
const (
	Values  OutputKind = "values"
	Softmax OutputKind = "softmax"
	ArgMax  OutputKind = "argmax"
)

// Output is an output of the model.
type Output struct {
	Name string     `json:"name"`
	Kind OutputKind `json:"kind"`
}

// Model is a compiled model.
type Model struct {
	Program *program.Program
	Input   string // its name
	// Shape is that of the input. The model takes its elements by channel, row and column; the
	// overlay by row, column and channel.
	Shape   program.Image
	In, Out Quantisation // of the network's inputs and results
	Outputs []Output
	Cycles  int // that an inference is predicted to take
}

// Options guide a compilation.
type Options struct {
	Geometry program.Geometry
	// Calibration are inputs as the model sees them in use. A model that is not
	// quantised yet needs some.
	Calibration [][]float64
	// Runtime, if it is set, runs the original model on one input and returns its outputs
	// by name; the report compares with it.
	Runtime func(x []float64) (map[string][]float64, error)
}

// Report says how near the compiled model comes to the original on the calibration
// inputs.
type Report struct {
	Inputs int
	// Largest is the largest difference of a number, by the name of the output. ArgMax
	// outputs are not among them.
	Largest map[string]float64
	// Differs is how many times an ArgMax output was another.
	Differs int
	// Clipped is the share of calibration inputs' elements outside the range of 8 bits.
	Clipped float64
}

// Compiled is what a compilation gives.
type Compiled struct {
	Model   *Model
	Network *reference.Network
	// Report is there when Options had a Runtime.
	Report *Report
}

// Compile compiles the ONNX model in b. An operator that the overlay does not have
// gives an *atelier.Error with the code Unsupported that names the node.
func Compile(b []byte, o Options) (*Compiled, error) {
	if err := o.Geometry.Check(); err != nil {
		return nil, err
	}
	g, err := parse(b)
	if err != nil {
		return nil, err
	}
	l, err := lower(g)
	if err != nil {
		return nil, err
	}
	var calibration [][]float64
	for k, x := range o.Calibration {
		if len(x) != l.shape.Size() {
			return nil, atelier.Errorf(atelier.Invalid, "calibration input %d has %d values, the model takes %d", k, len(x), l.shape.Size()).
				WithRemedy("Give inputs of the model's shape.")
		}
		calibration = append(calibration, arranged(l.shape, x))
	}
	if err := l.calibrate(calibration); err != nil {
		return nil, err
	}
	network, operations, err := l.quantise()
	if err != nil {
		return nil, err
	}
	p, err := program.Place(o.Geometry, operations)
	if err != nil {
		return nil, err
	}
	c := &Compiled{Network: network, Model: &Model{Program: p, Input: l.input, Shape: l.shape, In: *l.in, Out: *l.last().out,
		Outputs: l.outputs, Cycles: p.Cycles()}}
	if o.Runtime != nil {
		c.Report, err = c.compare(o)
	}
	return c, err
}

func (l *lowered) last() *stage {
	if len(l.stages) == 0 {
		return nil
	}
	return l.stages[len(l.stages)-1]
}

// arranged brings an image from the model's order into the overlay's.
func arranged(m program.Image, x []float64) []float64 {
	if m.Channels == 1 || m.Height*m.Width == 1 {
		return x
	}
	y := make([]float64, len(x))
	for i, v := range x {
		y[value{Image: m}.flatTo(i)] = v
	}
	return y
}

// Arrange makes of a model's input what the overlay takes.
func (m *Model) Arrange(x []float64) []int8 {
	q := make([]int8, len(x))
	for i, v := range arranged(m.Shape, x) {
		q[i] = m.In.Quantise(v)
	}
	return q
}

// Infer returns the compiled model's outputs by name, as the reference computes them.
func (c *Compiled) Infer(x []float64) map[string][]float64 {
	y := c.Network.Infer(c.Model.Arrange(x))
	return c.Model.Results(y, reference.ArgMax(y))
}

// Results makes the model's outputs of what the overlay gives.
func (m *Model) Results(y []int8, argmax int) map[string][]float64 {
	values := make([]float64, len(y))
	for i, v := range y {
		values[i] = m.Out.Real(v)
	}
	results := map[string][]float64{}
	for _, o := range m.Outputs {
		switch o.Kind {
		case ArgMax:
			results[o.Name] = []float64{float64(argmax)}
		case Softmax:
			results[o.Name] = softmax(values)
		default:
			results[o.Name] = values
		}
	}
	return results
}

func softmax(x []float64) []float64 {
	top := math.Inf(-1)
	for _, v := range x {
		top = max(top, v)
	}
	y, sum := make([]float64, len(x)), 0.0
	for i, v := range x {
		y[i] = math.Exp(v - top)
		sum += y[i]
	}
	for i := range y {
		y[i] /= sum
	}
	return y
}

func (c *Compiled) compare(o Options) (*Report, error) {
	r := &Report{Inputs: len(o.Calibration), Largest: map[string]float64{}}
	clipped, elements := 0, 0
	for _, x := range o.Calibration {
		for _, v := range x {
			elements++
			if math.Abs(c.Model.In.Real(c.Model.In.Quantise(v))-v) > c.Model.In.Scale*0.501 {
				clipped++
			}
		}
		want, err := o.Runtime(x)
		if err != nil {
			return nil, err
		}
		got := c.Infer(x)
		for _, out := range c.Model.Outputs {
			if len(want[out.Name]) != len(got[out.Name]) {
				return nil, fmt.Errorf("the runtime gives %d numbers for the output %q, the compiled model %d", len(want[out.Name]), out.Name, len(got[out.Name]))
			}
			for i, v := range got[out.Name] {
				d := math.Abs(v - want[out.Name][i])
				if out.Kind != ArgMax {
					r.Largest[out.Name] = max(r.Largest[out.Name], d)
				} else if d != 0 {
					r.Differs++
				}
			}
		}
	}
	r.Clipped = float64(clipped) / float64(max(1, elements))
	return r, nil
}
