package atelier

import "time"

// Environment is one version of a Python environment: what a scoring script needs
// around it, defined once and built once for each architecture. What defines it never
// changes; only its builds go on.
type Environment struct {
	Meta               // Name is the number, in decimal
	Environment string `json:"environment"` // the name, which its versions have in common
	Number      int    `json:"number"`      // from 1
	Description string `json:"description,omitempty"`
	// Python is the version of the interpreter that the environment brings, such as "3.11".
	Python string `json:"python"`
	// Requirements are what is installed, in normal form: one of pip's requirements
	// each, sorted.
	Requirements []string `json:"requirements"`
	// Digest names the definition: Python and Requirements.
	Digest Digest  `json:"digest"`
	Builds []Build `json:"builds"` // one for each architecture, in the order in which they were asked for
}

// Build is the making of an environment for one architecture, and what came of it.
type Build struct {
	Arch string `json:"arch"` // in Go's words: "amd64", "arm64"
	// Hash names what is built: the definition and the architecture. Equal hashes are
	// built once in a workspace.
	Hash  Digest     `json:"hash"`
	State BuildState `json:"state"`
	Why   Why        `json:"why"`
	// Artifact is the environment as a tar file; nil until it is built.
	Artifact *File `json:"artifact,omitempty"`
	// NeedsGlibc is the oldest glibc that it runs with, such as "2.35".
	NeedsGlibc string `json:"needs_glibc,omitempty"`
	// Packages are the distributions that are in it, as "name==version", sorted.
	Packages []string `json:"packages,omitempty"`
	// Log is what the builder wrote, kept of failures as of successes.
	Log *File `json:"log,omitempty"`
	// Builder is the name of the builder that works on it or did; Lease its claim, which
	// ends at LeaseEnds unless it is renewed.
	Builder   string     `json:"builder,omitempty"`
	Lease     string     `json:"lease,omitempty"`
	LeaseEnds *time.Time `json:"lease_ends,omitempty"`
	Attempts  int        `json:"attempts"` // how many times it was claimed
	Started   *time.Time `json:"started,omitempty"`
	Finished  *time.Time `json:"finished,omitempty"`
}

// BuildState is how far a build is.
type BuildState string

// The states of a build.
const (
	BuildPending BuildState = "Pending"  // waits for a builder
	BuildRunning BuildState = "Building" // a builder has claimed it
	BuildReady   BuildState = "Ready"    // its artifact is there
	BuildFailed  BuildState = "Failed"   // it cannot be built as it is defined
)

// Over reports whether nothing more happens to a build in the state.
func (s BuildState) Over() bool { return s == BuildReady || s == BuildFailed }

// Build returns the build for an architecture, nil where none was asked for.
func (e *Environment) Build(arch string) *Build {
	for i := range e.Builds {
		if e.Builds[i].Arch == arch {
			return &e.Builds[i]
		}
	}
	return nil
}

// VariantEnvironment is the environment that a variant runs in, for the variant's
// one architecture.
type VariantEnvironment struct {
	ID         string `json:"id"`   // of the Environment
	Name       string `json:"name"` // of the environment
	Number     int    `json:"number"`
	Python     string `json:"python"`
	Artifact   File   `json:"artifact"` // a tar file; see Build
	NeedsGlibc string `json:"needs_glibc,omitempty"`
}
