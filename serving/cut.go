package serving

import (
	"bytes"
	"encoding/binary"
	"math"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// A request in JSON is little else than the numbers of its tensors. So those are
// cut out before the rest is read as JSON: the rest is short, and whoever asks
// again sends the same, so that it is kept decoded as it is with binary tensors.
// The numbers are read once, without being taken for JSON first. What is unusual in
// any way, wrong requests among it, is read as a whole (decodeHead).

// maxCuts bounds the tensors of a request that is read so.
const maxCuts = 64

// decodeCut reads a request in JSON. It is not ok where decodeInfer has to find out
// what the request is, or what is wrong with it.
func (m *Model) decodeCut(body []byte) (req *inferRequest, tensors []Tensor, ok bool) {
	req, numbers := m.cutRequest(body)
	if req == nil {
		return nil, nil, false
	}
	specs := m.Engine.Signature().Inputs
	tensors, came := make([]Tensor, len(specs)), make([]bool, len(specs))
	for i := range req.Inputs {
		in := &req.Inputs[i]
		if numbers[i] == nil || len(in.Parameters) > 0 {
			return nil, nil, false
		}
		at, err := m.announced(in.Name, in.Datatype, in.Shape, came, "inputs")
		if err != nil {
			return nil, nil, false
		}
		if tensors[at], ok = readNumbers(numbers[i], Datatype(in.Datatype), in.Shape); !ok {
			return nil, nil, false
		}
	}
	return req, tensors, m.complete(came) == nil
}

// cutRequest reads a request whose flat lists of numbers are cut out; numbers[i] is
// that of input i, nil where it has none. It returns nil where the request is
// to be read as a whole. What it returns may be shared, and is not to be changed.
func (m *Model) cutRequest(body []byte) (req *inferRequest, numbers [][]byte) {
	rest, cuts, ok := cut(body, make([]byte, 0, min(len(body), maxKeptHead)))
	if !ok {
		return nil, nil
	}
	kept := m.rest.Load()
	if kept == nil || !bytes.Equal(kept.text, rest) {
		if req, ok = readRest(rest, len(cuts)); !ok {
			return nil, nil
		}
		kept = &keptHead{rest, req}
		m.rest.Store(kept)
	}
	numbers = make([][]byte, len(kept.request.Inputs))
	for i, in := range kept.request.Inputs {
		if isHole(in.Data) {
			numbers[i], cuts = cuts[0], cuts[1:]
		}
	}
	return kept.request, numbers
}

// hole stands where a list was cut out.
const hole = "null"

func isHole(data jsontext.Value) bool { return string(data) == hole }

// readRest reads what is left of a request. Each hole must be the data of an input:
// then they are in the order of the inputs.
func readRest(rest []byte, holes int) (*inferRequest, bool) {
	req := &inferRequest{}
	if decodeJSON(rest, req) != nil {
		return nil, false
	}
	for i := range req.Inputs {
		in := &req.Inputs[i]
		if in.Shape == nil {
			in.Shape = []int64{}
		}
		if isHole(in.Data) {
			holes--
		}
	}
	return req, holes == 0
}

var dataName = []byte(`"data"`)

// cut appends body to rest without the lists that follow the name "data", which it
// returns. It is not ok where one of those values is no flat list that begins with a
// number, or the rest is long or has escapes, in which names might hide.
func cut(body, rest []byte) (_ []byte, cuts [][]byte, ok bool) {
	for {
		at := bytes.Index(body, dataName)
		if at < 0 {
			break
		}
		list := at + len(dataName)
		for list < len(body) && (body[list] == ':' || body[list] == ' ') {
			list++
		}
		if list+1 >= len(body) || body[list] != '[' || body[list+1] != '-' && !isDigit(body[list+1]) {
			return nil, nil, false
		}
		end := bytes.IndexByte(body[list:], ']')
		if end < 0 || len(cuts) == maxCuts || len(rest)+list+len(hole) > maxKeptHead {
			return nil, nil, false
		}
		cuts = append(cuts, body[list:list+end+1])
		rest = append(append(rest, body[:list]...), hole...)
		body = body[list+end+1:]
	}
	if len(rest)+len(body) > maxKeptHead {
		return nil, nil, false
	}
	rest = append(rest, body...)
	return rest, cuts, len(cuts) > 0 && bytes.IndexByte(rest, '\\') < 0
}

// readNumbers reads a flat list of numbers, as strictly as JSON has them. It is not
// ok where it is anything else, has another number of elements than shape, or an
// element that does not fit typ.
func readNumbers(list []byte, typ Datatype, shape []int64) (t Tensor, ok bool) {
	n, ok := Elements(shape)
	if !ok || n == 0 || n > int64(len(list))/2 { // each takes a digit, and what comes behind it
		return t, false
	}
	size := typ.Size()
	t = Tensor{Type: typ, Shape: shape, Data: make([]byte, n*size)}
	list = list[1:]
	for to := t.Data; len(to) > 0; to = to[size:] {
		list = trimSpace(list)
		var length int
		switch typ {
		case FP32:
			var f float32
			f, length, ok = number32(list)
			binary.LittleEndian.PutUint32(to, math.Float32bits(f))
		case FP64:
			var f float64
			f, length, ok = number64(list)
			binary.LittleEndian.PutUint64(to, math.Float64bits(f))
		case Int64:
			var i int64
			i, length, ok = integer(list)
			binary.LittleEndian.PutUint64(to, uint64(i))
		case Int32:
			var i int64
			i, length, ok = integer(list)
			ok = ok && i == int64(int32(i))
			binary.LittleEndian.PutUint32(to, uint32(i))
		default:
			return t, false
		}
		if !ok {
			return t, false
		}
		list = trimSpace(list[length:])
		after := byte(',')
		if len(to) == int(size) {
			after = ']'
		}
		if len(list) == 0 || list[0] != after {
			return t, false
		}
		list = list[1:]
	}
	return t, len(list) == 0
}

func trimSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\n' || b[0] == '\r' || b[0] == '\t') {
		b = b[1:]
	}
	return b
}

