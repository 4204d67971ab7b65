// Package program is the form of what runs on the overlay: the memories of a
// processor, the instructions in them, where a host finds them, and how many cycles
// they take. It knows where numbers stand and computes none of the network's.
package program

import (
	atelier "github.com/atelier-edge/atelier"
)

// ISA is the version of the instructions that this package writes and reads.
const ISA = 2

// WordSize is the width of the program memory, in bytes.
const WordSize = 8

// Geometry says how large an overlay is. It is a part of the overlay's identity.
type Geometry struct {
	// Lanes work in parallel, one neuron each: 4, 8, 16 or 32.
	Lanes int `json:"lanes"`
	// The memories' depths, as powers of two: activations in bytes, biases in
	// neurons, the program in words of 8 bytes, weights in words of a byte per lane, tables
	// in bytes.
	Activations int `json:"activations"`
	Biases      int `json:"biases"`
	Program     int `json:"program"`
	Weights     int `json:"weights"`
	Tables      int `json:"tables"`
}

// Check refuses what the RTL cannot be built for.
func (g Geometry) Check() error {
	if g.Lanes != 4 && g.Lanes != 8 && g.Lanes != 16 && g.Lanes != 32 {
		return invalid("it has %d lanes, possible are 4, 8, 16 and 32", g.Lanes)
	}
	for _, m := range []struct {
		name     string
		bits     int
		low, top int
	}{{"activations", g.Activations, 6, 15}, {"biases", g.Biases, 4, 16}, {"program", g.Program, 2, 16}, {"weights", g.Weights, 4, 18}, {"tables", g.Tables, 8, 10}} {
		if m.bits < m.low || m.bits > m.top {
			return invalid("the memory for %s holds 2^%d words, possible are 2^%d to 2^%d", m.name, m.bits, m.low, m.top)
		}
	}
	return nil
}

// Program is what the memories of an overlay hold for one network.
type Program struct {
	Geometry Geometry
	Layers   []Layer
	// Biases of all neurons, layer after layer: 24-bit integers.
	Biases []int32
	// Weights in words of a byte per lane: by layer, by group of neurons, by input.
	Weights []byte
	// Tables that results are looked up in, -128's value first.
	Tables [][256]int8
	// Borders are activations that stay as they are: what lies beyond the edges of images.
	Borders []Border
	// Input is where the host writes.
	Input Layout
}

// Border is a stretch of activations that all have one value.
type Border struct {
	At, Length int
	Value      int8
}

// Layout is where an image lies among the activations: rows of so many elements, their first
// ones Step apart.
type Layout struct{ At, Rows, Row, Step int }

// Inputs is how many values an inference takes.
func (p *Program) Inputs() int { return p.Input.Rows * p.Input.Row }

// Outputs is how many activations are the result.
func (p *Program) Outputs() int { return p.Layers[len(p.Layers)-1].Outputs() }

// Cycles predicts how many cycles one inference takes, from the start to the last
// result. For a program that passes Check it is exact.
func (p *Program) Cycles() int {
	lanes := p.Geometry.Lanes
	cycles := p.Layers[0].fetching()
	for k, l := range p.Layers {
		took := int(l.Gap) + l.places()*l.groups(lanes)*int(l.In)
		if k+1 < len(p.Layers) {
			took = max(took, p.Layers[k+1].fetching())
		}
		cycles += took
	}
	return cycles + settle - 1 + p.Layers[len(p.Layers)-1].lastGroup(lanes)
}

func (p *Program) tooLarge(what string, has, room int) error {
	return atelier.Errorf(atelier.TooLarge, "the overlay program has %d %s, the overlay has room for 1 to %d", has, what, room).
		WithRemedy("Compile for an overlay with larger memories, or make the network smaller.")
}

func invalid(format string, args ...any) error {
	return atelier.Errorf(atelier.Invalid, "this is no program for the overlay: "+format, args...).
		WithRemedy("Compile the model anew for the overlay of the device.")
}
