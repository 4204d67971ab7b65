package serving

import (
	"math"
	"testing"
)

// Every binary16 number survives the way to float32 and back.
func TestHalfRoundTrip(t *testing.T) {
	t.Parallel()
	for h := range 1 << 16 {
		f := fromHalf(uint16(h))
		if math.IsNaN(float64(f)) {
			continue
		}
		if got := toHalf(f); got != uint16(h) {
			t.Fatalf("%#04x is %v, which became %#04x", h, f, got)
		}
	}
	for f, want := range map[float32]uint16{65519: 0x7bff, 2049: 0x6800, 2051: 0x6802, 1e-8: 0, 5.9604645e-8: 1, 0.333251953125: 0x3555} {
		if got := toHalf(f); got != want {
			t.Errorf("toHalf(%v) = %#04x, want %#04x", f, got, want)
		}
	}
}
