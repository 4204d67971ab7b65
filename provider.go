package atelier

import (
	"slices"
	"strings"
)

// The execution providers that ServingSettings.Providers can name: what runs the
// operators of an ONNX model.
const (
	ProviderCPU      = "cpu"
	ProviderCUDA     = "cuda"
	ProviderTensorRT = "tensorrt"
	ProviderOpenVINO = "openvino"
	ProviderXNNPACK  = "xnnpack"
)

// Providers lists all execution providers.
var Providers = []string{ProviderCPU, ProviderCUDA, ProviderTensorRT, ProviderOpenVINO, ProviderXNNPACK}

// ParseProviders reads a list such as "cuda,cpu", the preferred one first; nil for "".
// Errors have the code Invalid.
func ParseProviders(list string) ([]string, error) {
	if list == "" {
		return nil, nil
	}
	names := strings.Split(list, ",")
	for i, name := range names {
		if !slices.Contains(Providers, name) || slices.Contains(names[:i], name) {
			return nil, Errorf(Invalid, "provider %.40q is unknown, or named twice", name).WithField("serving.providers").
				WithRemedy("Name some of %s, the preferred one first.", strings.Join(Providers, ", "))
		}
	}
	return names, nil
}

// ModuleHealth is what a module that is ready says of itself, in the answer to its
// health probe.
type ModuleHealth struct {
	// Provider is the execution provider that it runs on, "" where there is no choice.
	Provider string `json:"provider,omitempty"`
	// Fallback says, where others were preferred, which and why they are not used.
	Fallback string `json:"fallback,omitempty"`
	// Memory is how many bytes of memory its model took when it was loaded, warm and
	// proven: its weights, the engine's session and what inferences keep. 0 where that was
	// not measured.
	Memory int64 `json:"memory_bytes,omitempty"`
}

// HeaderFallback is the field of an answer that says which provider gave it, where that
// is not the one that the model should run on.
const HeaderFallback = "X-Atelier-Fallback"
