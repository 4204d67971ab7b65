package onnx

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	atelier "github.com/atelier-edge/atelier"
)

func TestLayout(t *testing.T) {
	t.Parallel()
	floats := msg{}.num(2, 1).str(8, "floats").sub(4, []byte("0123456789ab"))
	varints := msg{}.num(2, 7).str(8, "varints").sub(7, []byte{1, 2, 3})
	constant := msg{}.str(2, "c_out").str(4, "Constant").sub(5, msg{}.str(1, "value").sub(5, tensor("", []byte("CONST"))))
	inner := msg{}.sub(5, tensor("w", []byte("INNER"))).sub(1, constant)
	branch := msg{}.str(2, "if_out").str(4, "If").sub(5, msg{}.str(1, "then_branch").sub(6, inner))
	sparse := msg{}.sub(1, tensor("values", []byte("VALUES"))).sub(2, tensor("indices", []byte("INDICES")))
	function := msg{}.str(1, "fn").sub(7, constant)
	m := model(msg{}.
		sub(5, tensor("w", []byte("OUTER"))).
		sub(5, floats).
		sub(5, varints).
		sub(5, externalTensor("far", "weights.bin", "4096", "100")).
		sub(1, branch).
		sub(15, sparse)).sub(25, function)
	got, err := Layout(bytes.NewReader(m), int64(len(m)))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range got {
		if l.File == "" {
			names = append(names, fmt.Sprintf("%s %s %s", l.Name, l.Type, m[l.Offset:l.Offset+l.Length]))
		} else {
			names = append(names, fmt.Sprintf("%s %s %s %d %d", l.Name, l.Type, l.File, l.Offset, l.Length))
		}
	}
	want := []string{
		"w UINT8 OUTER", "floats FP32 0123456789ab", "far FP32 weights.bin 4096 100",
		"if_out.then_branch/w UINT8 INNER", "if_out.then_branch/c_out.value/ UINT8 CONST",
		"values UINT8 VALUES", "indices UINT8 INDICES", "fn/c_out.value/ UINT8 CONST",
	}
	if !reflect.DeepEqual(names, want) {
		t.Errorf("got  %q\nwant %q", names, want)
	}
}

func TestLayoutRefuses(t *testing.T) {
	t.Parallel()
	nested := msg{}.sub(5, tensor("w", []byte("x")))
	for range maxDepth + 1 {
		nested = msg{}.sub(1, msg{}.sub(5, msg{}.sub(6, nested)))
	}
	var many []byte
	one := protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType), tensor("w", []byte("x")))
	for range maxTensors + 1 {
		many = append(many, one...)
	}
	for name, c := range map[string]struct {
		file []byte
		want atelier.Code
	}{
		"text":             {[]byte("<!doctype html><html></html>"), atelier.Invalid},
		"truncated":        {model(graph())[:60], atelier.Invalid},
		"too deep":         {model(nested), atelier.TooLarge},
		"too many tensors": {model(many), atelier.TooLarge},
	} {
		if _, err := Layout(bytes.NewReader(c.file), int64(len(c.file))); atelier.CodeOf(err) != c.want {
			t.Errorf("%s: got %v, want code %s", name, err, c.want)
		}
	}
}

func FuzzLayout(f *testing.F) {
	f.Add([]byte(model(graph())))
	f.Add([]byte(model(graph().sub(5, externalTensor("a", "weights.bin", "0", "10")))))
	f.Add([]byte(model(msg{}.sub(1, msg{}.str(2, "o").sub(5, msg{}.str(1, "g").sub(6, msg{}.sub(5, tensor("w", []byte("x")))))))))
	f.Fuzz(func(t *testing.T, b []byte) {
		tensors, err := Layout(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if code := atelier.CodeOf(err); code != atelier.Invalid && code != atelier.TooLarge {
				t.Fatalf("code %s: %v", code, err)
			}
			return
		}
		for _, l := range tensors {
			if l.Type == "" || l.Offset < 0 || l.Length <= 0 || len(l.Name) > maxName {
				t.Fatalf("malformed tensor %+v", l)
			}
			if l.File == "" && l.Offset+l.Length > int64(len(b)) {
				t.Fatalf("a tensor beyond the end: %+v of %d", l, len(b))
			}
		}
	})
}
