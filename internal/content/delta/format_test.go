package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

var update = flag.Bool("update", false, "write the golden file anew")

// built makes a difference of the given parts, whatever Encode would choose.
func built(t testing.TB, target File, base File, segments ...[]part) []byte {
	t.Helper()
	var out bytes.Buffer
	e := &encoder{w: &out, target: target, bases: []File{base}}
	if err := e.header(); err != nil {
		t.Fatal(err)
	}
	w := e.worker(context.Background())
	for _, parts := range segments {
		s, err := w.code(parts, 16)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(s.append(nil))
	}
	return append(out.Bytes(), markEnd)
}

func decode(difference []byte, size int64, bases ...[]byte) ([]byte, error) {
	var got bytes.Buffer
	err := Decode(context.Background(), &got, bytes.NewReader(difference), size, opener(bases...))
	return got.Bytes(), err
}

// special are numbers that a model of weights does not expect.
func special() []byte {
	var b []byte
	for _, v := range []float64{0, math.Copysign(0, -1), 1, -1, math.Inf(1), math.Inf(-1), math.NaN(), math.MaxFloat64, math.SmallestNonzeroFloat64, 1e-310, 1e-40, 65504} {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(v)))
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(v))|1)
	}
	return b
}

// everything is a target with a part for each method, and its base.
func everything() (target, base []byte, parts []part) {
	g := seeded(10)
	base = slices.Concat(g.text(2000), g.floats(500), special(), g.floats(500))
	at := int64(0)
	add := func(m method, detail uint, b []byte, from place) {
		if from.base >= 0 && m != methodText {
			from.length = int64(len(b))
		}
		parts = append(parts, part{method: m, detail: detail, length: int64(len(b)), from: from, at: at})
		target = append(target, b...)
		at += int64(len(b))
	}
	none := nowhere
	add(methodCopy, 0, base[100:1000], place{base: 0, offset: 100})
	add(methodRaw, 0, g.bytes(77), none)
	add(methodText, 0, g.text(1500), none)
	add(methodText, 0, g.text(1501), place{base: 0, offset: 3, length: 1900})
	for stride := range uint(40) {
		add(methodGrid, stride+1, g.bytes(5*int(stride)+1), none)
	}
	add(methodGrid, 4, g.edited(base[:1999])[:600], place{base: 0})
	for _, m := range []method{methodFP16, methodBF16, methodFP32, methodFP64} {
		for _, shift := range []uint{0, 1, kinds[m].mantissa() - 1} {
			for _, b := range [][]byte{g.floats(100), special(), g.bytes(800), make([]byte, 80), bytes.Repeat([]byte{255}, 80)} {
				b = bytes.Clone(b)
				for i := 0; i < len(b); i += kinds[m].width {
					store(b[i:], kinds[m].width, load(b[i:], kinds[m].width)>>shift<<shift)
				}
				add(m, shift, b, none)
				add(m, shift, b, place{base: 0, offset: 2000})
				add(m, shift, b, place{base: 0, offset: 3999}) // special numbers lie there, not where they should
			}
		}
		moved := g.moved(base[4000:4000+len(special())], 1)
		add(m, 0, moved, place{base: 0, offset: 4000})
	}
	return target, base, parts
}

func TestEveryMethod(t *testing.T) {
	t.Parallel()
	target, base, parts := everything()
	got, err := decode(built(t, file(target), file(base), parts), int64(len(target)), base)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, target) {
		t.Error("the target came out other than it went in")
	}
}

