package sim_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/atelier-edge/atelier/fpga/networktest"
	"github.com/atelier-edge/atelier/fpga/program"
)

// BenchmarkShapes tells how many cycles networks of some shapes take, and which share of the
// multipliers' time they use. The simulated cycles must be the predicted ones.
func BenchmarkShapes(b *testing.B) {
	for _, widths := range [][]int{{64, 32, 10}, {784, 128, 10}, {256, 256, 256, 10}} {
		for _, lanes := range []int{4, 8, 16, 32} {
			b.Run(fmt.Sprintf("%v/%d", widths, lanes), func(b *testing.B) {
				g := program.Geometry{Lanes: lanes, Activations: 11, Biases: 10, Program: 6, Weights: 16, Tables: 9}
				r := rand.New(rand.NewPCG(5, 6))
				n := networktest.Random(r, widths...)
				s, p := load(b, g, n)
				x := networktest.Inputs(r, p.Inputs())
				for b.Loop() {
					got, err := p.Infer(s, x)
					if err != nil || !slices.Equal(got.Outputs, n.Infer(x)) {
						b.Fatalf("%v, %v", got, err)
					}
					if got.Cycles != p.Cycles() {
						b.Fatalf("%d cycles, predicted were %d", got.Cycles, p.Cycles())
					}
				}
				macs := 0
				for k, w := range widths[1:] {
					macs += w * widths[k]
				}
				b.ReportMetric(float64(p.Cycles()), "cycles")
				b.ReportMetric(100*float64(macs)/float64(lanes*p.Cycles()), "%used")
			})
		}
	}
}
