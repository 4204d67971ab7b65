// Package sim is a model of the overlay's processor in Go, register by register and
// cycle by cycle. It serves where no RTL simulator is installed, and it is a second
// opinion: it is written from the RTL's pipeline and shares no arithmetic with
// package reference, which an import rule guards.
package sim

import (
	"encoding/binary"
	"errors"

	"github.com/atelier-edge/atelier/fpga/program"
)

// bundle is what goes through the drain pipeline beside a value.
type bundle struct {
	valid       bool
	first, last bool // of the layer's values; of the program's
	turn        bool // the first of a row of results
	table       uint8
	multiplier  uint16
	shift       uint8
	zero        int8
	low, high   int8
	to          uint16 // where the layer's values go
}

// Processor is an overlay. It implements program.Device with the address space that
// the RTL has. Its zero value is of no use; call New.
type Processor struct {
	geometry program.Geometry
	uuid     [16]byte

	activations []byte
	biases      []uint32 // 24 bits
	words       [][program.WordSize]byte
	weights     []byte
	tables      []byte

	busy, done, overrun bool
	cycles              uint32

	// Fetching: what the next layer is.
	fetch   int // 0 idle, 1 reading, 2 to 5 latching a word each
	pc      uint16
	next    [2 * program.DescriptorSize]byte
	waiting bool // next is whole

	// Issuing: one activation and a word of weights a cycle.
	active     bool
	layer      program.Layer
	window     program.Window
	gap        uint8
	place      place
	fresh      bool // the layer's first group is being issued
	turn       bool // a row's first group is
	weightAt   uint32
	weightBase uint32 // the layer's first word
	biasNext   uint16 // of the group that is issued
	biasBase   uint16
	read       stage // the memories' outputs belong to this
	multiplied stage
	activation int8
	word       []int8
	products   []int32
	sums       []int32
	pending    bundle // of the group that is being issued
	pendingFor uint16 // its neurons
	pendingAt  uint16 // its first bias

	// Draining: one neuron a cycle.
	held     []int32 // a finished group's sums
	heldFor  uint16
	heldOf   bundle
	biasAt   uint16
	biased   int32
	biasedOf bundle
	part     [2]int64 // by the multiplier's halves
	partOf   bundle
	product  int64
	prodOf   bundle
	coarse   int64
	coarseOf bundle
	fine     int32
	fineOf   bundle
	clamped  int8
	clampOf  bundle
	result   int8
	resultOf bundle
	storeAt  uint16
	index    uint16
	best     int8
	argmax   uint16
}

// stage tells what is in a stage of the multipliers.
type stage struct{ valid, first, last, largest bool }

// place is where a layer is: which element of which run of which group, and where.
type place struct {
	element, run, group, column, row int
	to                               uint16 // the row's results
}

// New returns an overlay with the geometry and identity, its memories full of zeros.
func New(g program.Geometry, uuid [16]byte) (*Processor, error) {
	if err := g.Check(); err != nil {
		return nil, err
	}
	return &Processor{geometry: g, uuid: uuid,
		activations: make([]byte, 1<<g.Activations), biases: make([]uint32, 1<<g.Biases),
		words: make([][program.WordSize]byte, 1<<g.Program), weights: make([]byte, g.Lanes<<g.Weights), tables: make([]byte, 1<<g.Tables),
		word: make([]int8, g.Lanes), products: make([]int32, g.Lanes), sums: make([]int32, g.Lanes), held: make([]int32, g.Lanes)}, nil
}

func (p *Processor) start() {
	p.busy, p.done, p.overrun = true, false, false
	p.cycles, p.pc, p.fetch, p.waiting, p.active = 0, 0, 1, false, false
	p.weightAt, p.weightBase, p.biasNext, p.biasBase = 0, 0, 0, 0
}

// step is one cycle of the clock. Stages go from the last to the first, so that each
// sees what the one before held when the cycle began.
func (p *Processor) step() {
	p.cycles++
	store := p.store()
	p.requantise()
	p.drain()
	p.accumulate()
	p.issue()
	p.fetchNext()
	store() // what is read in the same cycle is what was there before
}

