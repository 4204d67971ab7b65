package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFigures(t *testing.T) {
	t.Parallel()
	f := lower("latency", "ms", []float64{5, 1.00049, 3, 2, 4}).want(3).beside("a peer", []float64{7, 9})
	if f.Value != 3 || f.Min != 1 || f.Max != 5 || f.Runs != 5 || *f.PeerValue != 8 || !*f.Met {
		t.Errorf("the figure is %+v", f)
	}
	if missed := lower("latency", "ms", []float64{3.1}).want(3); *missed.Met {
		t.Error("3.1 is said to meet a target of 3")
	}
	more := Figure{Better: "higher", Value: 2}
	if *more.want(3).Met || !*more.want(2).Met {
		t.Error("a figure of which more is better is judged the wrong way round")
	}
}

func TestResultsLeaveOutWhatIsNotThere(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "results", "x.json")
	if err := writeResults(path, []Figure{lower("failed", "requests", []float64{0}).want(0), lower("size", "bytes", []float64{123456789})}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got[0]["target"] != 0.0 || got[0]["met"] != true {
		t.Errorf("a target of 0 is written as %v, met %v", got[0]["target"], got[0]["met"])
	}
	for _, key := range []string{"target", "met", "peer", "peer_value"} {
		if _, there := got[1][key]; there {
			t.Errorf("%s is written where there is none", key)
		}
	}
	if got[1]["value"] != 123456789.0 {
		t.Errorf("bytes are rounded: %v", got[1]["value"])
	}
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	if got := quantile([]float64{4, 1, 3, 2}, 0.5); got != 2.5 {
		t.Errorf("the median is %v", got)
	}
	if got := quantile([]float64{10, 20, 30}, 1); got != 30 {
		t.Errorf("the greatest is %v", got)
	}
}

func TestTableSaysWhatIsMissed(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := printTable(&out, []Figure{lower("a", "ms", []float64{2}).want(1), lower("b", "ms", []float64{1}).want(1)}); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); strings.Count(s, "MISSED") != 1 || strings.Count(s, " met") != 1 {
		t.Errorf("the table is\n%s", s)
	}
}
