package delta

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
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

// roundTrip encodes and decodes, and returns what Encode told.
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

func contents(t *testing.T, f File) []byte {
	t.Helper()
	b := make([]byte, f.Size)
	if err := readAt(f.Content, b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0] = byte(seed)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	old := random(1, 300_000)
	edited := bytes.Clone(old)
	copy(edited[100_000:], "another text")
	roundTrip(t, file(nil))
	roundTrip(t, file(nil), file(old))
	roundTrip(t, file(old))
	if r, _ := roundTrip(t, file(old), file(old)); r.Size > 100 {
		t.Errorf("%d bytes for an equal file", r.Size)
	}
	if r, _ := roundTrip(t, file(edited), file(old)); r.Size > 1000 {
		t.Errorf("%d bytes for a changed word", r.Size)
	}
}
