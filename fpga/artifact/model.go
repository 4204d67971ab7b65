package artifact

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/overlay"
	"github.com/atelier-edge/atelier/fpga/program"
)

// The bounds of a model package.
const (
	MaxModel   = 64 << 20 // bytes
	maxHeader  = 32 << 20
	maxGolden  = 10_000
	modelMagic = "ATNMODL1"
)

const modelFormat = 1

// Model is a model compiled for one overlay, with what proves it there.
type Model struct {
	overlay.Model
	// Overlay is the one that it was compiled for.
	Overlay UUID
	// Signature is what the model takes and gives: that of the model it was compiled from. It
	// has one input of numbers.
	Signature atelier.Signature
	// Golden are inputs with what must come out. There is at least one.
	Golden []Golden
	// Tolerance is how far the overlay's outputs may be from those on a CPU.
	Tolerance atelier.Tolerance
	// Compiler names the program that made it, with its version.
	Compiler string
}

// Golden is an input with the outputs that it must have.
type Golden struct {
	// Input, Output and ArgMax are values of the overlay; they must match exactly.
	Input  []int8
	Output []int8
	ArgMax int
	// CPU are the original model's outputs on a CPU by their names, where somebody ran it.
	CPU map[string][]float64
}

// header is the JSON at the beginning of a model package. The rest are the program's
// layers, biases, weights and tables.
type header struct {
	Format    int                  `json:"format"` // 1
	Overlay   UUID                 `json:"overlay"`
	ISA       int                  `json:"isa"`
	Geometry  program.Geometry     `json:"geometry"`
	Shape     program.Image        `json:"shape"`  // of the input
	Layout    program.Layout       `json:"layout"` // where the overlay has it
	Layers    int                  `json:"layers"` // bytes of descriptors
	Biases    int                  `json:"biases"`
	Weights   int                  `json:"weights"`
	Tables    int                  `json:"tables,omitempty"`
	Borders   []program.Border     `json:"borders,omitempty"`
	Digest    atelier.Digest       `json:"digest"` // of layers, biases, weights and tables
	Cycles    int                  `json:"cycles"` // predicted
	Input     string               `json:"input"`
	In        overlay.Quantisation `json:"in"`
	Out       overlay.Quantisation `json:"out"`
	Outputs   []overlay.Output     `json:"outputs"`
	Signature atelier.Signature    `json:"signature"`
	Golden    []golden             `json:"golden"`
	Tolerance atelier.Tolerance    `json:"tolerance"`
	Compiler  string               `json:"compiler"`
}

type golden struct {
	Input  []byte               `json:"input"`
	Output []byte               `json:"output"`
	ArgMax int                  `json:"argmax"`
	CPU    map[string][]float64 `json:"cpu,omitempty"`
}

// Encode returns the model as one file: a magic of 8 bytes, the length of the JSON
// header in 4, little-endian, the header, and the program's memories.
func (m *Model) Encode() ([]byte, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	p := m.Program
	var image []byte
	for i := range p.Layers {
		image = p.Layers[i].Append(image)
	}
	layers := len(image)
	for _, b := range p.Biases {
		image = binary.LittleEndian.AppendUint32(image, uint32(b))
	}
	image = append(image, p.Weights...)
	for i := range p.Tables {
		image = append(image, unsigned(p.Tables[i][:])...)
	}
	h := header{Format: modelFormat, Overlay: m.Overlay, ISA: program.ISA, Geometry: p.Geometry, Shape: m.Shape, Layout: p.Input, Layers: layers,
		Biases: len(p.Biases), Weights: len(p.Weights), Tables: len(p.Tables), Borders: p.Borders, Digest: atelier.DigestOf(image), Cycles: m.Cycles, Input: m.Input, In: m.In, Out: m.Out,
		Outputs: m.Outputs, Signature: m.Signature, Tolerance: m.Tolerance, Compiler: m.Compiler}
	for _, g := range m.Golden {
		h.Golden = append(h.Golden, golden{Input: unsigned(g.Input), Output: unsigned(g.Output), ArgMax: g.ArgMax, CPU: g.CPU})
	}
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	b := binary.LittleEndian.AppendUint32([]byte(modelMagic), uint32(len(text)))
	b = append(append(b, text...), image...)
	if len(text) > maxHeader || len(b) > MaxModel {
		return nil, atelier.Errorf(atelier.TooLarge, "the model package has %d bytes, at most %d are possible", len(b), MaxModel).
			WithRemedy("Take fewer golden inputs, or a smaller model.")
	}
	return b, nil
}

