package chunk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func cut(t *testing.T, b []byte, boundaries ...int64) []Chunk {
	t.Helper()
	chunks, err := Cut(context.Background(), bytes.NewReader(b), int64(len(b)), boundaries, SizesFor(int64(len(b))))
	if err != nil {
		t.Fatal(err)
	}
	check(t, b, boundaries, SizesFor(int64(len(b))), chunks)
	return chunks
}

// check sees that chunks are what Cut promises.
func check(t *testing.T, b []byte, boundaries []int64, sizes Sizes, chunks []Chunk) {
	t.Helper()
	at := int64(0)
	ends := map[int64]bool{int64(len(b)): true}
	for _, e := range boundaries {
		ends[e] = true
	}
	for _, c := range chunks {
		end := c.Offset + c.Length
		if c.Offset != at || c.Length <= 0 || c.Length > sizes.Max || c.Length < sizes.Min && !ends[end] {
			t.Fatalf("chunk %d+%d after %d", c.Offset, c.Length, at)
		}
		if c.Sum != sha256.Sum256(b[at:end]) {
			t.Fatalf("chunk %d+%d has another sum", c.Offset, c.Length)
		}
		for e := range ends {
			if e > at && e < end {
				t.Fatalf("chunk %d+%d passes the boundary %d", c.Offset, c.Length, e)
			}
		}
		at = end
	}
	if at != int64(len(b)) {
		t.Fatalf("the chunks end at %d of %d", at, len(b))
	}
}

// TestShift finds nearly all chunks again after bytes were put in.
func TestShift(t *testing.T) {
	t.Parallel()
	old := random(1, 5<<20)
	shifted := slices.Concat(old[:2<<20], []byte("some more bytes"), old[2<<20:])
	known := map[[sha256.Size]byte]bool{}
	for _, c := range cut(t, old) {
		known[c.Sum] = true
	}
	again := int64(0)
	for _, c := range cut(t, shifted) {
		if known[c.Sum] {
			again += c.Length
		}
	}
	if missing := int64(len(old)) - again; missing > 2*64<<10 {
		t.Errorf("%d bytes were not found again", missing)
	}
}

func TestAverage(t *testing.T) {
	t.Parallel()
	chunks := cut(t, random(2, 8<<20))
	if average := 8 << 20 / len(chunks); average < 6<<10 || average > 12<<10 {
		t.Errorf("chunks have %d bytes on average, 8192 were wanted", average)
	}
}

// TestStable keeps the borders where they were: other versions cut there too.
func TestStable(t *testing.T) {
	t.Parallel()
	var got []int64
	for _, c := range cut(t, random(3, 60_000)) {
		got = append(got, c.Length)
	}
	want := []int64{8367, 3878, 16961, 11415, 8516, 8858, 2005}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestBoundaries(t *testing.T) {
	t.Parallel()
	b := random(4, 300_000)
	cut(t, b, 200_000, 100, 100, 0, 300_000, 101)
	cut(t, nil)
	cut(t, make([]byte, 1<<20)) // nothing tells where to cut
	got, err := Cut(context.Background(), bytes.NewReader(b), int64(len(b)), []int64{-5, 1 << 40}, SizesFor(int64(len(b))))
	if err != nil {
		t.Fatal(err)
	}
	check(t, b, nil, SizesFor(int64(len(b))), got)
}

func TestErrors(t *testing.T) {
	t.Parallel()
	b := random(5, 100_000)
	if _, err := Cut(context.Background(), bytes.NewReader(b), int64(len(b))+1, nil, SizesFor(1)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v for content that is shorter than told, want io.ErrUnexpectedEOF", err)
	}
	for _, s := range []Sizes{{}, {63, 100, 100}, {100, 99, 100}, {100, 200, 199}, {64, 64, window + 1}} {
		if _, err := Cut(context.Background(), bytes.NewReader(b), int64(len(b)), nil, s); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%+v: got %v, want code invalid", s, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Cut(ctx, bytes.NewReader(b), int64(len(b)), nil, SizesFor(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

func FuzzCut(f *testing.F) {
	f.Add(random(6, 3000), int64(100), int64(2000), uint16(64), uint16(256), uint16(1024))
	f.Add(make([]byte, 3000), int64(-1), int64(2000), uint16(64), uint16(64), uint16(64))
	f.Fuzz(func(t *testing.T, b []byte, first, second int64, least, average, most uint16) {
		sizes := Sizes{int64(least), int64(average), int64(most)}
		chunks, err := Cut(context.Background(), bytes.NewReader(b), int64(len(b)), []int64{first, second}, sizes)
		if err != nil {
			if atelier.CodeOf(err) != atelier.Invalid {
				t.Fatal(err)
			}
			return
		}
		check(t, b, []int64{first, second}, sizes, chunks)
	})
}

func BenchmarkCut(b *testing.B) {
	content := random(7, 32<<20)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		if _, err := Cut(context.Background(), bytes.NewReader(content), int64(len(content)), nil, SizesFor(int64(len(content)))); err != nil {
			b.Fatal(err)
		}
	}
}
