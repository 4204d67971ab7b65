package serving

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	atelier "github.com/atelier-edge/atelier"
)

// maxRank bounds the dimensions of a tensor, and with them the nesting of JSON data.
const maxRank = 32

// parseData reads the elements of a tensor from JSON. They come flat, in
// row-major order, or nested as the shape is. A nil shape is read off the nesting.
// field names the data in errors, which all have the code Invalid.
func parseData(raw jsontext.Value, typ Datatype, shape []int64, field string) (Tensor, error) {
	p := dataParser{raw: raw, typ: typ, field: field, out: Tensor{Type: typ}}
	if shape != nil {
		n, ok := Elements(shape)
		if !ok {
			return Tensor{}, p.bad("has a shape %v that no tensor can have", shape)
		}
		p.out.Shape = shape
		// The text bounds the elements too: each takes a digit, or two quotes, and what
		// comes between.
		if typ == Bytes {
			p.out.Strings = make([]string, 0, min(n, int64(len(raw))/3+1))
		} else {
			p.out.Data = make([]byte, 0, min(n, int64(len(raw))/2+1)*typ.Size())
		}
	}
	if err := p.value(0); err != nil {
		return Tensor{}, err
	}
	p.space()
	if p.at < len(raw) {
		return Tensor{}, p.bad("goes on after its end, at byte %d", p.at)
	}
	return p.finish(shape)
}

// dataParser reads numbers, truth values and strings from nested arrays. The
// text has passed jsontext already, so its syntax is right.
type dataParser struct {
	raw   []byte
	at    int
	typ   Datatype
	field string
	out   Tensor
	count int64   // elements so far
	dims  []int64 // the size of each level of nesting, -1 while unknown
	leaf  int     // the depth at which elements stand, plus one; 0 while unknown
}

func (p *dataParser) bad(format string, args ...any) error {
	return atelier.Errorf(atelier.Invalid, "%s %s", p.field, fmt.Sprintf(format, args...)).WithField(p.field)
}

func (p *dataParser) space() {
	for p.at < len(p.raw) {
		switch p.raw[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return
		}
	}
}

// value reads an array of depth depth, or an element.
func (p *dataParser) value(depth int) error {
	p.space()
	if p.at >= len(p.raw) {
		return p.bad("ends too early")
	}
	if p.raw[p.at] != '[' {
		if p.leaf == 0 && depth == len(p.dims) { // no list, not even an empty one, went deeper
			p.leaf = depth + 1
		}
		if p.leaf != depth+1 {
			return p.bad("is ragged: element %d stands at another depth than those before it", p.count)
		}
		if p.count++; p.count > MaxElements {
			return p.bad("has more than %d elements", MaxElements)
		}
		return p.element()
	}
	if depth >= maxRank {
		return p.bad("is nested more than %d deep", maxRank)
	}
	if p.leaf == depth+1 {
		return p.bad("is ragged: a list stands where elements were expected, after %d of them", p.count)
	}
	if depth == len(p.dims) {
		p.dims = append(p.dims, -1)
	}
	p.at++
	size := int64(0)
	for p.space(); p.at < len(p.raw) && p.raw[p.at] != ']'; size++ {
		if size > 0 {
			p.at++ // the comma
		}
		if err := p.value(depth + 1); err != nil {
			return err
		}
		p.space()
	}
	p.at++
	if p.dims[depth] >= 0 && p.dims[depth] != size {
		return p.bad("is ragged: lists at depth %d have %d and %d elements", depth+1, p.dims[depth], size)
	}
	p.dims[depth] = size
	return nil
}

// finish checks the nesting against shape.
func (p *dataParser) finish(shape []int64) (Tensor, error) {
	if shape == nil {
		p.out.Shape = append([]int64{}, p.dims...)
		return p.out, nil
	}
	want, _ := Elements(shape)
	if p.count != want {
		return Tensor{}, p.bad("has %d elements, shape %v needs %d", p.count, shape, want)
	}
	flat := len(p.dims) <= 1
	if !flat && p.count > 0 && !equalShape(p.dims, shape) {
		return Tensor{}, p.bad("is nested as %v, but its shape is %v", p.dims, shape)
	}
	return p.out, nil
}

