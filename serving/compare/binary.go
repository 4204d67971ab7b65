package compare

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
)

// sizes are how many bytes an element has in binary form.
var sizes = map[string]int{
	"BOOL": 1, "INT8": 1, "UINT8": 1, "INT16": 2, "UINT16": 2, "FP16": 2, "BF16": 2,
	"INT32": 4, "UINT32": 4, "FP32": 4, "INT64": 8, "UINT64": 8, "FP64": 8,
}

// binary compares tensors in binary form, of one type and shape.
func (c *comparison) binary(a, b tensor) *difference {
	if len(a.binary) != len(b.binary) && a.datatype != "BYTES" {
		return &difference{text: fmt.Sprintf("has %d bytes, %s's %d", len(a.binary), c.other, len(b.binary))}
	}
	size := sizes[a.datatype]
	if size == 0 || len(a.binary)%size != 0 { // texts among them
		if string(a.binary) == string(b.binary) {
			return nil
		}
		return &difference{text: "is not " + c.other + "'s"}
	}
	for i := 0; i < len(a.binary); i += size {
		x, y := word(a.binary[i:i+size]), word(b.binary[i:i+size])
		if x == y {
			continue
		}
		var d *difference
		switch f, g := toFloat(a.datatype, x), toFloat(a.datatype, y); {
		case !fractions[a.datatype] && !c.integersNear(a.datatype, x, y):
			d = c.differ(integer(a.datatype, x), integer(a.datatype, y))
		case fractions[a.datatype] && !c.near(f, g):
			d = c.differ(strconv.FormatFloat(f, 'g', -1, 64), strconv.FormatFloat(g, 'g', -1, 64))
		default:
			continue
		}
		return d.at("[" + strconv.Itoa(i/size) + "]")
	}
	return nil
}

// word reads an element's bits.
func word(b []byte) uint64 {
	var full [8]byte
	copy(full[:], b)
	return binary.LittleEndian.Uint64(full[:])
}

func toFloat(datatype string, bits uint64) float64 {
	switch datatype {
	case "FP64":
		return math.Float64frombits(bits)
	case "FP32":
		return float64(math.Float32frombits(uint32(bits)))
	case "BF16":
		return float64(math.Float32frombits(uint32(bits) << 16))
	}
	return fromHalf(uint16(bits))
}

// fromHalf reads a number of IEEE 754's binary16.
func fromHalf(h uint16) float64 {
	sign, exponent, fraction := 1.0, int(h>>10)&0x1f, float64(h&0x3ff)
	if h&0x8000 != 0 {
		sign = -1
	}
	switch {
	case exponent == 0x1f && fraction == 0:
		return math.Inf(int(sign))
	case exponent == 0x1f:
		return math.NaN()
	case exponent == 0:
		return sign * math.Ldexp(fraction, -24)
	}
	return sign * math.Ldexp(1024+fraction, exponent-25)
}

// signed returns the number that an element of a signed type is.
func signed(datatype string, bits uint64) (n int64, ok bool) {
	switch datatype {
	case "INT8":
		return int64(int8(bits)), true
	case "INT16":
		return int64(int16(bits)), true
	case "INT32":
		return int64(int32(bits)), true
	case "INT64":
		return int64(bits), true
	}
	return 0, false
}

func (c *comparison) integersNear(datatype string, x, y uint64) bool {
	if datatype == "BOOL" {
		return x == y
	}
	if a, ok := signed(datatype, x); ok {
		b, _ := signed(datatype, y)
		return c.wholeNear(a, b)
	}
	return max(x, y)-min(x, y) <= uint64(max(c.tolerance.Integer, 0))
}

func integer(datatype string, bits uint64) string {
	if n, ok := signed(datatype, bits); ok {
		return strconv.FormatInt(n, 10)
	}
	return strconv.FormatUint(bits, 10)
}
