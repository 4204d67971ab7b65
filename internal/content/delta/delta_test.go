package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

// file makes a File of b.
func file(b []byte, layout ...Tensor) File {
	return File{Digest: atelier.DigestOf(b), Size: int64(len(b)), Content: bytes.NewReader(b), Layout: layout}
}

// opener gives bases out of memory.
func opener(bases ...[]byte) func(atelier.Digest) (io.ReaderAt, int64, error) {
	return func(d atelier.Digest) (io.ReaderAt, int64, error) {
		for _, b := range bases {
			if atelier.DigestOf(b) == d {
				return bytes.NewReader(b), int64(len(b)), nil
			}
		}
		return nil, 0, atelier.Errorf(atelier.NotFound, "no base %s", d)
	}
}

func contents(t *testing.T, f File) []byte {
	t.Helper()
	b := make([]byte, f.Size)
	if err := readAt(f.Content, b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// roundTrip encodes and decodes, and returns what Encode told and wrote.
func roundTrip(t *testing.T, target File, bases ...File) (Result, []byte) {
	t.Helper()
	var difference, got bytes.Buffer
	result, err := Encode(context.Background(), &difference, target, bases, Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	if result.Size != int64(difference.Len()) || result.Copied+result.Coded != target.Size {
		t.Errorf("%+v was told of a difference of %d bytes to a target of %d", result, difference.Len(), target.Size)
	}
	var raw [][]byte
	for _, b := range bases {
		raw = append(raw, contents(t, b))
	}
	if err := Decode(context.Background(), &got, bytes.NewReader(difference.Bytes()), target.Size, opener(raw...)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), contents(t, target)) {
		t.Fatal("the target came out other than it went in")
	}
	return result, difference.Bytes()
}

// generator makes random bytes, numbers and edits of them, the same in each run.
type generator struct{ *rand.Rand }

func seeded(seed uint64) generator { return generator{rand.New(rand.NewPCG(seed, 0))} }

func (g generator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.Uint32())
	}
	return b
}

// floats makes n weights as a network has them.
func (g generator) floats(n int) []byte {
	b := make([]byte, 0, 4*n)
	for range n {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(g.NormFloat64()*0.05)))
	}
	return b
}

// moved adds noise to weights, of so many of their standard deviations.
func (g generator) moved(b []byte, sigma float64) []byte {
	b = bytes.Clone(b)
	for i := 0; i+4 <= len(b); i += 4 {
		v := math.Float32frombits(binary.LittleEndian.Uint32(b[i:]))
		binary.LittleEndian.PutUint32(b[i:], math.Float32bits(v+float32(g.NormFloat64()*0.05*sigma)))
	}
	return b
}

// text makes n bytes such as a graph has them.
func (g generator) text(n int) []byte {
	var b strings.Builder
	for b.Len() < n {
		fmt.Fprintf(&b, "\n\x12encoder.%d.conv%d.weight\x22\x04Conv:\x0c\x0a\x06kernel%d", g.IntN(30), g.IntN(4), g.IntN(9))
	}
	return []byte(b.String()[:n])
}

// edited changes b at a few places: bytes put in, taken out, changed, moved.
func (g generator) edited(b []byte) []byte {
	b = bytes.Clone(b)
	for range 1 + g.IntN(6) {
		from, to := g.IntN(len(b)+1), g.IntN(len(b)+1)
		if from > to {
			from, to = to, from
		}
		short := min(to, from+g.IntN(3000))
		switch g.IntN(5) {
		case 0:
			b = slices.Insert(b, from, g.bytes(g.IntN(2000))...)
		case 1:
			b = slices.Delete(b, from, short)
		case 2:
			for i := from; i < short; i++ {
				b[i] += byte(g.IntN(3))
			}
		case 3: // two halves change their places
			b = slices.Concat(b[:from], b[to:], b[from:to])
		case 4:
			b = append(b[:from:from], g.moved(b[from:], 0.01)...)
		}
	}
	return b
}

