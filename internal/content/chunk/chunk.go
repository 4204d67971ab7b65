// Package chunk cuts content into pieces whose borders depend on the bytes alone,
// so that equal parts of two files are cut alike wherever they lie (FastCDC: Xia and
// others, "FastCDC: a Fast and Efficient Content-Defined Chunking Approach for Data
// Deduplication", USENIX ATC 2016).
//
// The same content and boundaries give the same chunks on every machine and in every
// version of this package: chunks of one side are compared with those of another.
package chunk

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/bits"
	"slices"

	atelier "github.com/atelier-edge/atelier"
)

// Chunk is a piece of some content.
type Chunk struct {
	Offset, Length int64 // in bytes
	Sum            [sha256.Size]byte
}

// Sizes bounds the lengths of chunks, in bytes. Only the last chunk before a
// boundary or before the end may be shorter than Min; none is longer than Max.
type Sizes struct{ Min, Average, Max int64 }

// SizesFor returns the sizes that suit content of the given size: 2, 8 and 64 KiB,
// and more where that would give too many chunks to hold in memory.
func SizesFor(size int64) Sizes {
	average := int64(8 << 10)
	for size/average > 1<<18 {
		average *= 2
	}
	return Sizes{average / 4, average, average * 8}
}

// window is how much of the content is read at once; chunks are at most that long.
const window = 4 << 20

// Cut returns the chunks of the first size bytes of r, in order and without gaps. A
// chunk ends at every boundary, in whatever order those are given; where tensors
// start, say. It holds 4 MiB in memory, beside the chunks. An error of r is returned
// as it came, sizes that are not in order give an *atelier.Error with code Invalid.
func Cut(ctx context.Context, r io.ReaderAt, size int64, boundaries []int64, sizes Sizes) ([]Chunk, error) {
	if sizes.Min < 64 || sizes.Average < sizes.Min || sizes.Max < sizes.Average || sizes.Max > window {
		return nil, atelier.Errorf(atelier.Invalid, "chunks of %d to %d bytes, %d on average, were asked for; 64 to %d, in this order, are possible", sizes.Min, sizes.Max, sizes.Average, window)
	}
	boundaries = append(slices.Clone(boundaries), size)
	slices.Sort(boundaries)
	var out []Chunk
	buf := make([]byte, min(size, window))
	var held []byte // what of buf was read and not cut yet
	at := int64(0)  // where held starts
	for _, end := range boundaries {
		for at < end && end <= size {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if int64(len(held)) < min(sizes.Max, end-at) {
				n := copy(buf, held)
				more := min(int64(len(buf)-n), size-at-int64(n))
				if err := readFull(r, buf[n:int64(n)+more], at+int64(n)); err != nil {
					return nil, err
				}
				held = buf[:int64(n)+more]
			}
			n := sizes.next(held[:min(int64(len(held)), end-at)])
			out = append(out, Chunk{at, int64(n), sha256.Sum256(held[:n])})
			held = held[n:]
			at += int64(n)
		}
	}
	return out, nil
}

// next returns the length of the chunk that b starts with.
func (s Sizes) next(b []byte) int {
	if int64(len(b)) <= s.Min {
		return len(b)
	}
	b = b[:min(int64(len(b)), s.Max)]
	// Normalised chunking: up to the average a border is four times as rare as it
	// would be evenly, and behind it four times as frequent. The upper bits of the
	// hash depend on the last 64 bytes.
	n := bits.Len64(uint64(s.Average)) - 1
	rare, frequent := ^uint64(0)<<(64-n-2), ^uint64(0)<<(64-n+2)
	hash := uint64(0)
	i := int(s.Min)
	for _, c := range b[i-64 : i] {
		hash = hash<<1 + gear[c]
	}
	for middle := min(int(s.Average), len(b)); i < middle; i++ {
		hash = hash<<1 + gear[b[i]]
		if hash&rare == 0 {
			return i + 1
		}
	}
	for ; i < len(b); i++ {
		hash = hash<<1 + gear[b[i]]
		if hash&frequent == 0 {
			return i + 1
		}
	}
	return len(b)
}

// gear gives each byte a random number: SplitMix64 (Steele and others, 2014) from 0.
var gear = func() (t [256]uint64) {
	state := uint64(0)
	for i := range t {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		t[i] = z ^ z>>31
	}
	return t
}()

func readFull(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // the content is shorter than its size
	}
	return err
}
