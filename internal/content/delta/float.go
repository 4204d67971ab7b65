package delta

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// kind says how floating-point numbers lie in their bits: a sign, an exponent, a
// mantissa.
type kind struct {
	width    int  // bytes
	exponent uint // bits
}

func (k kind) mantissa() uint { return uint(8*k.width) - 1 - k.exponent }

var kinds = [methods]kind{methodFP16: {2, 5}, methodBF16: {2, 8}, methodFP32: {4, 8}, methodFP64: {8, 11}}

const (
	classes  = 64          // the lengths in bits that a difference can have, and more
	topBits  = 3           // how many bits behind the leading one are worth a model
	settled  = 1023        // the limit of counters that shall remember everything
	oneThird = 1 << 16 / 3 // the weights of three predictions at first
)

// floats codes floating-point numbers.
//
// Against the number at the same place in a base, what is coded is the difference
// of the two magnitudes as integers: its length in bits (the class), its direction,
// and the bits behind its leading one, of which all but the first are noise. What
// counts for the class is how large the numbers' differences are compared with the
// base's exponent: a weight that moved by 10^-3 differs in more of its bits the
// smaller it is. A number of another sign or of quite another exponent is coded
// freshly. Without a base, the exponent is predicted from those before.
type floats struct {
	c        *coder
	kind     kind
	shift    uint // the lowest bits, zero in all numbers
	mantissa uint // bits of it that are coded
	hints    int  // how many exponents are told apart as a context, a power of two

	class     [3][]counter // by the base's exponent, by the class expected, by the class before
	classMix  mixer
	direction []counter
	flip      []counter
	top       []counter
	exponent  [4][]counter // by the base's, by the one before, by their mean, by nothing
	mixes     [2]mixer     // of exponents: with and without a base
	repeat    []counter

	scale   int32  // running mean of the exponents of differences, in 1/16
	mean    int32  // running mean of exponents, in 1/16
	zeros   uint32 // which of the last differences were zero
	before  int    // the class before
	lastE   int
	last    uint64
	repeats uint32
}

func newFloats(c *coder, k kind) *floats {
	e := 1 << k.exponent
	hints := min(128, 1<<15/e)
	return &floats{
		c: c, kind: k, hints: hints,
		class:     [3][]counter{make([]counter, 2*e*2*classes), make([]counter, 1024*2*classes), make([]counter, classes*16*2*classes)},
		classMix:  newMixer(2*classes, oneThird, 2),
		direction: make([]counter, 16*classes),
		flip:      make([]counter, e),
		top:       make([]counter, 64<<topBits),
		exponent:  [4][]counter{make([]counter, hints*e), make([]counter, hints*e), make([]counter, 2*hints*e), make([]counter, e)},
		mixes:     [2]mixer{newMixer(e, oneThird, 2), newMixer(e, oneThird, 2)},
		repeat:    make([]counter, 256),
	}
}

// reset forgets everything.
func (f *floats) reset() {
	for _, t := range slices.Concat(f.class[:], f.exponent[:], [][]counter{f.direction, f.flip, f.top, f.repeat}) {
		fill(t)
	}
	f.classMix.reset()
	f.mixes[0].reset()
	f.mixes[1].reset()
	f.scale, f.mean = 1<<f.kind.exponent/2<<4, 1<<f.kind.exponent/2<<4
	f.zeros, f.before, f.lastE, f.last, f.repeats = 0, 0, 0, 0, 0
}

// start begins a part whose numbers have shift zero bits at their end.
func (f *floats) start(shift uint) {
	f.shift = shift
	f.mantissa = f.kind.mantissa() - shift
}

func load(b []byte, width int) uint64 {
	switch width {
	case 2:
		return uint64(binary.LittleEndian.Uint16(b))
	case 4:
		return uint64(binary.LittleEndian.Uint32(b))
	default:
		return binary.LittleEndian.Uint64(b)
	}
}

func store(b []byte, width int, v uint64) {
	switch width {
	case 2:
		binary.LittleEndian.PutUint16(b, uint16(v))
	case 4:
		binary.LittleEndian.PutUint32(b, uint32(v))
	default:
		binary.LittleEndian.PutUint64(b, v)
	}
}

