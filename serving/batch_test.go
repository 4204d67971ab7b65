package serving_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving"
)

// doubler is an engine with an input x of any number of rows and columns, and two
// outputs: twice x, and the sum of each row. It refuses the value 13.
type doubler struct {
	signature atelier.Signature
	gate      chan struct{} // where set, each run takes one of it
	begun     chan int      // where set, gets the number of requests of each run
	mixes     bool          // adds what all rows have in common to each
	panics    bool
	takes     time.Duration // how long a run takes
}

func newDoubler() *doubler {
	return &doubler{signature: atelier.Signature{
		Inputs:  []atelier.TensorSpec{{Name: "x", Type: "FP32", Shape: []int64{-1, -1}}},
		Outputs: []atelier.TensorSpec{{Name: "twice", Type: "FP32", Shape: []int64{-1, -1}}, {Name: "sum", Type: "FP32", Shape: []int64{-1}}},
	}}
}

func (d *doubler) Platform() string              { return "doubler" }
func (d *doubler) Signature() *atelier.Signature { return &d.signature }
func (d *doubler) Close() error                  { return nil }
func (d *doubler) Infer(ctx context.Context, inputs []serving.Tensor, outputs []int) ([]serving.Tensor, error) {
	return d.InferRows(ctx, [][]serving.Tensor{inputs}, outputs)
}

func (d *doubler) InferRows(ctx context.Context, parts [][]serving.Tensor, outputs []int) ([]serving.Tensor, error) {
	if d.begun != nil {
		d.begun <- len(parts)
	}
	if d.gate != nil {
		select {
		case <-d.gate:
		case <-ctx.Done():
			return nil, atelier.Errorf(atelier.Timeout, "the inference was given up")
		}
	}
	time.Sleep(d.takes)
	if d.panics {
		panic("a fault")
	}
	columns := parts[0][0].Shape[1]
	twice := serving.Tensor{Type: serving.FP32, Shape: []int64{0, columns}}
	sums := serving.Tensor{Type: serving.FP32, Shape: []int64{0}}
	common := float32(0)
	for _, part := range parts {
		if d.mixes {
			common += value(part[0].Data)
		}
	}
	for _, part := range parts {
		for row := range part[0].Shape[0] {
			sum := common
			for c := range columns {
				v := value(part[0].Data[4*(row*columns+c):])
				if v == 13 {
					return nil, atelier.Errorf(atelier.Invalid, "13 came")
				}
				twice.Data, sum = float(twice.Data, 2*v), sum+v
			}
			sums.Data = float(sums.Data, sum)
			twice.Shape[0]++
			sums.Shape[0]++
		}
	}
	var results []serving.Tensor
	for _, o := range outputs {
		results = append(results, []serving.Tensor{twice, sums}[o])
	}
	return results, nil
}

func value(b []byte) float32 { return math.Float32frombits(binary.LittleEndian.Uint32(b)) }
func float(b []byte, v float32) []byte {
	return binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
}
func shapeOf(rows, columns int) []int64 { return []int64{int64(rows), int64(columns)} }
func list(v any) string                 { return strings.ReplaceAll(fmt.Sprint(v), " ", ",") }
func infer(shape []int64, v any) string { return inferOf(shape, v, "") }
func inferOf(s []int64, v any, o string) string {
	return fmt.Sprintf(`{"inputs":[{"name":"x","shape":%s,"datatype":"FP32","data":%s}]%s}`, list(s), list(v), o)
}

// batching returns a handler for d that batches.
func batching(t *testing.T, d serving.Engine, b serving.Batching) (*serving.Handler, *serving.Model) {
	t.Helper()
	h, m := serving.NewHandler("m", "3", "test", 0, slog.New(slog.DiscardHandler)), serving.NewModel("m", "3", d, 1)
	if err := m.Batch(t.Context(), b, nil); err != nil {
		t.Fatal(err)
	}
	h.SetReady(m)
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return h, m
}

