package fleet

import (
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

// TestChooseScript sees which devices get a scoring script, with the environment of
// their architecture, and what the others are told.
func TestChooseScript(t *testing.T) {
	t.Parallel()
	variant := func(arch, glibc string) atelier.Variant {
		return atelier.Variant{
			Kind: atelier.VariantPython, Entry: "score.py", Requires: atelier.Requirements{Arch: []string{arch}},
			Environment: &atelier.VariantEnvironment{Name: "sklearn", Number: 1, NeedsGlibc: glibc, Artifact: atelier.File{Path: arch}},
		}
	}
	v := &atelier.Version{Model: "churn", Number: 1, Variants: []atelier.Variant{variant("amd64", "2.36"), variant("arm64", "2.9")}}
	python := []string{atelier.FeaturePython}
	for name, c := range map[string]struct {
		facts  atelier.Facts
		reason atelier.Reason // "" where it gets one
	}{
		"amd64":            {atelier.Facts{OS: "linux", Arch: "amd64", Features: python, Glibc: "2.36"}, ""},
		"arm64":            {atelier.Facts{OS: "linux", Arch: "arm64", Features: python, Glibc: "2.31"}, ""},
		"unknown glibc":    {atelier.Facts{OS: "linux", Arch: "amd64", Features: python}, ""},
		"old glibc":        {atelier.Facts{OS: "linux", Arch: "amd64", Features: python, Glibc: "2.35"}, atelier.ReasonRuntimeMissing},
		"old agent":        {atelier.Facts{OS: "linux", Arch: "amd64", Glibc: "2.36"}, atelier.ReasonUnsupportedFeature},
		"another platform": {atelier.Facts{OS: "linux", Arch: "riscv64", Features: python}, atelier.ReasonVariantMissing},
	} {
		got, runtime, why := (&plan{}).choose(v, &atelier.Device{Meta: atelier.Meta{Name: "press"}, Facts: c.facts}, "")
		switch {
		case c.reason == "" && (why != nil || runtime != nil || got.Environment == nil || got.Environment.Artifact.Path != c.facts.Arch):
			t.Errorf("%s: %+v %v %v", name, got, runtime, why)
		case c.reason != "" && (why == nil || why.Reason() != c.reason || why.Remedy() == ""):
			t.Errorf("%s: %v, want %s", name, why, c.reason)
		}
	}
}

// TestChooseModelInPython sees that agents of before are sent no model in Python that
// they would not know how to run.
func TestChooseModelInPython(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{atelier.VariantMLflow, atelier.VariantPickle} {
		v := &atelier.Version{Model: "iris", Number: 1, Variants: []atelier.Variant{{Kind: kind, Environment: &atelier.VariantEnvironment{NeedsGlibc: "2.36"}}}}
		d := &atelier.Device{Facts: atelier.Facts{OS: "linux", Arch: "amd64", Glibc: "2.36", Features: []string{atelier.FeaturePython}}}
		if _, _, why := (&plan{}).choose(v, d, ""); why == nil || why.Reason() != atelier.ReasonUnsupportedFeature {
			t.Errorf("%s for an old agent: %v", kind, why)
		}
		d.Facts.Features = append(d.Facts.Features, atelier.FeaturePredictors)
		if got, _, why := (&plan{}).choose(v, d, ""); why != nil || got.Kind != kind {
			t.Errorf("%s: %+v, %v", kind, got, why)
		}
	}
}

// A deployment that prefers a provider gets the newest runtime that brings it.
func TestRuntimeBringsProvider(t *testing.T) {
	t.Parallel()
	d := &atelier.Device{}
	d.Facts.OS, d.Facts.Arch = "linux", "amd64"
	runtime := func(version string, files ...string) atelier.Runtime {
		r := atelier.Runtime{Version: version, OS: "linux", Arch: "amd64"}
		r.Name = atelier.RuntimeONNX
		for _, path := range append(files, "libonnxruntime.so") {
			r.Files = append(r.Files, atelier.File{Path: path})
		}
		return r
	}
	p := &plan{runtimes: []atelier.Runtime{
		runtime("1.20.0", "libonnxruntime_providers_cuda.so"), runtime("1.21.0", "libonnxruntime_providers_cuda.so"),
		runtime("1.22.0", "lib/libonnxruntime_providers_openvino.so"), runtime("1.30.0"),
	}}
	for providers, want := range map[string]string{
		"": "1.30.0", "cpu": "1.30.0", "cpu,cuda": "1.30.0", "cuda,cpu": "1.21.0", "openvino,cpu": "1.22.0", "tensorrt,cuda,cpu": "1.21.0", "tensorrt,cpu": "1.30.0",
	} {
		if r := p.runtime(atelier.RuntimeONNX, d, providers); r == nil || r.Version != want {
			t.Errorf("for %q it is %+v, %s was expected", providers, r, want)
		}
	}
}
