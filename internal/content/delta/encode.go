package delta

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	atelier "github.com/atelier-edge/atelier"
)

// Encode writes the difference that brings target to whoever has the bases: the
// smallest that it finds. The same input gives the same difference.
//
// More than MaxBases bases, or one without a digest, give an *atelier.Error with
// code Invalid, a difference beyond o.MaxSize TooLarge; errors of w and of the
// files are returned as they came.
func Encode(ctx context.Context, w io.Writer, target File, bases []File, o Options) (Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e := &encoder{w: w, target: target, bases: bases, limit: o.MaxSize}
	e.result.Methods = map[string]int64{}
	if err := e.header(); err != nil {
		return Result{}, err
	}
	pieces, err := plan(ctx, target, bases)
	if err != nil {
		return Result{}, err
	}
	if err := e.expect(ctx, pieces, o.Expect); err != nil {
		return Result{}, err
	}
	if err := e.segments(ctx, cancel, grouped(pieces), max(o.Workers, 1)); err != nil {
		return Result{}, err
	}
	if err := e.write([]byte{markEnd}); err != nil {
		return Result{}, err
	}
	return e.result, nil
}

// encoder makes one difference.
type encoder struct {
	w      io.Writer
	target File
	bases  []File
	limit  int64
	result Result
}

func (e *encoder) write(b []byte) error {
	e.result.Size += int64(len(b))
	if e.limit > 0 && e.result.Size > e.limit {
		return atelier.Errorf(atelier.TooLarge, "the difference has more than %d bytes", e.limit)
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
	}
	return e.write(b)
}

// headSize is more than what it takes in bytes to say what a part is.
const headSize = 16

// grouped puts pieces together to what one segment can hold. Since none of them has
// more than half of that, no segment but the last is shorter than a decoder accepts.
func grouped(pieces []piece) (groups [][]piece) {
	coded, from := int64(0), 0
	for i, p := range pieces {
		size := int64(headSize)
		if !p.copied {
			size += p.length
		}
		if coded+size > maxPart {
			groups = append(groups, pieces[from:i])
			coded, from = 0, i
		}
		coded += size
	}
	if from < len(pieces) {
		groups = append(groups, pieces[from:])
	}
	return groups
}

// made is a segment with what it is made of.
type made struct {
	sealed sealed
	parts  []part
	err    error
}

// segments codes groups by several workers, and writes them in order.
func (e *encoder) segments(ctx context.Context, cancel func(), groups [][]piece, workers int) error {
	// At most 2·workers segments are held, so that a slow writer bounds the memory.
	tokens := make(chan struct{}, 2*workers)
	jobs := make(chan int)
	done := make([]chan made, len(groups))
	for i := range done {
		done[i] = make(chan made, 1)
	}
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() {
		defer close(jobs)
		for i := range groups {
			select {
			case tokens <- struct{}{}:
			case <-ctx.Done():
				return
			}
			select {
			case jobs <- i:
			case <-ctx.Done():
				return
			}
		}
	})
	for range workers {
		running.Go(func() {
			w := e.worker(ctx)
			for i := range jobs {
				done[i] <- w.segment(groups[i])
			}
		})
	}
	for i := range groups {
		select {
		case m := <-done[i]:
			<-tokens
			if m.err != nil {
				return m.err
			}
			for _, p := range m.parts {
				e.account(p)
			}
			if err := e.write(m.sealed.append(nil)); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// worker codes segments, one after the other.
type worker struct {
	target File
	models *segment
	at     int64 // where the target is read next
}

func (e *encoder) worker(ctx context.Context) *worker {
	w := &worker{target: e.target}
	sizes := make([]int64, len(e.bases))
	for i, b := range e.bases {
		sizes[i] = b.Size
	}
	w.models = newSegment(sizes)
	w.models.base = func(b []byte, from place) error { return readAt(e.bases[from.base].Content, b, from.offset) }
	w.models.load = func(b []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := readAt(w.target.Content, b, w.at)
		w.at += int64(len(b))
		return err
	}
	return w
}

// segment codes the pieces of one segment, each by the method that is smallest.
func (w *worker) segment(pieces []piece) (m made) {
	octets, text := int64(0), int64(0)
	for _, p := range pieces {
		best, err := w.choose(p, sample)
		if err != nil {
			return made{err: err}
		}
		chosen := best.part
		if chosen.method == methodText {
			if text+chosen.length+chosen.from.length > maxText {
				chosen.from = nowhere
			}
			text += chosen.length + chosen.from.length
		}
		if chosen.method == methodText || chosen.method == methodGrid {
			octets += chosen.length
		}
		m.parts = append(m.parts, chosen)
	}
	m.sealed, m.err = w.code(m.parts, tableFor(octets))
	return m
}

// code codes parts as a segment.
func (w *worker) code(parts []part, table uint) (sealed, error) {
	s := w.models
	s.reset(table, false, nil, nil)
	for _, p := range parts {
		w.at = p.at
		if _, err := s.head(p, p.length); err != nil {
			return sealed{}, err
		}
		if err := s.body(p); err != nil {
			return sealed{}, err
		}
	}
	if _, err := s.head(part{method: methodEnd}, 0); err != nil {
		return sealed{}, err
	}
	out := sealed{table: table, sum: s.sum}
	out.code, out.raw = s.c.close()
	return out, nil
}

// account notes which method brings a part of the target.
func (e *encoder) account(p part) {
	e.result.Methods[methodNames[p.method]] += p.length
	if p.method == methodCopy {
		e.result.Copied += p.length
	} else {
		e.result.Coded += p.length
	}
}

// readAt fills b.
func readAt(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // the file is shorter than its size
	}
	return err
}