// What runs together is answered as what runs alone, whatever shapes, outputs and
// bad requests come beside it.
func TestBatchedAnswersAreThoseAlone(t *testing.T) {
	t.Parallel()
	for _, b := range []serving.Batching{{MaxRows: 2}, {MaxRows: 7}, {MaxRows: 64}, {MaxRows: 16, MaxDelay: 2 * time.Millisecond}} {
		d := newDoubler()
		h, _ := batching(t, d, b)
		alone := handler(newDoubler(), 0)
		d.begun, d.takes = make(chan int, 1<<12), 100*time.Microsecond
		var wg sync.WaitGroup
		for client := range 16 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(client), uint64(b.MaxRows)))
				for range 60 {
					shape := shapeOf(r.IntN(5), 1+r.IntN(2))
					values := make([]int, shape[0]*shape[1])
					for i := range values {
						values[i] = r.IntN(40) // 13 among them
					}
					body := inferOf(shape, values, []string{"", `,"outputs":[{"name":"sum"}]`, `,"outputs":[{"name":"sum"},{"name":"twice"}]`}[r.IntN(3)])
					got, want := h.Infer(t.Context(), "", []byte(body)), alone.Infer(t.Context(), "", []byte(body))
					if got.Status != want.Status || string(got.Body) != string(want.Body) {
						t.Errorf("%s was answered with %d %s, want %d %s", body, got.Status, got.Body, want.Status, want.Body)
					}
				}
			})
		}
		wg.Wait()
		close(d.begun)
		together := false
		for n := range d.begun {
			together = together || n > 1
			if n > b.MaxRows {
				t.Errorf("%d requests ran together, at most %d may", n, b.MaxRows)
			}
		}
		if !together {
			t.Errorf("%+v: no two requests ran together", b)
		}
	}
}

// While the model is busy requests gather; one that fails does not fail its
// neighbours, one that is given up leaves, and one too many is turned away.
func TestBatchWhileBusy(t *testing.T) {
	t.Parallel()
	d := newDoubler()
	h, m := batching(t, d, serving.Batching{MaxRows: 100})
	d.gate, d.begun = make(chan struct{}), make(chan int, 1000)
	const waiting = 256
	type result struct {
		value int
		a     serving.Answer
	}
	results := make(chan result, 1000)
	ask := func(ctx context.Context, v int) {
		go func() { results <- result{v, h.Infer(ctx, "", []byte(infer(shapeOf(1, 1), []int{v})))} }()
	}
	ask(t.Context(), 0)
	if n := <-d.begun; n != 1 {
		t.Fatalf("%d requests ran first", n)
	}
	gone, cancel := context.WithCancel(t.Context())
	ask(gone, -1)
	waits := func(n int) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); m.Waiting() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d requests wait, want %d", m.Waiting(), n)
			}
		}
	}
	waits(1)
	cancel()
	if r := <-results; r.value != -1 || r.a.Status != 504 {
		t.Errorf("a request that was given up: %d %s", r.a.Status, r.a.Body)
	}
	waits(0)
	for v := range waiting {
		ask(t.Context(), v)
	}
	waits(waiting)
	ask(t.Context(), 1000)
	if r := <-results; r.value != 1000 || r.a.Status != 429 || r.a.RetryAfter < 1 || !strings.Contains(string(r.a.AppendFields(nil)), "Retry-After: 1\r\n") {
		t.Errorf("one too many: %+v", r)
	}
	close(d.gate)
	for range waiting + 1 {
		r := <-results
		if want := map[bool]int{true: 400, false: 200}[r.value == 13]; r.a.Status != want || want == 200 && !strings.Contains(string(r.a.Body), fmt.Sprintf(`"data":[%d]`, 2*r.value)) {
			t.Errorf("%d: %d %s, want %d", r.value, r.a.Status, r.a.Body, want)
		}
	}
	close(d.begun)
	var runs []int
	for n := range d.begun {
		if n > 1 {
			runs = append(runs, n)
		}
	}
	if !slices.Equal(runs, []int{100, 100, 56}) {
		t.Errorf("runs of %v requests, want 100, 100 and 56", runs)
	}
}

