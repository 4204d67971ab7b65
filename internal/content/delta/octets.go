package delta

import (
	"encoding/binary"
	"math/bits"
)

// octets codes bytes that are no floating-point numbers: the text of a graph,
// integers, quantised blocks. It predicts each bit from what followed the same
// bytes before, from the longest match in a base or in its own past, and from the
// bytes one stride before (context mixing, as in Mahoney's lpaq).
type octets struct {
	c      *coder
	stride int    // bytes of an element or of a row
	column int    // of the next byte in its row
	buf    []byte // ranges of bases, each with the text that was coded against it; the last bytes of a grid
	deep   bool   // with contexts of several bytes

	hashed []history // the contexts of h share it
	said   []counter // what a history tells, per context
	first  []counter // by the byte before
	expect []counter // by the byte expected
	length []counter // by how long the match is
	mix    mixer

	ptr    int // the byte in buf that is expected next; none where it is no index
	run    int // how many bytes before ptr were right
	missed int // by how much the last expectation was wrong
	seen   []int32
	word   uint32 // hash of the letters just before
	h      []uint32
	slots  []uint32
}

const (
	matchFrom = 6 // the bytes that a match is found by
	matchBits = 18
	maxStride = 63
)

func newOctets(c *coder, deep bool) *octets {
	o := &octets{
		c: c, deep: deep,
		first:  make([]counter, 256*256),
		expect: make([]counter, 256*256),
		length: make([]counter, 32*2),
		mix:    newMixer(256+16, 1<<16*3/10, 8),
		h:      make([]uint32, 3),
	}
	if deep {
		o.h = make([]uint32, 9)
		o.seen = make([]int32, 1<<matchBits)
	}
	if !deep {
		o.buf = make([]byte, maxStride, 32<<10)
	}
	o.slots = make([]uint32, len(o.h))
	o.said = make([]counter, 256*len(o.h))
	return o
}

// reset forgets everything; the contexts get 2^table entries.
func (o *octets) reset(table uint) {
	if !o.deep {
		table = min(table, gridTable)
	}
	if n := 1 << table; cap(o.hashed) < n {
		o.hashed = make([]history, n)
	} else {
		o.hashed = o.hashed[:n]
		clear(o.hashed)
	}
	fill(o.first)
	fill(o.expect)
	fill(o.length)
	fill(o.said)
	o.mix.reset()
	clear(o.seen)
	o.stride, o.column, o.ptr, o.run, o.missed, o.word = 1, 0, -1, 0, 0, 0
	if o.deep {
		o.buf = o.buf[:0]
	}
}

// start begins a part of n bytes that is compared with so many of a base, and
// returns where those go; false where there is no room left.
func (o *octets) start(base, n int) ([]byte, bool) {
	at := len(o.buf)
	if at+base+n > maxText {
		return nil, false
	}
	if o.buf == nil {
		o.buf = make([]byte, 0, maxText) // only what is used becomes resident
	}
	o.buf = o.buf[:at+base]
	if base > 0 {
		o.ptr, o.run = at, 0
	}
	return o.buf[at:], true
}

// learnBase notes what can be found in the n bytes of a base that were just read.
func (o *octets) learnBase(n int) {
	for i := len(o.buf) - n + matchFrom; i <= len(o.buf); i++ {
		o.seen[o.place(i)] = int32(i)
	}
}

// startGrid begins a part with rows of the given length. No context reaches into the
// part before.
func (o *octets) startGrid(stride int) {
	o.stride, o.column, o.run, o.missed = stride, 0, 0, 0
	clear(o.buf)
}

// place returns where a match for the bytes before i is noted.
func (o *octets) place(i int) uint32 {
	b := o.buf[i-matchFrom : i]
	v := uint64(binary.LittleEndian.Uint32(b)) | uint64(b[4])<<32 | uint64(b[5])<<40
	return uint32(v * 0x9e3779b97f4a7c15 >> (64 - matchBits))
}

// code codes all bytes of b, or decodes into it.
func (o *octets) code(b []byte) {
	for i := range b {
		expected := -1
		if o.ptr >= 0 && o.ptr < len(o.buf) {
			expected = int(o.buf[o.ptr])
		}
		b[i] = o.octet(b[i], expected)
		o.buf = append(o.buf, b[i])
		o.follow(b[i])
	}
}

// codeGrid does so for a grid; base has as many bytes, or none.
func (o *octets) codeGrid(b, base []byte) {
	for i := range b {
		expected := -1
		if len(base) > 0 {
			expected = int(base[i])
		}
		b[i] = o.octet(b[i], expected)
		if len(o.buf) == cap(o.buf) {
			// As far back as any row reaches.
			o.buf = append(o.buf[:0], o.buf[len(o.buf)-maxStride:]...)
		}
		o.buf = append(o.buf, b[i])
		if o.column++; o.column == o.stride {
			o.column = 0
		}
	}
}