// TestGolden decodes a difference that an earlier program made, and makes the same.
func TestGolden(t *testing.T) {
	t.Parallel()
	const name = "testdata/everything.atdf"
	target, base, parts := everything()
	now := built(t, file(target), file(base), parts)
	if *update {
		if err := os.WriteFile(name, now, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decode(golden, int64(len(target)), base); err != nil || !bytes.Equal(got, target) {
		t.Errorf("the golden difference does not decode any more: %v. A new format needs a new version.", err)
	}
	if !bytes.Equal(now, golden) {
		t.Error("the same parts are coded otherwise than in the golden file. A new format needs a new version.")
	}
}

// TestFlippedBits changes each byte of a difference: an error that says so, or the
// right target, must come out.
func TestFlippedBits(t *testing.T) {
	t.Parallel()
	g := seeded(11)
	base := slices.Concat(g.text(1000), g.floats(300))
	target := slices.Concat(g.text(1000), g.moved(base[1000:], 0.1), base[:500])
	tensor := Tensor{"w", "FP32", 1000, 1200}
	_, difference := roundTrip(t, file(target, tensor), file(base, tensor))
	for i := 0; i < len(difference); i += 1 + g.IntN(6) { // each decoding begins with new models, which takes its time
		bad := bytes.Clone(difference)
		bad[i] ^= 1 << g.IntN(8)
		got, err := decode(bad, int64(len(target)), base)
		if err == nil && !bytes.Equal(got, target) {
			t.Errorf("byte %d: a wrong target came out without an error", i)
		}
		checkError(t, err)
		if len(got) > len(target) {
			t.Errorf("byte %d: %d bytes were written, %d are the most", i, len(got), len(target))
		}
		if got, err := decode(difference[:i], int64(len(target)), base); atelier.CodeOf(err) != atelier.Corrupt {
			t.Errorf("cut at byte %d: got %v and %d bytes, want code corrupt", i, err, len(got))
		}
	}
	if _, err := decode(append(difference, 0), int64(len(target)), base); atelier.CodeOf(err) != atelier.Corrupt {
		t.Errorf("with something behind its end: got %v, want code corrupt", err)
	}
}

func checkError(t *testing.T, err error) {
	t.Helper()
	switch atelier.CodeOf(err) {
	case "", atelier.Corrupt, atelier.Unsupported, atelier.NotFound: // the last of opener
	default:
		t.Errorf("got %v with code %s", err, atelier.CodeOf(err))
	}
}

func TestDecodeErrors(t *testing.T) {
	t.Parallel()
	target, base, parts := everything()
	good := built(t, file(target), file(base), parts)
	size := int64(len(target))
	later := bytes.Clone(good)
	later[len(magic)]++
	if _, err := decode(later, size, base); atelier.CodeOf(err) != atelier.Unsupported {
		t.Errorf("a later version: got %v, want code unsupported", err)
	}
	if _, err := decode(good, size+1, base); atelier.CodeOf(err) != atelier.Corrupt {
		t.Errorf("another size: got %v, want code corrupt", err)
	}
	if _, err := decode(good, size); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("without the base: got %v, want open's error", err)
	}
	other := bytes.Clone(base)
	other[500] ^= 1
	wrong := func(atelier.Digest) (io.ReaderAt, int64, error) {
		return bytes.NewReader(other), int64(len(other)), nil
	}
	if err := Decode(context.Background(), io.Discard, bytes.NewReader(good), size, wrong); atelier.CodeOf(err) != atelier.Corrupt {
		t.Errorf("another base: got %v, want code corrupt", err)
	}
	short := func(atelier.Digest) (io.ReaderAt, int64, error) {
		return bytes.NewReader(base[:100]), int64(len(base)), nil
	}
	if err := Decode(context.Background(), io.Discard, bytes.NewReader(good), size, short); atelier.CodeOf(err) != atelier.Corrupt {
		t.Errorf("a base shorter than told: got %v, want code corrupt", err)
	}
	full := errors.New("the disk is full")
	if err := Decode(context.Background(), writer(func([]byte) (int, error) { return 0, full }), bytes.NewReader(good), size, opener(base)); !errors.Is(err, full) {
		t.Errorf("got %v, want the writer's own error", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Decode(ctx, io.Discard, bytes.NewReader(good), size, opener(base)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
	many := built(t, file(target), file(base), parts[:1], parts[1:])
	if _, err := decode(many, size, base); atelier.CodeOf(err) != atelier.Corrupt {
		t.Errorf("a short segment before the last: got %v, want code corrupt", err)
	}
}

// closing is a base that notes that it was closed.
type closing struct {
	*bytes.Reader
	closed *int
}

func (c closing) Close() error { *c.closed++; return nil }

func TestDecodeClosesBases(t *testing.T) {
	t.Parallel()
	target, base, parts := everything()
	closed := 0
	open := func(atelier.Digest) (io.ReaderAt, int64, error) {
		return closing{bytes.NewReader(base), &closed}, int64(len(base)), nil
	}
	if err := Decode(context.Background(), io.Discard, bytes.NewReader(built(t, file(target), file(base), parts)), int64(len(target)), open); err != nil {
		t.Fatal(err)
	}
	if closed != 1 {
		t.Errorf("the base was closed %d times", closed)
	}
}

// TestDecodeMemory decodes segments that take as much memory as they may: all that
// is allocated, garbage included, stays under the 32 MB that are promised.
func TestDecodeMemory(t *testing.T) {
	g := seeded(12)
	base := slices.Concat(make([]byte, maxWindow), g.floats(1<<20))
	var target []byte
	var segments [][]part
	add := func(parts *[]part, m method, b []byte, from place) {
		*parts = append(*parts, part{method: m, detail: uint(b2i(m == methodGrid)), length: int64(len(b)), from: from, at: int64(len(target))})
		target = append(target, b...)
	}
	for range 2 {
		var parts []part
		add(&parts, methodRaw, base[maxWindow:maxWindow+3<<20], nowhere)
		add(&parts, methodText, make([]byte, 50_000), place{0, 0, maxWindow})
		add(&parts, methodText, g.text(20_000), place{0, 0, 3 << 20})
		add(&parts, methodGrid, make([]byte, 50_000), place{0, 0, 50_000})
		for m := methodFP16; m < methods; m++ {
			add(&parts, m, base[maxWindow:maxWindow+40_000], place{0, 0, 40_000})
		}
		segments = append(segments, parts)
	}
	out := &bytes.Buffer{}
	e := &encoder{w: out, target: file(target), bases: []File{file(base)}}
	if err := e.header(); err != nil {
		t.Fatal(err)
	}
	w := e.worker(context.Background())
	for _, parts := range segments {
		s, err := w.code(parts, maxTable)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(s.append(nil))
	}
	out.WriteByte(markEnd)
	open := opener(base)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := Decode(context.Background(), io.Discard, out, int64(len(target)), open); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 32_000_000 {
		t.Errorf("decoding took %d bytes, garbage included", used)
	} else {
		t.Logf("%d bytes, garbage included", used)
	}
}

func FuzzDecode(f *testing.F) {
	g := seeded(13)
	small := g.text(400)
	target := g.text(16)
	for m := methodCopy; m < methods; m++ { // small, since instrumented models are slow
		from := place{0, 0, 16}
		if m == methodCopy {
			target = small[:16]
		}
		f.Add(built(f, file(target), file(small), []part{{method: m, detail: uint(b2i(m == methodGrid)), length: 16, from: from}}), small)
	}
	changed := g.edited(small)
	var b bytes.Buffer
	if _, err := Encode(context.Background(), &b, file(changed), []File{file(small)}, Options{}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes(), small)
	f.Add(b.Bytes()[:b.Len()/2], small)
	f.Fuzz(func(t *testing.T, difference, base []byte) {
		// The difference tells a size; a caller would know it from elsewhere.
		size := int64(0)
		if len(difference) > len(magic)+1 {
			v, _ := binary.Uvarint(difference[len(magic)+1:])
			size = int64(min(v, 1<<18))
		}
		var got bytes.Buffer
		open := func(atelier.Digest) (io.ReaderAt, int64, error) {
			return bytes.NewReader(base), int64(len(base)), nil
		}
		err := Decode(context.Background(), &got, bytes.NewReader(difference), size, open)
		checkError(t, err)
		if int64(got.Len()) > size || err == nil && int64(got.Len()) != size {
			t.Errorf("%d bytes were written, %d were expected; %v", got.Len(), size, err)
		}
	})
}
