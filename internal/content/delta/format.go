package delta

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	atelier "github.com/atelier-edge/atelier"
)

// A difference is
//
//	magic "ATDF", version 1
//	size of the target
//	number of bases, and of each: SHA-256 (32 bytes), size
//	segments, in the order of the target: method (1 byte), and
//	    copy: length, place in a base
//	    raw:  length, the bytes
//	    else: length, method's own parameters, length of the code, the code
//	end (1 byte, 0), CRC-32C of the target (4 bytes, little-endian)
//
// where sizes, lengths and offsets are unsigned varints (encoding/binary). A
// place in a base is the base's number and the offset there, as the signed
// varint of what it differs from the place behind the one named last.
const (
	magic   = "ATDF"
	version = 1
)

// The methods of segments.
const (
	methodEnd = iota
	methodCopy
	methodRaw
	methodZstd
	methods // how many there are
)

var methodNames = [methods]string{methodCopy: "copy", methodRaw: "raw", methodZstd: "zstd"}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	// maxWindow bounds what a method may look back, in a base and in the target.
	maxWindow = 8 << 20
	// maxCoded bounds the length of a segment that is neither copied nor raw.
	maxCoded = 16 << 20
)

// place is a part of a base.
type place struct {
	base   int // -1 for none
	offset int64
	length int64
}

var nowhere = place{base: -1}

func corrupt(format string, args ...any) error {
	return atelier.Errorf(atelier.Corrupt, "the difference is corrupt: "+format, args...)
}

// reader reads the parts of a difference; its errors are typed.
type reader struct {
	r *bufio.Reader
}

// whole turns the end of the input into a typed error.
func whole(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("it ends too early")
	}
	return err
}

func (r reader) byte() (byte, error) {
	b, err := r.r.ReadByte()
	return b, whole(err)
}

func (r reader) full(b []byte) error {
	_, err := io.ReadFull(r.r, b)
	return whole(err)
}

// uvarint reads a number of at most limit.
func (r reader) uvarint(limit int64, what string) (int64, error) {
	v, err := r.varint()
	if err == nil && v > uint64(limit) {
		err = corrupt("%s is %d, at most %d was expected", what, v, limit)
	}
	return int64(v), err
}

// varint is binary.ReadUvarint with typed errors.
func (r reader) varint() (v uint64, err error) {
	for shift := 0; shift < 64; shift += 7 {
		b, err := r.byte()
		if err != nil {
			return 0, err
		}
		if b < 0x80 {
			if shift == 63 && b > 1 {
				break
			}
			return v | uint64(b)<<shift, nil
		}
		v |= uint64(b&0x7f) << shift
	}
	return 0, corrupt("a number in it has more than 64 bits")
}

func (r reader) signed() (int64, error) {
	v, err := r.varint()
	return int64(v>>1) ^ -int64(v&1), err
}

func appendSigned(b []byte, v int64) []byte { return binary.AppendVarint(b, v) }

// cursor turns places into the form that they are written in, and back. Both
// sides move it in step.
type cursor struct {
	behind [MaxBases]int64 // the place last named, per base
	sizes  []int64         // of the bases
}

func (c *cursor) append(b []byte, p place) []byte {
	b = append(b, byte(p.base+1))
	if p.base < 0 {
		return b
	}
	b = appendSigned(b, p.offset-c.behind[p.base])
	c.behind[p.base] = p.offset + p.length
	return b
}

// read reads a place of the given length. Without optional, there has to be one.
func (c *cursor) read(r reader, length int64, optional bool) (place, error) {
	n, err := r.byte()
	if err != nil {
		return nowhere, err
	}
	if n == 0 && optional {
		return nowhere, nil
	}
	if n == 0 || int(n) > len(c.sizes) {
		return nowhere, corrupt("it names base %d of %d", int(n), len(c.sizes))
	}
	base := int(n) - 1
	move, err := r.signed()
	if err != nil {
		return nowhere, err
	}
	offset := c.behind[base] + move // may wrap around, which the bounds refuse
	if offset < 0 || length > c.sizes[base] || offset > c.sizes[base]-length {
		return nowhere, corrupt("it names bytes outside of a base")
	}
	c.behind[base] = offset + length
	return place{base, offset, length}, nil
}
