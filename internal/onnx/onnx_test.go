package onnx

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	atelier "github.com/atelier-edge/atelier"
)

// msg builds a protocol buffer message.
type msg []byte

func (m msg) num(field protowire.Number, v uint64) msg {
	return protowire.AppendVarint(protowire.AppendTag(m, field, protowire.VarintType), v)
}

func (m msg) sub(field protowire.Number, v []byte) msg {
	return protowire.AppendBytes(protowire.AppendTag(m, field, protowire.BytesType), v)
}

func (m msg) str(field protowire.Number, v string) msg { return m.sub(field, []byte(v)) }

// value builds a ValueInfoProto; a dimension is an int or the name of a parameter.
func value(name string, datatype uint64, dims ...any) msg {
	shape := msg{}
	for _, d := range dims {
		switch d := d.(type) {
		case int:
			shape = shape.sub(1, msg{}.num(1, uint64(d)))
		case string:
			shape = shape.sub(1, msg{}.str(2, d))
		}
	}
	tensor := msg{}.num(1, datatype).sub(2, shape)
	return msg{}.str(1, name).sub(2, msg{}.sub(1, tensor))
}

func tensor(name string, raw []byte) msg {
	return msg{}.num(1, uint64(len(raw))).num(2, 2).str(8, name).sub(9, raw)
}

func externalTensor(name, location, offset, length string) msg {
	pair := func(k, v string) msg { return msg{}.str(1, k).str(2, v) }
	return msg{}.num(2, 1).str(8, name).
		sub(13, pair("location", location)).sub(13, pair("offset", offset)).sub(13, pair("length", length)).num(14, 1)
}

func model(graph msg) msg {
	return msg{}.num(1, 8).str(2, "pytorch").str(3, "2.9").sub(7, graph).
		sub(8, msg{}.num(2, 17)).sub(8, msg{}.str(1, "ai.onnx.ml").num(2, 3))
}

func graph() msg {
	return msg{}.str(2, "g").
		sub(5, tensor("w", make([]byte, 100))).
		sub(11, value("x", 1, "batch", 1, 28, 28)).
		sub(11, value("w", 2, 100)).
		sub(12, value("y", 7, "batch", 10)).
		sub(12, value("label", 8))
}

