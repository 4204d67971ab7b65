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

	busy, done, overrun bool
	cycles              uint32

	// Fetching: what the next layer is.
	fetch   int // 0 idle, 1 and 2 reading, 3 latching
	pc      uint16
	next    [program.DescriptorSize]byte
	waiting bool // next is whole

	// Issuing: one activation and a word of weights a cycle.
	active     bool
	layer      program.Layer
	gap        uint8
	i, left    uint16
	fresh      bool // the layer's first group is being issued
	weightAt   uint32
	read       stage // the memories' outputs belong to this
	multiplied stage
	activation int8
	word       []int8
	products   []int32
	sums       []int32
	pending    bundle // of the group that is being issued
	pendingFor uint16 // its neurons

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
	result   int8
	resultOf bundle
	storeAt  uint16
	index    uint16
	best     int8
	argmax   uint16
}

// stage tells what is in a stage of the multipliers.
type stage struct{ valid, first, last bool }

// New returns an overlay with the geometry and identity, its memories full of zeros.
func New(g program.Geometry, uuid [16]byte) (*Processor, error) {
	if err := g.Check(); err != nil {
		return nil, err
	}
	return &Processor{geometry: g, uuid: uuid,
		activations: make([]byte, 1<<g.Activations), biases: make([]uint32, 1<<g.Biases),
		words: make([][program.WordSize]byte, 1<<g.Program), weights: make([]byte, g.Lanes<<g.Weights),
		word: make([]int8, g.Lanes), products: make([]int32, g.Lanes), sums: make([]int32, g.Lanes), held: make([]int32, g.Lanes)}, nil
}

func (p *Processor) start() {
	p.busy, p.done, p.overrun = true, false, false
	p.cycles, p.pc, p.fetch, p.waiting, p.active = 0, 0, 1, false, false
	p.weightAt, p.biasAt = 0, 0
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
	if r.first {
		p.storeAt, p.index = r.to, 0
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
	// Halving after the addition of 1 rounds half up.
	v := (p.fine+1)>>1 + int32(p.fineOf.zero)
	switch {
	case v > int32(p.fineOf.high):
		p.result = p.fineOf.high
	case v < int32(p.fineOf.low):
		p.result = p.fineOf.low
	default:
		p.result = int8(v)
	}
	p.resultOf = p.fineOf

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
	p.heldOf.first = false
}

// accumulate are the stages of the lanes.
func (p *Processor) accumulate() {
	if p.multiplied.valid {
		for lane, v := range p.products {
			if p.multiplied.first {
				p.sums[lane] = v
			} else {
				p.sums[lane] = extend(uint32(p.sums[lane] + v))
			}
		}
		if p.multiplied.last {
			p.overrun = p.overrun || p.heldFor > 0
			copy(p.held, p.sums)
			p.heldFor, p.heldOf = p.pendingFor, p.pending
		}
	}
	for lane := range p.products {
		p.products[lane] = int32(p.activation) * int32(p.word[lane])
	}
	p.multiplied = p.read
}

// issue reads an activation and a word of weights, and goes on to the next input,
// group or layer.
func (p *Processor) issue() {
	p.read = stage{}
	lanes := uint16(p.geometry.Lanes)
	switch {
	case !p.active:
		p.take()
	case p.gap > 0:
		p.gap--
	default:
		last := p.i+1 == p.layer.In
		p.read = stage{valid: true, first: p.i == 0, last: last}
		p.activation = int8(p.activations[int(p.layer.Source+p.i)&(len(p.activations)-1)])
		at := int(p.weightAt) * int(lanes) & (len(p.weights) - 1)
		for lane := range p.word {
			p.word[lane] = int8(p.weights[at+lane])
		}
		p.weightAt++
		p.i++
		if !last {
			return
		}
		end := p.left <= lanes
		l := &p.layer
		p.pending = bundle{first: p.fresh, last: end && l.Last, multiplier: l.Multiplier, shift: l.Shift,
			zero: l.Zero, low: l.Low, high: l.High, to: l.Destination}
		p.pendingFor = min(p.left, lanes)
		p.i, p.fresh = 0, false
		p.left -= p.pendingFor
		if end {
			p.active = false
			if !l.Last {
				p.take()
			}
		}
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
	p.layer = program.Layer{In: u(0), Out: u(2), Source: u(4), Destination: u(6), Multiplier: u(8), Shift: b[10],
		Zero: int8(b[11]), Low: int8(b[12]), High: int8(b[13]), Last: b[15]&1 != 0}
	p.active, p.gap, p.i, p.left, p.fresh = true, b[14], 0, p.layer.Out, true
	if !p.layer.Last {
		p.fetch = 4 // in this cycle it does nothing yet
	}
}

// fetchNext reads the next layer's two words while the current one runs.
func (p *Processor) fetchNext() {
	switch p.fetch {
	case 4:
		p.fetch = 1
	case 1:
		p.fetch = 2
	case 2:
		copy(p.next[:], p.words[int(p.pc)&(len(p.words)-1)][:])
		p.pc++
		p.fetch = 3
	case 3:
		copy(p.next[program.WordSize:], p.words[int(p.pc)&(len(p.words)-1)][:])
		p.pc++
		p.fetch, p.waiting = 0, true
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
