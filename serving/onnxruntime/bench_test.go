package onnxruntime

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/serving"
)

// BenchmarkSilero calls silero in this process, with one thread, as atelier-serve
// finds out to be best, and with what bench/ asks through the gateway. It reports the median beside the
// mean, since bench/ compares medians.
func BenchmarkSilero(b *testing.B) {
	m, inputs := silero(b, Options{Threads: 1})
	took := make([]time.Duration, 0, b.N)
	for b.Loop() {
		began := time.Now()
		if _, err := m.Infer(b.Context(), inputs, []int{0, 1}); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs/op")
}

// BenchmarkSileroTogether calls it as often at a time as atelier-serve does under
// load: twice as often as there are processors, with one thread for each call.
func BenchmarkSileroTogether(b *testing.B) {
	m, inputs := silero(b, Options{Threads: 1})
	b.SetParallelism(2)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := m.Infer(b.Context(), inputs, []int{0, 1}); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "inferences/s")
}

// silero opens the model and makes its inputs.
func silero(b *testing.B, options Options) (*Model, []serving.Tensor) {
	b.Helper()
	m, err := library.Open(repository+"/.cache/models/silero-vad.onnx", options)
	if err != nil {
		b.Fatalf("%v; run 'make model'", err)
	}
	b.Cleanup(func() {
		if err := m.Close(); err != nil {
			b.Error(err)
		}
	})
	sound := make([]byte, 0, 4*576)
	for i := range 64 + 512 {
		sound = binary.LittleEndian.AppendUint32(sound, math.Float32bits(float32(0.1*math.Sin(2*math.Pi*140*float64(i)/16000))))
	}
	of := map[string]serving.Tensor{
		"input": {Type: serving.FP32, Shape: []int64{1, 576}, Data: sound},
		"state": {Type: serving.FP32, Shape: []int64{2, 1, 128}, Data: make([]byte, 4*256)},
		"sr":    {Type: serving.Int64, Data: binary.LittleEndian.AppendUint64(nil, 16000)},
	}
	var inputs []serving.Tensor
	for _, in := range m.Signature().Inputs {
		inputs = append(inputs, of[in.Name])
	}
	return m, inputs
}