func TestRead(t *testing.T) {
	t.Parallel()
	got, err := Read(bytes.NewReader(model(graph())), int64(len(model(graph()))))
	if err != nil {
		t.Fatal(err)
	}
	want := &Model{
		IRVersion: 8, Producer: "pytorch", ProducerVersion: "2.9",
		Opsets:  []Opset{{"", 17}, {"ai.onnx.ml", 3}},
		Inputs:  []atelier.TensorSpec{{Name: "x", Type: "FP32", Shape: []int64{-1, 1, 28, 28}}},
		Outputs: []atelier.TensorSpec{{Name: "y", Type: "INT64", Shape: []int64{-1, 10}}, {Name: "label", Type: "BYTES", Shape: []int64{}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestTypes(t *testing.T) {
	t.Parallel()
	typed := func(num protowire.Number) msg { return msg{}.str(1, "v").sub(2, msg{}.sub(num, msg{})) }
	for num, want := range map[protowire.Number]string{4: TypeSequence, 5: TypeMap, 7: TypeOpaque, 8: TypeSparse, 9: TypeOptional, 99: TypeUnknown} {
		got := mustRead(t, model(msg{}.sub(12, typed(num))))
		if got.Outputs[0].Type != want || got.Outputs[0].Shape != nil {
			t.Errorf("type %d: got %+v, want %s without a shape", num, got.Outputs[0], want)
		}
	}
	for num, want := range datatypes {
		if got := mustRead(t, model(msg{}.sub(12, value("v", num)))); got.Outputs[0].Type != want {
			t.Errorf("datatype %d: got %s, want %s", num, got.Outputs[0].Type, want)
		}
	}
	if got := mustRead(t, model(msg{}.sub(12, value("v", 77)))); got.Outputs[0].Type != TypeUnknown {
		t.Errorf("an unknown datatype became %s", got.Outputs[0].Type)
	}
}

// TestExternal finds weights in other files wherever a tensor can be.
func TestExternal(t *testing.T) {
	t.Parallel()
	deep := msg{}.sub(5, externalTensor("d", "deep.bin", "8", "2"))
	attribute := msg{}.sub(5, externalTensor("c", "const.bin", "0", "7")).sub(6, deep).sub(22, msg{}.sub(1, externalTensor("s", "sparse.bin", "0", "1")))
	g := graph().
		sub(5, externalTensor("a", "weights.bin", "0", "10")).
		sub(5, externalTensor("b", "weights.bin", "4096", "100")).
		sub(5, tensor("inside", []byte("x")).sub(13, msg{}.str(1, "location").str(2, "not-used.bin"))).
		sub(1, msg{}.sub(5, attribute))
	m := model(g).sub(25, msg{}.sub(7, msg{}.sub(5, msg{}.sub(10, externalTensor("f", "function.bin", "0", "3")))))
	want := []ExternalFile{{"weights.bin", 4196}, {"const.bin", 7}, {"deep.bin", 10}, {"sparse.bin", 1}, {"function.bin", 3}}
	if got := mustRead(t, m).External; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	whole := model(graph())
	nested := msg{}.sub(12, value("y", 1))
	for range maxDepth + 1 {
		nested = msg{}.sub(12, value("y", 1)).sub(1, msg{}.sub(5, msg{}.sub(6, nested)))
	}
	many := msg{}
	for i := range maxValues + 1 {
		many = many.sub(11, value(fmt.Sprint("x", i), 1))
	}
	wide := value("y", 1, anys(maxRank+1)...)
	for name, c := range map[string]struct {
		file []byte
		want atelier.Code
	}{
		"empty":           {nil, atelier.Invalid},
		"truncated":       {whole[:len(whole)/2], atelier.Invalid},
		"one byte short":  {whole[:len(whole)-1], atelier.Invalid},
		"text":            {[]byte("<!doctype html><html></html>"), atelier.Invalid},
		"pickle":          {[]byte("\x80\x04\x95\x10\x00\x00\x00"), atelier.Invalid},
		"zip":             {[]byte("PK\x03\x04\x14\x00\x08\x08"), atelier.Invalid},
		"no graph":        {msg{}.num(1, 8), atelier.Invalid},
		"two graphs":      {whole.sub(7, graph()), atelier.Invalid},
		"no IR version":   {msg{}.sub(7, graph()), atelier.Invalid},
		"no output":       {model(msg{}.sub(11, value("x", 1))), atelier.Invalid},
		"graph no bytes":  {msg{}.num(1, 8).num(7, 1), atelier.Invalid},
		"name twice":      {model(graph().sub(11, value("x", 1))), atelier.Invalid},
		"nameless output": {model(msg{}.sub(12, value("", 1))), atelier.Invalid},
		"name no text":    {model(msg{}.sub(12, value("\xff", 1))), atelier.Invalid},
		"zero everywhere": {make([]byte, 1000), atelier.Invalid},
		"no location":     {model(graph().sub(5, externalTensor("a", "", "0", "1"))), atelier.Invalid},
		"bad offset":      {model(graph().sub(5, externalTensor("a", "f", "-1", "1"))), atelier.Invalid},
		"far offset":      {model(graph().sub(5, externalTensor("a", "f", "9223372036854775807", "1"))), atelier.Invalid},
		"too deep":        {model(nested), atelier.TooLarge},
		"too many inputs": {model(many.sub(12, value("y", 1))), atelier.TooLarge},
		"too wide":        {model(msg{}.sub(12, wide)), atelier.TooLarge},
		"long name":       {model(msg{}.sub(12, value(strings.Repeat("n", maxName+1), 1))), atelier.TooLarge},
	} {
		_, err := Read(bytes.NewReader(c.file), int64(len(c.file)))
		if atelier.CodeOf(err) != c.want {
			t.Errorf("%s: got %v, want code %s", name, err, c.want)
		}
	}
}

func anys(n int) []any {
	out := make([]any, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// TestReadErrors gives an error of the reader back as it came.
func TestReadErrors(t *testing.T) {
	t.Parallel()
	disk := errors.New("the disk is on fire")
	if _, err := Read(readerAt(func([]byte, int64) (int, error) { return 0, disk }), 100); !errors.Is(err, disk) {
		t.Errorf("got %v, want the reader's own error", err)
	}
	whole := model(graph())
	if _, err := Read(bytes.NewReader(whole), int64(len(whole))+10); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v for a file that is shorter than told, want io.ErrUnexpectedEOF", err)
	}
}

type readerAt func([]byte, int64) (int, error)

func (f readerAt) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// TestHuge reads a model with 5 GiB of weights, whose bytes exist only when they
// are asked for, and sees that hardly any were.
func TestHuge(t *testing.T) {
	t.Parallel()
	const weights, tensors = 512 << 20, 10
	var g []byte // the graph up to the weights of each tensor
	type piece struct {
		at    int64
		bytes []byte
	}
	var pieces []piece
	at := int64(0)
	put := func(b []byte) {
		pieces = append(pieces, piece{at, b})
		at += int64(len(b))
	}
	head := func(i int) []byte {
		t := msg{}.num(1, weights).num(2, 2).str(8, fmt.Sprint("w", i))
		return protowire.AppendVarint(protowire.AppendTag(t, 9, protowire.BytesType), weights)
	}
	tail := msg{}.sub(11, value("x", 1, 4)).sub(12, value("y", 1, 4))
	graphSize := int64(len(tail))
	for i := range tensors {
		h := head(i)
		graphSize += int64(len(protowire.AppendVarint(protowire.AppendTag(nil, 5, protowire.BytesType), uint64(len(h)+weights)))) + int64(len(h)) + weights
	}
	g = protowire.AppendVarint(protowire.AppendTag(msg{}.num(1, 8), 7, protowire.BytesType), uint64(graphSize))
	put(g)
	for i := range tensors {
		h := head(i)
		put(append(protowire.AppendVarint(protowire.AppendTag(nil, 5, protowire.BytesType), uint64(len(h)+weights)), h...))
		at += weights
	}
	put(tail)
	read := 0
	r := readerAt(func(p []byte, off int64) (int, error) {
		clear(p)
		read += len(p)
		for _, piece := range pieces {
			if lo, hi := max(off, piece.at), min(off+int64(len(p)), piece.at+int64(len(piece.bytes))); lo < hi {
				copy(p[lo-off:hi-off], piece.bytes[lo-piece.at:])
			}
		}
		return len(p), nil
	})
	got, err := Read(r, at)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Inputs) != 1 || len(got.Outputs) != 1 {
		t.Errorf("got %+v", got)
	}
	if read > 1<<20 {
		t.Errorf("%d bytes were read of a model of %d", read, at)
	}
}

func TestMemory(t *testing.T) {
	whole := model(graph().sub(5, tensor("big", make([]byte, 64<<20))))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	mustRead(t, whole)
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Errorf("reading a model of %d bytes took %d", len(whole), used)
	}
}

func mustRead(t *testing.T, b []byte) *Model {
	t.Helper()
	m, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(model(graph())))
	f.Add([]byte(model(graph().sub(5, externalTensor("a", "weights.bin", "0", "10")))))
	f.Add([]byte(model(msg{}.sub(12, msg{}.str(1, "v").sub(2, msg{}.sub(4, msg{}))))))
	f.Add([]byte(model(graph())[:40]))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if code := atelier.CodeOf(err); code != atelier.Invalid && code != atelier.TooLarge {
				t.Fatalf("code %s: %v", code, err)
			}
			return
		}
		if len(m.Outputs) == 0 {
			t.Fatal("a model without outputs was accepted")
		}
		for _, v := range append(m.Inputs, m.Outputs...) {
			if v.Name == "" || v.Type == "" || len(v.Shape) > maxRank {
				t.Fatalf("malformed value %+v", v)
			}
			for _, d := range v.Shape {
				if d < -1 {
					t.Fatalf("dimension %d", d)
				}
			}
		}
	})
}
