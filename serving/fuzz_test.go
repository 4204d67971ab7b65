package serving

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"strconv"
	"testing"
)

var datatypes = []Datatype{Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, FP16, BF16, FP32, FP64, Bytes}

// FuzzData holds the reader of JSON tensors against encoding/json.
func FuzzData(f *testing.F) {
	f.Add([]byte(`[[1,2],[3,4]]`), uint8(12))
	f.Add([]byte(`[1.0,-0,3e0]`), uint8(7))
	f.Add([]byte(`["a","\ud800","é"]`), uint8(13))
	f.Add([]byte(`[[],[]]`), uint8(11))
	f.Add([]byte(`65519.999`), uint8(9))
	f.Fuzz(func(t *testing.T, raw []byte, kind uint8) {
		if !json.Valid(raw) {
			return // encoding/json has read the request before
		}
		typ := datatypes[int(kind)%len(datatypes)]
		got, err := parseData(raw, typ, nil, "data")
		if err != nil {
			return
		}
		n, ok := Elements(got.Shape)
		if !ok || typ != Bytes && int64(len(got.Data)) != n*typ.Size() || typ == Bytes && int64(len(got.Strings)) != n {
			t.Fatalf("%s as %s has shape %v, %d bytes and %d strings", raw, typ, got.Shape, len(got.Data), len(got.Strings))
		}
		var flat []any
		flatten(t, raw, &flat)
		if int64(len(flat)) != n {
			t.Fatalf("%s has %d elements, %d were read", raw, len(flat), n)
		}
		for i, want := range flat {
			switch typ {
			case Bytes:
				if got.Strings[i] != want {
					t.Fatalf("%s: element %d is %q, want %q", raw, i, got.Strings[i], want)
				}
			case FP64:
				f, err := want.(json.Number).Float64()
				if have := math.Float64frombits(binary.LittleEndian.Uint64(got.Data[8*i:])); err != nil || have != f {
					t.Fatalf("%s: element %d is %v, want %v", raw, i, have, f)
				}
			}
		}
		// What was read can be written, and is the same then.
		text, err := appendNested(nil, &got, "data")
		if err != nil {
			t.Fatalf("%s as %s cannot be written: %v", raw, typ, err)
		}
		again, err := parseData(text, typ, nil, "data")
		if err != nil || !bytes.Equal(again.Data, got.Data) || !reflect.DeepEqual(again.Strings, got.Strings) {
			t.Fatalf("%s as %s was written as %s, which reads as %+v, %v", raw, typ, text, again, err)
		}
	})
}

// flatten lists the elements of nested arrays as encoding/json reads them.
func flatten(t *testing.T, raw []byte, out *[]any) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	for {
		tok, err := d.Token()
		if err != nil {
			return
		}
		switch tok.(type) {
		case json.Delim:
		case bool, string, json.Number:
			*out = append(*out, tok)
		default:
			t.Fatalf("%s was taken for a tensor", raw)
		}
	}
}

// FuzzBinaryTensor reads one input in binary form: what is taken is written back
// byte for byte, and what is left over is left.
func FuzzBinaryTensor(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00a\x00\x00\x00\x00"), uint8(13), uint16(9), int64(2), int64(1))
	f.Add([]byte("\xff\xff\xff\xffa"), uint8(13), uint16(5), int64(1), int64(1))
	f.Add(make([]byte, 16), uint8(11), uint16(16), int64(2), int64(2))
	f.Add(make([]byte, 16), uint8(11), uint16(16), int64(math.MaxInt64), int64(8))
	f.Fuzz(func(t *testing.T, tail []byte, kind uint8, size uint16, a, b int64) {
		typ := datatypes[int(kind)%len(datatypes)]
		shape := []int64{a, b}
		if _, ok := Elements(shape); !ok {
			return // checkShape has refused it before
		}
		in := &requestInput{Datatype: string(typ), Shape: shape, Parameters: map[string]any{"binary_data_size": float64(size)}}
		got, rest, err := decodeInput(in, tail, "inputs[0]")
		if err != nil {
			return
		}
		if back := appendBinary(nil, &got); !bytes.Equal(back, tail[:size]) || !bytes.Equal(rest, tail[size:]) {
			t.Fatalf("%x as %s %v was written back as %x, %x is left", tail, typ, shape, back, rest)
		}
	})
}

