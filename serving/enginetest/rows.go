package enginetest

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving"
)

// randomRows makes rows of n floats between -1 and 1.
func randomRows(r *rand.Rand, rows, n int64) serving.Tensor {
	values := make([]float32, rows*n)
	for i := range values {
		values[i] = 2*r.Float32() - 1
	}
	return Floats([]int64{rows, n}, values...)
}

// near reports whether FP32 tensors are the same up to the order of sums.
func near(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i += 4 {
		x := math.Float32frombits(binary.LittleEndian.Uint32(a[i:]))
		y := math.Float32frombits(binary.LittleEndian.Uint32(b[i:]))
		if !(math.Abs(float64(x-y)) <= 1e-5*max(1, math.Abs(float64(x)))) {
			return false
		}
	}
	return true
}

// testRows compares rows that run together with the same alone. The model takes
// rows of 20 floats and gives 5.
func testRows(t *testing.T, e serving.RowEngine) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, sizes := range [][]int64{{1}, {1, 1}, {3, 1, 0, 5}, {2, 2, 2, 2, 2, 2, 2, 2}} {
		var parts [][]serving.Tensor
		var want []byte
		total := int64(0)
		for _, rows := range sizes {
			part := []serving.Tensor{randomRows(r, rows, 20)}
			alone, err := e.Infer(t.Context(), part, []int{0})
			if err != nil {
				t.Fatal(err)
			}
			parts, want, total = append(parts, part), append(want, alone[0].Data...), total+rows
		}
		got, err := e.InferRows(t.Context(), parts, []int{0})
		if err != nil {
			t.Fatal(err)
		}
		if got[0].Shape[0] != total || !near(want, got[0].Data) {
			t.Errorf("rows %v together gave %v %v, want %v", sizes, got[0].Shape, got[0].Data, want)
		}
	}
	good := []serving.Tensor{randomRows(r, 1, 20)}
	for name, bad := range map[string][]serving.Tensor{
		"columns": {randomRows(r, 1, 21)}, "rank": {Floats([]int64{}, 1)}, "data": {{Type: serving.FP32, Shape: []int64{1, 20}}},
		"nothing": nil, "datatype": {{Type: serving.Int32, Shape: []int64{1, 20}, Data: make([]byte, 80)}},
	} {
		if got, err := e.InferRows(t.Context(), [][]serving.Tensor{good, bad}, []int{0}); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%s: %v, %v, want code invalid", name, got, err)
		}
	}
}

// testBatching lets many clients use the same model with batching.
func testBatching(t *testing.T, e serving.Engine) {
	h, m := serving.NewHandler("m", "1", "test", 0, slog.New(slog.DiscardHandler)), serving.NewModel("m", "1", e, 1)
	if err := m.Batch(t.Context(), serving.Batching{MaxRows: 16}, nil); err != nil {
		t.Fatal(err)
	}
	h.SetReady(m)
	var wg sync.WaitGroup
	for client := range 16 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(5, uint64(client)))
			for range 50 {
				in := randomRows(r, 1+r.Int64N(4), 20)
				head := fmt.Sprintf(`{"parameters":{"binary_data_output":true},"inputs":[{"name":"x","shape":[%d,20],"datatype":"FP32","parameters":{"binary_data_size":%d}}]}`, in.Shape[0], len(in.Data))
				a := h.Infer(t.Context(), fmt.Sprint(len(head)), append([]byte(head), in.Data...))
				want, err := e.Infer(t.Context(), []serving.Tensor{in}, []int{0})
				if err != nil || a.Status != http.StatusOK || !near(want[0].Data, a.Body[a.HeaderLength:]) {
					t.Errorf("%d %s, want %v, %v", a.Status, a.Body, want, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
