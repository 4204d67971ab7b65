package program

import (
	"slices"
)

// Kind is what an operation computes; package reference defines it.
type Kind int

// The kinds of operations.
const (
	Dense Kind = iota
	Convolution
	MaxPool
	Average
	Sum
)

// Image is the shape of a value: element (y, x, c) is number (y·Width + x)·Channels + c.
type Image struct{ Height, Width, Channels int }

// Size is how many elements an image has.
func (m Image) Size() int { return m.Height * m.Width * m.Channels }

// Operation is what Place lays out: a layer of a network by its numbers.
type Operation struct {
	Kind Kind
	// From is which values it takes: 0 is the network's input, k+1 what operation k gives.
	// Without any it is the one before.
	From []int
	// In is the shape of what it takes; of a Dense it may be left out, where that is a row.
	In Image
	// Of a Convolution or MaxPool: the window's height and width, by how much it moves down
	// and to the right, and by how much it reaches beyond the image at the top, left, bottom and right,
	// where Padding is.
	Window, Stride [2]int
	Pad            [4]int
	Padding        int8
	// Weights by neuron; those of one by row, column and channel. A Sum has one neuron with
	// two. MaxPool and Average have none.
	Weights         [][]int8
	Bias            []int32
	Multiplier      uint16
	Shift           uint8
	Zero, Low, High int8
	Table           *[256]int8
}

// out is the shape of the operation's result.
func (o *Operation) out() Image {
	switch o.Kind {
	case Convolution, MaxPool:
		channels := o.In.Channels
		if o.Kind == Convolution {
			channels = len(o.Weights)
		}
		return Image{(o.In.Height+o.Pad[0]+o.Pad[2]-o.Window[0])/o.Stride[0] + 1, (o.In.Width+o.Pad[1]+o.Pad[3]-o.Window[1])/o.Stride[1] + 1, channels}
	case Average:
		return Image{1, 1, o.In.Channels}
	case Sum:
		return o.In
	}
	return Image{1, 1, len(o.Weights)}
}

func (o *Operation) check(k int) error {
	if min(o.In.Height, o.In.Width, o.In.Channels) < 1 {
		return invalid("operation %d takes an image of %d×%d with %d channels", k, o.In.Height, o.In.Width, o.In.Channels)
	}
	perNeuron := map[Kind]int{Dense: o.In.Size(), Convolution: o.Window[0] * o.Window[1] * o.In.Channels, Sum: 2}[o.Kind]
	if o.Kind == Convolution || o.Kind == MaxPool {
		if min(o.Window[0], o.Window[1], o.Stride[0], o.Stride[1]) < 1 || slices.Min(o.Pad[:]) < 0 ||
			o.Window[0] > o.In.Height+o.Pad[0]+o.Pad[2] || o.Window[1] > o.In.Width+o.Pad[1]+o.Pad[3] {
			return invalid("operation %d has a window of %v, moved by %v, for an image of %d×%d", k, o.Window, o.Stride, o.In.Height, o.In.Width)
		}
		if o.Kind == MaxPool && (o.Pad != [4]int{} || o.Window[0]*o.Window[1] < 2) {
			return invalid("operation %d is a pool of %v that reaches beyond its image, or takes the largest of one", k, o.Window)
		}
	}
	switch {
	case perNeuron == 0 && (len(o.Weights) > 0 || o.Kind == Average && len(o.Bias) != 1 || o.Kind == MaxPool && len(o.Bias) > 0):
		return invalid("operation %d has weights, or not as many biases as it needs", k)
	case perNeuron > 0 && (len(o.Weights) == 0 || len(o.Bias) != len(o.Weights)), o.Kind == Sum && len(o.Weights) != 1:
		return invalid("operation %d has no weights, or not a bias for each neuron", k)
	}
	for j, row := range o.Weights {
		if len(row) != perNeuron {
			return invalid("neuron %d of operation %d has %d weights, it needs %d", j, k, len(row), perNeuron)
		}
	}
	return nil
}

// placed is a value with its place in memory.
type placed struct {
	Image
	known    bool
	pad      [4]int // top, left, bottom, right
	padding  int8
	at       int // of its first byte, borders included
	lastUse  int
	bordered bool
}

func (v *placed) stride() int { return (v.pad[1] + v.Width + v.pad[3]) * v.Channels }
func (v *placed) size() int   { return (v.pad[0] + v.Height + v.pad[2]) * v.stride() }

// first is where element (0, 0, 0) is.
func (v *placed) first() int { return v.at + v.pad[0]*v.stride() + v.pad[1]*v.Channels }

