package atelier_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

func TestServingSettings(t *testing.T) {
	t.Parallel()
	version := func(kinds ...string) *atelier.Version {
		v := &atelier.Version{Model: "m", Number: 2}
		for _, k := range kinds {
			v.Variants = append(v.Variants, atelier.Variant{Kind: k})
		}
		return v
	}
	onnx, script := version(atelier.VariantONNX), version(atelier.VariantPython, atelier.VariantPython)
	for name, c := range map[string]struct {
		settings atelier.ServingSettings
		version  *atelier.Version
		says     string // "" where it is right
	}{
		"nothing":              {atelier.ServingSettings{}, onnx, ""},
		"batching":             {atelier.ServingSettings{MaxBatch: 8, MaxDelay: 2.5, Threads: 2, Concurrency: 1, Deadline: 100}, onnx, ""},
		"script":               {atelier.ServingSettings{Workers: 4, WorkerMemory: 1 << 29, Deadline: 5000}, script, ""},
		"negative":             {atelier.ServingSettings{Threads: -1}, onnx, "serving.threads is -1, 0"},
		"far too many":         {atelier.ServingSettings{Workers: 5000}, script, "to 4096 was expected"},
		"not a number":         {atelier.ServingSettings{Deadline: math.NaN()}, onnx, "serving.deadline_ms is NaN"},
		"delay without batch":  {atelier.ServingSettings{MaxDelay: 5}, onnx, "nothing to wait for"},
		"memory without unit":  {atelier.ServingSettings{WorkerMemory: 512}, script, "no Python process has less"},
		"providers":            {atelier.ServingSettings{Providers: "tensorrt,cuda,cpu"}, onnx, ""},
		"unknown provider":     {atelier.ServingSettings{Providers: "gpu"}, onnx, `provider "gpu" is unknown`},
		"a provider twice":     {atelier.ServingSettings{Providers: "cuda,cuda"}, onnx, "named twice"},
		"providers of scripts": {atelier.ServingSettings{Providers: "cuda"}, script, "serving.providers is for models of the kind onnx"},
		"workers for ONNX":     {atelier.ServingSettings{Workers: 2}, onnx, "serving.workers is for models of the kind python or mlflow or pickle, and version 2 of m is of the kind onnx"},
		"batches for a script": {atelier.ServingSettings{MaxBatch: 2}, script, "of the kind python"},
	} {
		err := c.settings.Check()
		if err == nil {
			err = c.settings.CheckFor(c.version)
		}
		if c.says == "" && err != nil || c.says != "" && (atelier.CodeOf(err) != atelier.Invalid || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	eight, none, half := 8, 0, 0.5
	s := (&atelier.ServingChange{MaxBatch: &eight, MaxDelay: &half}).To(atelier.ServingSettings{Threads: 2})
	if s.String() != "max-batch 8, max-delay 500µs, threads 2" {
		t.Errorf("it is %q", s)
	}
	if s = (&atelier.ServingChange{Threads: &none}).To(s); s.Threads != 0 || s.MaxBatch != 8 {
		t.Errorf("after threads were taken away it is %+v", s)
	}
	// A module without settings is sent as it always was.
	if b, err := json.Marshal(atelier.Module{}); err != nil || strings.Contains(string(b), "serving") {
		t.Errorf("%s, %v", b, err)
	}
}