// TestEdits brings targets over that came from bases by random edits, with layouts
// that are right, wrong or missing.
func TestEdits(t *testing.T) {
	t.Parallel()
	types := []string{"FP32", "FP16", "BF16", "FP64", "INT8", "INT64", "UINT4", "UNKNOWN", ""}
	for seed := range uint64(6) {
		g := seeded(seed)
		old := slices.Concat(g.text(g.IntN(3000)), g.floats(g.IntN(8_000)), g.text(g.IntN(500)), g.bytes(g.IntN(3000)), make([]byte, g.IntN(5000)))
		target := g.edited(old)
		layout := func(size int) (out []Tensor) {
			for range g.IntN(5) {
				out = append(out, Tensor{Name: fmt.Sprint(g.IntN(3)), Type: types[g.IntN(len(types))], Offset: int64(g.IntN(size+10) - 5), Length: int64(g.IntN(size+10) - 5)})
			}
			return out
		}
		var bases []File
		for range g.IntN(4) {
			b := g.edited(old)
			bases = append(bases, file(b, layout(len(b))...))
		}
		roundTrip(t, file(target, layout(len(target))...), bases...)
	}
}

func TestSmall(t *testing.T) {
	t.Parallel()
	g := seeded(1)
	old := g.bytes(300_000)
	edited := bytes.Clone(old)
	copy(edited[100_000:], "another text")
	for name, c := range map[string]struct {
		target []byte
		bases  [][]byte
		most   int64
	}{
		"nothing":                {nil, nil, 10},
		"nothing from something": {nil, [][]byte{old}, 50},
		"one byte":               {[]byte{7}, nil, 30},
		"noise":                  {old, nil, 300_100},
		"the same":               {old, [][]byte{old}, 80},
		"a word changed":         {edited, [][]byte{old}, 130},
		"one of two bases":       {edited, [][]byte{g.bytes(5000), old}, 170},
		"both of two bases":      {slices.Concat(old[:50_000], g.bytes(10), edited[90_000:]), [][]byte{old[:60_000], edited}, 220},
		"shifted":                {slices.Concat([]byte("in front"), old), [][]byte{old}, 110},
		"zeros":                  {make([]byte, 1<<20), nil, 200},
	} {
		var bases []File
		for _, b := range c.bases {
			bases = append(bases, file(b))
		}
		if r, _ := roundTrip(t, file(c.target), bases...); r.Size > c.most {
			t.Errorf("%s: %d bytes, at most %d were expected; %v", name, r.Size, c.most, r.Methods)
		}
	}
}

// TestSizes holds the sizes of differences to what information theory leaves: a
// normal difference of standard deviation s to a weight whose last bit is worth u
// carries log2(s/u) + 2.05 bits.
func TestSizes(t *testing.T) {
	t.Parallel()
	g := seeded(2)
	old := g.floats(100_000)
	tensor := Tensor{"w", "FP32", 0, int64(len(old))}
	for sigma, most := range map[float64]float64{1e-4: 0.418, 1e-3: 0.523, 1e-2: 0.628, 0.1: 0.733} {
		target := g.moved(old, sigma)
		r, _ := roundTrip(t, file(target, tensor), file(old, tensor))
		if share := float64(r.Size) / float64(len(target)); share > most {
			t.Errorf("weights moved by %g σ: %.4f of their size, at most %.4f was expected; %v", sigma, share, most, r.Methods)
		}
	}
	sparse := bytes.Clone(old)
	for i := 0; i < len(sparse); i += 4 {
		if g.IntN(20) == 0 {
			copy(sparse[i:], g.floats(1))
		}
	}
	if r, _ := roundTrip(t, file(sparse, tensor), file(old, tensor)); float64(r.Size) > 0.053*float64(len(sparse)) {
		t.Errorf("one weight in twenty changed: %d of %d bytes; %v", r.Size, len(sparse), r.Methods)
	}
}