// Place lays operations out for the geometry, and checks the result. Images that somebody
// reads beyond their edges have borders, and memory of their own; the others share it.
func Place(g Geometry, operations []Operation) (*Program, error) {
	if err := g.Check(); err != nil {
		return nil, err
	}
	if len(operations) == 0 {
		return nil, invalid("it has no layers")
	}
	operations = slices.Clone(operations)
	values, err := shapes(operations)
	if err != nil {
		return nil, err
	}
	pads(operations, values)
	p := &Program{Geometry: g}
	if err := p.allocate(values); err != nil {
		return nil, err
	}
	in := &values[0]
	p.Input = Layout{At: in.first(), Rows: in.Height, Row: in.Width * in.Channels, Step: in.stride()}
	if !in.bordered { // then it is one row
		p.Input = Layout{At: in.at, Rows: 1, Row: in.Size(), Step: in.Size()}
	}
	for k := range operations {
		if err := p.add(&operations[k], k, values); err != nil {
			return nil, err
		}
	}
	p.Layers[len(p.Layers)-1].Last = true
	return p, p.Check()
}

// shapes finds the values' shapes and when they are used last.
func shapes(operations []Operation) ([]placed, error) {
	values := []placed{{}}
	for k := range operations {
		o := &operations[k]
		if len(o.From) == 0 {
			o.From = []int{k}
		}
		if want := map[bool]int{true: 2, false: 1}[o.Kind == Sum]; len(o.From) != want {
			return nil, invalid("operation %d takes %d values, expected were %d", k, len(o.From), want)
		}
		if o.Kind == Dense && o.In == (Image{}) && len(o.Weights) > 0 {
			o.In = Image{1, 1, len(o.Weights[0])}
		}
		if err := o.check(k); err != nil {
			return nil, err
		}
		for _, from := range o.From {
			if from < 0 || from > k {
				return nil, invalid("operation %d takes the value %d, which is not there yet", k, from)
			}
			v := &values[from]
			if !v.known {
				v.Image, v.known = o.In, true
			}
			if v.Size() != o.In.Size() || o.Kind != Dense && v.Image != o.In {
				return nil, invalid("layer %d takes %d values, the one before gives %d", k, o.In.Size(), v.Size())
			}
			v.lastUse = k
		}
		values = append(values, placed{Image: o.out(), known: true, lastUse: k})
	}
	values[len(values)-1].lastUse = len(operations)
	return values, nil
}

// pads gives each value the borders that those who read it need. Both values of a Sum
// have to lie alike.
func pads(operations []Operation, values []placed) {
	for again := true; again; {
		again = false
		widen := func(v *placed, pad [4]int) {
			for i := range pad {
				if pad[i] > v.pad[i] {
					v.pad[i], again = pad[i], true
				}
			}
			v.bordered = v.bordered || v.pad != [4]int{}
		}
		for k := range operations {
			o := &operations[k]
			v := &values[o.From[0]]
			switch o.Kind {
			case Convolution:
				widen(v, o.Pad)
				if o.Pad != [4]int{} {
					v.padding = o.Padding
				}
			case Sum:
				other := &values[o.From[1]]
				widen(v, other.pad)
				widen(other, v.pad)
			}
		}
	}
}

// allocate gives each value a place: those with borders at the end of the memory, for
// good, the others where nothing lies that is still needed.
func (p *Program) allocate(values []placed) error {
	size := 1 << p.Geometry.Activations
	top := size
	for i := range values {
		v := &values[i]
		if v.bordered {
			top -= v.size()
			v.at = top
			p.Borders = append(p.Borders, v.borders()...)
		}
	}
	need := size - top
	for i := range values {
		v := &values[i]
		if v.bordered {
			continue
		}
		for moved := true; moved; {
			moved = false
			for j := range i {
				other := &values[j]
				// Value i is written by operation i-1, value j needed until its last use.
				if !other.bordered && other.lastUse >= i-1 && v.at < other.at+other.size() && other.at < v.at+v.size() {
					v.at, moved = other.at+other.size(), true
				}
			}
		}
		need = max(need, size-top+v.at+v.size())
	}
	if need > size {
		return p.tooLarge("activations at once", need, size)
	}
	return nil
}

