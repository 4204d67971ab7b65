// Package environment is the form in which built environments travel: one tar file,
// not compressed, so that differences between two of them are small. Pack writes the
// same bytes for the same files wherever and whenever it runs; Unpack takes what may be
// hostile and makes either the whole directory or none.
package environment

import (
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// ArtifactPath is the path that an environment's tar file has among a module's files.
const ArtifactPath = "environment.tar"

// Interpreter is where an environment has its interpreter, relative, with '/'.
const Interpreter = "bin/python3"

// Bounds of environments.
const (
	maxEntries = 400_000
	maxSize    = 32 << 30 // bytes of all files
	maxPath    = 1024     // bytes
	maxDepth   = 64
)

// checkPath checks a path within an environment: relative, in its shortest form, of
// bounded length.
func checkPath(p string) error {
	bad := p == "" || p == "." || len(p) > maxPath || strings.ContainsAny(p, "\x00\\") || strings.Count(p, "/") >= maxDepth
	for part := range strings.SplitSeq(p, "/") {
		bad = bad || part == "" || part == "." || part == ".."
	}
	if bad {
		return atelier.Errorf(atelier.Corrupt, "the environment has a file %.120q, which is no plain path within it", p)
	}
	return nil
}

// checkLink checks that a symbolic link at a path stays within the environment. It
// may climb at its beginning only: where it climbs from the directory in which it lies,
// and no directory is a link itself, words alone tell where it leads.
func checkLink(at, to string) error {
	depth := strings.Count(at, "/")
	bad := to == "" || len(to) > maxPath || strings.ContainsAny(to, "\x00\\")
	descended := false
	for part := range strings.SplitSeq(to, "/") {
		switch part {
		case "", ".":
			bad = true
		case "..":
			depth--
			bad = bad || descended || depth < 0
		default:
			descended = true
		}
	}
	if bad {
		return atelier.Errorf(atelier.Corrupt, "the environment has a link %.120q to %.120q, which leads out of it", at, to)
	}
	return nil
}
