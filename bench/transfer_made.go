package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/atelier-edge/atelier/internal/onnx"
)

// madePairs writes newer versions of a published model into dir, each with a change
// of its own, and a pair of more than 100 MB. All numbers come out of seeds.
func madePairs(model, dir string) ([]pair, error) {
	older, err := os.ReadFile(model)
	if err != nil {
		return nil, err
	}
	changes := []struct {
		name   string
		change func(b []byte, tensors [][]byte, r *rand.Rand) []byte
	}{
		{"silero 6, one layer trained anew", func(b []byte, tensors [][]byte, r *rand.Rand) []byte {
			redraw(slices.MaxFunc(tensors, func(a, b []byte) int { return len(a) - len(b) }), r)
			return b
		}},
		{"silero 6, all weights moved by 1e-4 σ", moveAll(1e-4, 1)},
		{"silero 6, all weights moved by 1e-3 σ", moveAll(1e-3, 1)},
		{"silero 6, all weights moved by 1e-2 σ", moveAll(1e-2, 1)},
		{"silero 6, all weights moved by 0.1 σ", moveAll(0.1, 1)},
		{"silero 6, 5 % of weights moved by 0.1 σ", moveAll(0.1, 0.05)},
		{"silero 6, metadata changed, all bytes shifted", func(b []byte, _ [][]byte, r *rand.Rand) []byte { return describe(b, r) }},
	}
	var pairs []pair
	for i, c := range changes {
		newer := bytes.Clone(older)
		tensors, err := floats(newer)
		if err != nil {
			return nil, err
		}
		newer = c.change(newer, tensors, seeded(uint64(i)))
		path := filepath.Join(dir, fmt.Sprintf("silero-%d.onnx", i))
		if err := os.WriteFile(path, newer, 0o600); err != nil {
			return nil, err
		}
		pairs = append(pairs, pair{name: c.name, older: model, newer: path})
	}
	large := pair{
		name:  "101 MB of made weights, a third of them moved by 0.1 σ",
		older: filepath.Join(dir, "large-1.safetensors"), newer: filepath.Join(dir, "large-2.safetensors"),
	}
	return append(pairs, large), errors.Join(writeLarge(large.older, 0), writeLarge(large.newer, 2))
}

func seeded(seed uint64) *rand.Rand {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.New(rand.NewChaCha8(key))
}

// floats returns the tensors of 32-bit floating-point numbers in an ONNX file.
func floats(model []byte) (all [][]byte, err error) {
	tensors, err := onnx.Layout(bytes.NewReader(model), int64(len(model)))
	for _, t := range tensors {
		if t.Type == "FP32" && t.File == "" {
			all = append(all, model[t.Offset:t.Offset+t.Length])
		}
	}
	return all, err
}

func at(tensor []byte, i int) float64 {
	return float64(math.Float32frombits(binary.LittleEndian.Uint32(tensor[4*i:])))
}

func set(tensor []byte, i int, v float64) {
	binary.LittleEndian.PutUint32(tensor[4*i:], math.Float32bits(float32(v)))
}

// spread returns mean and standard deviation of a tensor's numbers.
func spread(tensor []byte) (mean, deviation float64) {
	n := len(tensor) / 4
	var sum, squares float64
	for i := range n {
		v := at(tensor, i)
		sum += v
		squares += v * v
	}
	mean = sum / float64(n)
	return mean, math.Sqrt(max(0, squares/float64(n)-mean*mean))
}

// redraw gives a tensor new numbers of the same mean and deviation.
func redraw(tensor []byte, r *rand.Rand) {
	mean, deviation := spread(tensor)
	for i := range len(tensor) / 4 {
		set(tensor, i, mean+deviation*r.NormFloat64())
	}
}

// move adds normal noise of so many of the tensor's standard deviations to a share
// of its numbers.
func move(tensor []byte, by, share float64, r *rand.Rand) {
	_, deviation := spread(tensor)
	for i := range len(tensor) / 4 {
		if share >= 1 || r.Float64() < share {
			set(tensor, i, at(tensor, i)+by*deviation*r.NormFloat64())
		}
	}
}

func moveAll(by, share float64) func([]byte, [][]byte, *rand.Rand) []byte {
	return func(b []byte, tensors [][]byte, r *rand.Rand) []byte {
		for _, t := range tensors {
			move(t, by, share, r)
		}
		return b
	}
}

// describe puts a description in front of an ONNX file: fields of a message may come
// in any order (doc_string is field 6 of ModelProto).
func describe(model []byte, r *rand.Rand) []byte {
	noise := make([]byte, 128)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	text := "trained anew, run " + hex.EncodeToString(noise)
	b := binary.AppendUvarint([]byte{6<<3 | 2}, uint64(len(text)))
	return append(append(b, text...), model...)
}

const (
	largeLayers = 6
	largeLayer  = 4096 * 1024 // numbers
)

// writeLarge writes a safetensors file of layers with normally distributed weights,
// the last moved of which are moved by 0.1 σ.
func writeLarge(path string, moved int) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	header := []byte("{")
	for i := range largeLayers {
		header = fmt.Appendf(header, `"layer.%d.weight":{"dtype":"F32","shape":[4096,1024],"data_offsets":[%d,%d]},`, i, 4*largeLayer*i, 4*largeLayer*(i+1))
	}
	header[len(header)-1] = '}'
	for len(header)%8 != 0 {
		header = append(header, ' ')
	}
	if _, err := f.Write(append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)); err != nil {
		return err
	}
	layer := make([]byte, 4*largeLayer)
	for i := range largeLayers {
		r := seeded(uint64(1000 + i))
		for j := range largeLayer {
			set(layer, j, 0.02*r.NormFloat64())
		}
		if i >= largeLayers-moved {
			move(layer, 0.1, 1, seeded(uint64(2000+i)))
		}
		if _, err := io.Copy(f, bytes.NewReader(layer)); err != nil {
			return err
		}
	}
	return nil
}
