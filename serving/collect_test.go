package serving_test

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math"
	"net"
	"path/filepath"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/collect"
	"github.com/atelier-edge/atelier/serving"
)

// recorded lets a handler record what c says, and returns the end to read records from.
func recorded(t testing.TB, h *serving.Handler, c atelier.Collection) collect.Agent {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := collect.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := collect.NewSampler(slog.New(slog.DiscardHandler))
	h.SetSampler(s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		s.Close(ctx)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	a := collect.NewAgent(conn)
	if err := a.Configure(c); err != nil {
		t.Fatal(err)
	}
	for c.Share == 1 && s.Begin(collect.DialectV2, "") == nil {
		time.Sleep(time.Millisecond) // until the settings are in force
	}
	return a
}

// Every dialect is recorded with what the model saw, and a request that is refused
// without values.
func TestDialectsAreRecorded(t *testing.T) {
	t.Parallel()
	h := handler(newMirror(spec(serving.FP32, -1, 2), spec(serving.FP32, -1, 2)), 0)
	a := recorded(t, h, atelier.Collection{Share: 1, Mask: []string{"inputs.in1"}})
	const id = "01jz0000000000000000000r01-0123456789abcdef"
	values := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, math.Float32bits(1.5)), math.Float32bits(-2))
	post := func(path, body string) func() {
		return func() { ask(h, "POST", path, body, atelier.HeaderRequestID, id, "Content-Type", "application/json") }
	}
	grpc := field(field(field(nil, 1, "m"), 5, tensor("in0", "FP32", []int{1, 2}, nil)), 5, tensor("in1", "FP32", []int{1, 2}, nil))
	for _, c := range []struct {
		dialect string
		status  int
		send    func()
	}{
		{collect.DialectV2, 200, post(inferPath, `{"inputs": [{"name": "in0", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2]}, {"name": "in1", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2]}]}`)},
		{collect.DialectScore, 200, post("/score", `{"inputs": {"in0": [[1.5, -2]], "in1": [[1.5, -2]]}}`)},
		{collect.DialectMLflow, 200, post("/invocations", `{"inputs": {"in0": [[1.5, -2]], "in1": [[1.5, -2]]}}`)},
		{collect.DialectGRPC, 200, func() {
			grpcCall(h, "ModelInfer", field(field(grpc, 7, values), 7, values), atelier.HeaderRequestID, id)
		}},
		{collect.DialectScore, 400, post("/score", `{"inputs": {"in0": "a secret"}}`)},
	} {
		c.send()
		b, dropped, err := a.Next()
		if err != nil || dropped > 0 {
			t.Fatal(err, dropped)
		}
		r, err := collect.DecodeRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		if r.Dialect != c.dialect || r.Status != c.status || r.Request != id || time.Since(r.Time) > time.Minute || r.Latency <= 0 {
			t.Errorf("%s is recorded as %+v", c.dialect, r)
		}
		if c.status != 200 {
			if len(r.Inputs)+len(r.Outputs) > 0 {
				t.Errorf("of a request that was refused there is %+v", r)
			}
			continue
		}
		if len(r.Inputs) != 2 || string(r.Inputs[0].Data) != string(values) || r.Inputs[0].Shape[1] != 2 || !r.Inputs[1].Masked {
			t.Errorf("the inputs of %s are %+v", c.dialect, r.Inputs)
		}
		if len(r.Outputs) != 2 || r.Outputs[0].Name != "out0" || string(r.Outputs[0].Data) != string(values) {
			t.Errorf("the outputs of %s are %+v", c.dialect, r.Outputs)
		}
	}
	ask(h, "GET", "/v2/health/ready", "") // is no request of the model's
	post("/score", `{}`)()
	if b, _, err := a.Next(); err != nil {
		t.Fatal(err)
	} else if r, err := collect.DecodeRecord(b); err != nil || r.Dialect != collect.DialectScore {
		t.Errorf("after a question for health came %+v, %v", r, err)
	}
}

// BenchmarkRecorded tells what recording adds to a request.
func BenchmarkRecorded(b *testing.B) {
	for name, share := range map[string]float64{"nothing": -1, "off": 0, "5%": 0.05, "all": 0.999999} {
		b.Run(name, func(b *testing.B) {
			h := handler(newMirror(spec(serving.FP32, -1, 2)), 0)
			if share >= 0 {
				a := recorded(b, h, atelier.Collection{Share: share})
				go func() {
					for {
						if _, _, err := a.Next(); err != nil {
							return
						}
					}
				}()
			}
			body := []byte(`{"data": [[1.5, -2]]}`)
			for b.Loop() {
				h.Sampled(b.Context(), collect.DialectScore, "id", func(ctx context.Context) serving.Answer { return h.Score(ctx, body) })
			}
		})
	}
}
