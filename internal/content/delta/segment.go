package delta

import (
	"errors"
	"hash/crc32"
	"io"
	"math/bits"

	atelier "github.com/atelier-edge/atelier"
)

// method is how a part of the target is brought.
type method int

// The methods. Those from FP16 on code floating-point numbers.
const (
	methodEnd  method = iota // behind the last part of a segment
	methodCopy               // bytes of a base as they are
	methodRaw                // bytes as they are
	methodText               // octets, with contexts of several bytes
	methodGrid               // octets of elements or rows of a fixed length
	methodFP16
	methodBF16
	methodFP32
	methodFP64
	methods // how many there are
)

var methodNames = [methods]string{
	methodCopy: "copy", methodRaw: "raw", methodText: "text", methodGrid: "grid",
	methodFP16: "FP16", methodBF16: "BF16", methodFP32: "FP32", methodFP64: "FP64",
}

// place is a range of a base.
type place struct {
	base           int // -1 for none
	offset, length int64
}

var nowhere = place{base: -1}

// part is a range of the target, and how it is brought.
type part struct {
	method method
	length int64
	// from is what is copied, or what the part is predicted from; its length is
	// the part's own, except for text.
	from place
	// detail is the stride of a grid, in bytes, or how many of the lowest bits of
	// all floating-point numbers are zero.
	detail uint
	at     int64 // where it starts in the target; known to the encoder only
}

// segment codes parts with one coder and with models that go on from part to part.
// Encoder and decoder run the same code: load fills a block of the target when
// encoding, save takes it when decoding, both in the order of the target.
//
// One segment serves for many, one after the other: reset keeps the memory.
type segment struct {
	sizes []int64 // of the bases
	base  func(b []byte, from place) error
	load  func(b []byte) error
	save  func(b []byte) error

	c     coder
	table uint   // bits of the table of contexts
	sum   uint32 // CRC-32C of the target's bytes so far

	last    method
	behind  [MaxBases]int64 // the end of the place named last, per base
	heads   []counter
	numbers []counter
	floats  [methods]*floats
	octets  [methods]*octets
	fresh   [methods]bool // which of the models were used since the reset
	block   [2][32 << 10]byte
}

func newSegment(sizes []int64) *segment {
	return &segment{
		sizes:   sizes,
		heads:   make([]counter, int(methods)*(16+64)+2*32),
		numbers: make([]counter, kindsOfNumbers*64),
	}
}

// reset begins another segment: with code and raw, one that is decoded.
func (s *segment) reset(table uint, decode bool, code, raw []byte) {
	s.c.reset(decode, code, raw)
	s.table, s.sum, s.last = table, 0, methodEnd
	s.behind, s.fresh = [MaxBases]int64{}, [methods]bool{}
	fill(s.heads)
	fill(s.numbers)
}

// symbol codes a number of n bits as a tree of adaptive bits.
func (s *segment) symbol(v int, n int, t []counter) int {
	at := 1
	for l := n - 1; l >= 0; l-- {
		at = at<<1 | s.c.adaptive(v>>l&1, &t[at], 60)
	}
	return at - 1<<n
}

// The kinds of numbers; lengths have one for each method.
const (
	kindMove = int(methods) + iota
	kindFrom
	kindsOfNumbers
)

// number codes any number that is not negative; kind tells what it stands for.
func (s *segment) number(v int64, kind int) int64 {
	n := s.symbol(bits.Len64(uint64(v)), 6, s.numbers[kind*64:])
	if n < 2 {
		return int64(n)
	}
	low := uint(n - 1)
	return int64(s.c.plain(uint64(v)&(1<<low-1), low) | 1<<low)
}

// signed codes any number between -2^62 and 2^62.
func (s *segment) signed(v int64, kind int) int64 {
	u := s.number((v<<1^v>>63)&(1<<63-1), kind)
	return u>>1 ^ -(u & 1)
}

// head codes what a part is. left is what the target still lacks.
func (s *segment) head(p part, left int64) (part, error) {
	p.method = method(s.symbol(int(p.method), 4, s.heads[int(s.last)*16:]))
	s.last = p.method % methods
	if p.method == methodEnd {
		return p, nil
	}
	if p.method >= methods {
		return p, corrupt("it has a part of the unknown method %d", p.method)
	}
	// A copy goes on as long as it likes; other parts are bounded.
	limit := left
	if p.method != methodCopy {
		limit = min(limit, maxPart)
	}
	p.length = s.number(p.length, int(p.method))
	if p.length < 1 || p.length > limit {
		return p, corrupt("it has a part of %d bytes, 1 to %d were expected", p.length, limit)
	}
	switch p.method {
	case methodRaw:
		p.from = nowhere
		return p, nil
	case methodGrid, methodFP16, methodBF16, methodFP32, methodFP64:
		p.detail = uint(s.symbol(int(p.detail), 6, s.heads[int(methods)*16+int(p.method)*64:]))
		if p.method == methodGrid && p.detail == 0 {
			return p, corrupt("it has rows of no bytes")
		}
		if k := kinds[p.method]; p.method != methodGrid && (p.detail >= k.mantissa() || p.length%int64(k.width) != 0) {
			return p, corrupt("it has numbers of no whole width")
		}
	}
	return p, s.place(&p)
}