// A run whose requests were all given up is given up too.
func TestBatchIsGivenUp(t *testing.T) {
	t.Parallel()
	d := newDoubler()
	h, m := batching(t, d, serving.Batching{MaxRows: 8})
	d.gate, d.begun = make(chan struct{}), make(chan int, 10)
	answers := make(chan serving.Answer, 3)
	ctx, cancel := context.WithCancel(t.Context())
	ask := func(ctx context.Context) {
		go func() { answers <- h.Infer(ctx, "", []byte(infer(shapeOf(1, 1), []int{1}))) }()
	}
	ask(t.Context())
	<-d.begun
	ask(ctx)
	ask(ctx)
	for end := time.Now().Add(20 * time.Second); m.Waiting() != 2 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	d.gate <- struct{}{}
	if a := <-answers; a.Status != 200 {
		t.Errorf("the first: %d %s", a.Status, a.Body)
	}
	if n := <-d.begun; n != 2 {
		t.Errorf("%d requests ran together, want 2", n)
	}
	cancel()
	for range 2 {
		if a := <-answers; a.Status != 504 {
			t.Errorf("a request that was given up: %d %s", a.Status, a.Body)
		}
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	d := newDoubler()
	h, _ := batching(t, d, serving.Batching{MaxRows: 3, MaxDelay: time.Minute})
	d.begun = make(chan int, 10)
	begin := time.Now()
	var wg sync.WaitGroup
	for range 3 { // full, so that nobody waits for the delay
		wg.Go(func() {
			if a := h.Infer(t.Context(), "", []byte(infer(shapeOf(1, 1), []int{1}))); a.Status != 200 {
				t.Errorf("%d %s", a.Status, a.Body)
			}
		})
	}
	wg.Wait()
	if n := <-d.begun; n != 3 || time.Since(begin) > 50*time.Second {
		t.Errorf("%d ran together after %v", n, time.Since(begin))
	}
	d = newDoubler()
	h, _ = batching(t, d, serving.Batching{MaxRows: 3, MaxDelay: 30 * time.Millisecond})
	begin = time.Now()
	if a := h.Infer(t.Context(), "", []byte(infer(shapeOf(1, 1), []int{1}))); a.Status != 200 || time.Since(begin) < 30*time.Millisecond {
		t.Errorf("%d after %v", a.Status, time.Since(begin))
	}
}

// What panics in a run takes down the run's requests, not the process.
func TestBatchPanics(t *testing.T) {
	t.Parallel()
	d := newDoubler()
	h, _ := batching(t, d, serving.Batching{MaxRows: 3, MaxDelay: time.Millisecond})
	d.panics = true
	if a := h.Infer(t.Context(), "", []byte(infer(shapeOf(1, 1), []int{1}))); a.Status != 500 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
}

// Models whose rows cannot run together are told apart when they are loaded.
func TestBatchRefuses(t *testing.T) {
	t.Parallel()
	fixed, mixes := newDoubler(), newDoubler()
	fixed.signature.Outputs[1].Shape = []int64{1}
	mixes.mixes = true
	for name, c := range map[string]struct {
		e    serving.Engine
		says string
	}{
		"fixed dimension": {fixed, `output "sum"`},
		"mixed rows":      {mixes, "depends on the rows beside it"},
		"engine":          {newMirror(spec(serving.FP32, -1, 1)), "one request at a time"},
	} {
		m := serving.NewModel("m", "1", c.e, 1)
		if err := m.Batch(t.Context(), serving.Batching{MaxRows: 8}, nil); atelier.CodeOf(err) != atelier.Unsupported || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		if err := m.Warm(t.Context()); err != nil {
			t.Errorf("%s: it does not run alone: %v", name, err)
		}
	}
}
