// Package safetensors reads where the tensors lie in a file of that format
// (github.com/huggingface/safetensors, "Format"): 8 bytes that tell the length of
// a header, little-endian; the header, a JSON object that gives each tensor's name,
// dtype, shape and data_offsets; the tensors' bytes.
//
// It promises to read any input, however long or hostile, with bounded memory, and
// never to panic.
package safetensors

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"slices"

	atelier "github.com/atelier-edge/atelier"
)

// maxHeader bounds the header, in bytes. The format's own bound is 100 MB; the
// largest models in use need some 100 KB.
const maxHeader = 16 << 20

// Tensor says where the elements of a tensor lie, one after the other and
// little-endian.
type Tensor struct {
	Name   string
	Type   string // of an element, in the words of Open Inference Protocol v2 where it has one
	Offset int64  // of the first byte, from the start of the file
	Length int64  // in bytes
}

// types gives dtypes in the words of Open Inference Protocol v2, as package onnx
// has them.
var types = map[string]string{
	"BOOL": "BOOL", "U8": "UINT8", "I8": "INT8", "U16": "UINT16", "I16": "INT16", "U32": "UINT32", "I32": "INT32",
	"U64": "UINT64", "I64": "INT64", "F16": "FP16", "BF16": "BF16", "F32": "FP32", "F64": "FP64",
	"F8_E4M3": "FLOAT8E4M3FN", "F8_E5M2": "FLOAT8E5M2",
}

// Layout returns where the tensors of the file in the first size bytes of r lie, in
// the order of the file. What is no such file gives an *atelier.Error with code
// Invalid, one with a header beyond 16 MiB TooLarge; an error of r is returned as it
// came.
func Layout(r io.ReaderAt, size int64) ([]Tensor, error) {
	var head [8]byte
	if size < int64(len(head)) {
		return nil, invalid("it is shorter than its header")
	}
	if err := readFull(r, head[:], 0); err != nil {
		return nil, err
	}
	length := binary.LittleEndian.Uint64(head[:])
	if length > uint64(size)-uint64(len(head)) {
		return nil, invalid("it is shorter than its header")
	}
	if length > maxHeader {
		return nil, atelier.Errorf(atelier.TooLarge, "the header of the safetensors file has %d bytes, at most %d can be read", length, maxHeader)
	}
	header := make([]byte, length)
	if err := readFull(r, header, int64(len(head))); err != nil {
		return nil, err
	}
	var entries map[string]json.RawMessage
	if json.Unmarshal(header, &entries) != nil {
		return nil, invalid("its header is no JSON object")
	}
	start := int64(len(head)) + int64(length)
	out := make([]Tensor, 0, len(entries))
	for name, raw := range entries {
		if name == "__metadata__" {
			continue
		}
		var entry struct {
			Type    string   `json:"dtype"`
			Offsets [2]int64 `json:"data_offsets"`
		}
		if json.Unmarshal(raw, &entry) != nil || entry.Type == "" {
			return nil, invalid("an entry of its header is malformed")
		}
		from, to := entry.Offsets[0], entry.Offsets[1]
		if from < 0 || to < from || to > size-start {
			return nil, invalid("a tensor lies beyond its end; the file may be truncated")
		}
		t := Tensor{Name: name, Type: entry.Type, Offset: start + from, Length: to - from}
		if word, known := types[entry.Type]; known {
			t.Type = word
		}
		if t.Length > 0 {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

func readFull(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // the file is shorter than its size
	}
	return err
}

func invalid(why string) error {
	return atelier.Errorf(atelier.Invalid, "this is no safetensors file: %s", why)
}
