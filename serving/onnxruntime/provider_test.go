package onnxruntime

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unsafe"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/enginetest"
)

// TestProviders asks the real library, which is built for the processor alone.
func TestProviders(t *testing.T) {
	t.Parallel()
	names, err := library.Providers()
	if err != nil || !slices.Contains(names, "CPUExecutionProvider") {
		t.Fatalf("it brings %q, %v", names, err)
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := os.WriteFile(path, enginetest.Affine(1), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		providers []string
		fallback  []string // what it says, nil for nothing
	}{
		"none":      {nil, nil},
		"cpu first": {[]string{"cpu", "cuda"}, nil},
		"cuda":      {[]string{"tensorrt", "cuda", "cpu"}, []string{"it runs on cpu; tensorrt: the runtime (ONNX Runtime ", "; cuda: the runtime", "brings ", "CPUExecutionProvider"}},
		"cuda only": {[]string{"cuda"}, []string{"it runs on cpu; cuda: "}},
	} {
		m, err := library.Open(path, Options{Threads: 1, Providers: c.providers})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if m.Provider() != "cpu" || (m.Fallback() == "") != (c.fallback == nil) {
			t.Errorf("%s: on %s, fallback %q", name, m.Provider(), m.Fallback())
		}
		for _, text := range c.fallback {
			if !strings.Contains(m.Fallback(), text) {
				t.Errorf("%s: the fallback %q lacks %q", name, m.Fallback(), text)
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestUseOfProviders calls the library's functions for providers that this build of it
// lacks: each must say so of the right one.
func TestUseOfProviders(t *testing.T) {
	t.Parallel()
	for name, says := range map[string]string{
		atelier.ProviderCUDA: "CUDA", atelier.ProviderTensorRT: "TensorRT", atelier.ProviderOpenVINO: "OpenVINO", atelier.ProviderXNNPACK: "XNNPACK",
	} {
		var options handle
		if err := library.call(fnCreateSessionOptions, uintptr(unsafe.Pointer(&options))); err != nil {
			t.Fatal(err)
		}
		if err := library.use(options, name); err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(says)) {
			t.Errorf("%s: %v", name, err)
		}
		library.release(fnReleaseSessionOptions, options)
	}
}

// TestLacks chooses among providers for machines that are not here.
func TestLacks(t *testing.T) {
	t.Parallel()
	gpu := fstest.MapFS{"dev/nvidia0": &fstest.MapFile{}}
	cpu, cuda := []string{"CPUExecutionProvider"}, []string{"TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"}
	for name, c := range map[string]struct {
		provider  string
		available []string
		root      fstest.MapFS
		says      string // "" where nothing is in the way
	}{
		"all is there":   {"cuda", cuda, gpu, ""},
		"TensorRT":       {"tensorrt", cuda, gpu, ""},
		"no GPU":         {"cuda", cuda, fstest.MapFS{}, "the device does not have an NVIDIA GPU"},
		"no provider":    {"cuda", cpu, gpu, "the runtime (ONNX Runtime 1.9) brings CPUExecutionProvider only"},
		"needs none":     {"openvino", []string{"OpenVINOExecutionProvider"}, fstest.MapFS{}, ""},
		"another's":      {"xnnpack", cuda, gpu, "brings TensorrtExecutionProvider, CUDAExecutionProvider, CPUExecutionProvider only"},
		"is not a thing": {"tpu", cuda, gpu, "there is no provider of this name"},
	} {
		if got := lacks(c.provider, "1.9", c.available, c.root); (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%s: %q, want %q", name, got, c.says)
		}
	}
	for _, name := range atelier.Providers {
		if _, known := providers[name]; !known && name != atelier.ProviderCPU {
			t.Errorf("a deployment can ask for %s, and nothing knows it", name)
		}
	}
}