func isDigit(c byte) bool { return c-'0' < 10 }

// decimal is a number as JSON writes it.
type decimal struct {
	mantissa uint64 // without the point, where there are no more than 19 digits
	digits   int    // of the mantissa
	exponent int    // of ten
	negative bool
	length   int // of its text
}

// readDecimal reads the number at the beginning of b. It is not ok where there is none.
func readDecimal(b []byte) (_ decimal, ok bool) {
	i := 0
	negative := len(b) > 0 && b[0] == '-'
	if negative {
		i++
	}
	first, mantissa := i, uint64(0)
	for ; i < len(b) && isDigit(b[i]); i++ {
		mantissa = mantissa*10 + uint64(b[i]-'0')
	}
	digits, exponent := i-first, 0
	if digits == 0 || digits > 1 && b[first] == '0' {
		return decimal{}, false
	}
	if i < len(b) && b[i] == '.' {
		i++
		point := i
		for ; i < len(b) && isDigit(b[i]); i++ {
			mantissa = mantissa*10 + uint64(b[i]-'0')
		}
		if exponent = point - i; exponent == 0 {
			return decimal{}, false
		}
		digits -= exponent
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		e, length := readExponent(b[i+1:])
		if length == 0 {
			return decimal{}, false
		}
		i += 1 + length
		exponent += e
	}
	return decimal{mantissa, digits, exponent, negative, i}, true
}

// readExponent reads what follows the letter e. length is 0 where that is no number.
func readExponent(b []byte) (e, length int) {
	i := 0
	negative := len(b) > 0 && b[0] == '-'
	if negative || len(b) > 0 && b[0] == '+' {
		i++
	}
	first := i
	for ; i < len(b) && isDigit(b[i]); i++ {
		e = min(e*10+int(b[i]-'0'), 1000)
	}
	if i == first {
		return 0, 0
	}
	if negative {
		e = -e
	}
	return e, i
}

// float is the number, where one operation with exact numbers gives it: see
// quickFloat64.
func (d *decimal) float() (f float64, ok bool) {
	if d.digits > 19 || d.mantissa > 1<<53 || d.exponent <= -len(powersOfTen) || d.exponent >= len(powersOfTen) {
		return 0, false
	}
	if f = float64(d.mantissa); d.exponent < 0 {
		f /= powersOfTen[-d.exponent]
	} else {
		f *= powersOfTen[d.exponent]
	}
	if d.negative {
		f = -f
	}
	return f, true
}

// number64 reads the number at the beginning of b, and how long its text is.
func number64(b []byte) (f float64, length int, ok bool) {
	d, ok := readDecimal(b)
	if !ok {
		return 0, 0, false
	}
	if f, ok = d.float(); !ok {
		var err error
		f, err = strconv.ParseFloat(string(b[:d.length]), 64)
		ok = err == nil
	}
	return f, d.length, ok
}

// number32 is the same for a float32.
func number32(b []byte) (f float32, length int, ok bool) {
	d, ok := readDecimal(b)
	if !ok {
		return 0, 0, false
	}
	wide, ok := d.float()
	if ok {
		f, ok = narrowed(wide)
	}
	if !ok {
		slow, err := strconv.ParseFloat(string(b[:d.length]), 32)
		f, ok = float32(slow), err == nil
	}
	return f, d.length, ok
}

// integer is the same for an integer without point or exponent.
func integer(b []byte) (i int64, length int, ok bool) {
	d, ok := readDecimal(b)
	if !ok || d.digits > 18 {
		return 0, 0, false
	}
	alone := d.digits // without point and exponent
	if i = int64(d.mantissa); d.negative {
		i = -i
		alone++
	}
	return i, d.length, d.length == alone
}
