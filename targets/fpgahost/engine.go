// Package fpgahost serves models from an FPGA: an engine that runs inferences on a device
// which package programming keeps, and on the CPU when the device is out of use and the
// deployment allows that.
package fpgahost

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/artifact"
	"github.com/atelier-edge/atelier/fpga/programming"
	"github.com/atelier-edge/atelier/serving"
)

// Provider is what a model that runs on an FPGA says it runs on.
const Provider = "fpga"

// Engine is a serving.Engine on an FPGA. It implements serving.Standby.
type Engine struct {
	device *programming.Programmer
	model  *artifact.Model
	cpu    serving.Engine // nil where the deployment does not allow it
	log    *slog.Logger

	mu   sync.Mutex
	down string // why the CPU answers, "" while the FPGA does
}

// New returns an engine for the model, which device runs already. Where the programming
// failed, why says so, and cpu answers from the beginning; there may be no device then. The engine closes both.
func New(device *programming.Programmer, model *artifact.Model, cpu serving.Engine, why string, log *slog.Logger) *Engine {
	return &Engine{device: device, model: model, cpu: cpu, down: why, log: log}
}

// Platform implements serving.Engine.
func (e *Engine) Platform() string { return "atelier_fpga" }

// Signature implements serving.Engine.
func (e *Engine) Signature() *atelier.Signature { return &e.model.Signature }

// Health implements serving.Standby.
func (e *Engine) Health() atelier.ModuleHealth {
	if why := e.why(); why != "" {
		return atelier.ModuleHealth{Provider: atelier.ProviderCPU, Fallback: Provider + ": " + why}
	}
	return atelier.ModuleHealth{Provider: Provider}
}

func (e *Engine) why() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.down
}

// Infer implements serving.Engine. Rows run one after the other.
func (e *Engine) Infer(ctx context.Context, inputs []serving.Tensor, outputs []int) ([]serving.Tensor, error) {
	if ctx.Err() != nil {
		return nil, atelier.Errorf(atelier.Timeout, "nobody waits for the inference any more: %w", ctx.Err())
	}
	if e.why() == "" {
		got, err := e.infer(ctx, inputs, outputs)
		switch code := atelier.CodeOf(err); {
		case err == nil, code == atelier.Invalid, ctx.Err() != nil:
			return got, err
		case e.cpu == nil:
			return nil, err
		}
		// A device that fails once is not trusted again before it is programmed anew.
		e.mu.Lock()
		e.down = err.Error()
		e.mu.Unlock()
		e.log.Error("the FPGA does not answer; the CPU does from now on", "reason", atelier.ReasonCPUFallback, "error", err)
	}
	return e.cpu.Infer(ctx, inputs, outputs)
}

func (e *Engine) infer(ctx context.Context, inputs []serving.Tensor, outputs []int) ([]serving.Tensor, error) {
	rows, shape, err := e.rows(inputs)
	if err != nil {
		return nil, err
	}
	for _, o := range outputs {
		if o < 0 || o >= len(e.model.Outputs) {
			return nil, atelier.Errorf(atelier.Invalid, "output %d was asked for, the model has %d", o, len(e.model.Outputs))
		}
	}
	result := make([]serving.Tensor, len(outputs))
	for i, o := range outputs {
		spec := &e.model.Signature.Outputs[o]
		result[i] = serving.Tensor{Type: serving.Datatype(spec.Type), Shape: append([]int64(nil), spec.Shape...)}
		if len(spec.Shape) > 0 && spec.Shape[0] == -1 {
			result[i].Shape[0] = shape
		}
	}
	for _, row := range rows {
		got, err := e.device.Infer(ctx, e.model, e.model.Arrange(row))
		if err != nil {
			return nil, err
		}
		values := e.model.Results(got.Outputs, got.ArgMax)
		for i, o := range outputs {
			for _, v := range values[e.model.Outputs[o].Name] {
				result[i].Data = appendNumber(result[i].Data, result[i].Type, v)
			}
		}
	}
	return result, nil
}

// rows reads the one input as rows of numbers; count is the size of its first dimension.
func (e *Engine) rows(inputs []serving.Tensor) (rows [][]float64, count int64, err error) {
	bad := func(what string, got any) ([][]float64, int64, error) {
		spec := &e.model.Signature.Inputs[0]
		return nil, 0, atelier.Errorf(atelier.Invalid, "%s is %v; the model takes one %s of the shape %v", what, got, spec.Type, spec.Shape)
	}
	if len(inputs) != 1 {
		return bad("the number of inputs", len(inputs))
	}
	in, spec := &inputs[0], &e.model.Signature.Inputs[0]
	n, ok := serving.Elements(in.Shape)
	if !ok || len(in.Shape) != len(spec.Shape) {
		return bad("the input's shape", in.Shape)
	}
	for i, d := range spec.Shape {
		if d != in.Shape[i] && d != -1 {
			return bad("the input's shape", in.Shape)
		}
	}
	if string(in.Type) != spec.Type || int64(len(in.Data)) != n*in.Type.Size() {
		return bad("the input's datatype and length", []any{in.Type, len(in.Data)})
	}
	per := e.model.Program.Inputs()
	for at := range int(n) {
		if at%per == 0 {
			rows = append(rows, make([]float64, per))
		}
		v := number(in.Data, in.Type, at)
		if math.IsNaN(v) {
			return bad("an element", v)
		}
		rows[at/per][at%per] = v
	}
	if len(in.Shape) > 0 {
		count = in.Shape[0]
	}
	return rows, count, nil
}

