package delta

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	atelier "github.com/atelier-edge/atelier"
)

// Decode writes the target of a difference to w: size bytes, strictly in order,
// never more. open gives each base by its digest, with its size; what is an
// io.Closer too is closed before Decode returns. Bases must be what their digests
// say, and so the caller verifies the digest of what was written before it counts:
// the checksum at the end of a difference finds accidents, not intent.
//
// What is no difference, or none to a target of that size, gives an *atelier.Error
// with code Corrupt, one of a later version Unsupported; errors of w, difference
// and open are returned as they came.
func Decode(ctx context.Context, w io.Writer, difference io.Reader, size int64, open func(atelier.Digest) (io.ReaderAt, int64, error)) error {
	d := &decoder{
		ctx: ctx, w: w, left: size,
		in: reader{bufio.NewReaderSize(difference, 64<<10)},
	}
	defer d.close()
	if err := d.header(size, open); err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		method, err := d.in.byte()
		if err != nil {
			return err
		}
		if method == methodEnd {
			return d.end()
		}
		if err := d.segment(method); err != nil {
			return err
		}
	}
}

// decoder applies one difference.
type decoder struct {
	ctx   context.Context
	w     io.Writer
	in    reader
	left  int64 // bytes of the target still to come
	sum   uint32
	bases []io.ReaderAt
	at    cursor
	buf   [64 << 10]byte
}

func (d *decoder) close() {
	for _, b := range d.bases {
		if c, ok := b.(io.Closer); ok {
			_ = c.Close() // it was only read from
		}
	}
}

func (d *decoder) header(size int64, open func(atelier.Digest) (io.ReaderAt, int64, error)) error {
	var head [len(magic) + 1]byte
	if err := d.in.full(head[:]); err != nil {
		return err
	}
	if string(head[:len(magic)]) != magic {
		return corrupt("it does not start like one")
	}
	if head[len(magic)] != version {
		return atelier.Errorf(atelier.Unsupported, "the difference has version %d, this program reads version %d", head[len(magic)], version)
	}
	told, err := d.in.varint()
	if err != nil {
		return err
	}
	if told != uint64(size) {
		return corrupt("its target has %d bytes, %d were expected", told, size)
	}
	n, err := d.in.uvarint(MaxBases, "the number of bases")
	if err != nil {
		return err
	}
	for range n {
		var sum [32]byte
		if err := d.in.full(sum[:]); err != nil {
			return err
		}
		want, err := d.in.varint()
		if err != nil {
			return err
		}
		digest := atelier.DigestFromSum(sum)
		base, got, err := open(digest)
		if err != nil {
			return err
		}
		d.bases = append(d.bases, base)
		d.at.sizes = append(d.at.sizes, got)
		if uint64(got) != want {
			return corrupt("base %s has %d bytes, the difference says %d", digest.Short(), got, want)
		}
	}
	return nil
}

// segment writes what the next segment brings.
func (d *decoder) segment(method byte) error {
	if method >= methods {
		return corrupt("it has a segment of the unknown method %d", method)
	}
	limit := d.left
	if method > methodRaw {
		limit = min(limit, maxCoded)
	}
	length, err := d.in.uvarint(limit, "the length of a segment")
	if err != nil {
		return err
	}
	switch method {
	case methodCopy:
		from, err := d.at.read(d.in, length, false)
		if err != nil {
			return err
		}
		return d.copy(from)
	case methodRaw:
		return d.raw(length)
	default:
		return d.zstd(length)
	}
}

// write writes a part of the target.
func (d *decoder) write(b []byte) error {
	if int64(len(b)) > d.left {
		return corrupt("it holds more than its target's size")
	}
	if err := d.ctx.Err(); err != nil {
		return err
	}
	d.left -= int64(len(b))
	d.sum = crc32.Update(d.sum, castagnoli, b)
	_, err := d.w.Write(b)
	return err
}

func (d *decoder) copy(from place) error {
	for from.length > 0 {
		b := d.buf[:min(from.length, int64(len(d.buf)))]
		if err := d.readBase(b, from); err != nil {
			return err
		}
		if err := d.write(b); err != nil {
			return err
		}
		from.offset += int64(len(b))
		from.length -= int64(len(b))
	}
	return nil
}

// readBase fills b from the start of a place.
func (d *decoder) readBase(b []byte, from place) error {
	n, err := d.bases[from.base].ReadAt(b, from.offset)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return atelier.Errorf(atelier.Corrupt, "a base is shorter than its size: %w", io.ErrUnexpectedEOF)
	}
	return err
}

func (d *decoder) raw(length int64) error {
	for length > 0 {
		b := d.buf[:min(length, int64(len(d.buf)))]
		if err := d.in.full(b); err != nil {
			return err
		}
		if err := d.write(b); err != nil {
			return err
		}
		length -= int64(len(b))
	}
	return nil
}

// end reads what stands behind the segments.
func (d *decoder) end() error {
	if d.left != 0 {
		return corrupt("%d bytes of its target are missing", d.left)
	}
	var sum [4]byte
	if err := d.in.full(sum[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(sum[:]) != d.sum {
		return corrupt("its checksum is wrong, or a base is not what it was made for")
	}
	if _, err := d.in.r.ReadByte(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = corrupt("something follows its end")
		}
		return err
	}
	return nil
}
