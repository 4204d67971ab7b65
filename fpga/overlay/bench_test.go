package overlay_test

import (
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/fpga/overlay"
	"github.com/atelier-edge/atelier/fpga/sim"
)

// BenchmarkDigits compares the digits classifiers on the overlay with ONNX Runtime on the CPU:
// cycles, the share of the multipliers' time, how many held-out digits each has right, and how long an
// inference takes on the CPU, with one thread. What takes long is done once.
func BenchmarkDigits(b *testing.B) {
	held := read[struct {
		Pixels [][]float64
		Digits []float64
	}](b, digits+"held-out.json")
	calibration := read[[][]float64](b, "testdata/calibration.json")
	// Multiplications of the network itself, by hand.
	for path, macs := range map[string]int{
		digits + "digits-v2.onnx":   64*32 + 32*10,
		"testdata/digits-conv.onnx": 64*8*9 + 9*16*72 + 144*10,
	} {
		b.Run(strings.TrimSuffix(filepath.Base(path), ".onnx"), func(b *testing.B) {
			run := runtime(b, path)
			c, err := overlay.Compile(model(b, path), overlay.Options{Geometry: geometry, Calibration: calibration})
			if err != nil {
				b.Fatal(err)
			}
			processor, err := sim.New(geometry, [16]byte{})
			if err == nil {
				err = c.Model.Program.Load(processor)
			}
			if err != nil {
				b.Fatal(err)
			}
			var onCPU, onOverlay int
			var took []float64
			for b.Loop() {
				onCPU, onOverlay, took = 0, 0, took[:0]
				for k, x := range held.Pixels {
					begin := time.Now()
					want, err := run(x)
					took = append(took, float64(time.Since(begin).Nanoseconds())/1000)
					if err != nil {
						b.Fatal(err)
					}
					got, err := c.Model.Program.Infer(processor, c.Model.Arrange(x))
					if err != nil || got.Cycles != c.Model.Cycles {
						b.Fatalf("%d cycles, predicted were %d; %v", got.Cycles, c.Model.Cycles, err)
					}
					if want["digit"][0] == held.Digits[k] {
						onCPU++
					}
					if c.Model.Results(got.Outputs, got.ArgMax)["digit"][0] == held.Digits[k] {
						onOverlay++
					}
				}
			}
			slices.Sort(took)
			share := func(n int) float64 { return math.Round(10_000*float64(n)/float64(len(held.Digits))) / 100 }
			b.ReportMetric(float64(c.Model.Cycles), "cycles")
			b.ReportMetric(100*float64(macs)/float64(geometry.Lanes*c.Model.Cycles), "%used")
			b.ReportMetric(share(onCPU), "%right-cpu")
			b.ReportMetric(share(onOverlay), "%right-overlay")
			b.ReportMetric(took[len(took)/2], "cpu-p50-µs")
		})
	}
}
