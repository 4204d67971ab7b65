package registry

import (
	"encoding/json"

	atelier "github.com/atelier-edge/atelier"
)

// manifest is what a version's digest is taken of: its variants in their order,
// each with its files in the order of their paths. It says what runs, not what
// people wrote about it, so that equal content has an equal digest.
//
// The form is fixed: JSON as encoding/json writes these types, without white
// space, in UTF-8, "<", ">" and "&" escaped. Changing it would change digests.
type manifest struct {
	Format   string            `json:"format"` // "atelier.version/1"
	Variants []manifestVariant `json:"variants"`
}

type manifestVariant struct {
	Kind     string               `json:"kind"`
	Entry    string               `json:"entry"`
	Files    []manifestFile       `json:"files"`
	Requires manifestRequirements `json:"requires"`
	// Environment is the digest of the environment's artifact; left out where there is
	// none, so that versions without one keep their digests.
	Environment atelier.Digest `json:"environment,omitempty"`
}

type manifestFile struct {
	Path   string         `json:"path"`
	Digest atelier.Digest `json:"digest"`
	Size   int64          `json:"size"`
}

type manifestRequirements struct {
	Runtime string   `json:"runtime"`
	Arch    []string `json:"arch"`
}

// digestOf returns the digest of a version with the variants, whose files are
// sorted by path.
func digestOf(variants []atelier.Variant) (atelier.Digest, error) {
	m := manifest{Format: "atelier.version/1", Variants: []manifestVariant{}}
	for _, v := range variants {
		mv := manifestVariant{
			Kind: v.Kind, Entry: v.Entry, Files: []manifestFile{},
			Requires: manifestRequirements{Runtime: v.Requires.Runtime, Arch: append([]string{}, v.Requires.Arch...)},
		}
		for _, f := range v.Files {
			mv.Files = append(mv.Files, manifestFile(f))
		}
		if v.Environment != nil {
			mv.Environment = v.Environment.Artifact.Digest
		}
		m.Variants = append(m.Variants, mv)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return "", atelier.Errorf(atelier.Internal, "write the manifest of a version: %w", err)
	}
	return atelier.DigestOf(b), nil
}
