package atelier

import (
	"strings"
	"time"
	"unicode"
)

// Lineage says how an image came to be: what it was made of, and by whom. It is signed
// with the image.
type Lineage struct {
	// Kind names what was done, such as "package". The same kind takes the same parameters.
	Kind string `json:"kind"`
	// Parameters are what the build was asked for, by name.
	Parameters map[string]string `json:"parameters,omitempty"`
	Materials  []Material        `json:"materials"`
	Builder    string            `json:"builder"`              // the program that built
	Invocation string            `json:"invocation,omitempty"` // the id of this build
	Started    time.Time         `json:"started,omitzero"`
	Finished   time.Time         `json:"finished,omitzero"`
}

// The kinds of materials.
const (
	MaterialModel       = "model"       // a file of the model version
	MaterialVersion     = "version"     // the model version itself
	MaterialRun         = "run"         // the training run that made the model
	MaterialData        = "data"        // what the model was trained on
	MaterialCode        = "code"        // scoring code
	MaterialEnvironment = "environment" // the environment that the code runs in
	MaterialRuntime     = "runtime"     // what runs the model
	MaterialBase        = "base"        // the image below
)

// Material is something that an image was made of.
type Material struct {
	Kind    string `json:"kind"` // one of the Material… constants
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	URI     string `json:"uri,omitempty"`    // where it is, or came from
	Digest  Digest `json:"digest,omitempty"` // left out where it has none, as a run
	License string `json:"license,omitempty"`
}

const (
	maxMaterials   = 4096
	maxParameters  = 256
	maxLineageText = 1024
)

// Check checks that l can be written down: Invalid or TooLarge otherwise.
func (l *Lineage) Check() error {
	if len(l.Materials) > maxMaterials || len(l.Parameters) > maxParameters {
		return Errorf(TooLarge, "the lineage has %d materials and %d parameters; at most %d and %d are taken", len(l.Materials), len(l.Parameters), maxMaterials, maxParameters).
			WithField("lineage")
	}
	texts := []string{l.Kind, l.Builder, l.Invocation}
	for name, value := range l.Parameters {
		texts = append(texts, name, value)
	}
	if l.Kind == "" || l.Builder == "" {
		return Errorf(Invalid, "the lineage does not say what kind of build it was, and by whom").WithField("lineage").
			WithRemedy("Give kind and builder.")
	}
	for _, m := range l.Materials {
		switch m.Kind {
		case MaterialModel, MaterialVersion, MaterialRun, MaterialData, MaterialCode, MaterialEnvironment, MaterialRuntime, MaterialBase:
		default:
			return Errorf(Invalid, "the lineage has a material of the kind %.40q, which is not known", m.Kind).WithField("lineage")
		}
		if m.Name == "" {
			return Errorf(Invalid, "the lineage has a material of the kind %s without a name", m.Kind).WithField("lineage")
		}
		if m.Digest != "" {
			if _, err := ParseDigest(string(m.Digest)); err != nil {
				return Errorf(Invalid, "the lineage's material %.80q has no digest: %w", m.Name, err).WithField("lineage")
			}
		}
		texts = append(texts, m.Name, m.Version, m.URI, m.License)
	}
	for _, s := range texts {
		if len(s) > maxLineageText || strings.ContainsFunc(s, unicode.IsControl) {
			return Errorf(Invalid, "the lineage has a text %.40q… that is longer than %d bytes, or has control characters", s, maxLineageText).WithField("lineage")
		}
	}
	return nil
}
