// Package program is the form of what runs on the overlay: the memories of a
// processor, the instructions in them, where a host finds them, and how many cycles
// they take. It knows where numbers stand and computes none of the network's.
package program

import (
	"encoding/binary"

	atelier "github.com/atelier-edge/atelier"
)

// ISA is the version of the instructions that this package writes and reads.
const ISA = 1

// DescriptorSize is the length of a layer's instruction: two words of the program
// memory.
const DescriptorSize = 16

// WordSize is the width of the program memory, in bytes.
const WordSize = 8

// Geometry says how large an overlay is. It is a part of the overlay's identity.
type Geometry struct {
	// Lanes work in parallel, one neuron each: 4, 8, 16 or 32.
	Lanes int `json:"lanes"`
	// The memories' depths, as powers of two: activations in bytes, biases in
	// neurons, the program in words of 8 bytes, weights in words of a byte per lane.
	Activations int `json:"activations"`
	Biases      int `json:"biases"`
	Program     int `json:"program"`
	Weights     int `json:"weights"`
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
	}{{"activations", g.Activations, 6, 15}, {"biases", g.Biases, 4, 16}, {"program", g.Program, 2, 16}, {"weights", g.Weights, 4, 18}} {
		if m.bits < m.low || m.bits > m.top {
			return invalid("the memory for %s holds 2^%d words, possible are 2^%d to 2^%d", m.name, m.bits, m.low, m.top)
		}
	}
	return nil
}

// Layer is the instruction for one dense layer.
type Layer struct {
	// In is how many activations each group of neurons reads, one a cycle. It is at
	// least the number of lanes, so that a group's results are gone before the next
	// come; the weights of what is read beyond the layer's inputs are 0.
	In uint16
	// Out is the number of neurons.
	Out uint16
	// Source and Destination are where inputs and outputs lie among the activations.
	Source, Destination uint16
	// The requantisation, as package reference has it.
	Multiplier      uint16
	Shift           uint8
	Zero, Low, High int8
	// Gap is how many cycles the layer waits for the last results of the one before.
	Gap uint8
	// Last ends the program.
	Last bool
}

// flagLast ends the program. The upper four bits of the flags are the operation,
// and 0 is the dense layer; the others are free for convolutions.
const flagLast = 1

// Append appends the layer's descriptor: little-endian; in, out, source and
// destination of 16 bits each, multiplier 16, shift, zero, low, high, gap and flags
// of 8 bits each.
func (l *Layer) Append(b []byte) []byte {
	for _, v := range []uint16{l.In, l.Out, l.Source, l.Destination, l.Multiplier} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	flags := byte(0)
	if l.Last {
		flags = flagLast
	}
	return append(b, l.Shift, byte(l.Zero), byte(l.Low), byte(l.High), l.Gap, flags)
}

// ParseLayer reads a descriptor.
func ParseLayer(b []byte) (Layer, error) {
	if len(b) != DescriptorSize {
		return Layer{}, invalid("a layer's descriptor has %d bytes, expected were %d", len(b), DescriptorSize)
	}
	if b[15]&^flagLast != 0 {
		return Layer{}, invalid("a layer has the flags %#02x, known is %#02x", b[15], flagLast)
	}
	u := func(at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }
	return Layer{In: u(0), Out: u(2), Source: u(4), Destination: u(6), Multiplier: u(8), Shift: b[10],
		Zero: int8(b[11]), Low: int8(b[12]), High: int8(b[13]), Gap: b[14], Last: b[15]&flagLast != 0}, nil
}

// Program is what the memories of an overlay hold for one network.
type Program struct {
	Geometry Geometry
	Layers   []Layer
	// Biases of all neurons, layer after layer: 24-bit integers.
	Biases []int32
	// Weights in words of a byte per lane: by layer, by group of neurons, by input.
	Weights []byte
	// Inputs is how many activations the host writes, from 0 on.
	Inputs int
}

// Outputs is how many activations are the result.
func (p *Program) Outputs() int { return int(p.Layers[len(p.Layers)-1].Out) }

// groups is how many times a layer's inputs are read.
func (l *Layer) groups(lanes int) int { return (int(l.Out) + lanes - 1) / lanes }

