package registry

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	atelier "github.com/atelier-edge/atelier"
)

const (
	maxDescription = 4096 // bytes
	maxTags        = 64
	maxTag         = 256 // bytes of a tag's name, and of its value
	maxFiles       = 2000
)

// checkTexts checks what people write about a resource.
func checkTexts(description string, tags map[string]string) error {
	if len(description) > maxDescription || !utf8.ValidString(description) {
		return atelier.Errorf(atelier.Invalid, "the description has %d bytes; at most %d of UTF-8 text are taken", len(description), maxDescription).
			WithField("description")
	}
	if len(tags) > maxTags {
		return atelier.Errorf(atelier.Invalid, "%d tags given, at most %d are taken", len(tags), maxTags).WithField("tags")
	}
	for k, v := range tags {
		if k == "" || len(k) > maxTag || len(v) > maxTag || !utf8.ValidString(k) || !utf8.ValidString(v) {
			return atelier.Errorf(atelier.Invalid, "tag %.80q is empty, is no text, or is longer than %d bytes in name or value", k, maxTag).WithField("tags")
		}
	}
	return nil
}

// checkPaths checks that files can be laid out as they are named: at least one,
// no path twice, none that is the directory of another. Paths that some file systems
// of devices take for the same count as the same (see folded). It sorts them by path.
func checkPaths(files []atelier.File) error {
	if len(files) == 0 || len(files) > maxFiles {
		return atelier.Errorf(atelier.Invalid, "%d files are given; 1 to %d are taken", len(files), maxFiles).WithField("files")
	}
	seen := make(map[string]string, len(files)) // path by what it is folded to
	for i, f := range files {
		field := fmt.Sprintf("files[%d]", i)
		if err := atelier.CheckFilePath(f.Path); err != nil {
			return inField(err, field+".path")
		}
		if _, err := atelier.ParseDigest(string(f.Digest)); err != nil {
			return inField(err, field+".digest")
		}
		switch other, taken := seen[folded(f.Path)]; {
		case taken && other == f.Path:
			return atelier.Errorf(atelier.Invalid, "two files have the path %q", f.Path).WithField(field + ".path")
		case taken:
			return atelier.Errorf(atelier.Invalid, "the paths %+q and %+q differ only in case or in how Unicode writes their characters; some devices' file systems take them for the same file", other, f.Path).
				WithField(field + ".path").WithRemedy("Rename one of the two.")
		}
		seen[folded(f.Path)] = f.Path
	}
	for i, f := range files {
		for dir := parent(f.Path); dir != ""; dir = parent(dir) {
			if file, taken := seen[folded(dir)]; taken {
				return atelier.Errorf(atelier.Invalid, "%q is a file, and the directory of %q", file, f.Path).WithField(fmt.Sprintf("files[%d].path", i))
			}
		}
	}
	slices.SortFunc(files, func(a, b atelier.File) int { return strings.Compare(a.Path, b.Path) })
	return nil
}

// folded returns what a path has in common with all that a file system may take for
// the same: those of Windows, macOS and ext4 with casefold do not tell case, the latter
// two not how an accented letter is written.
func folded(path string) string {
	return norm.NFD.String(cases.Fold().String(norm.NFD.String(path)))
}

// inField says which part of the request err is about.
func inField(err error, field string) error {
	var e *atelier.Error
	if errors.As(err, &e) {
		return e.WithField(field)
	}
	return err
}

// parent returns the directory of a path, "" for none.
func parent(path string) string {
	return path[:max(0, strings.LastIndexByte(path, '/'))]
}

// set replaces what is at to where there is something to replace it with.
func set[T any](to *T, with *T) {
	if with != nil {
		*to = *with
	}
}