// back returns the byte k before the next.
func (o *octets) back(k uint32) uint32 {
	n := uint32(len(o.buf))
	if k > n {
		return 0
	}
	return uint32(o.buf[n-k])
}

// contexts hashes what the next byte is predicted by.
func (o *octets) contexts(expected uint32) {
	above, before := o.back(uint32(o.stride)), o.back(1)
	o.h[0] = above<<8 | uint32(o.column)<<16
	o.h[1] = expected<<8 | uint32(o.missed&0xff)<<16 | 1<<24
	o.h[2] = expected<<8 | before<<16 | 2<<24
	if o.deep {
		c4 := o.back(4)<<24 | o.back(3)<<16 | o.back(2)<<8 | before
		c8 := o.back(6)<<8 | o.back(5)
		o.h[3] = (c4 & 0xffff) * 0x2c1b3c6d
		o.h[4] = (c4&0xffffff + 3) * 0x85ebca6b
		o.h[5] = (c4 + 5) * 0xc2b2ae35
		o.h[6] = (c4+7)*0x27d4eb2f + c8*0x165667b1
		o.h[7] = (o.word + 11) * 0x2545f491
		o.h[8] = (expected | uint32(min(o.run, 31))<<8 | before<<16) * 0x1b873593
	}
}

// octet codes one byte, of which another may be expected; -1 for none.
func (o *octets) octet(v byte, expected int) byte {
	known := expected >= 0
	expected = max(expected, 0)
	o.contexts(uint32(expected))
	before := o.back(1)
	first, expect := o.first[before<<8:][:256], o.expect[expected<<8:][:256]
	bucket := min(bits.Len(uint(o.run)), 15)
	mask := uint32(len(o.hashed) - 1)
	at := 1
	for bit := 7; bit >= 0; bit-- {
		if bit == 7 || bit == 3 {
			for i, h := range o.h {
				h = (h + uint32(at)*0x9e3779b1) * 0x85ebca6b
				h ^= h >> 15
				o.slots[i] = h * 0xc2b2ae35 >> 7 << 4 & mask // sixteen in a row serve four bits
			}
		}
		node := uint32(at)
		if bit < 4 {
			node = uint32(at)&(1<<(3-bit)-1) | 1<<(3-bit)
		}
		for i, s := range o.slots {
			o.mix.add(o.said[i<<8|int(o.hashed[s+node])].stretch())
		}
		o.mix.add(first[at].stretch())
		o.mix.add(expect[at].stretch())
		set := at
		var l *counter
		if known && (expected|256)>>(bit+1) == at {
			l = &o.length[lengthOf(o.run)<<1|expected>>bit&1]
			o.mix.add(l.stretch())
			set = 256 + bucket
		}
		b := o.mix.mix(o.c, int(v>>bit)&1, set)
		for i, s := range o.slots {
			h := &o.hashed[s+node]
			o.said[i<<8|int(*h)].update(b, settled)
			h.update(b)
		}
		first[at].update(b, 255)
		expect[at].update(b, 255)
		if l != nil {
			l.update(b, settled)
		}
		at = at<<1 | b
	}
	o.missed = at&255 - expected
	if known && o.missed == 0 {
		o.run++
	} else {
		o.run = 0
	}
	return byte(at)
}

// lengthOf puts the length of a match into one of 32 classes.
func lengthOf(run int) int {
	if run < 16 {
		return run
	}
	return min(12+bits.Len(uint(run)), 31)
}

// follow looks where text goes on behind v, which was appended.
func (o *octets) follow(v byte) {
	if o.ptr >= 0 {
		o.ptr++ // also where it was wrong: bytes that changed in place are the rule
	}
	if c := v | 0x20; c >= 'a' && c <= 'z' {
		o.word = (o.word + uint32(c)) * 0x2f0b4c47
	} else {
		o.word = 0
	}
	if len(o.buf) < matchFrom {
		return
	}
	p := o.place(len(o.buf))
	if at := int(o.seen[p]); at > 0 && o.run < 8 && at != o.ptr {
		n := 0
		for n < 32 && n < at && o.buf[at-1-n] == o.buf[len(o.buf)-1-n] {
			n++
		}
		if n >= matchFrom && n > o.run {
			o.ptr, o.run = at, n
		}
	}
	o.seen[p] = int32(len(o.buf))
}

// history is the last bits, seven at most, that were seen in a context, behind a
// leading 1; 0 is none.
type history uint8

func (h *history) update(bit int) {
	v := uint32(*h)
	if v == 0 {
		v = 1
	}
	v = v<<1 | uint32(bit)
	if v > 255 {
		v = v&127 | 128
	}
	*h = history(v)
}
