package onnxruntime

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"unsafe"

	atelier "github.com/atelier-edge/atelier"
)

// provider is one execution provider of the library.
type provider struct {
	library string // its name there
	// devices are files of which one must be there, for the hardware that it needs; none
	// where it needs none. They are relative to the root.
	devices  []string
	hardware string // in words
	// The functions that make, append and free its options; 0 where it takes key and value
	// pairs by its short name.
	create, add, release int
}

// nvidia are the devices of NVIDIA's drivers: of cards, of Jetsons, and under WSL.
var nvidia = []string{"dev/nvidia0", "dev/nvidiactl", "dev/nvhost-gpu", "dev/nvhost-ctrl-gpu", "dev/dxg"}

// providers are those that deployments can name, but for the processor's own, which
// needs nothing.
var providers = map[string]provider{
	atelier.ProviderCUDA: {
		library: "CUDAExecutionProvider", devices: nvidia, hardware: "an NVIDIA GPU with its driver",
		create: fnCreateCUDAProviderOptions, add: fnAppendCUDA, release: fnReleaseCUDAProviderOptions,
	},
	atelier.ProviderTensorRT: {
		library: "TensorrtExecutionProvider", devices: nvidia, hardware: "an NVIDIA GPU with its driver",
		create: fnCreateTensorRTProviderOptions, add: fnAppendTensorRT, release: fnReleaseTensorRTProviderOptions,
	},
	atelier.ProviderOpenVINO: {library: "OpenVINOExecutionProvider"},
	atelier.ProviderXNNPACK:  {library: "XnnpackExecutionProvider"},
}

// shortNames are those by which AppendExecutionProvider knows providers.
var shortNames = map[string]string{atelier.ProviderOpenVINO: "OpenVINO", atelier.ProviderXNNPACK: "XNNPACK"}

// Passed is a provider that was preferred to the one that a model runs on.
type Passed struct {
	Provider string
	Why      string // a clause
}

// fallback says in a sentence what was passed over, "" where nothing was.
func fallback(on string, passed []Passed) string {
	if len(passed) == 0 {
		return ""
	}
	parts := make([]string, len(passed))
	for i, p := range passed {
		parts[i] = p.Provider + ": " + p.Why
	}
	return fmt.Sprintf("it runs on %s; %s", on, strings.Join(parts, "; "))
}

// Providers returns the names of the execution providers that the library brings, in
// its own words.
func (l *Library) Providers() ([]string, error) {
	var list handle
	var n int32
	if err := l.call(fnGetAvailableProviders, uintptr(unsafe.Pointer(&list)), uintptr(unsafe.Pointer(&n))); err != nil {
		return nil, atelier.Errorf(atelier.Internal, "cannot ask the library for its execution providers: %w", err)
	}
	var names []string
	for _, name := range unsafe.Slice((*uintptr)(pointer(list)), n) {
		names = append(names, goString(name))
	}
	return names, l.call(fnReleaseAvailableProviders, list, uintptr(n))
}

// lacks says why the named provider cannot be used with a library that brings
// available, on a machine with the files of root; "" where nothing is in the way.
func lacks(name, version string, available []string, root fs.FS) string {
	p, known := providers[name]
	if !known {
		return "there is no provider of this name"
	}
	if !slices.Contains(available, p.library) {
		return fmt.Sprintf("the runtime (ONNX Runtime %s) brings %s only", version, strings.Join(available, ", "))
	}
	if len(p.devices) == 0 {
		return ""
	}
	for _, device := range p.devices {
		if _, err := fs.Stat(root, device); err == nil {
			return ""
		}
	}
	return "the device does not have " + p.hardware
}

// use appends the named provider to a session's options.
func (l *Library) use(options handle, name string) error {
	p := providers[name]
	if p.create == 0 {
		short := cString(shortNames[name])
		return l.call(fnAppendExecutionProvider, options, uintptr(unsafe.Pointer(&short[0])), 0, 0, 0)
	}
	var own handle
	if err := l.call(p.create, uintptr(unsafe.Pointer(&own))); err != nil {
		return err
	}
	defer l.release(p.release, own)
	return l.call(p.add, options, own)
}

// Open loads the ONNX model at path, on the first of the options' providers that the
// library brings, that the machine has the hardware for and that takes the model;
// on the processor where none does. Where the library refuses the model, the error has
// the code Corrupt and carries the library's words; Unsupported where the model takes
// something else than tensors.
func (l *Library) Open(path string, options Options) (*Model, error) {
	var passed []Passed
	var available []string
	for _, name := range options.Providers {
		if name == atelier.ProviderCPU {
			break
		}
		if available == nil {
			var err error
			if available, err = l.Providers(); err != nil {
				return nil, err
			}
		}
		why := lacks(name, l.version, available, os.DirFS("/"))
		if why == "" {
			m, err := l.open(path, name, options)
			if err == nil {
				m.provider, m.fallback = name, fallback(name, passed)
				return m, nil
			}
			why = err.Error()
		}
		passed = append(passed, Passed{name, why})
	}
	m, err := l.open(path, atelier.ProviderCPU, options)
	if err != nil {
		return nil, err
	}
	m.provider, m.fallback = atelier.ProviderCPU, fallback(atelier.ProviderCPU, passed)
	return m, nil
}

// Provider returns the name of the execution provider that the model runs on.
func (m *Model) Provider() string { return m.provider }

// Fallback says, where others were preferred, which and why they are not used; "" else.
func (m *Model) Fallback() string { return m.fallback }
