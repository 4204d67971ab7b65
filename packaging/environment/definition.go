// Package environment reads the definitions of Python environments:
// requirements.txt, and the pip section of conda files. It promises that two
// definitions that mean the same have the same digest, and that what it takes can be
// built of wheels from a package index alone; everything else is refused with an error
// that names the line. It builds nothing; package build below it does.
package environment

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// DefaultPython is the version of the interpreter where a definition names none.
const DefaultPython = "3.11"

// Bounds of definitions.
const (
	maxText         = 64 << 10 // bytes
	maxRequirements = 500
	maxLine         = 4 << 10 // bytes of one requirement with its hashes
)

// Definition says what is in an environment.
type Definition struct {
	Python       string   // such as "3.11"
	Requirements []string // in normal form, sorted, none twice
}

// New makes a definition of requirements in normal form, for a version of Python
// ("" for DefaultPython).
func New(python string, requirements []string) (Definition, error) {
	if python == "" {
		python = DefaultPython
	}
	if err := CheckPython(python); err != nil {
		return Definition{}, err
	}
	sorted := slices.Clone(requirements)
	slices.Sort(sorted)
	sorted = slices.Compact(sorted)
	if len(sorted) > maxRequirements {
		return Definition{}, atelier.Errorf(atelier.TooLarge, "the environment has %d requirements; at most %d are taken", len(sorted), maxRequirements)
	}
	return Definition{Python: python, Requirements: sorted}, nil
}

// CheckPython checks the version of an interpreter: "3." and a number. The patch
// level is the builder's choice, which is the newest that it can have.
func CheckPython(version string) error {
	minor, ok := strings.CutPrefix(version, "3.")
	if n, err := strconv.Atoi(minor); !ok || err != nil || n < 8 || n > 99 || strconv.Itoa(n) != minor {
		return atelier.Errorf(atelier.Invalid, "Python %.40q is no version such as 3.11", version).WithField("python").
			WithRemedy("Name a version from 3.8 on by its first two numbers; its patch level is the newest that the builder has.")
	}
	return nil
}

// Digest names the definition.
func (d Definition) Digest() (atelier.Digest, error) { return d.digest("") }

// Hash names what is built for an architecture.
func (d Definition) Hash(arch string) (atelier.Digest, error) { return d.digest(arch) }

// canonical is what digests are taken of. Format changes with the way in which
// environments are built, so that old ones are not taken for new ones.
type canonical struct {
	Format       string   `json:"format"`
	Python       string   `json:"python"`
	Requirements []string `json:"requirements"`
	Arch         string   `json:"arch,omitempty"`
}

func (d Definition) digest(arch string) (atelier.Digest, error) {
	b, err := json.Marshal(canonical{"atelier.environment/1", d.Python, append([]string{}, d.Requirements...), arch})
	if err != nil {
		return "", atelier.Errorf(atelier.Internal, "write the form of an environment: %w", err)
	}
	return atelier.DigestOf(b), nil
}

// refused is an error about a line of a definition.
func refused(line int, remedy, format string, args ...any) error {
	e := atelier.Errorf(atelier.Invalid, "line %d: "+format, append([]any{line}, args...)...)
	if remedy != "" {
		e = e.WithRemedy("%s", remedy)
	}
	return e
}

func checkText(text string) error {
	if len(text) > maxText {
		return atelier.Errorf(atelier.TooLarge, "the definition has %d bytes; at most %d are taken", len(text), maxText)
	}
	return nil
}