// store remembers the largest result, and returns what writes one to memory.
func (p *Processor) store() func() {
	r := p.resultOf
	if !r.valid {
		return func() {}
	}
	if r.turn {
		p.storeAt = r.to
	}
	if r.first {
		p.index = 0
	}
	at, v := int(p.storeAt)&(len(p.activations)-1), p.result
	if r.first || p.result > p.best {
		p.best, p.argmax = p.result, p.index
	}
	p.storeAt++
	p.index++
	if r.last {
		p.busy, p.done = false, true
	}
	return func() { p.activations[at] = byte(v) }
}

// requantise are the stages between a biased sum and a result.
func (p *Processor) requantise() {
	p.result, p.resultOf = p.clamped, p.clampOf
	if t := int(p.clampOf.table); t > 0 {
		p.result = int8(p.tables[((t-1)*256+int(p.clamped)+128)&(len(p.tables)-1)])
	}

	// Halving after the addition of 1 rounds half up.
	v := (p.fine+1)>>1 + int32(p.fineOf.zero)
	switch {
	case v > int32(p.fineOf.high):
		p.clamped = p.fineOf.high
	case v < int32(p.fineOf.low):
		p.clamped = p.fineOf.low
	default:
		p.clamped = int8(v)
	}
	p.clampOf = p.fineOf

	f := p.coarse >> (p.coarseOf.shift & 7)
	if f > 1023 {
		f = 1023
	} else if f < -1024 {
		f = -1024
	}
	p.fine, p.fineOf = int32(f), p.coarseOf

	p.coarse, p.coarseOf = p.product<<1>>(p.prodOf.shift&^7), p.prodOf
	p.product, p.prodOf = p.part[0]+p.part[1]<<8, p.partOf
	p.part[0] = int64(p.biased) * int64(p.biasedOf.multiplier&0xff)
	p.part[1] = int64(p.biased) * int64(p.biasedOf.multiplier>>8)
	p.partOf = p.biasedOf
}

// extend reads the lower 24 bits as a two's complement number.
func extend(v uint32) int32 { return int32(v<<8) >> 8 }

// drain adds the bias to the next of the held sums.
func (p *Processor) drain() {
	p.biasedOf = p.heldOf
	p.biasedOf.valid = p.heldFor > 0
	p.biasedOf.last = p.heldOf.last && p.heldFor == 1
	if p.heldFor == 0 {
		return
	}
	p.biased = extend(uint32(p.held[0]) + p.biases[int(p.biasAt)&(len(p.biases)-1)])
	p.biasAt++
	copy(p.held, p.held[1:])
	p.heldFor--
	p.heldOf.first, p.heldOf.turn = false, false
}

// accumulate are the stages of the lanes.
func (p *Processor) accumulate() {
	if p.multiplied.valid {
		for lane, v := range p.products {
			switch {
			case p.multiplied.first:
				p.sums[lane] = v
			case p.multiplied.largest && lane == 0:
				p.sums[lane] = max(p.sums[lane], v)
			default:
				p.sums[lane] = extend(uint32(p.sums[lane] + v))
			}
		}
		if p.multiplied.last {
			p.overrun = p.overrun || p.heldFor > 0
			copy(p.held, p.sums)
			p.heldFor, p.heldOf, p.biasAt = p.pendingFor, p.pending, p.pendingAt
		}
	}
	for lane := range p.products {
		p.products[lane] = int32(p.activation) * int32(p.word[lane])
	}
	p.multiplied = p.read
}

// issue reads an activation and a word of weights, and goes on to the next element,
// group, place or layer.
func (p *Processor) issue() {
	p.read = stage{}
	switch {
	case !p.active:
		p.take()
		return
	case p.gap > 0:
		p.gap--
		return
	}
	l, w, at := &p.layer, &p.window, &p.place
	lanes := p.geometry.Lanes
	last := at.element == int(w.Run)-1 && at.run == int(w.Runs)-1
	p.read = stage{valid: true, first: at.element == 0 && at.run == 0, last: last, largest: w.Max}
	address := int(l.Source) + at.row*int(w.RowStep) + at.column*int(w.ColumnStep) + at.run*int(w.RunStep) + at.element*int(w.Step)
	if w.Channelwise {
		address += at.group
	}
	p.activation = int8(p.activations[address&(len(p.activations)-1)])
	word := int(p.weightAt) * lanes & (len(p.weights) - 1)
	for lane := range p.word {
		p.word[lane] = int8(p.weights[word+lane])
	}
	p.weightAt++
	if at.element++; at.element == int(w.Run) {
		at.element = 0
		at.run++
	}
	if last {
		p.endGroup()
	}
}

