package program

import (
	"encoding/binary"
)

// DescriptorSize is the length of a dense layer's instruction: two words of the
// program memory. That of a layer with a window is twice as long.
const DescriptorSize = 16

// Layer is the instruction for one layer.
//
// A dense layer reads In activations for each group of as many neurons as there are
// lanes. One with a window does so again and again, at each place of the window.
type Layer struct {
	// In is how many activations each group of neurons reads, one a cycle. It is at
	// least the number of its neurons, so that a group's results are gone before the next
	// come; the weights of what is read beyond the layer's inputs are 0.
	In uint16
	// Out is the number of neurons; where there is a window, at each of its places.
	Out uint16
	// Source and Destination are where inputs and outputs lie among the activations.
	Source, Destination uint16
	// The requantisation, as package reference has it.
	Multiplier      uint16
	Shift           uint8
	Zero, Low, High int8
	// Gap is how many cycles the layer waits for the last results of the one before.
	Gap uint8
	// Table is the one that results are looked up in, from 1 on, or 0.
	Table uint8
	// Last ends the program.
	Last bool
	// Window is what a dense layer does not have.
	Window *Window
}

// Window is how a layer walks over an image. All steps are distances in the memory of
// activations. A group reads Runs runs of Run elements; then comes the next group, and after
// the last one the next column, and after the last one the next row.
type Window struct {
	Run     uint16
	Step    int16 // from element to element
	Runs    uint8
	RunStep int16 // from the first element of a run to that of the next
	Columns uint8
	Rows    uint8
	// From place to place.
	ColumnStep, RowStep uint16
	// ToStep is the distance of the first results of two rows.
	ToStep uint16
	// Channelwise makes each group one neuron, which begins one element after the one
	// before. Otherwise all groups of a place see the same.
	Channelwise bool
	// Shared lets all groups use the weights and the bias of the first.
	Shared bool
	// Max takes the largest product instead of their sum. It needs Channelwise.
	Max bool
}

// The flags in the last byte of a descriptor; bits 1 to 3 are the table.
const (
	flagLast        = 1
	flagWindow      = 1 << 4
	flagChannelwise = 1 << 5
	flagShared      = 1 << 6
	flagMax         = 1 << 7
	maxTable        = 7
)

// Append appends the layer's descriptor: little-endian; in, out, source and
// destination of 16 bits each, multiplier 16, shift, zero, low, high, gap and flags
// of 8 bits each. A window's follows: run and step of 16 bits, runs, columns, rows and
// nothing of 8 each, and the steps of runs, columns, rows and results of 16.
func (l *Layer) Append(b []byte) []byte {
	for _, v := range []uint16{l.In, l.Out, l.Source, l.Destination, l.Multiplier} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	flags := l.Table << 1
	set := func(bit byte, is bool) {
		if is {
			flags |= bit
		}
	}
	set(flagLast, l.Last)
	w := l.Window
	if w != nil {
		set(flagWindow, true)
		set(flagChannelwise, w.Channelwise)
		set(flagShared, w.Shared)
		set(flagMax, w.Max)
	}
	b = append(b, l.Shift, byte(l.Zero), byte(l.Low), byte(l.High), l.Gap, flags)
	if w == nil {
		return b
	}
	b = binary.LittleEndian.AppendUint16(b, w.Run)
	b = binary.LittleEndian.AppendUint16(b, uint16(w.Step))
	b = append(b, w.Runs, w.Columns, w.Rows, 0)
	for _, v := range []uint16{uint16(w.RunStep), w.ColumnStep, w.RowStep, w.ToStep} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return b
}

// ParseLayer reads a descriptor, and returns what follows it.
func ParseLayer(b []byte) (Layer, []byte, error) {
	if len(b) < DescriptorSize {
		return Layer{}, nil, invalid("a layer's descriptor has %d bytes, expected were %d", len(b), DescriptorSize)
	}
	u := func(at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }
	flags := b[15]
	l := Layer{In: u(0), Out: u(2), Source: u(4), Destination: u(6), Multiplier: u(8), Shift: b[10],
		Zero: int8(b[11]), Low: int8(b[12]), High: int8(b[13]), Gap: b[14], Table: flags >> 1 & maxTable, Last: flags&flagLast != 0}
	if flags&flagWindow == 0 {
		if flags&(flagChannelwise|flagShared|flagMax) != 0 {
			return Layer{}, nil, invalid("a layer without a window has the flags %#02x", flags)
		}
		return l, b[DescriptorSize:], nil
	}
	if len(b) < 2*DescriptorSize {
		return Layer{}, nil, invalid("a layer's descriptor has %d bytes, expected were %d", len(b), 2*DescriptorSize)
	}
	b = b[DescriptorSize:]
	if b[7] != 0 {
		return Layer{}, nil, invalid("a byte of a layer's descriptor is %#02x, expected was 0", b[7])
	}
	l.Window = &Window{Run: u(0), Step: int16(u(2)), Runs: b[4], Columns: b[5], Rows: b[6],
		RunStep: int16(u(8)), ColumnStep: u(10), RowStep: u(12), ToStep: u(14),
		Channelwise: flags&flagChannelwise != 0, Shared: flags&flagShared != 0, Max: flags&flagMax != 0}
	return l, b[DescriptorSize:], nil
}

// group is how many neurons a group has at most.
func (l *Layer) group(lanes int) int {
	if l.Window != nil && l.Window.Channelwise {
		return 1
	}
	return lanes
}

// groups is how many times a layer's inputs are read at one place.
func (l *Layer) groups(lanes int) int {
	g := l.group(lanes)
	return (int(l.Out) + g - 1) / g
}

// lastGroup is how many neurons the last group has.
func (l *Layer) lastGroup(lanes int) int { return int(l.Out) - (l.groups(lanes)-1)*l.group(lanes) }

// places is how many places the window has.
func (l *Layer) places() int {
	if l.Window == nil {
		return 1
	}
	return int(l.Window.Columns) * int(l.Window.Rows)
}

// words is how many words of weights the layer has.
func (l *Layer) words(lanes int) int {
	if l.Window != nil && l.Window.Shared {
		return int(l.In)
	}
	return l.groups(lanes) * int(l.In)
}

// biases is how many biases the layer has.
func (l *Layer) biases() int {
	if l.Window != nil && l.Window.Shared {
		return 1
	}
	return int(l.Out)
}

// Outputs is how many results the layer has.
func (l *Layer) Outputs() int { return l.places() * int(l.Out) }

// size is the length of the layer's descriptor.
func (l *Layer) size() int {
	if l.Window != nil {
		return 2 * DescriptorSize
	}
	return DescriptorSize
}

// settle is how many cycles after a group's last input its first result can be read,
// less one.
const settle = 10

// gapTo returns how long the next layer has to wait. Between dense layers it is the
// first group's results that are read first, and the last ones may be on their way;
// otherwise it waits for all.
func (l *Layer) gapTo(next *Layer, lanes int) int {
	if l.Window == nil && next.Window == nil {
		return max(0, settle-(l.groups(lanes)-1)*lanes)
	}
	return settle + l.lastGroup(lanes) - 1
}

// fetching is how many cycles it takes to fetch the layer's descriptor.
func (l *Layer) fetching() int {
	if l.Window != nil {
		return 6
	}
	return 4
}
