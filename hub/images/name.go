package images

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

const (
	maxName = 255 // bytes of a repository's name with its workspace's, as clients bound it
	maxTag  = 128
)

// CheckName checks the name of a repository, with or without its workspace's before
// it: segments with '/' between them, each of a-z and 0-9 with '.', '_', '__' or any
// number of '-' in between, as OCI's distribution specification has it.
func CheckName(name string) error {
	bad := func(why string) error {
		return atelier.Errorf(atelier.Invalid, "the repository name %.80q %s", name, why).WithField(FieldName).
			WithRemedy("Use a-z and 0-9, with '.', '_', '__' or '-' in between, and '/' between segments.")
	}
	if name == "" || len(name) > maxName {
		return bad("is empty, or longer than 255 characters")
	}
	for segment := range strings.SplitSeq(name, "/") {
		if !segmentOK(segment) {
			return bad("has a segment that is empty or holds what is not allowed")
		}
	}
	return nil
}

// segmentOK reports whether s is letters and digits with separators in between.
func segmentOK(s string) bool {
	if s == "" || !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); {
		if alnum(s[i]) {
			i++
			continue
		}
		start := i
		for i < len(s) && !alnum(s[i]) {
			i++
		}
		switch separator := s[start:i]; {
		case separator == "." || separator == "_" || separator == "__":
		case strings.Trim(separator, "-") == "":
		default:
			return false
		}
	}
	return true
}

func alnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// checkTag checks the name of a tag.
func checkTag(tag string) error {
	ok := tag != "" && len(tag) <= maxTag && tag[0] != '.' && tag[0] != '-'
	for _, c := range []byte(tag) {
		ok = ok && (alnum(c) || c >= 'A' && c <= 'Z' || c == '_' || c == '.' || c == '-')
	}
	if !ok {
		return atelier.Errorf(atelier.Invalid, "the tag %.80q is none", tag).WithField(FieldTag).
			WithRemedy("Use 1 to 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-'.")
	}
	return nil
}

// CheckDigest checks a digest as images give it: "sha256:" or "sha512:", and as many
// lower-case hexadecimal digits as belong to it.
func CheckDigest(digest string) error {
	algorithm, hexa, ok := strings.Cut(digest, ":")
	size := map[string]int{"sha256": sha256.Size, "sha512": sha512.Size}[algorithm]
	if ok && size > 0 && len(hexa) == 2*size && strings.Trim(hexa, "0123456789abcdef") == "" {
		return nil
	}
	return atelier.Errorf(atelier.Invalid, "%.160q is no digest", digest).WithField(FieldDigest).
		WithRemedy("Write it as sha256: or sha512: and 64 or 128 lower-case hexadecimal digits.")
}

// hasher returns the hash that a checked digest is made with, nil for that of the
// content store.
func hasher(digest string) hash.Hash {
	if strings.HasPrefix(digest, "sha512:") {
		return sha512.New()
	}
	return nil
}

// digestLike returns the digest of b under the algorithm that like uses; SHA-256
// where like is no digest.
func digestLike(like string, b []byte) string {
	if h := hasher(like); h != nil {
		h.Write(b)
		return "sha512:" + hex.EncodeToString(h.Sum(nil))
	}
	return string(atelier.DigestOf(b))
}

// contentOf returns under which digest the content store has what digest names, ""
// where that is not known from the digest alone.
func contentOf(digest string) atelier.Digest {
	if strings.HasPrefix(digest, "sha256:") {
		return atelier.Digest(digest)
	}
	return ""
}

// Reference names an image in a repository: a tag or a digest.
type Reference string

// IsDigest reports whether the reference is meant as a digest; no tag has a colon.
func (r Reference) IsDigest() bool { return strings.Contains(string(r), ":") }

// Check checks the reference.
func (r Reference) Check() error {
	if r.IsDigest() {
		return CheckDigest(string(r))
	}
	return checkTag(string(r))
}
