package fpgahost_test

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/artifact"
	"github.com/atelier-edge/atelier/fpga/artifact/artifacttest"
	"github.com/atelier-edge/atelier/fpga/bitstream"
	"github.com/atelier-edge/atelier/fpga/board"
	"github.com/atelier-edge/atelier/fpga/driver"
	"github.com/atelier-edge/atelier/fpga/driver/sim"
	"github.com/atelier-edge/atelier/fpga/programming"
	"github.com/atelier-edge/atelier/serving"
	"github.com/atelier-edge/atelier/targets/fpgahost"
)

// cpu gives the model's own golden answer to its first golden input, and zeros to others.
type cpu struct{ model *artifact.Model }

func (c cpu) Platform() string              { return "test" }
func (c cpu) Signature() *atelier.Signature { return &c.model.Signature }
func (c cpu) Close() error                  { return nil }

func (c cpu) Infer(_ context.Context, inputs []serving.Tensor, outputs []int) ([]serving.Tensor, error) {
	rows := inputs[0].Shape[0]
	all := []serving.Tensor{{Type: serving.FP32, Shape: []int64{rows, 5}, Data: make([]byte, 20*rows)}, {Type: serving.Int64, Shape: []int64{rows}, Data: make([]byte, 8*rows)}}
	if g := c.model.Golden[0]; string(inputs[0].Data) == string(input(c.model, g).Data) {
		for i, v := range g.CPU["y"] {
			binary.LittleEndian.PutUint32(all[0].Data[4*i:], math.Float32bits(float32(v)))
		}
		all[1].Data[0] = byte(g.ArgMax)
	}
	var got []serving.Tensor
	for _, o := range outputs {
		got = append(got, all[o])
	}
	return got, nil
}

// input is a golden input as a client sends it.
func input(m *artifact.Model, inputs ...artifact.Golden) serving.Tensor {
	t := serving.Tensor{Type: serving.FP32, Shape: []int64{int64(len(inputs)), 20}}
	for _, g := range inputs {
		for _, v := range g.Input {
			t.Data = binary.LittleEndian.AppendUint32(t.Data, math.Float32bits(float32(m.In.Real(v))))
		}
	}
	return t
}

// device returns a programmed device that is simulated, and its model.
func device(t *testing.T) (*board.Board, *programming.Programmer, *artifact.Model) {
	t.Helper()
	uuid := artifact.UUID{4}
	image := board.Design{Geometry: artifacttest.Geometry, UUID: uuid}.Image()
	_, model := artifacttest.Model(t, uuid, 4)
	signer, keys := artifacttest.Key(t)
	manifest, err := artifacttest.Overlay(bitstream.Simulation, bitstream.SimulatedPart, uuid, image, model).Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	b := board.New(board.Options{Part: bitstream.SimulatedPart})
	pkg := programming.Package{Manifest: manifest, Image: image, Model: model}
	p, err := programming.Open(t.Context(), programming.Options{Dir: t.TempDir(), Driver: driver.NewGuard(sim.New("sim", b)),
		Target: artifact.Target{Part: bitstream.SimulatedPart}, Keys: keys, Golden: pkg, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return b, p, p.Model()
}

func engine(t *testing.T, standby bool) (*board.Board, *fpgahost.Engine, *artifact.Model) {
	t.Helper()
	b, p, m := device(t)
	var other serving.Engine
	if standby {
		other = cpu{m}
	}
	e := fpgahost.New(p, m, other, "", slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return b, e, m
}

func TestInfer(t *testing.T) {
	t.Parallel()
	_, e, m := engine(t, false)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			got, err := e.Infer(t.Context(), []serving.Tensor{input(m, m.Golden...)}, []int{1, 0})
			if err != nil {
				t.Error(err)
				return
			}
			for k, g := range m.Golden {
				if class := binary.LittleEndian.Uint64(got[0].Data[8*k:]); class != uint64(g.ArgMax) {
					t.Errorf("row %d is %d, want %d", k, class, g.ArgMax)
				}
				for i, want := range g.CPU["y"] {
					if v := math.Float32frombits(binary.LittleEndian.Uint32(got[1].Data[4*(5*k+i):])); v != float32(want) {
						t.Errorf("row %d has %v at %d, want %v", k, v, i, want)
					}
				}
			}
		})
	}
	wg.Wait()
	if h := e.Health(); h.Provider != "fpga" || h.Fallback != "" {
		t.Errorf("%+v", h)
	}
	none, err := e.Infer(t.Context(), []serving.Tensor{{Type: serving.FP32, Shape: []int64{0, 20}}}, []int{0})
	if err != nil || len(none[0].Data) != 0 || none[0].Shape[0] != 0 {
		t.Errorf("no rows: %v, %v", none, err)
	}
	good := input(m, m.Golden[0])
	notANumber := input(m, m.Golden[0])
	binary.LittleEndian.PutUint32(notANumber.Data, math.Float32bits(float32(math.NaN())))
	for name, c := range map[string]struct {
		inputs  []serving.Tensor
		outputs []int
	}{
		"no input": {nil, []int{0}}, "two inputs": {[]serving.Tensor{good, good}, nil},
		"datatype": {[]serving.Tensor{{Type: serving.FP64, Shape: []int64{1, 20}, Data: make([]byte, 160)}}, nil},
		"shape":    {[]serving.Tensor{{Type: serving.FP32, Shape: []int64{1, 19}, Data: make([]byte, 76)}}, nil},
		"rank":     {[]serving.Tensor{{Type: serving.FP32, Shape: []int64{20}, Data: make([]byte, 80)}}, nil},
		"negative": {[]serving.Tensor{{Type: serving.FP32, Shape: []int64{-1, -20}, Data: make([]byte, 80)}}, nil},
		"data":     {[]serving.Tensor{{Type: serving.FP32, Shape: []int64{1, 20}, Data: make([]byte, 79)}}, nil},
		"output":   {[]serving.Tensor{good}, []int{2}}, "negative output": {[]serving.Tensor{good}, []int{-1}},
		"not a number": {[]serving.Tensor{notANumber}, []int{0}},
	} {
		if got, err := e.Infer(t.Context(), c.inputs, c.outputs); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%s: %v, %v, want code invalid", name, got, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Infer(ctx, []serving.Tensor{good}, []int{0}); atelier.CodeOf(err) != atelier.Timeout {
		t.Errorf("ended context: %v, want code timeout", err)
	}
}

