package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// overlays measures the overlay for FPGAs: cycles in the cycle model, which have to be the predicted
// ones, and the digits beside ONNX Runtime on the CPU. There is no board: microseconds of an FPGA are
// predictions.
var overlays = benchmark{
	name:  "fpga",
	about: "cycles, use of the multipliers and accuracy of the overlay for FPGAs",
	parts: []part{{name: "shapes", measure: overlayShapes}, {name: "classifiers", measure: overlayDigits}},
}

// shapeTargets are the least shares of the multipliers' time.
var shapeTargets = map[string]float64{"[64 32 10]/8": 85, "[784 128 10]/8": 98.5}

func overlayShapes(ctx context.Context, w *world) ([]Figure, error) {
	results, err := w.goBenchmark(ctx, "./fpga/sim", "BenchmarkShapes")
	if err != nil {
		return nil, err
	}
	var figures []Figure
	for _, r := range results {
		f := higher(r.name+" lanes, of the multipliers' time", "%", []float64{r.metrics["%used"]})
		if target, is := shapeTargets[r.name]; is {
			f = f.want(target)
		}
		f.Note = fmt.Sprintf("%.0f cycles, simulated and predicted", r.metrics["cycles"])
		figures = append(figures, f)
	}
	return figures, nil
}

func overlayDigits(ctx context.Context, w *world) ([]Figure, error) {
	results, err := w.goBenchmark(ctx, "./fpga/overlay", "BenchmarkDigits")
	if err != nil {
		return nil, err
	}
	clocks, err := w.clocks()
	if err != nil {
		return nil, err
	}
	var figures []Figure
	for _, r := range results {
		used := higher(r.name+", 8 lanes, of the multipliers' time", "%", []float64{r.metrics["%used"]})
		if r.name == "digits-conv" {
			used = used.want(80)
		}
		used.Note = fmt.Sprintf("%.0f cycles", r.metrics["cycles"])
		cpu, own := r.metrics["%right-cpu"], r.metrics["%right-overlay"]
		figures = append(figures, used,
			lower(r.name+", fewer held-out digits right than in float on the CPU", "points", []float64{cpu - own}).want(0.3).beside("right on the CPU, %", []float64{cpu}))
		took := r.metrics["cpu-p50-µs"]
		for part, mhz := range clocks {
			f := lower(fmt.Sprintf("%s on %s, predicted: cycles ÷ %.1f MHz, link not counted", r.name, part, mhz), "µs", []float64{r.metrics["cycles"] / mhz})
			figures = append(figures, f.beside("ONNX Runtime on the CPU, one thread, p50, µs", []float64{took}))
		}
		if len(clocks) == 0 {
			f := lower(r.name+" in ONNX Runtime on the CPU, one thread, p50", "µs", []float64{took})
			f.Note = "'make fpga' has reported no clock, so that nothing is predicted beside it"
			figures = append(figures, f)
		}
	}
	return figures, nil
}

// clocks are the ones that place and route reported, in MHz by part, where `make fpga` ran.
func (w *world) clocks() (map[string]float64, error) {
	clocks := map[string]float64{}
	for _, part := range []string{"hx8k", "up5k"} {
		b, err := os.ReadFile(filepath.Join(w.root, "bin", "fpga", "overlay-"+part+".json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var made struct {
			MHz float64 `json:"reported_mhz"`
		}
		if err == nil {
			err = json.Unmarshal(b, &made)
		}
		if err != nil {
			return nil, err
		}
		clocks[part] = made.MHz
	}
	return clocks, nil
}

// benchmarked is a result of a benchmark in Go.
type benchmarked struct {
	name    string
	metrics map[string]float64 // by unit
}

var benchmarkLine = regexp.MustCompile(`^Benchmark\w+/(.*?)(?:-\d+)?\s+\d+\s+(.*)$`)

// goBenchmark runs benchmarks of a package, in processes of their own.
func (w *world) goBenchmark(ctx context.Context, pkg, name string) (results []benchmarked, err error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^"+name+"$", "-benchtime", "1s", pkg)
	cmd.Dir = w.root
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	for line := range strings.Lines(string(out)) {
		m := benchmarkLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		r := benchmarked{name: strings.ReplaceAll(m[1], "_", " "), metrics: map[string]float64{}}
		words := strings.Fields(m[2])
		for i := 0; i+1 < len(words); i += 2 {
			if r.metrics[words[i+1]], err = strconv.ParseFloat(words[i], 64); err != nil {
				return nil, fmt.Errorf("%s says %q: %w", cmd, line, err)
			}
		}
		results = append(results, r)
	}
	if len(results) == 0 {
		return nil, fmt.Errorf("%s measured nothing:\n%s", cmd, out)
	}
	return results, nil
}
