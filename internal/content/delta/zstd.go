package delta

import (
	"github.com/klauspost/compress/zstd"
)

// The method "zstd": one Zstandard frame (RFC 8878), with a range of a base as its
// raw dictionary. Parameters: the place in a base, or none, and its length before
// it.

const dictID = 1

// zstdEncode returns the code of target, with old as dictionary.
func zstdEncode(target, old []byte) ([]byte, error) {
	o := []zstd.EOption{
		zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(maxWindow), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true),
	}
	if len(old) > 0 {
		o = append(o, zstd.WithEncoderDictRaw(dictID, old))
	}
	e, err := zstd.NewWriter(nil, o...)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	return e.EncodeAll(target, nil), nil
}

// zstdDecode returns the length bytes that code stands for.
func zstdDecode(code, old []byte, length int64) ([]byte, error) {
	o := []zstd.DOption{
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(uint64(max(length, 1))), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecodeAllCapLimit(true),
	}
	if len(old) > 0 {
		o = append(o, zstd.WithDecoderDictRaw(dictID, old))
	}
	d, err := zstd.NewReader(nil, o...)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	out, err := d.DecodeAll(code, make([]byte, 0, length))
	if err != nil {
		return nil, corrupt("a segment of it does not decode: %w", err)
	}
	if int64(len(out)) != length {
		return nil, corrupt("a segment of it holds %d bytes, %d were expected", len(out), length)
	}
	return out, nil
}

// zstd reads and writes a segment of the method.
func (d *decoder) zstd(length int64) error {
	if length > maxWindow {
		return corrupt("a segment of it has %d bytes, at most %d were expected", length, maxWindow)
	}
	n, err := d.in.uvarint(maxWindow, "the length of a dictionary")
	if err != nil {
		return err
	}
	var old []byte
	if n > 0 {
		from, err := d.at.read(d.in, n, false)
		if err != nil {
			return err
		}
		old = make([]byte, n)
		if err := d.readBase(old, from); err != nil {
			return err
		}
	}
	size, err := d.in.uvarint(length, "the length of a code")
	if err != nil {
		return err
	}
	code := make([]byte, size)
	if err := d.in.full(code); err != nil {
		return err
	}
	out, err := zstdDecode(code, old, length)
	if err != nil {
		return err
	}
	return d.write(out)
}
