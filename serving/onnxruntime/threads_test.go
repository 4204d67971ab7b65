package onnxruntime

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/serving"
	"github.com/atelier-edge/atelier/serving/enginetest"
)

// TestCrew holds the rule by which threads change: one alone for little work, all
// again for much, and no change after that.
func TestCrew(t *testing.T) {
	t.Parallel()
	c := &crew{}
	note := func(work time.Duration, times int) (changes []int) {
		for range times {
			if !c.measures() {
				continue
			}
			if threads, change := c.note(work); change {
				changes = append(changes, threads)
				c.changed(threads, nil)
			}
		}
		return changes
	}
	check := func(work time.Duration, times int, want ...int) {
		t.Helper()
		if got := note(work, times); !slices.Equal(got, want) {
			t.Errorf("%d inferences of %v: threads became %v, want %v", times, work, got, want)
		}
	}
	check(2*quick, 100)         // neither quick nor slow
	check(quick/2, 3*oneOf, 1)  // the quick one keeps to one thread
	check(2*quick, 100)         // a little more does not matter
	check(slow*2, slowInARow-1) // nor do a few large ones
	check(quick/2, 2*oneOf)     // between others
	check(slow*2, 20*oneOf, 0)  // only if they stay
	check(quick/2, 100*oneOf)   // then it remains so
	if c := (*crew)(nil); c.measures() {
		t.Error("a model with settled threads is measured")
	}
}

// TestSettle changes the threads of a model while it answers.
func TestSettle(t *testing.T) {
	t.Parallel()
	if runtime.NumCPU() == 1 {
		t.Skip("there is one processor: nothing is to be shared")
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := os.WriteFile(path, enginetest.Identity(serving.FP32), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := library.Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	in := serving.Tensor{Type: serving.FP32, Shape: []int64{1, 2}, Data: []byte("12345678")}
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for range 500 {
				out, err := m.Infer(t.Context(), []serving.Tensor{in}, []int{0})
				if err != nil || !bytes.Equal(out[0].Data, in.Data) {
					t.Errorf("Infer = %v, %v", out, err)
					return
				}
			}
		})
	}
	clients.Wait()
	if threads := m.Settle(); threads != 1 {
		t.Errorf("a model that does nothing has %d threads for that, want 1", threads)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}