// FuzzHalf holds the rounding to 16 bits against its definition: no other number
// of the format is nearer, and between two equally near ones the even is taken.
func FuzzHalf(f *testing.F) {
	for _, v := range []float32{0, 1, -1, 65504, 65519.996, 65520, 5.9604645e-8, 2.9802322e-8, 6.1035156e-5, 2049, 3.4e38, 1e-45} {
		f.Add(math.Float32bits(v))
	}
	f.Fuzz(func(t *testing.T, bits uint32) {
		v := math.Float32frombits(bits)
		if v != v {
			if h := toHalf(v); fromHalf(h) == fromHalf(h) {
				t.Fatalf("NaN %08x became the number %04x", bits, h)
			}
			return
		}
		h := toHalf(v)
		if h&0x7c00 == 0x7c00 {
			if math.Abs(float64(v)) < 65520 || h&0x3ff != 0 {
				t.Fatalf("%v became %04x", v, h)
			}
		} else {
			nearest(t, v, h, func(h uint16) float64 { return float64(fromHalf(h)) })
		}
		if math.Abs(float64(v)) < 3.3e38 { // beyond it, rounding may reach infinity
			nearest(t, v, toBrain(v), func(h uint16) float64 { return float64(math.Float32frombits(uint32(h) << 16)) })
		}
	})
}

func nearest(t *testing.T, v float32, h uint16, widen func(uint16) float64) {
	off := math.Abs(widen(h) - float64(v))
	for _, other := range []uint16{h - 1, h + 1} {
		w := widen(other)
		if (other^h)&0x8000 != 0 || math.IsInf(w, 0) || math.IsNaN(w) {
			continue
		}
		if d := math.Abs(w - float64(v)); d < off || d == off && off > 0 && h&1 == 1 {
			t.Fatalf("%v became %04x = %v, although %04x = %v is as near or nearer", v, h, widen(h), other, w)
		}
	}
	if widen(h) != 0 && math.Signbit(widen(h)) != math.Signbit(float64(v)) {
		t.Fatalf("%v became %v", v, widen(h))
	}
}

// FuzzDecodeJSON holds the reader of bodies against encoding/json: exactly one
// value, no unknown field, and a sentence where it refuses.
func FuzzDecodeJSON(f *testing.F) {
	f.Add([]byte(`{"inputs":{"a":[1,2]}}`))
	f.Add([]byte(`{"data":[NaN]}`))
	f.Add([]byte(`{"inputs":{"a":1},"inputs":{"b":2}} {}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var got, want scoreRequest
		err := decodeJSON(body, &got)
		d := json.NewDecoder(bytes.NewReader(body))
		d.DisallowUnknownFields()
		wantErr := d.Decode(&want)
		if err == nil && (wantErr != nil || fmt.Sprint(got) != fmt.Sprint(want)) {
			t.Fatalf("%q was read as %v, encoding/json says %v, %v", body, got, want, wantErr)
		}
		if err != nil && err.Error() == "" {
			t.Fatal("a refusal without a word")
		}
		if err == nil && !json.Valid(body) {
			t.Fatalf("%q is no JSON and was taken", body)
		}
	})
}

// FuzzDecimal holds the quick reader of numbers against strconv, which is right.
func FuzzDecimal(f *testing.F) {
	for _, word := range []string{
		"0", "-0", "-0.0", "1.", ".5", "0.012790957", "9007199254740993", "16777217", "16777216.000001", "0.1000000014901161193847656250", "1e5",
		"1.00000017881393421514957253748434595763683319091796875", "1.00000017881393432617", "0.00000000000000000000000000000000000001", "true", "--1", "",
	} {
		f.Add(word)
	}
	f.Fuzz(func(t *testing.T, word string) {
		if got, ok := quickFloat64([]byte(word)); ok {
			if want, err := strconv.ParseFloat(word, 64); err != nil || math.Float64bits(got) != math.Float64bits(want) {
				t.Errorf("%q was read as %v, strconv reads %v, %v", word, got, want, err)
			}
		}
		if got, ok := quickFloat32([]byte(word)); ok {
			if want, err := strconv.ParseFloat(word, 32); err != nil || math.Float32bits(got) != math.Float32bits(float32(want)) {
				t.Errorf("%q was read as %v, strconv reads %v, %v", word, got, want, err)
			}
		}
	})
}

// Numbers as tensors have them are read quickly, and rightly.
func TestDecimal(t *testing.T) {
	t.Parallel()
	quick := 0
	const count = 200_000
	random := rand.New(rand.NewPCG(1, 2))
	for range count {
		want := float32(random.NormFloat64())
		word := strconv.AppendFloat(nil, float64(want), 'f', -1, 32)
		got, ok := quickFloat32(word)
		if ok {
			quick++
		}
		if ok && got != want {
			t.Fatalf("%s was read as %v, want %v", word, got, want)
		}
	}
	if quick < count*99/100 {
		t.Errorf("%d of %d numbers were read quickly", quick, count)
	}
}
