package program

// Check refuses a program that does not fit its geometry, or whose results depend
// on anything but its inputs.
func (p *Program) Check() error {
	g := p.Geometry
	if err := g.Check(); err != nil {
		return err
	}
	size, biases, words := 0, 0, 0
	for k := range p.Layers {
		l := &p.Layers[k]
		if err := l.check(k, g); err != nil {
			return err
		}
		if l.Last != (k == len(p.Layers)-1) {
			return invalid("layer %d of %d is marked wrongly as last or not", k, len(p.Layers))
		}
		if int(l.Table) > len(p.Tables) {
			return invalid("layer %d uses table %d of %d", k, l.Table, len(p.Tables))
		}
		gap := 0
		if k > 0 {
			gap = p.Layers[k-1].gapTo(l, g.Lanes)
		}
		if int(l.Gap) != gap {
			return invalid("layer %d waits %d cycles, it has to wait %d", k, l.Gap, gap)
		}
		size += l.size()
		biases += l.biases()
		words += l.words(g.Lanes)
	}
	if size == 0 || size > WordSize<<g.Program {
		return p.tooLarge("bytes of layers", size, WordSize<<g.Program)
	}
	if biases > 1<<g.Biases {
		return p.tooLarge("neurons", biases, 1<<g.Biases)
	}
	if words > 1<<g.Weights {
		return p.tooLarge("words of weights", words, 1<<g.Weights)
	}
	if 256*len(p.Tables) > 1<<g.Tables {
		return p.tooLarge("tables", len(p.Tables), 1<<g.Tables/256)
	}
	if len(p.Biases) != biases || len(p.Weights) != words*g.Lanes {
		return invalid("it has %d biases and %d weights, its layers need %d and %d", len(p.Biases), len(p.Weights), biases, words*g.Lanes)
	}
	for j, b := range p.Biases {
		if b < -1<<23 || b >= 1<<23 {
			return invalid("the bias %d of neuron %d has more than 24 bits", b, j)
		}
	}
	if cycles := p.Cycles(); cycles > maxCycles {
		return p.tooLarge("cycles", cycles, maxCycles)
	}
	return p.checkMemory()
}

// maxCycles is how long a device waits for an inference.
const maxCycles = 1 << 24

// check looks at a layer's numbers alone.
func (l *Layer) check(k int, g Geometry) error {
	if l.Out == 0 || int(l.In) < max(2, min(l.group(g.Lanes), int(l.Out))) || l.Window == nil && int(l.In) < g.Lanes {
		return invalid("layer %d reads %d activations and has %d neurons; at least as many as work at a time, %d, must be read", k, l.In, l.Out, l.group(g.Lanes))
	}
	if l.Shift > 40 || l.Low > l.High {
		return invalid("layer %d shifts by %d and clamps from %d to %d", k, l.Shift, l.Low, l.High)
	}
	w := l.Window
	if w == nil {
		return nil
	}
	if int(w.Run)*int(w.Runs) != int(l.In) || w.Run == 0 || w.Columns == 0 || w.Rows == 0 {
		return invalid("layer %d reads %d activations in %d runs of %d, at %d×%d places", k, l.In, w.Runs, w.Run, w.Rows, w.Columns)
	}
	if w.Max && !w.Channelwise {
		return invalid("layer %d takes the largest of many channels", k)
	}
	return nil
}

// walk calls read for each activation that the layer reads, with its word of weights,
// and write for each that it writes, in the processor's order. mask cuts addresses.
func (l *Layer) walk(lanes, mask int, read func(at, word int), write func(at int)) {
	w := l.Window
	if w == nil {
		w = &Window{Run: l.In, Step: 1, Runs: 1, Columns: 1, Rows: 1}
	}
	for row := range int(w.Rows) {
		to := int(l.Destination) + row*int(w.ToStep)
		for column := range int(w.Columns) {
			place := int(l.Source) + row*int(w.RowStep) + column*int(w.ColumnStep)
			word := 0
			for group := range l.groups(lanes) {
				base := place
				if w.Channelwise {
					base += group
				}
				if w.Shared {
					word = 0
				}
				for run := range int(w.Runs) {
					for i := range int(w.Run) {
						read((base+run*int(w.RunStep)+i*int(w.Step))&mask, word)
						word++
					}
				}
			}
			for range int(l.Out) {
				write(to & mask)
				to++
			}
		}
	}
}

// What an activation holds.
const (
	nothing = iota
	constant
	value
)

// checkMemory follows what is read and written: nothing may be read that was not written
// in the same inference, borders stay, and no layer writes where it reads.
func (p *Program) checkMemory() error {
	size := 1 << p.Geometry.Activations
	holds := make([]byte, size)
	for _, b := range p.Borders {
		if b.At < 0 || b.Length < 1 || b.At+b.Length > size {
			return p.tooLarge("activations", b.At+b.Length, size)
		}
		for at := b.At; at < b.At+b.Length; at++ {
			holds[at] = constant
		}
	}
	in := p.Input
	if in.Rows < 1 || in.Row < 1 || in.At < 0 || in.Step < in.Row && in.Rows > 1 {
		return invalid("the host writes %d rows of %d values, %d apart, at %d", in.Rows, in.Row, in.Step, in.At)
	}
	if end := in.At + (in.Rows-1)*in.Step + in.Row; end > size {
		return p.tooLarge("activations", end, size)
	}
	for row := range in.Rows {
		for i := range in.Row {
			at := in.At + row*in.Step + i
			if holds[at] == constant {
				return invalid("the host writes where a border is")
			}
			holds[at] = value
		}
	}
	lanes, base := p.Geometry.Lanes, 0
	readBy, writtenBy := make([]int, size), make([]int, size)
	for k := range p.Layers {
		l := &p.Layers[k]
		var err error
		l.walk(lanes, size-1, func(at, word int) {
			weights := p.Weights[(base+word)*lanes : (base+word+1)*lanes]
			used := false
			for _, w := range weights {
				used = used || w != 0
			}
			if l.Window != nil && l.Window.Max {
				used = true
			}
			if used && holds[at] == nothing && err == nil {
				err = invalid("layer %d reads at %d, where nothing was written", k, at)
			}
			if used {
				readBy[at] = k + 1
			}
		}, func(at int) { writtenBy[at] = k + 1 })
		if err != nil {
			return err
		}
		for at := range size {
			if writtenBy[at] != k+1 {
				continue
			}
			if readBy[at] == k+1 {
				return invalid("layer %d writes where it reads", k)
			}
			if holds[at] == constant {
				return invalid("layer %d writes where a border is", k)
			}
			holds[at] = value
		}
		base += l.words(lanes)
	}
	last := &p.Layers[len(p.Layers)-1]
	if w := last.Window; w != nil && w.Rows > 1 && int(w.ToStep) != int(w.Columns)*int(last.Out) {
		return invalid("the results do not lie side by side")
	}
	if end := int(last.Destination) + last.Outputs(); end > size {
		return p.tooLarge("activations", end, size)
	}
	return nil
}