func equalShape(a, b []int64) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// element reads one number, truth value or string.
func (p *dataParser) element() error {
	if p.raw[p.at] == '"' {
		return p.text()
	}
	start := p.at
	for p.at < len(p.raw) && p.raw[p.at] != ',' && p.raw[p.at] != ']' && p.raw[p.at] > ' ' {
		p.at++
	}
	word := p.raw[start:p.at]
	wrong := func() error {
		return p.bad("holds %.40s as element %d, %s was expected", word, p.count-1, expected(p.typ))
	}
	switch p.typ {
	case Bytes:
		return wrong()
	case Bool:
		switch string(word) {
		case "true", "1":
			p.out.Data = append(p.out.Data, 1)
		case "false", "0":
			p.out.Data = append(p.out.Data, 0)
		default:
			return wrong()
		}
		return nil
	case FP16, BF16, FP32:
		f, ok := quickFloat32(word)
		if !ok {
			slow, err := strconv.ParseFloat(string(word), 32)
			if f = float32(slow); err != nil {
				return wrong()
			}
		}
		switch p.typ {
		case FP16:
			if math.Abs(float64(f)) >= 65520 {
				return wrong()
			}
			p.out.Data = binary.LittleEndian.AppendUint16(p.out.Data, toHalf(f))
		case BF16:
			p.out.Data = binary.LittleEndian.AppendUint16(p.out.Data, toBrain(f))
		default:
			p.out.Data = binary.LittleEndian.AppendUint32(p.out.Data, math.Float32bits(f))
		}
		return nil
	case FP64:
		f, ok := quickFloat64(word)
		if !ok {
			var err error
			if f, err = strconv.ParseFloat(string(word), 64); err != nil {
				return wrong()
			}
		}
		p.out.Data = binary.LittleEndian.AppendUint64(p.out.Data, math.Float64bits(f))
		return nil
	}
	bits, ok := parseInteger(string(word), p.typ)
	if !ok {
		return wrong()
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], bits)
	p.out.Data = append(p.out.Data, b[:p.typ.Size()]...)
	return nil
}

// parseInteger reads an integer that fits typ. A number such as 3.0 counts as
// one: JavaScript and Python's float arrays write it so.
func parseInteger(word string, typ Datatype) (uint64, bool) {
	size := int(typ.Size()) * 8
	signed := typ == Int8 || typ == Int16 || typ == Int32 || typ == Int64
	if signed {
		if v, err := strconv.ParseInt(word, 10, size); err == nil {
			return uint64(v), true
		}
	} else if v, err := strconv.ParseUint(word, 10, size); err == nil {
		return v, true
	}
	f, err := strconv.ParseFloat(word, 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return 0, false
	}
	v := int64(f)
	if signed {
		return uint64(v), v == v<<(64-size)>>(64-size)
	}
	return uint64(v), v >= 0 && (size == 64 || uint64(v) < 1<<size)
}

func (p *dataParser) text() error {
	start := p.at
	for p.at++; p.at < len(p.raw) && p.raw[p.at] != '"'; p.at++ {
		if p.raw[p.at] == '\\' {
			p.at++
		}
	}
	p.at++
	if p.typ != Bytes || p.at > len(p.raw) {
		return p.bad("holds %.40s as element %d, %s was expected", p.raw[start:min(p.at, len(p.raw))], p.count-1, expected(p.typ))
	}
	s, err := jsontext.AppendUnquote(nil, p.raw[start:p.at])
	if err != nil {
		return p.bad("holds a broken string as element %d", p.count-1)
	}
	p.out.Strings = append(p.out.Strings, string(s))
	return nil
}

// expected says in words what a datatype takes.
func expected(t Datatype) string {
	switch t {
	case Bool:
		return "true or false"
	case Bytes:
		return "a string"
	case FP16, BF16, FP32, FP64:
		return "a number that fits " + string(t)
	}
	return "a whole number that fits " + string(t)
}

// appendFlat appends t's elements as one flat JSON array. JSON has no NaN and no
// infinity: such an output is an error with the code Unsupported.
func appendFlat(b []byte, t *Tensor, field string) ([]byte, error) {
	n, _ := Elements(t.Shape)
	b = append(b, '[')
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = appendElement(b, t, i, field); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}

