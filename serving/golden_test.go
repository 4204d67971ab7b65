package serving_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving"
)

// goldenOf makes golden inputs of one case of the mirror, which answers what came.
func goldenOf(typ, in, out string) *atelier.Golden {
	g := atelier.NewGolden(atelier.Tolerance{Absolute: 0.01, Relative: 0.1, Integer: 1}, 0)
	g.Cases = []atelier.GoldenCase{{
		Name:     "one",
		Request:  json.RawMessage(fmt.Sprintf(`{"inputs":[{"name":"in0","shape":[2],"datatype":%q,"data":%s}]}`, typ, in)),
		Response: json.RawMessage(fmt.Sprintf(`{"outputs":[{"name":"out0","shape":[2],"datatype":%q,"data":%s}]}`, typ, out)),
	}}
	return g
}

func TestProve(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ typ, in, out, off string }{
		{"FP32", "[1, 100]", "[1, 100]", ""},
		{"FP32", "[1.1, 100]", "[1, 100]", ""},
		{"FP32", "[1.12, 100]", "[1, 100]", "is 1.12 at element 0, 1 was expected"},
		{"FP32", "[2, 200]", "[1, 100]", "is 200 at element 1, 100 was expected (2 of 2 elements are off; this one most)"},
		{"FP64", "[0.009, 0]", "[0, 0]", ""},
		{"FP64", "[0.02, 0]", "[0, 0]", "is 0.02 at element 0"},
		{"FP16", "[1.5, -100]", "[1.5, 100]", "is -100 at element 1"},
		{"BF16", "[1.5, 2]", "[1.5, 8]", "is 2 at element 1"},
		{"INT8", "[-1, 1]", "[0, 0]", ""},
		{"INT8", "[-128, 1]", "[127, 1]", "is -128 at element 0, 127 was expected"},
		{"UINT8", "[255, 0]", "[254, 0]", ""},
		{"UINT16", "[65535, 0]", "[0, 0]", "is 65535 at element 0"},
		{"INT16", "[-3, 0]", "[0, 0]", "is -3 at element 0"},
		{"INT32", "[-2147483648, 0]", "[2147483647, 0]", "is -2147483648 at element 0"},
		{"UINT32", "[5, 0]", "[4, 0]", ""},
		{"INT64", "[-9223372036854775808, 0]", "[9223372036854775807, 0]", "is -9223372036854775808"},
		{"UINT64", "[18446744073709551615, 0]", "[18446744073709551614, 0]", ""},
		{"UINT64", "[18446744073709551615, 0]", "[0, 0]", "is 18446744073709551615 at element 0"},
		{"BOOL", "[true, false]", "[true, false]", ""},
		{"BOOL", "[true, false]", "[true, true]", "is false at element 1, true was expected"},
		{"BYTES", `["a", "b"]`, `["a", "b"]`, ""},
		{"BYTES", `["a", "b"]`, `["a", "c"]`, `is "b" at element 1, "c" was expected`},
	} {
		m := serving.NewModel("m", "1", newMirror(atelier.TensorSpec{Type: c.typ, Shape: []int64{2}}), 1)
		_, err := m.Prove(context.Background(), goldenOf(c.typ, c.in, c.out))
		switch {
		case c.off == "" && err != nil:
			t.Errorf("%s: %s against %s: %v", c.typ, c.in, c.out, err)
		case c.off != "" && (atelier.CodeOf(err) != atelier.Conflict || !strings.Contains(err.Error(), c.off) || !strings.Contains(err.Error(), `"one"`)):
			t.Errorf("%s: %s against %s: got %v, want something about %q", c.typ, c.in, c.out, err, c.off)
		}
	}
}

func TestProveRefusesWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	m := serving.NewModel("m", "1", newMirror(atelier.TensorSpec{Type: "FP32", Shape: []int64{2}}), 1)
	for what, change := range map[string]func(c *atelier.GoldenCase){
		"another input":    func(c *atelier.GoldenCase) { c.Request = replaced(c.Request, "in0", "in7") },
		"another output":   func(c *atelier.GoldenCase) { c.Response = replaced(c.Response, "out0", "out7") },
		"another type":     func(c *atelier.GoldenCase) { c.Response = replaced(c.Response, "FP32", "FP64") },
		"no outputs":       func(c *atelier.GoldenCase) { c.Response = json.RawMessage(`{"outputs":[]}`) },
		"no data":          func(c *atelier.GoldenCase) { c.Response = replaced(c.Response, `,"data":[1, 2]`, "") },
		"too few elements": func(c *atelier.GoldenCase) { c.Response = replaced(c.Response, "[1, 2]", "[1]") },
		"an unknown field": func(c *atelier.GoldenCase) { c.Response = replaced(c.Response, "{", `{"extra":1,`) },
		"chosen outputs":   func(c *atelier.GoldenCase) { c.Request = replaced(c.Request, "{", `{"outputs":[{"name":"out0"}],`) },
	} {
		g := goldenOf("FP32", "[1, 2]", "[1, 2]")
		change(&g.Cases[0])
		if _, err := m.Prove(context.Background(), g); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%s: got %v, want a refusal", what, err)
		}
	}
}

func replaced(b json.RawMessage, old, with string) json.RawMessage {
	return json.RawMessage(strings.Replace(string(b), old, with, 1))
}

func TestProveShape(t *testing.T) {
	t.Parallel()
	m := serving.NewModel("m", "1", newMirror(atelier.TensorSpec{Type: "FP32", Shape: []int64{-1}}), 1)
	g := goldenOf("FP32", "[1, 2]", "[1, 2, 3]")
	g.Cases[0].Response = replaced(g.Cases[0].Response, `"shape":[2]`, `"shape":[3]`)
	if _, err := m.Prove(context.Background(), g); err == nil || !strings.Contains(err.Error(), "has the shape [2], [3] was expected") {
		t.Fatalf("got %v", err)
	}
}

// slow is a mirror that takes its time.
type slow struct{ *mirror }

func (s slow) Infer(ctx context.Context, inputs []serving.Tensor, outputs []int) ([]serving.Tensor, error) {
	for begin := time.Now(); time.Since(begin) < 2*time.Millisecond; { // work, not a wait
	}
	return s.mirror.Infer(ctx, inputs, outputs)
}

func TestProveLatency(t *testing.T) {
	t.Parallel()
	m := serving.NewModel("m", "1", slow{newMirror(atelier.TensorSpec{Type: "FP32", Shape: []int64{2}})}, 1)
	g := goldenOf("FP32", "[1, 2]", "[1, 2]")
	g.LatencyMS = 1
	if _, err := m.Prove(context.Background(), g); atelier.CodeOf(err) != atelier.Conflict || !strings.Contains(err.Error(), "at most 1ms") {
		t.Errorf("got %v, want that it is too slow", err)
	}
	g.LatencyMS = 60_000
	if median, err := m.Prove(context.Background(), g); err != nil || median < 2*time.Millisecond {
		t.Errorf("got %v, %v", median, err)
	}
}