// borders are the stretches around an image.
func (v *placed) borders() (all []Border) {
	stride, row := v.stride(), v.Width*v.Channels
	end := v.at // of the stretch before
	add := func(from, to int) {
		if to > from {
			all = append(all, Border{At: from, Length: to - from, Value: v.padding})
		}
	}
	for y := range v.Height {
		begin := v.first() + y*stride
		add(end, begin)
		end = begin + row
	}
	add(end, v.at+v.size())
	return all
}

// add appends the operation's layer, with its weights, biases and table.
func (p *Program) add(o *Operation, k int, values []placed) error {
	lanes := p.Geometry.Lanes
	in, out := &values[o.From[0]], &values[k+1]
	l := Layer{Out: uint16(len(o.Weights)), Source: uint16(in.first()), Destination: uint16(out.first()),
		Multiplier: o.Multiplier, Shift: o.Shift, Zero: o.Zero, Low: o.Low, High: o.High}
	w := &Window{Step: 1, Runs: 1, Columns: 1, Rows: 1, ToStep: uint16(out.stride())}
	run, runs := 0, 1 // as the weights lie
	switch o.Kind {
	case Dense:
		run = o.In.Size()
		if in.bordered && in.Height > 1 {
			run, runs = in.Width*in.Channels, in.Height
			w.RunStep = int16(in.stride())
		} else {
			w = nil
		}
	case Convolution:
		run, runs = o.Window[1]*o.In.Channels, o.Window[0]
		w.RunStep = int16(in.stride())
		l.Source -= uint16(o.Pad[0]*in.stride() + o.Pad[1]*in.Channels)
	case MaxPool:
		run, runs = o.Window[1], o.Window[0]
		w.Step, w.RunStep = int16(in.Channels), int16(in.stride())
		w.Channelwise, w.Shared, w.Max = true, true, true
		l.Out = uint16(o.In.Channels)
	case Average:
		run = o.In.Height * o.In.Width
		w.Step = int16(in.Channels)
		if in.bordered {
			run, runs = o.In.Width, o.In.Height
			w.RunStep = int16(in.stride())
		}
		w.Channelwise, w.Shared = true, true
		l.Out = uint16(o.In.Channels)
	case Sum:
		run = 2
		other := &values[o.From[1]]
		w.Step = int16(other.first() - in.first())
		w.Channelwise, w.Shared = true, true
		l.Out, w.Rows = uint16(in.Width*in.Channels), uint8(in.Height)
		w.RowStep = uint16(in.stride())
	}
	if o.Kind == Convolution || o.Kind == MaxPool {
		w.Rows, w.Columns = uint8(out.Height), uint8(out.Width)
		w.ColumnStep, w.RowStep = uint16(o.Stride[1]*in.Channels), uint16(o.Stride[0]*in.stride())
	}
	if most := max(out.Height, out.Width, runs); most > 255 && w != nil {
		return p.tooLarge("rows, columns or runs of a window", most, 255)
	}
	l.Window = w
	// Runs are longer where a group would be over too soon; the weights of what is read then are 0.
	long, need := run, max(2, min(l.group(lanes), int(l.Out)))
	if w == nil {
		need = lanes
	}
	for long*runs < need {
		long++
	}
	l.In = uint16(long * runs)
	if w != nil {
		w.Run, w.Runs = uint16(long), uint8(runs)
	}
	if k > 0 {
		l.Gap = uint8(p.Layers[k-1].gapTo(&l, lanes))
	}
	p.weights(o, &l, run, long, runs)
	p.Biases = append(p.Biases, o.Bias...)
	if o.Kind == MaxPool {
		p.Biases = append(p.Biases, 0)
	}
	if o.Table != nil {
		at := slices.Index(p.Tables, *o.Table)
		if at < 0 {
			at, p.Tables = len(p.Tables), append(p.Tables, *o.Table)
		}
		l.Table = uint8(at + 1)
	}
	p.Layers = append(p.Layers, l)
	return nil
}

// weights appends the layer's words.
func (p *Program) weights(o *Operation, l *Layer, run, long, runs int) {
	lanes := p.Geometry.Lanes
	rows := o.Weights
	if len(rows) == 0 { // each element counts once
		ones := make([]int8, run*runs)
		for i := range ones {
			ones[i] = 1
		}
		rows = [][]int8{ones}
	}
	for group := 0; group < len(rows); group += lanes {
		at := len(p.Weights)
		p.Weights = append(p.Weights, make([]byte, int(l.In)*lanes)...)
		for lane, row := range rows[group:min(group+lanes, len(rows))] {
			for i, weight := range row {
				word := i/run*long + i%run
				p.Weights[at+word*lanes+lane] = byte(weight)
			}
		}
	}
}