// lastGroup is how many neurons the last group has.
func (l *Layer) lastGroup(lanes int) int { return int(l.Out) - (l.groups(lanes)-1)*lanes }

// settle is how many cycles after a group's last input its first result can be read,
// less one.
const settle = 9

// Gap returns how long the layer after l has to wait: it reads the first group's
// results first, and may begin while the last ones are on their way.
func (l *Layer) gap(lanes int) int { return max(0, settle-(l.groups(lanes)-1)*lanes) }

// Cycles predicts how many cycles one inference takes, from the start to the last
// result. For a program that passes Check it is exact.
func (p *Program) Cycles() int {
	cycles := 4 // fetching the first layer
	for _, l := range p.Layers {
		cycles += int(l.Gap) + l.groups(p.Geometry.Lanes)*int(l.In)
	}
	return cycles + settle - 1 + p.Layers[len(p.Layers)-1].lastGroup(p.Geometry.Lanes)
}

// Check refuses a program that does not fit its geometry, or whose results depend
// on anything but its inputs.
func (p *Program) Check() error {
	g := p.Geometry
	if err := g.Check(); err != nil {
		return err
	}
	if len(p.Layers) == 0 || len(p.Layers)*DescriptorSize > WordSize<<g.Program {
		return p.tooLarge("layers", len(p.Layers), WordSize<<g.Program/DescriptorSize)
	}
	neurons, words := 0, 0
	for k, l := range p.Layers {
		if int(l.In) < g.Lanes || l.Out == 0 {
			return invalid("layer %d reads %d activations and has %d neurons, at least %d and 1 are needed", k, l.In, l.Out, g.Lanes)
		}
		if l.Shift > 40 || l.Low > l.High {
			return invalid("layer %d shifts by %d and clamps from %d to %d", k, l.Shift, l.Low, l.High)
		}
		if l.Last != (k == len(p.Layers)-1) {
			return invalid("layer %d of %d is marked wrongly as last or not", k, len(p.Layers))
		}
		if end := max(int(l.Source)+int(l.In), int(l.Destination)+int(l.Out)); end > 1<<g.Activations {
			return p.tooLarge("activations", end, 1<<g.Activations)
		}
		if l.Source < l.Destination+l.Out && l.Destination < l.Source+l.In {
			return invalid("layer %d writes where it reads", k)
		}
		gap := 0
		if k > 0 {
			before := p.Layers[k-1]
			gap = before.gap(g.Lanes)
			if before.Destination != l.Source {
				return invalid("layer %d reads at %d, the one before writes at %d", k, l.Source, before.Destination)
			}
		}
		if int(l.Gap) != gap {
			return invalid("layer %d waits %d cycles, it has to wait %d", k, l.Gap, gap)
		}
		neurons += int(l.Out)
		words += l.groups(g.Lanes) * int(l.In)
	}
	if first := p.Layers[0]; first.Source != 0 || p.Inputs < 1 || p.Inputs > int(first.In) {
		return invalid("the host writes %d activations at 0, layer 0 reads %d at %d", p.Inputs, first.In, first.Source)
	}
	if neurons > 1<<g.Biases {
		return p.tooLarge("neurons", neurons, 1<<g.Biases)
	}
	if words > 1<<g.Weights {
		return p.tooLarge("words of weights", words, 1<<g.Weights)
	}
	if len(p.Biases) != neurons || len(p.Weights) != words*g.Lanes {
		return invalid("it has %d biases and %d weights, its layers need %d and %d", len(p.Biases), len(p.Weights), neurons, words*g.Lanes)
	}
	for j, b := range p.Biases {
		if b < -1<<23 || b >= 1<<23 {
			return invalid("the bias %d of neuron %d has more than 24 bits", b, j)
		}
	}
	return nil
}

func (p *Program) tooLarge(what string, has, room int) error {
	return atelier.Errorf(atelier.TooLarge, "the overlay program has %d %s, the overlay has room for 1 to %d", has, what, room).
		WithRemedy("Compile for an overlay with larger memories, or make the network smaller.")
}

func invalid(format string, args ...any) error {
	return atelier.Errorf(atelier.Invalid, "this is no program for the overlay: "+format, args...).
		WithRemedy("Compile the model anew for the overlay of the device.")
}
