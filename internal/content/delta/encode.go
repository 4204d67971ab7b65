package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"

	atelier "github.com/atelier-edge/atelier"
)

// Encode writes the difference that brings target to whoever has the bases: the
// smallest that it finds. The same input gives the same difference.
//
// More than MaxBases bases, or one without a digest, give an *atelier.Error with
// code Invalid, a difference beyond o.MaxSize TooLarge; errors of w and of the
// files are returned as they came.
func Encode(ctx context.Context, w io.Writer, target File, bases []File, o Options) (Result, error) {
	e := &encoder{ctx: ctx, w: w, target: target, bases: bases, o: o}
	e.result.Methods = map[string]int64{}
	if err := e.header(); err != nil {
		return Result{}, err
	}
	for at := int64(0); at < target.Size; at += maxWindow {
		if err := e.window(at, min(maxWindow, target.Size-at)); err != nil {
			return Result{}, err
		}
	}
	if err := e.write(binary.LittleEndian.AppendUint32([]byte{methodEnd}, e.sum)); err != nil {
		return Result{}, err
	}
	return e.result, nil
}

// encoder makes one difference.
type encoder struct {
	ctx    context.Context
	w      io.Writer
	target File
	bases  []File
	o      Options
	at     cursor
	sum    uint32
	result Result
}

func (e *encoder) write(b []byte) error {
	e.result.Size += int64(len(b))
	if e.o.MaxSize > 0 && e.result.Size > e.o.MaxSize {
		return atelier.Errorf(atelier.TooLarge, "the difference has more than %d bytes", e.o.MaxSize)
	}
	if err := e.ctx.Err(); err != nil {
		return err
	}
	_, err := e.w.Write(b)
	return err
}

func (e *encoder) header() error {
	if len(e.bases) > MaxBases {
		return atelier.Errorf(atelier.Invalid, "a difference to %d files was asked for, at most %d are possible", len(e.bases), MaxBases)
	}
	b := append([]byte(magic), version)
	b = binary.AppendUvarint(b, uint64(e.target.Size))
	b = binary.AppendUvarint(b, uint64(len(e.bases)))
	for _, base := range e.bases {
		sum, err := base.Digest.Sum()
		if err != nil {
			return err
		}
		b = append(b, sum[:]...)
		b = binary.AppendUvarint(b, uint64(base.Size))
		e.at.sizes = append(e.at.sizes, base.Size)
	}
	return e.write(b)
}

// window writes length bytes of the target as one segment.
func (e *encoder) window(at, length int64) error {
	new, err := read(e.target.Content, at, length)
	if err != nil {
		return err
	}
	e.sum = crc32.Update(e.sum, castagnoli, new)
	var old []byte
	from := nowhere
	if len(e.bases) > 0 && at < e.bases[0].Size {
		from = place{0, at, min(length, e.bases[0].Size-at)}
		if old, err = read(e.bases[0].Content, at, from.length); err != nil {
			return err
		}
	}
	if bytes.Equal(old, new) {
		b := binary.AppendUvarint([]byte{methodCopy}, uint64(length))
		e.account(methodCopy, length)
		return e.write(e.at.append(b, from))
	}
	code, err := zstdEncode(new, old)
	if err != nil {
		return err
	}
	if len(code) >= len(new) {
		e.account(methodRaw, length)
		b := binary.AppendUvarint([]byte{methodRaw}, uint64(length))
		return e.write(append(b, new...))
	}
	b := binary.AppendUvarint([]byte{methodZstd}, uint64(length))
	b = binary.AppendUvarint(b, uint64(len(old)))
	if len(old) > 0 {
		b = e.at.append(b, from)
	}
	b = binary.AppendUvarint(b, uint64(len(code)))
	e.account(methodZstd, length)
	return e.write(append(b, code...))
}

// account notes which method brings length bytes of the target.
func (e *encoder) account(method int, length int64) {
	e.result.Methods[methodNames[method]] += length
	if method == methodCopy {
		e.result.Copied += length
	} else {
		e.result.Coded += length
	}
}

// read reads a part of a file.
func read(r io.ReaderAt, at, length int64) ([]byte, error) {
	b := make([]byte, length)
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return b, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF // the file is shorter than its size
	}
	return nil, err
}