// number returns element i; the types are those that artifact.Model.Check allows.
func number(b []byte, t serving.Datatype, i int) float64 {
	switch t {
	case serving.FP32:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:])))
	case serving.FP64:
		return math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
	case serving.Int64:
		return float64(int64(binary.LittleEndian.Uint64(b[8*i:])))
	case serving.Int32:
		return float64(int32(binary.LittleEndian.Uint32(b[4*i:])))
	case serving.Int8:
		return float64(int8(b[i]))
	}
	return float64(b[i])
}

func appendNumber(b []byte, t serving.Datatype, v float64) []byte {
	switch t {
	case serving.FP32:
		return binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(v)))
	case serving.FP64:
		return binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
	case serving.Int64:
		return binary.LittleEndian.AppendUint64(b, uint64(int64(v)))
	case serving.Int32:
		return binary.LittleEndian.AppendUint32(b, uint32(int32(v)))
	}
	return append(b, byte(int64(v)))
}

// closeTime is how long a driver that hangs is waited for at the end.
const closeTime = 5 * time.Second

// Close implements serving.Engine. The device goes on with its configuration.
func (e *Engine) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	var err error
	if e.device != nil {
		err = e.device.Close(ctx)
	}
	if e.cpu != nil {
		err = errors.Join(err, e.cpu.Close())
	}
	return err
}

// Compare sees that the model's golden outputs are those of the CPU within the model's
// tolerance: those that the model brings, and with cpu, if it is not nil, those that it
// computes here. The error has the code Conflict.
func Compare(ctx context.Context, m *artifact.Model, cpu serving.Engine) error {
	all := make([]int, len(m.Outputs))
	for i := range all {
		all[i] = i
	}
	for k, g := range m.Golden {
		got := m.Results(g.Output, g.ArgMax)
		want := g.CPU
		if cpu != nil {
			var err error
			if want, err = onCPU(ctx, m, cpu, g.Input, all); err != nil {
				return err
			}
		}
		for name, values := range want {
			for i, w := range values {
				if !near(got[name][i], w, m.Tolerance) {
					return atelier.Errorf(atelier.Conflict, "golden input %d: output %q is %.6g on the FPGA at element %d and %.6g on the CPU, the tolerance is %+v",
						k, name, got[name][i], i, w, m.Tolerance).WithRemedy("Compile the model with a calibration set that covers its inputs, or with a wider tolerance.")
				}
			}
		}
	}
	return nil
}

func near(got, want float64, t atelier.Tolerance) bool {
	return math.Abs(got-want) <= t.Absolute+t.Relative*math.Abs(want)
}

// onCPU runs an input of the overlay's values on the CPU.
func onCPU(ctx context.Context, m *artifact.Model, cpu serving.Engine, x []int8, outputs []int) (map[string][]float64, error) {
	spec := &m.Signature.Inputs[0]
	in := serving.Tensor{Type: serving.Datatype(spec.Type), Shape: append([]int64(nil), spec.Shape...)}
	if len(in.Shape) > 0 {
		in.Shape[0] = max(in.Shape[0], 1)
	}
	for _, v := range x {
		in.Data = appendNumber(in.Data, in.Type, m.In.Real(v))
	}
	got, err := cpu.Infer(ctx, []serving.Tensor{in}, outputs)
	if err != nil {
		return nil, err
	}
	values := map[string][]float64{}
	for i := range got {
		name := m.Outputs[outputs[i]].Name
		n, _ := serving.Elements(got[i].Shape)
		if want, _ := perRow(m.Signature.Outputs[outputs[i]].Shape); n != want || string(got[i].Type) != m.Signature.Outputs[outputs[i]].Type {
			return nil, atelier.Errorf(atelier.Conflict, "the model on the CPU gives %d %s for the output %q, the overlay's model %d", n, got[i].Type, name, want)
		}
		for k := range int(n) {
			values[name] = append(values[name], number(got[i].Data, got[i].Type, k))
		}
	}
	return values, nil
}

// perRow returns how many elements a shape has for one row.
func perRow(shape []int64) (int64, bool) {
	one := append([]int64(nil), shape...)
	if len(one) > 0 {
		one[0] = max(one[0], 1)
	}
	return serving.Elements(one)
}

// Status is what is known of the device and of who answers; what is not measured is
// absent.
type Status struct {
	programming.Status
	Provider string `json:"provider"`
	Fallback string `json:"fallback,omitempty"`
	// SincePassed is the age of the last golden inputs that passed, in seconds.
	SincePassed float64 `json:"since_passed,omitempty"`
}

// Status returns what is known now.
func (e *Engine) Status() Status {
	var s Status
	if e.device != nil {
		s.Status = e.device.Status()
	}
	h := e.Health()
	s.Provider, s.Fallback = h.Provider, h.Fallback
	if !s.Passed.IsZero() {
		s.SincePassed = time.Since(s.Passed).Seconds()
	}
	return s
}
