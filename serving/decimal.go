package serving

import "math"

// powersOfTen are those that a float64 holds exactly.
var powersOfTen = [...]float64{
	1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
}

// quickFloat64 reads a decimal number without an exponent whose digits fit a float64:
// then one division of two exact numbers rounds as strconv does (Clinger, "How to
// Read Floating Point Numbers Accurately"). It takes a third of strconv's time,
// and tensors in JSON are little else. Whatever else word is, ok is false.
func quickFloat64(word []byte) (f float64, ok bool) {
	digits := word
	negative := len(word) > 0 && word[0] == '-'
	if negative {
		digits = word[1:]
	}
	mantissa, seen, point := uint64(0), 0, -1
	for i, c := range digits {
		switch {
		case c >= '0' && c <= '9' && seen < 19:
			mantissa = mantissa*10 + uint64(c-'0')
			seen++
		case c == '.' && point < 0 && i > 0:
			point = i
		default:
			return 0, false
		}
	}
	scale := 0
	if point >= 0 {
		scale = len(digits) - point - 1
	}
	if seen == 0 || point >= 0 && scale == 0 || mantissa > 1<<53 || scale >= len(powersOfTen) {
		return 0, false
	}
	f = float64(mantissa) / powersOfTen[scale]
	if negative {
		f = -f
	}
	return f, true
}

// quickFloat32 is the same for a float32. Rounding twice, to a float64 and then on,
// is rounding once unless the float64 stands in the middle of two float32.
func quickFloat32(word []byte) (float32, bool) {
	f, ok := quickFloat64(word)
	if !ok {
		return 0, false
	}
	return narrowed(f)
}

// narrowed rounds f, which was rounded before, to a float32. It is not ok where that
// may differ from rounding once.
func narrowed(f float64) (float32, bool) {
	const below = 1<<29 - 1 // the bits of a float64 that a float32 does not have
	if f == 0 {
		return float32(f), true
	}
	if abs := math.Abs(f); abs < 0x1p-126 || abs > 0x1p127 || math.Float64bits(f)&below == 1<<28 {
		return 0, false
	}
	return float32(f), true
}
