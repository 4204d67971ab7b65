package registry

import (
	"unicode/utf8"

	atelier "github.com/atelier-edge/atelier"
)

const (
	maxDescription = 4096 // bytes
	maxTags        = 64
	maxTag         = 256 // bytes of a tag's name, and of its value
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

// set replaces what is at to where there is something to replace it with.
func set[T any](to *T, with *T) {
	if with != nil {
		*to = *with
	}
}
