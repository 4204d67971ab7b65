package atelier

import (
	"strings"
)

// maxName is the longest name in bytes; with it a name fits a DNS label and a
// file name.
const maxName = 63

// CheckName checks that name can name a thing of the given kind ("model",
// "device", …): 1 to 63 characters of a-z, 0-9, '-', '_' and '.', beginning and
// ending with a letter or digit, and not of the form of an id. It returns an
// *Error with code Invalid otherwise.
func CheckName(kind, name string) error {
	bad := func(why string) error {
		return Errorf(Invalid, "%s name %q %s", kind, clip(name, 80), why).
			WithField("name").
			WithRemedy("Use 1 to 63 characters of a-z, 0-9, '-', '_' and '.', beginning and ending with a letter or a digit.")
	}
	switch {
	case name == "":
		return bad("is empty")
	case len(name) > maxName:
		return bad("is longer than 63 characters")
	case IsID(name):
		return bad("has the form of an id")
	}
	for i := range len(name) {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && c != '-' && c != '_' && c != '.' {
			return bad("holds a character that is not allowed")
		}
		if !alnum && (i == 0 || i == len(name)-1) {
			return bad("begins or ends with a character that is neither letter nor digit")
		}
	}
	return nil
}

// CheckFilePath checks that p can name a file within a model version: relative,
// with '/' between its segments, none of them empty, "." or "..", no control
// character, backslash or colon, and at most 512 bytes. It returns an *Error
// with code Invalid otherwise.
func CheckFilePath(p string) error {
	bad := func(why string) error {
		return Errorf(Invalid, "file path %q %s", clip(p, 120), why).
			WithField("path").
			WithRemedy("Use a relative path with '/' between its segments, without '.', '..' or special characters.")
	}
	if p == "" {
		return bad("is empty")
	}
	if len(p) > 512 {
		return bad("is longer than 512 bytes")
	}
	for _, c := range p {
		if c < ' ' || c == 0x7f || c == '\\' || c == ':' || c == '�' {
			return bad("holds a character that is not allowed")
		}
	}
	for seg := range strings.SplitSeq(p, "/") {
		switch seg {
		case "":
			return bad("is absolute or has an empty segment")
		case ".", "..":
			return bad("holds the segment " + seg)
		}
	}
	return nil
}

// Labels describe a device; a selector matches on them.
type Labels map[string]string

// ParseLabels reads "key=value,key=value" as people type it. Keys follow the
// rules of names; values are at most 63 printable characters without ','.
func ParseLabels(s string) (Labels, error) {
	labels := Labels{}
	if strings.TrimSpace(s) == "" {
		return labels, nil
	}
	for pair := range strings.SplitSeq(s, ",") {
		k, v, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if !ok {
			return nil, Errorf(Invalid, "label %q has no '='", clip(pair, 80)).
				WithField("labels").WithRemedy("Write labels as key=value, with commas between them.")
		}
		if _, twice := labels[k]; twice {
			return nil, Errorf(Invalid, "label %q is given twice", clip(k, 80)).WithField("labels")
		}
		labels[k] = v
	}
	return labels, labels.Check()
}

// Check returns an *Error with code Invalid where a key or value is malformed
// or there are more than 64 of them.
func (l Labels) Check() error {
	if len(l) > 64 {
		return Errorf(Invalid, "%d labels given, at most 64 are allowed", len(l)).WithField("labels")
	}
	for k, v := range l {
		if err := CheckName("label", k); err != nil {
			return err
		}
		if len(v) > maxName || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f || r == ',' }) {
			return Errorf(Invalid, "value %q of label %q is longer than 63 bytes or holds a comma or control character", clip(v, 80), k).
				WithField("labels").WithRemedy("Use at most 63 printable characters without a comma.")
		}
	}
	return nil
}

// Match reports whether l holds every pair of selector. An empty selector
// matches nothing: to mean all devices one must say so.
func (l Labels) Match(selector Labels) bool {
	if len(selector) == 0 {
		return false
	}
	for k, v := range selector {
		if got, ok := l[k]; !ok || got != v {
			return false
		}
	}
	return true
}