// ParseModel reads what Encode wrote.
func ParseModel(b []byte) (*Model, error) {
	if len(b) > MaxModel {
		return nil, atelier.Errorf(atelier.TooLarge, "the model package has %d bytes, at most %d are possible", len(b), MaxModel)
	}
	rest, ok := bytes.CutPrefix(b, []byte(modelMagic))
	if !ok || len(rest) < 4 {
		return nil, invalid("this is no model for an overlay: it begins with %x, expected was %x", b[:min(len(modelMagic), len(b))], modelMagic)
	}
	n := binary.LittleEndian.Uint32(rest)
	if n > maxHeader || int64(n) > int64(len(rest)-4) {
		return nil, invalid("the model's header is to have %d bytes, %d are there", n, len(rest)-4)
	}
	var h header
	if err := decodeStrictly(rest[4:4+n], &h); err != nil {
		return nil, invalid("the model's header cannot be read: %w", err)
	}
	return h.model(rest[4+n:])
}

func (h *header) model(image []byte) (*Model, error) {
	if h.Format != modelFormat || h.ISA != program.ISA {
		return nil, atelier.Errorf(atelier.Unsupported, "the model has format %d and version %d of the instructions, this program knows %d and %d",
			h.Format, h.ISA, modelFormat, program.ISA).WithRemedy("Update Atelier, or compile the model anew.")
	}
	for _, n := range []int{h.Layers, h.Biases, h.Weights} {
		if n < 1 || n > len(image) {
			return nil, invalid("the model has %d layers, %d biases and %d weights in %d bytes", h.Layers, h.Biases, h.Weights, len(image))
		}
	}
	const table = 256
	if h.Tables < 0 || h.Tables > len(image)/table {
		return nil, invalid("the model has %d tables in %d bytes", h.Tables, len(image))
	}
	biases, weights := h.Layers, h.Layers+h.Biases*4 // where they begin
	tables := weights + h.Weights
	if end := tables + h.Tables*table; end != len(image) {
		return nil, invalid("the model's program has %d bytes, its header says %d", len(image), end)
	}
	if d := atelier.DigestOf(image); d != h.Digest {
		return nil, atelier.Errorf(atelier.Corrupt, "the model's program has digest %s, its header says %s", d.Short(), h.Digest.Short()).
			WithRemedy("Fetch the model anew.")
	}
	p := &program.Program{Geometry: h.Geometry, Input: h.Layout, Borders: h.Borders, Weights: bytes.Clone(image[weights:tables])}
	for rest := image[:biases]; len(rest) > 0; {
		l, after, err := program.ParseLayer(rest)
		if err != nil {
			return nil, err
		}
		p.Layers, rest = append(p.Layers, l), after
	}
	for at := biases; at < weights; at += 4 {
		p.Biases = append(p.Biases, int32(binary.LittleEndian.Uint32(image[at:])))
	}
	for at := tables; at < len(image); at += table {
		p.Tables = append(p.Tables, [table]int8(signed(image[at:at+table])))
	}
	m := &Model{Model: overlay.Model{Program: p, Input: h.Input, Shape: h.Shape, In: h.In, Out: h.Out, Outputs: h.Outputs, Cycles: h.Cycles},
		Overlay: h.Overlay, Signature: h.Signature, Tolerance: h.Tolerance, Compiler: h.Compiler}
	for _, g := range h.Golden {
		m.Golden = append(m.Golden, Golden{Input: signed(g.Input), Output: signed(g.Output), ArgMax: g.ArgMax, CPU: g.CPU})
	}
	return m, m.Check()
}