// code codes the numbers in b, or decodes into it; base has as many bytes, or none.
func (f *floats) code(b, base []byte) {
	w := f.kind.width
	for i := 0; i < len(b); i += w {
		v := load(b[i:], w) >> f.shift
		if len(base) > 0 {
			v = f.against(v, load(base[i:], w)>>f.shift)
		} else {
			v = f.alone(v)
		}
		if f.c.decode {
			store(b[i:], w, v<<f.shift)
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// against codes v by what it differs from base.
func (f *floats) against(v, base uint64) uint64 {
	top := f.mantissa + f.kind.exponent // the sign's bit
	mask := uint64(1)<<top - 1
	magnitude := base & mask
	e := int(magnitude >> f.mantissa)

	diff, grew, fresh := uint64(0), 0, false
	if !f.c.decode {
		switch {
		case v>>top != base>>top:
			fresh = true
		case v&mask >= magnitude:
			grew, diff = 1, v&mask-magnitude
		default:
			diff = magnitude - v&mask
		}
		fresh = fresh || bits.Len64(diff) > int(f.mantissa)+1
	}
	class := f.classOf(bits.Len64(diff), fresh, base, e)
	switch class {
	case 0:
		return base
	case classes:
		return f.fresh(v, base, e)
	}
	// By how much the difference is larger than usual, in octaves.
	exponent := int32(class+e-int(f.mantissa)-1) << 4
	d := int(min(max((exponent-f.scale)>>4+8, 0), 15))
	f.scale += (exponent - f.scale) >> 4
	grew = f.c.adaptive(grew, &f.direction[d*classes+class], settled)
	diff = f.tail(diff, uint(class-1), d<<1|grew) | 1<<(class-1)
	if grew == 0 {
		diff = -diff
	}
	return base&^mask | (magnitude+diff)&mask
}

// classOf codes the length of a difference in bits; classes for a fresh number. It
// is a tree: whether the difference is zero, whether the number is fresh, the bits
// of the length.
func (f *floats) classOf(class int, fresh bool, base uint64, e int) int {
	expected := f.scale - int32(e)<<4 + int32(f.mantissa+1)<<4
	near := int(min(max(expected>>2+64, 0), 511))
	half := 0
	if f.mantissa > 0 {
		half = int(base>>(f.mantissa-1)) & 1
	}
	t0 := f.class[0][(e<<1|half)*2*classes:][:2*classes]
	t1 := f.class[1][(near<<1|int(f.zeros&1))*2*classes:][:2*classes]
	t2 := f.class[2][(f.before<<4|int(f.zeros&15))*2*classes:][:2*classes]
	node := func(i, bit int) int { return f.classMix.three(f.c, bit, i, &t0[i], &t1[i], &t2[i]) }
	f.zeros <<= 1
	if node(0, b2i(class == 0 && !fresh)) == 1 {
		f.zeros |= 1
		return 0
	}
	if node(1, b2i(fresh)) == 1 {
		f.before = classes - 1
		return classes
	}
	at, levels := 1, bits.Len(f.mantissa)
	for l := levels - 1; l >= 0; l-- {
		at = at<<1 | node(classes+at, (class-1)>>l&1)
	}
	f.before = at - 1<<levels
	return f.before + 1
}

// fresh codes a number that has little to do with its base.
func (f *floats) fresh(v, base uint64, e int) uint64 {
	top := f.mantissa + f.kind.exponent
	flip := uint64(f.c.adaptive(int(v>>top^base>>top), &f.flip[e], settled))
	now := f.exponentOf(int(v>>f.mantissa), 0, e)
	return (base>>top^flip)<<top | uint64(now)<<f.mantissa | f.tail(v, f.mantissa, 32)
}

// alone codes a number without a base.
func (f *floats) alone(v uint64) uint64 {
	same := f.c.adaptive(b2i(v == f.last), &f.repeat[f.repeats&255], settled)
	f.repeats = f.repeats<<1 | uint32(same)
	if same == 1 {
		return f.last
	}
	top := f.mantissa + f.kind.exponent
	sign := f.c.plain(v>>top, 1)
	mean := f.mean >> 4
	f.lastE = f.exponentOf(int(v>>f.mantissa), 1, f.lastE)
	d := int(min(max(int32(f.lastE)-mean+8, 0), 15))
	f.last = sign<<top | uint64(f.lastE)<<f.mantissa | f.tail(v, f.mantissa, 33+d)
	return f.last
}

// exponentOf codes an exponent, with one that says something about it: the base's
// (which is 0) or the one before (1).
func (f *floats) exponentOf(e, which, hint int) int {
	size := 1 << f.kind.exponent
	t0 := f.exponent[which][hint&(f.hints-1)*size:][:size]
	t1 := f.exponent[2][int(f.mean>>2)&(2*f.hints-1)*size:][:size]
	t2 := f.exponent[3]
	mix := &f.mixes[which]
	at := 1
	for l := int(f.kind.exponent) - 1; l >= 0; l-- {
		at = at<<1 | mix.three(f.c, e>>l&1, at, &t0[at], &t1[at], &t2[at])
	}
	e = at - size
	f.mean += (int32(e)<<4 - f.mean) >> 4
	return e
}

// tail codes the lowest n bits of v, the first of them by a model.
func (f *floats) tail(v uint64, n uint, context int) uint64 {
	t := f.top[context<<topBits:][:1<<topBits]
	at := 1
	for at < 1<<topBits && n > 0 {
		n--
		at = at<<1 | f.c.adaptive(int(v>>n&1), &t[at], settled)
	}
	first := uint64(at) &^ (1 << (bits.Len(uint(at)) - 1))
	return first<<n | f.c.plain(v&(1<<n-1), n)
}