// TestManySegments puts a little before a lot, and thousands of short copies: no
// segment may become shorter, or its code longer, than a decoder accepts.
func TestManySegments(t *testing.T) {
	t.Parallel()
	g := seeded(8)
	noise := g.bytes(5 << 20)
	roundTrip(t, file(slices.Concat(g.text(1000), noise), Tensor{"w", "INT8", 1000, 5 << 20}))
	var pieces []piece
	for range 1_000_000 {
		pieces = append(pieces, piece{length: minCopy, copied: true})
	}
	for i, group := range grouped(append(pieces, piece{length: maxPiece}, piece{length: maxPiece}, piece{length: 1})) {
		size := int64(0)
		for _, p := range group {
			size += headSize + p.length*int64(b2i(!p.copied))
		}
		if size > maxPart+headSize {
			t.Errorf("segment %d holds %d bytes", i, size)
		}
	}
}

func TestSameInputSameDifference(t *testing.T) {
	t.Parallel()
	g := seeded(3)
	old := slices.Concat(g.floats(1<<20+1000), g.text(10_000))
	target := g.moved(old, 0.01)
	layout := Tensor{"w", "FP32", 0, 4 << 20}
	var first []byte
	for _, workers := range []int{1, 3} {
		var b bytes.Buffer
		if _, err := Encode(context.Background(), &b, file(target, layout), []File{file(old, layout)}, Options{Workers: workers}); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b.Bytes()
		} else if !bytes.Equal(first, b.Bytes()) {
			t.Error("another number of workers gave another difference")
		}
	}
}

func TestEncodeErrors(t *testing.T) {
	t.Parallel()
	g := seeded(4)
	b := g.bytes(100_000)
	encode := func(ctx context.Context, w io.Writer, target File, o Options, bases ...File) error {
		_, err := Encode(ctx, w, target, bases, o)
		return err
	}
	ctx := context.Background()
	if err := encode(ctx, io.Discard, file(b), Options{MaxSize: 50_000}); atelier.CodeOf(err) != atelier.TooLarge {
		t.Errorf("beyond MaxSize: got %v, want code too_large", err)
	}
	if err := encode(ctx, io.Discard, file(b), Options{}, make([]File, MaxBases+1)...); atelier.CodeOf(err) != atelier.Invalid {
		t.Errorf("too many bases: got %v, want code invalid", err)
	}
	if err := encode(ctx, io.Discard, file(b), Options{}, File{Digest: "nonsense"}); atelier.CodeOf(err) != atelier.Invalid {
		t.Errorf("a base without a digest: got %v, want code invalid", err)
	}
	short := file(b)
	short.Size++
	if err := encode(ctx, io.Discard, short, Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file shorter than told: got %v, want io.ErrUnexpectedEOF", err)
	}
	full := errors.New("the disk is full")
	if err := encode(ctx, writer(func([]byte) (int, error) { return 0, full }), file(b), Options{}); !errors.Is(err, full) {
		t.Errorf("got %v, want the writer's own error", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if err := encode(ctx, io.Discard, file(b), Options{Workers: 2}, file(b)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

func BenchmarkFloats(b *testing.B) {
	g := seeded(5)
	old := g.floats(1 << 20)
	target := g.moved(old, 0.001)
	tensor := Tensor{"w", "FP32", 0, int64(len(old))}
	benchmark(b, file(target, tensor), file(old, tensor), old)
}

func BenchmarkText(b *testing.B) {
	g := seeded(6)
	old := g.text(300_000)
	target := g.text(300_000)
	benchmark(b, file(target), file(old), old)
}

func BenchmarkGrid(b *testing.B) {
	g := seeded(7)
	old := g.bytes(1 << 20)
	target := bytes.Clone(old)
	for i := range target {
		target[i] += byte(g.NormFloat64() * 3)
	}
	tensor := Tensor{"w", "INT8", 0, int64(len(old))}
	benchmark(b, file(target, tensor), file(old, tensor), old)
}

func benchmark(b *testing.B, target, base File, old []byte) {
	var difference bytes.Buffer
	b.Run("encode", func(b *testing.B) {
		b.SetBytes(target.Size)
		for b.Loop() {
			difference.Reset()
			if _, err := Encode(context.Background(), &difference, target, []File{base}, Options{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.SetBytes(target.Size)
		for b.Loop() {
			if err := Decode(context.Background(), io.Discard, bytes.NewReader(difference.Bytes()), target.Size, opener(old)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
