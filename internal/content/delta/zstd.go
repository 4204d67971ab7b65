package delta

import (
	"github.com/klauspost/compress/zstd"
)

// dictID is what names the raw dictionary within a Zstandard frame (RFC 8878).
const dictID = 1

// zstdEncode returns the code of target, with old as dictionary.
func zstdEncode(target, old []byte) ([]byte, error) {
	o := []zstd.EOption{
		zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(2 * maxWindow), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true),
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
		zstd.WithDecoderMaxMemory(uint64(max(length, 1))), zstd.WithDecoderMaxWindow(2 * maxWindow), zstd.WithDecodeAllCapLimit(true),
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
		return nil, corrupt("a frame of it does not decode: %w", err)
	}
	if int64(len(out)) != length {
		return nil, corrupt("a frame of it holds %d bytes, %d were expected", len(out), length)
	}
	return out, nil
}
