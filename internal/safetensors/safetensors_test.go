package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

func built(header string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, data)...)
}

func TestLayout(t *testing.T) {
	t.Parallel()
	header := `{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2],"data_offsets":[16,20]},` +
		`"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"none":{"dtype":"I8","shape":[0],"data_offsets":[20,20]},` +
		`"odd":{"dtype":"F4","shape":[2],"data_offsets":[20,21]}} `
	file := built(header, 21)
	got, err := Layout(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	start := int64(8 + len(header))
	want := []Tensor{{"a", "FP32", start, 16}, {"b", "FP16", start + 16, 4}, {"odd", "F4", start + 20, 1}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file []byte
		want atelier.Code
	}{
		"empty":         {nil, atelier.Invalid},
		"text":          {[]byte("<!doctype html><html></html>"), atelier.Invalid},
		"long header":   {built("", 0)[:7], atelier.Invalid},
		"huge header":   {append(binary.LittleEndian.AppendUint64(nil, maxHeader+1), make([]byte, maxHeader+2)...), atelier.TooLarge},
		"no JSON":       {built("{", 0), atelier.Invalid},
		"no object":     {built("[]", 0), atelier.Invalid},
		"no entry":      {built(`{"a":1}`, 0), atelier.Invalid},
		"no type":       {built(`{"a":{"data_offsets":[0,0]}}`, 0), atelier.Invalid},
		"beyond":        {built(`{"a":{"dtype":"F32","data_offsets":[0,4]}}`, 3), atelier.Invalid},
		"backwards":     {built(`{"a":{"dtype":"F32","data_offsets":[4,0]}}`, 8), atelier.Invalid},
		"negative":      {built(`{"a":{"dtype":"F32","data_offsets":[-4,0]}}`, 8), atelier.Invalid},
		"out of bounds": {built(`{"a":{"dtype":"F32","data_offsets":[0,9223372036854775807]}}`, 8), atelier.Invalid},
	} {
		if _, err := Layout(bytes.NewReader(c.file), int64(len(c.file))); atelier.CodeOf(err) != c.want {
			t.Errorf("%s: got %v, want code %s", name, err, c.want)
		}
	}
	short := built(`{}`, 0)
	if _, err := Layout(bytes.NewReader(short[:9]), int64(len(short))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v for a file that is shorter than told, want io.ErrUnexpectedEOF", err)
	}
}

func FuzzLayout(f *testing.F) {
	f.Add(built(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4))
	f.Add(built(`{"__metadata__":{"a":"b"}}`, 0))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		tensors, err := Layout(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if code := atelier.CodeOf(err); code != atelier.Invalid && code != atelier.TooLarge {
				t.Fatalf("code %s: %v", code, err)
			}
			return
		}
		for _, l := range tensors {
			if l.Type == "" || l.Offset < 8 || l.Length <= 0 || l.Offset+l.Length > int64(len(b)) {
				t.Fatalf("malformed tensor %+v of a file of %d bytes", l, len(b))
			}
		}
	})
}