// endGroup sends the settings of the group that was issued after it, and goes on.
func (p *Processor) endGroup() {
	l, w, at := &p.layer, &p.window, &p.place
	size := p.geometry.Lanes
	if w.Channelwise {
		size = 1
	}
	first := at.group * size
	count := min(size, int(l.Out)-first)
	endOfPlace := first+count == int(l.Out)
	endOfRow := endOfPlace && at.column == int(w.Columns)-1
	end := endOfRow && at.row == int(w.Rows)-1
	p.pending = bundle{first: p.fresh, turn: p.turn, last: end && l.Last, multiplier: l.Multiplier, shift: l.Shift,
		zero: l.Zero, low: l.Low, high: l.High, to: at.to, table: l.Table}
	p.pendingFor, p.pendingAt = uint16(count), p.biasNext
	p.fresh, p.turn = false, endOfRow
	at.run = 0
	at.group++
	biases := uint16(count)
	if w.Shared {
		biases = 1
	}
	switch {
	case end:
		p.biasBase = p.biasNext + biases
		p.weightBase = p.weightAt
		p.biasNext = p.biasBase
		p.active = false
		if !l.Last {
			p.take()
		}
		return
	case endOfPlace:
		at.group = 0
		if at.column++; endOfRow {
			at.column = 0
			at.row++
			at.to += w.ToStep
		}
		p.weightAt, p.biasNext = p.weightBase, p.biasBase
	case w.Shared:
		p.weightAt = p.weightBase
	default:
		p.biasNext += biases
	}
}

// take begins with the next layer if it is there.
func (p *Processor) take() {
	if !p.waiting {
		return
	}
	p.waiting = false
	b := p.next
	u := func(at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }
	flags := b[15]
	p.layer = program.Layer{In: u(0), Out: u(2), Source: u(4), Destination: u(6), Multiplier: u(8), Shift: b[10],
		Zero: int8(b[11]), Low: int8(b[12]), High: int8(b[13]), Table: flags >> 1 & 7, Last: flags&1 != 0}
	p.window = program.Window{Run: p.layer.In, Step: 1, Runs: 1, Columns: 1, Rows: 1}
	if flags&16 != 0 {
		p.window = program.Window{Run: u(16), Step: int16(u(18)), Runs: b[20], Columns: b[21], Rows: b[22],
			RunStep: int16(u(24)), ColumnStep: u(26), RowStep: u(28), ToStep: u(30),
			Channelwise: flags&32 != 0, Shared: flags&64 != 0, Max: flags&128 != 0}
	}
	p.active, p.gap, p.place, p.fresh, p.turn = true, b[14], place{to: p.layer.Destination}, true, true
	if !p.layer.Last {
		p.fetch = 6 // in this cycle it does nothing yet
	}
}

// fetchNext reads the next layer's two or four words while the current one runs.
func (p *Processor) fetchNext() {
	switch {
	case p.fetch == 6:
		p.fetch = 1
	case p.fetch == 1:
		p.fetch = 2
	case p.fetch >= 2:
		copy(p.next[(p.fetch-2)*program.WordSize:], p.words[int(p.pc)&(len(p.words)-1)][:])
		p.pc++
		if whole := p.fetch == 5 || p.fetch == 3 && p.next[15]&16 == 0; whole {
			p.fetch, p.waiting = 0, true
		} else {
			p.fetch++
		}
	}
}

// Wait implements program.Device: it lets the processor run until it is idle.
func (p *Processor) Wait() error {
	for range 1 << 28 {
		if !p.busy {
			return nil
		}
		p.step()
	}
	return errors.New("the processor does not end")
}
