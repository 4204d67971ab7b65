package delta

import (
	"bytes"
	"context"
	"io"
	"slices"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

// An estimate comes near to what is made.
func TestEstimates(t *testing.T) {
	t.Parallel()
	g := seeded(11)
	old := g.floats(1 << 17)
	moved := g.moved(old, 0.001)
	half := bytes.Clone(old)
	copy(half[len(half)/2:], g.bytes(len(half)/2))
	text := g.text(50_000)
	layout := Tensor{"w", "FP32", 0, int64(len(old))}
	for name, c := range map[string]struct {
		target, base File
	}{
		"floats that moved": {file(moved, layout), file(old, layout)},
		"half is new":       {file(half), file(old)},
		"text":              {file(slices.Concat(text, g.text(50_000))), file(text)},
		"nothing is alike":  {file(g.bytes(1 << 19)), file(g.bytes(1 << 19))},
		"the same":          {file(old), file(old)},
		"empty":             {file(nil), file(old)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got Estimate
			told := 0
			made, err := Encode(context.Background(), io.Discard, c.target, []File{c.base}, Options{Expect: func(e Estimate) { got, told = e, told+1 }})
			if err != nil || told != 1 {
				t.Fatalf("%v, told %d times", err, told)
			}
			// Samples learn less than all of it does.
			if off := got.Size - made.Size; off < -made.Size/20-100 || off > made.Size/2+2000 {
				t.Errorf("estimated %d bytes, made %d", got.Size, made.Size)
			}
			for _, method := range []string{"copy", "FP32", "raw"} { // grid and text are close to each other
				if off := got.Methods[method] - made.Methods[method]; max(off, -off) > c.target.Size/10 {
					t.Errorf("estimated methods %v, made %v", got.Methods, made.Methods)
				}
			}
			if (got.Coding > 0) != (made.Coded > 0) {
				t.Errorf("%v for %d bytes that are coded", got.Coding, made.Coded)
			}
		})
	}
}

// What is clearly beyond the limit is given up before it is made.
func TestGivesUpByAnEstimate(t *testing.T) {
	t.Parallel()
	g := seeded(12)
	b, old := g.bytes(1<<20), g.bytes(1<<20)
	for limit, early := range map[int64]bool{int64(len(b)) * 19 / 20: true, int64(len(b)) * 99 / 100: false} {
		told := false
		_, err := Encode(context.Background(), io.Discard, file(b), []File{file(old)}, Options{MaxSize: limit, Expect: func(Estimate) { told = true }})
		if atelier.CodeOf(err) != atelier.TooLarge || told == early {
			t.Errorf("%v, expected to be made: %t", err, told)
		}
	}
}