// place codes from where a part is copied or predicted.
func (s *segment) place(p *part) error {
	const bases = int(methods)*16 + int(methods)*64
	p.from.base = s.symbol(p.from.base+1, 5, s.heads[bases+b2i(p.method == methodCopy)*32:]) - 1
	if p.from.base < 0 {
		if p.method == methodCopy {
			return corrupt("it copies from no base")
		}
		p.from = nowhere
		return nil
	}
	if p.from.base >= len(s.sizes) {
		return corrupt("it names base %d of %d", p.from.base+1, len(s.sizes))
	}
	size := s.sizes[p.from.base]
	if p.method == methodText {
		p.from.length = s.number(p.from.length, kindFrom)
		if p.from.length > maxWindow {
			return corrupt("it looks at %d bytes of a base at once, %d are possible", p.from.length, maxWindow)
		}
	} else {
		p.from.length = p.length
	}
	behind := &s.behind[p.from.base]
	p.from.offset = s.signed(p.from.offset-*behind, kindMove) + *behind
	if p.from.offset < 0 || p.from.length > size || p.from.offset > size-p.from.length {
		return corrupt("it names bytes outside of a base")
	}
	*behind = p.from.offset + p.from.length
	return nil
}

// body codes the bytes of a part.
func (s *segment) body(p part) error {
	var f *floats
	var o *octets
	switch p.method {
	case methodCopy, methodRaw:
	case methodGrid:
		o = s.octetsOf(p.method)
		o.startGrid(int(p.detail))
	case methodText:
		o = s.octetsOf(p.method)
		old, ok := o.start(int(p.from.length), int(p.length))
		if !ok {
			return corrupt("a segment of it holds more text than is possible")
		}
		if len(old) > 0 {
			if err := s.base(old, p.from); err != nil {
				return err
			}
			o.learnBase(len(old))
		}
	default:
		f = s.floatsOf(p.method)
		f.start(p.detail)
	}
	for p.length > 0 {
		b := s.block[0][:min(p.length, int64(len(s.block[0])))]
		var old []byte
		if p.from.base >= 0 && p.method != methodText {
			old = s.block[1][:len(b)]
			if err := s.base(old, p.from); err != nil {
				return err
			}
			p.from.offset += int64(len(b))
		}
		if p.method != methodCopy {
			if err := s.fill(b); err != nil {
				return err
			}
		}
		switch p.method {
		case methodCopy:
			copy(b, old)
		case methodRaw:
			s.c.octets(b)
		case methodText:
			o.code(b)
		case methodGrid:
			o.codeGrid(b, old)
		default:
			f.code(b, old)
		}
		if err := s.done(b); err != nil {
			return err
		}
		p.length -= int64(len(b))
	}
	return nil
}

// octetsOf and floatsOf return the model of a method, as new to a segment.
func (s *segment) octetsOf(m method) *octets {
	if s.octets[m] == nil {
		s.octets[m] = newOctets(&s.c, m == methodText)
	}
	if !s.fresh[m] {
		s.octets[m].reset(s.table)
		s.fresh[m] = true
	}
	return s.octets[m]
}

func (s *segment) floatsOf(m method) *floats {
	if s.floats[m] == nil {
		s.floats[m] = newFloats(&s.c, kinds[m])
	}
	if !s.fresh[m] {
		s.floats[m].reset()
		s.fresh[m] = true
	}
	return s.floats[m]
}

// fill reads the next block of the target where it is known, done hands it on where
// it was not.
func (s *segment) fill(b []byte) error {
	if s.c.decode {
		return nil
	}
	return s.load(b)
}

func (s *segment) done(b []byte) error {
	s.sum = crc32.Update(s.sum, castagnoli, b)
	if !s.c.decode {
		return nil
	}
	if s.c.spent() {
		return corrupt("a segment of it ends too early")
	}
	return s.save(b)
}

// readBase fills b from the start of a range of a base.
func readBase(base io.ReaderAt, b []byte, offset int64) error {
	n, err := base.ReadAt(b, offset)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return atelier.Errorf(atelier.Corrupt, "a base is shorter than its size: %w", io.ErrUnexpectedEOF)
	}
	return err
}
