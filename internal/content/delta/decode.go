package delta

import (
	"bufio"
	"context"
	"errors"
	"io"

	atelier "github.com/atelier-edge/atelier"
)

// Decode writes the target of a difference to w: size bytes, strictly in order,
// never more. open gives each base by its digest, with its size; what is an
// io.Closer too is closed before Decode returns. Bases must be what their digests
// say, and the caller verifies the digest of what was written before it counts: the
// checksums in a difference find accidents, not intent.
//
// What is no difference, or none to a target of that size, gives an *atelier.Error
// with code Corrupt, one of a later version Unsupported; errors of w, difference
// and open are returned as they came. Some of the target may have been written then.
func Decode(ctx context.Context, w io.Writer, difference io.Reader, size int64, open func(atelier.Digest) (io.ReaderAt, int64, error)) error {
	d := &decoder{ctx: ctx, w: w, left: size, in: reader{bufio.NewReaderSize(difference, 64<<10)}}
	defer d.close()
	if err := d.header(size, open); err != nil {
		return err
	}
	short := false // a segment was so short that it has to be the last
	for {
		mark, err := d.in.byte()
		if err != nil {
			return err
		}
		if mark == markEnd {
			return d.end()
		}
		if mark != markSegment || short {
			return corrupt("it has something else where a segment or its end should be")
		}
		before := d.left
		if err := d.segment(); err != nil {
			return err
		}
		short = before-d.left < minSegment
	}
}

// decoder applies one difference.
type decoder struct {
	ctx   context.Context
	w     io.Writer
	in    reader
	left  int64 // bytes of the target still to come
	bases []io.ReaderAt
	sizes []int64
	// What the next segment takes the memory of.
	held   sealed
	models *segment
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
	n, err := d.in.number(MaxBases, "the number of bases")
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
		d.sizes = append(d.sizes, got)
		if uint64(got) != want {
			return corrupt("base %s has %d bytes, the difference says %d", digest.Short(), got, want)
		}
	}
	return nil
}

// segment writes what the next segment brings.
func (d *decoder) segment() error {
	var err error
	if d.held, err = d.in.sealed(d.held); err != nil {
		return err
	}
	if d.models == nil {
		d.models = newSegment(d.sizes)
		d.models.base = func(b []byte, from place) error { return readBase(d.bases[from.base], b, from.offset) }
		d.models.save = d.write
	}
	s := d.models
	s.reset(d.held.table, true, d.held.code, d.held.raw)
	for {
		p, err := s.head(part{}, d.left)
		if err != nil {
			return err
		}
		if s.c.spent() {
			return corrupt("a segment of it ends too early")
		}
		if p.method == methodEnd {
			break
		}
		if err := s.body(p); err != nil {
			return err
		}
	}
	if s.sum != d.held.sum {
		return corrupt("a checksum is wrong, or a base is not what it was made for")
	}
	return nil
}

// write writes a part of the target.
func (d *decoder) write(b []byte) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	d.left -= int64(len(b))
	_, err := d.w.Write(b)
	return err
}

// end reads what stands behind the segments.
func (d *decoder) end() error {
	if d.left != 0 {
		return corrupt("%d bytes of its target are missing", d.left)
	}
	if _, err := d.in.r.ReadByte(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = corrupt("something follows its end")
		}
		return err
	}
	return nil
}
