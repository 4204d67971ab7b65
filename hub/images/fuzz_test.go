package images

import (
	"regexp"
	"strings"
	"testing"
)

var (
	// As OCI's distribution specification has them.
	nameForm   = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagForm    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	digestForm = regexp.MustCompile(`^(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$`)
)

// Names, tags and digests are taken where the specification's own patterns take them.
func FuzzName(f *testing.F) {
	for _, s := range []string{
		"", "a", "a/b", "a..b", "a__b", "a___b", "a---b", "a.-b", "-a", "a-", "A", "a/", "/a", "a//b", "a\n", "a/b:1.4", "a@sha256:" + strings.Repeat("0", 64),
		"sha512:" + strings.Repeat("f", 128), "sha256:" + strings.Repeat("F", 64), ".hidden", "_x", strings.Repeat("a", 300), "a:", "a@", "a:b@c",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		plain := !strings.Contains(s, "\n") // after which a $ still matches
		if got, want := CheckName(s) == nil, plain && len(s) <= maxName && nameForm.MatchString(s); got != want {
			t.Errorf("%q as a name: %v, want %v", s, got, want)
		}
		if got, want := checkTag(s) == nil, plain && tagForm.MatchString(s); got != want {
			t.Errorf("%q as a tag: %v, want %v", s, got, want)
		}
		if got, want := CheckDigest(s) == nil, plain && digestForm.MatchString(s); got != want {
			t.Errorf("%q as a digest: %v, want %v", s, got, want)
		}
		repository, ref, err := ParseName(s)
		if err != nil {
			return
		}
		if back := repository + ":" + string(ref); back != s && repository+"@"+string(ref) != s && (repository != s || ref != "") {
			t.Errorf("%q is read as %q and %q", s, repository, ref)
		}
	})
}

// A manifest is refused, or names parts by digests and with sizes that can be.
func FuzzManifest(f *testing.F) {
	part := `{"mediaType":"a/b","digest":"sha256:` + strings.Repeat("0", 64) + `","size":1}`
	for _, s := range []string{
		"", "{}", "[]", "null", `{"schemaVersion":2}`,
		`{"schemaVersion":2,"mediaType":"` + TypeImage + `","config":` + part + `,"layers":[` + part + `],"subject":` + part + `}`,
		`{"schemaVersion":2,"mediaType":"` + TypeIndex + `","manifests":[` + part + `]}`,
		`{"schemaVersion":2,"config":` + part + `,"manifests":[` + part + `]}`,
		`{"schemaVersion":2,"config":{"digest":"sha256:../../x","size":-1}}`,
		`{"schemaVersion":2,"config":` + part + `}}`, strings.Repeat("[", 10000),
	} {
		f.Add("", []byte(s))
		f.Add(TypeImage+"; charset=utf-8", []byte(s))
	}
	f.Fuzz(func(t *testing.T, mediaType string, b []byte) {
		m, err := parseManifest(mediaType, b)
		if err != nil {
			return
		}
		if m.index() == (m.Config != nil) || len(m.parts()) > maxParts+1 {
			t.Errorf("taken is %+v", m)
		}
		for _, p := range m.parts() {
			if CheckDigest(p.Digest) != nil || p.Size < 0 {
				t.Errorf("taken is the part %+v", p)
			}
		}
	})
}
