// Package sbom finds out what container images contain, and writes it down in SPDX.
//
// Contents reads the layers of an image one after the other, as they lie over each other,
// and finds the packages that package managers recorded in them: Python distributions,
// Debian's and Alpine's packages. Nothing of a layer is run or written to disk; how far
// it is unpacked is bounded.
package sbom

import "time"

// Kind says what sort of thing a Package is.
type Kind string

// The kinds of packages.
const (
	Python  Kind = "python"  // a distribution, as PyPI has them
	Debian  Kind = "debian"  // a package of Debian or of what is made of it
	Alpine  Kind = "alpine"  // a package of Alpine
	Runtime Kind = "runtime" // what runs a model
	Model   Kind = "model"   // a file of a model
	Code    Kind = "code"    // scoring code
	Base    Kind = "base"    // the image below
	File    Kind = "file"    // anything else
)

// Package is a part of an image.
type Package struct {
	Kind    Kind
	Name    string
	Version string // "" where it has none
	// License is an SPDX licence expression, or any text; "" where nobody said.
	License string
	Arch    string // as the package manager calls it; "" where it does not matter
	Distro  string // "debian", of packages of a distribution
	Digest  string // "sha256:…" of the file that it is; "" where it is none or many
	URI     string // where it came from; "" where nobody knows
}

// Document is what an SPDX document says.
type Document struct {
	Name    string    // of the image, for people
	Digest  string    // of its manifest, "sha256:…"
	Version string    // of the image; "" for none
	Created time.Time // the document
	Creator string    // the program that made it
	// Namespace is the URI that names this document and no other.
	Namespace string
	Packages  []Package
	// Comment says what could not be found out; "" for nothing.
	Comment string
}
