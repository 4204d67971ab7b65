package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"text/tabwriter"
)

// Figure is one measured figure, as bench/results/NAME.json lists them. Value is
// the median of the runs, Min and Max their range.
type Figure struct {
	Figure string  `json:"figure"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Better string  `json:"better"` // "lower" or "higher"
	// Target is what was asked for, and Met whether Value reaches it; both are
	// absent where nothing was asked for.
	Target *float64 `json:"target,omitempty"`
	Met    *bool    `json:"met,omitempty"`
	// Peer is what was measured in turn with it, PeerValue its median; absent where
	// there is no peer.
	Peer      string   `json:"peer,omitempty"`
	PeerValue *float64 `json:"peer_value,omitempty"`
	Runs      int      `json:"runs"`
	Min       float64  `json:"min"`
	Max       float64  `json:"max"`
	// Note tells versions, commands and counts of workers of a peer, or why it is
	// missing.
	Note string `json:"note,omitempty"`
}

// lower makes a figure of which less is better from what each run measured.
func lower(name, unit string, runs []float64) Figure {
	return Figure{
		Figure: name, Unit: unit, Better: "lower",
		Value: rounded(median(runs)), Runs: len(runs), Min: rounded(slices.Min(runs)), Max: rounded(slices.Max(runs)),
	}
}

// higher is lower for figures of which more is better.
func higher(name, unit string, runs []float64) Figure {
	f := lower(name, unit, runs)
	f.Better = "higher"
	return f
}

// want sets the target and computes whether it is met.
func (f Figure) want(target float64) Figure {
	met := f.Value <= target
	if f.Better == "higher" {
		met = f.Value >= target
	}
	f.Target, f.Met = &target, &met
	return f
}

// beside names the peer and gives what its runs measured.
func (f Figure) beside(peer string, runs []float64) Figure {
	value := rounded(median(runs))
	f.Peer, f.PeerValue = peer, &value
	return f
}

// rounded keeps four significant digits of what is measured, and counts of
// bytes as they are.
func rounded(v float64) float64 {
	if v == math.Trunc(v) {
		return v
	}
	r, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 4, 64), 64)
	if err != nil {
		return v // NaN stays visible
	}
	return r
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile interpolates between the two nearest values; NaN without any.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// differences subtracts each run of the peer from the run beside it.
func differences(runs, peer []float64) []float64 {
	d := make([]float64, len(runs))
	for i := range runs {
		d[i] = runs[i] - peer[i]
	}
	return d
}

// ratios divides each run by the run of the peer beside it.
func ratios(runs, peer []float64) []float64 {
	r := make([]float64, len(runs))
	for i := range runs {
		r[i] = runs[i] / peer[i]
	}
	return r
}

func printTable(out io.Writer, figures []Figure) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FIGURE\tVALUE\tUNIT\tRANGE\tRUNS\tTARGET\tPEER\t")
	for _, f := range figures {
		target, peer := "", ""
		if f.Target != nil {
			sign, met := "≤", "met"
			if f.Better == "higher" {
				sign = "≥"
			}
			if !*f.Met {
				met = "MISSED"
			}
			target = fmt.Sprintf("%s %s %s", sign, number(*f.Target), met)
		}
		if f.PeerValue != nil {
			peer = fmt.Sprintf("%s: %s", f.Peer, number(*f.PeerValue))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s to %s\t%d\t%s\t%s\t\n", f.Figure, number(f.Value), f.Unit, number(f.Min), number(f.Max), f.Runs, target, peer)
	}
	return t.Flush()
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

func writeResults(path string, figures []Figure) error {
	b, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, append(b, '\n'), 0o644))
}