// Check refuses a model whose parts do not fit each other.
func (m *Model) Check() error {
	if m.Program == nil {
		return invalid("the model has no program")
	}
	if err := m.Program.Check(); err != nil {
		return err
	}
	if s := m.Shape; min(s.Height, s.Width, s.Channels) < 1 || max(s.Height, s.Width, s.Channels) > 1<<15 || s.Size() != m.Program.Inputs() {
		return invalid("the model takes an image of %d×%d with %d channels, its program %d numbers", s.Height, s.Width, s.Channels, m.Program.Inputs())
	}
	if want := m.Program.Cycles(); m.Cycles != want {
		return invalid("the model is predicted to take %d cycles, its program takes %d", m.Cycles, want)
	}
	for name, q := range map[string]overlay.Quantisation{"input": m.In, "output": m.Out} {
		if !(q.Scale > 0) || math.IsInf(q.Scale, 0) {
			return invalid("the scale of the model's %s is %v, a positive number was expected", name, q.Scale)
		}
	}
	if m.Overlay == (UUID{}) || len(m.Compiler) > 1000 {
		return invalid("the model names no overlay, or its compiler's name is too long")
	}
	t := m.Tolerance
	if !(t.Absolute >= 0) || !(t.Relative >= 0) || t.Integer < 0 || math.IsInf(t.Absolute, 0) || math.IsInf(t.Relative, 0) {
		return invalid("the model's tolerance is %+v, none of it may be negative or infinite", t)
	}
	sizes, err := m.checkSignature()
	if err != nil {
		return err
	}
	if n := len(m.Golden); n < 1 || n > maxGolden {
		return invalid("the model has %d golden inputs, 1 to %d were expected", n, maxGolden)
	}
	for i, g := range m.Golden {
		if len(g.Input) != m.Program.Inputs() || len(g.Output) != m.Program.Outputs() || g.ArgMax < 0 || g.ArgMax >= len(g.Output) {
			return invalid("golden input %d has %d values for %d, ArgMax %d; the model takes %d and gives %d",
				i, len(g.Input), len(g.Output), g.ArgMax, m.Program.Inputs(), m.Program.Outputs())
		}
		for name, values := range g.CPU {
			if sizes[name] != len(values) {
				return invalid("golden input %d has %d values of the output %.100q on a CPU, the model gives %d", i, len(values), name, sizes[name])
			}
		}
	}
	return nil
}

// checkSignature sees that the signature is the program's, and returns how many numbers
// each output has per inference.
func (m *Model) checkSignature() (sizes map[string]int, err error) {
	if len(m.Signature.Inputs) != 1 || m.Signature.Inputs[0].Name != m.Input {
		return nil, invalid("the model's signature has %d inputs, one named %.100q was expected", len(m.Signature.Inputs), m.Input)
	}
	if n, ok := perRow(m.Signature.Inputs[0]); !ok || n != int64(m.Program.Inputs()) {
		return nil, invalid("the model's input has the shape %v, its program takes %d numbers", m.Signature.Inputs[0].Shape, m.Program.Inputs())
	}
	if len(m.Outputs) == 0 || len(m.Outputs) != len(m.Signature.Outputs) {
		return nil, invalid("the model has %d outputs, its signature %d", len(m.Outputs), len(m.Signature.Outputs))
	}
	sizes = map[string]int{}
	for i, o := range m.Outputs {
		n, ok := perRow(m.Signature.Outputs[i])
		want := int64(m.Program.Outputs())
		switch o.Kind {
		case overlay.ArgMax:
			want = 1
		case overlay.Values, overlay.Softmax:
		default:
			return nil, invalid("the model's output %.100q is of the kind %.100q, which is unknown", o.Name, o.Kind)
		}
		if !ok || n != want || o.Name != m.Signature.Outputs[i].Name || sizes[o.Name] != 0 {
			return nil, invalid("the model's output %d is %.100q with %d numbers, its signature says %.100q with the shape %v", i, o.Name, want,
				m.Signature.Outputs[i].Name, m.Signature.Outputs[i].Shape)
		}
		sizes[o.Name] = int(want)
	}
	return sizes, nil
}

// perRow returns how many numbers a tensor has per row, and whether only its first
// dimension, the rows, is the caller's choice.
func perRow(s atelier.TensorSpec) (n int64, ok bool) {
	n = 1
	for i, d := range s.Shape {
		switch {
		case i == 0 && (d == -1 || d == 1):
		case d < 1 || d > 1<<20 || n > 1<<20:
			return 0, false
		default:
			n *= d
		}
	}
	switch s.Type {
	case "FP32", "FP64", "INT64", "INT32", "UINT8", "INT8":
		return n, true
	}
	return 0, false
}

func unsigned(x []int8) []byte {
	b := make([]byte, len(x))
	for i, v := range x {
		b[i] = byte(v)
	}
	return b
}

func signed(b []byte) []int8 {
	x := make([]int8, len(b))
	for i, v := range b {
		x[i] = int8(v)
	}
	return x
}
