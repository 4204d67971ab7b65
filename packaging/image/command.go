package image

import (
	"path"
	"strconv"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/environment"
)

func number(n int) string { return strconv.Itoa(n) }

// Serve says how the model server of an image is told what to serve.
type Serve struct {
	Model   string // its name, part of its URLs
	Version int
	Variant atelier.Variant
	// Script is the path of a scoring script below CodeDir, which serves the variant's
	// files in place of what the variant's kind would; "" for none.
	Script string
	// Server and Runtime are the entries of the model server below ServerDir, and of ONNX
	// Runtime below RuntimeDir; the latter for what runs on it.
	Server, Runtime string
	Settings        atelier.ServingSettings
}

// Command returns the command line of atelier-serve within the image; docs/architecture.md
// has its form. The address to listen on is not part of it.
func (s Serve) Command() []string {
	python := path.Join(EnvironmentDir, environment.Interpreter)
	command := []string{path.Join(ServerDir, s.Server), "--name", s.Model, "--version", strconv.Itoa(s.Version)}
	entry := path.Join(ModelDir, s.Variant.Entry)
	kind := s.Variant.Kind
	switch {
	case s.Script != "":
		kind = atelier.VariantPython
		command = append(command, "--model-dir", ModelDir, "--script", path.Join(CodeDir, s.Script), "--python", python)
	case kind == atelier.VariantPython:
		command = append(command, "--model-dir", ModelDir, "--script", entry, "--python", python)
	case kind == atelier.VariantMLflow:
		command = append(command, "--mlflow", path.Dir(entry), "--python", python)
	case kind == atelier.VariantPickle:
		command = append(command, "--pickle", entry, "--python", python)
	default:
		command = append(command, "--model", entry, "--runtime", path.Join(RuntimeDir, s.Runtime))
	}
	if kind != atelier.VariantPython && s.Variant.HasGolden() {
		command = append(command, "--golden", path.Join(ModelDir, atelier.GoldenPath))
	}
	return append(command, s.Settings.Flags()...)
}
