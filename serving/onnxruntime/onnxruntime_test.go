package onnxruntime

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving"
	"github.com/atelier-edge/atelier/serving/enginetest"
)

const repository = "../.."

var library *Library // ONNX Runtime as the build pins it

func TestMain(m *testing.M) {
	dir, err := filepath.Abs(repository + "/.cache/onnxruntime")
	if err == nil {
		var out []byte
		if out, err = exec.Command(repository+"/scripts/fetch-runtime", dir).CombinedOutput(); err != nil {
			err = fmt.Errorf("%w\n%s", err, out)
		}
	}
	if err == nil {
		library, err = Load(filepath.Join(dir, "libonnxruntime.so"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestEngine(t *testing.T) {
	t.Parallel()
	enginetest.Run(t, func(path string) (serving.Engine, error) {
		m, err := library.Open(path, Options{Threads: 1})
		if err != nil {
			return nil, err
		}
		return m, nil
	})
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	noise := filepath.Join(t.TempDir(), "lib.so")
	if err := os.WriteFile(noise, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"missing": noise + "x", "noise": noise, "another": "libc.so.6"} {
		if _, err := Load(path); atelier.CodeOf(err) != atelier.Unsupported {
			t.Errorf("%s: %v, want code unsupported", name, err)
		}
	}
}

func TestZeroByteInString(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := os.WriteFile(path, enginetest.Identity(serving.Bytes), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := library.Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	in := serving.Tensor{Type: serving.Bytes, Shape: []int64{1, 1}, Strings: []string{"a\x00b"}}
	if _, err := m.Infer(t.Context(), []serving.Tensor{in}, []int{0}); atelier.CodeOf(err) != atelier.Invalid {
		t.Errorf("Infer = %v, want code invalid", err)
	}
}

func TestInferAfterClose(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := os.WriteFile(path, enginetest.Affine(0), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := library.Open(path, Options{Spin: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Infer(t.Context(), []serving.Tensor{enginetest.Floats([]int64{1, 4}, 1, 2, 3, 4)}, []int{0}); err == nil {
		t.Error("a closed model answered")
	}
}

func BenchmarkInfer(b *testing.B) {
	path := filepath.Join(b.TempDir(), "model.onnx")
	if err := os.WriteFile(path, enginetest.Affine(0), 0o600); err != nil {
		b.Fatal(err)
	}
	m, err := library.Open(path, Options{Threads: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	in := []serving.Tensor{enginetest.Floats([]int64{1, 4}, 1, 2, 3, 4)}
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.Infer(ctx, in, []int{0}); err != nil {
			b.Fatal(err)
		}
	}
}