// appendNested appends t's elements as JSON arrays nested as its shape is.
func appendNested(b []byte, t *Tensor, field string) ([]byte, error) {
	next := int64(0)
	var level func(depth int) error
	level = func(depth int) (err error) {
		if depth == len(t.Shape) {
			b, err = appendElement(b, t, next, field)
			next++
			return err
		}
		b = append(b, '[')
		for i := range t.Shape[depth] {
			if i > 0 {
				b = append(b, ',')
			}
			if err := level(depth + 1); err != nil {
				return err
			}
		}
		b = append(b, ']')
		return nil
	}
	err := level(0)
	return b, err
}

func appendElement(b []byte, t *Tensor, i int64, field string) ([]byte, error) {
	if t.Type == Bytes {
		s := t.Strings[i]
		if !utf8.ValidString(s) {
			return nil, atelier.Errorf(atelier.Unsupported, "output %s holds bytes that are no UTF-8, which JSON cannot carry", field).
				WithRemedy("Ask for this output with the parameter binary_data.").WithField(field)
		}
		return quoted(b, s), nil
	}
	d := t.Data[i*t.Type.Size():]
	bits := 32
	switch t.Type {
	case Bool:
		return strconv.AppendBool(b, d[0] != 0), nil
	case Uint8:
		return strconv.AppendUint(b, uint64(d[0]), 10), nil
	case Uint16:
		return strconv.AppendUint(b, uint64(binary.LittleEndian.Uint16(d)), 10), nil
	case Uint32:
		return strconv.AppendUint(b, uint64(binary.LittleEndian.Uint32(d)), 10), nil
	case Uint64:
		return strconv.AppendUint(b, binary.LittleEndian.Uint64(d), 10), nil
	case Int8:
		return strconv.AppendInt(b, int64(int8(d[0])), 10), nil
	case Int16:
		return strconv.AppendInt(b, int64(int16(binary.LittleEndian.Uint16(d))), 10), nil
	case Int32:
		return strconv.AppendInt(b, int64(int32(binary.LittleEndian.Uint32(d))), 10), nil
	case Int64:
		return strconv.AppendInt(b, int64(binary.LittleEndian.Uint64(d)), 10), nil
	case FP64:
		bits = 64
	}
	f := float(t, i)
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil, atelier.Errorf(atelier.Unsupported, "element %d of output %s is %v, which JSON cannot carry", i, field, f).
			WithRemedy("Look at what the model makes of this input, or ask for this output with the parameter binary_data.").WithField(field)
	}
	format := byte('g')
	if a := math.Abs(f); a == 0 || a >= 1e-6 && a < 1e21 {
		format = 'f'
	}
	return strconv.AppendFloat(b, f, format, -1, bits), nil
}

// float returns element i of a tensor of floats.
func float(t *Tensor, i int64) float64 {
	d := t.Data[i*t.Type.Size():]
	switch t.Type {
	case FP16:
		return float64(fromHalf(binary.LittleEndian.Uint16(d)))
	case BF16:
		return float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(d)) << 16))
	case FP32:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(d)))
	}
	return math.Float64frombits(binary.LittleEndian.Uint64(d))
}

// toHalf rounds f to IEEE 754 binary16, to nearest even.
func toHalf(f float32) uint16 {
	u := math.Float32bits(f)
	sign, u := uint16(u>>16&0x8000), u&0x7fffffff
	switch {
	case u > 0x7f800000: // NaN
		return sign | 0x7e00
	case u >= 0x47800000: // 65536 and above, infinity
		return sign | 0x7c00
	case u < 0x38800000: // below the smallest normal number: let float32 arithmetic round
		return sign | uint16(math.Float32bits(math.Float32frombits(u)+0.5)-0x3f000000)
	}
	u += 0xc8000fff + u>>13&1 // rebias the exponent, round to even
	return sign | uint16(u>>13)
}

// fromHalf widens an IEEE 754 binary16.
func fromHalf(h uint16) float32 {
	sign, exp, frac := uint32(h&0x8000)<<16, uint32(h>>10&0x1f), uint32(h&0x3ff)
	switch exp {
	case 0:
		f := float32(frac) / (1 << 24)
		return math.Float32frombits(math.Float32bits(f) | sign)
	case 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}

// toBrain rounds f to bfloat16, to nearest even. f is no NaN.
func toBrain(f float32) uint16 {
	u := math.Float32bits(f)
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}