// TestDeviceDies takes the device's power while it serves: the CPU answers the same request,
// and the answer says so.
func TestDeviceDies(t *testing.T) {
	t.Parallel()
	b, e, m := engine(t, true)
	h := serving.NewHandler("m", "1", "test", 0, slog.New(slog.DiscardHandler))
	h.SetReady(serving.NewModel("m", "1", e, 0))
	ask := func() *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		body := `{"inputs":[{"name":"x","datatype":"FP32","shape":[1,20],"data":[` + strings.Repeat("0,", 19) + `0]}]}`
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v2/models/m/infer", strings.NewReader(body)))
		return w
	}
	if w := ask(); w.Code != http.StatusOK || w.Header().Get(atelier.HeaderFallback) != "" {
		t.Fatalf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	b.CutPower()
	for range 2 {
		if w := ask(); w.Code != http.StatusOK || w.Header().Get(atelier.HeaderFallback) != "cpu" {
			t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
		}
	}
	if s := e.Status(); s.Provider != "cpu" || !strings.Contains(s.Fallback, "status") {
		t.Errorf("%+v", s)
	}
	// Without a CPU the error is told.
	b, e, _ = engine(t, false)
	b.CutPower()
	if _, err := e.Infer(t.Context(), []serving.Tensor{input(m, m.Golden[0])}, []int{0}); err == nil {
		t.Error("a dead device answers")
	}
}

func TestCompare(t *testing.T) {
	t.Parallel()
	m, _ := artifacttest.Model(t, artifact.UUID{4}, 4)
	if err := fpgahost.Compare(t.Context(), m, nil); err != nil {
		t.Error(err)
	}
	first := *m
	first.Golden = m.Golden[:1]
	if err := fpgahost.Compare(t.Context(), &first, cpu{m}); err != nil {
		t.Error(err)
	}
	if err := fpgahost.Compare(t.Context(), m, cpu{m}); atelier.CodeOf(err) != atelier.Conflict {
		t.Errorf("a CPU that gives something else: %v", err)
	}
	m.Golden[2].CPU["y"][1] += 0.2
	if err := fpgahost.Compare(t.Context(), m, nil); atelier.CodeOf(err) != atelier.Conflict || !strings.Contains(err.Error(), "golden input 2") {
		t.Errorf("an output that is off: %v", err)
	}
	m.Tolerance.Absolute = 0.3
	if err := fpgahost.Compare(t.Context(), m, nil); err != nil {
		t.Errorf("within the tolerance: %v", err)
	}
}
