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
//	segments, in the order of the target, each:
//	    1 (1 byte)
//	    bits of the table of contexts (1 byte)
//	    length of the code, length of the plain bits
//	    CRC-32C of what the segment brings (4 bytes, little-endian)
//	    the code, the plain bits
//	0 (1 byte)
//
// with sizes and lengths as unsigned varints (encoding/binary). The code of a
// segment holds its parts, one after the other: see segment.go.
const (
	magic   = "ATDF"
	version = 1

	markSegment = 1
	markEnd     = 0
)

// The bounds on what a segment holds. They are what bounds the decoder's memory.
const (
	maxPart   = 4 << 20 // bytes of a part that is not copied
	maxCode   = 6 << 20 // bytes of a segment's code and plain bits together
	maxWindow = 4 << 20 // bytes of a base that a part is predicted from at once
	maxText   = 8 << 20 // bytes of all text of a segment, and of the bases it is predicted from
	// minSegment is what every segment but the last brings at least, so that a
	// difference cannot make work by many segments that bring nothing.
	minSegment = 1 << 20
	minTable   = 12
	maxTable   = 22
	gridTable  = 20 // bits at most, for grids
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func corrupt(format string, args ...any) error {
	return atelier.Errorf(atelier.Corrupt, "the difference is corrupt: "+format, args...)
}

// reader reads what stands around the code of segments; its errors are typed.
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

// number reads a varint of at most limit.
func (r reader) number(limit int64, what string) (int64, error) {
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

// sealed is a segment as it is written.
type sealed struct {
	table     uint // bits of the table of contexts
	code, raw []byte
	sum       uint32
}

func (s sealed) append(b []byte) []byte {
	b = append(b, markSegment, byte(s.table))
	b = binary.AppendUvarint(b, uint64(len(s.code)))
	b = binary.AppendUvarint(b, uint64(len(s.raw)))
	b = binary.LittleEndian.AppendUint32(b, s.sum)
	b = append(b, s.code...)
	return append(b, s.raw...)
}

// sealed reads a segment behind its mark, into the memory of old where it fits.
func (r reader) sealed(old sealed) (sealed, error) {
	table, err := r.byte()
	if err != nil {
		return old, err
	}
	if table < minTable || table > maxTable {
		return old, corrupt("a table of it has 2^%d entries", table)
	}
	code, err := r.number(maxCode, "the length of a code")
	if err != nil {
		return old, err
	}
	raw, err := r.number(maxCode-code, "the length of plain bits")
	if err != nil {
		return old, err
	}
	var sum [4]byte
	if err := r.full(sum[:]); err != nil {
		return old, err
	}
	s := sealed{table: uint(table), sum: binary.LittleEndian.Uint32(sum[:])}
	if s.code, err = r.grown(old.code, code); err == nil {
		s.raw, err = r.grown(old.raw, raw)
	}
	return s, err
}

// grown reads n bytes, which are bounded, into the memory of b where they fit.
func (r reader) grown(b []byte, n int64) ([]byte, error) {
	if int64(cap(b)) < n {
		b = make([]byte, n)
	}
	b = b[:n]
	return b, r.full(b)
}
