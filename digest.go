package atelier

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"strings"
)

// Digest names content by its SHA-256, written "sha256:" and 64 lower-case hex
// digits, as OCI does. The zero value names nothing.
type Digest string

const digestPrefix = "sha256:"

// DigestOf returns the digest of b.
func DigestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest(digestPrefix + hex.EncodeToString(sum[:]))
}

// DigestFrom returns the digest that h, a SHA-256 in progress, stands at.
func DigestFrom(h hash.Hash) Digest {
	return Digest(digestPrefix + hex.EncodeToString(h.Sum(nil)))
}

// DigestFromSum returns the digest for a finished SHA-256 sum.
func DigestFromSum(sum [sha256.Size]byte) Digest {
	return Digest(digestPrefix + hex.EncodeToString(sum[:]))
}

// ParseDigest checks s and returns it as a Digest; an *Error with code Invalid
// says what is wrong with it otherwise. A Digest read from outside must pass
// here before it becomes part of a path.
func ParseDigest(s string) (Digest, error) {
	bad := func(why string) (Digest, error) {
		return "", Errorf(Invalid, "digest %q %s", clip(s, 80), why).
			WithRemedy("Write it as sha256: followed by 64 lower-case hexadecimal digits.")
	}
	hexa, ok := strings.CutPrefix(s, digestPrefix)
	if !ok {
		return bad("does not start with sha256:")
	}
	if len(hexa) != 2*sha256.Size {
		return bad("does not have 64 hexadecimal digits")
	}
	for _, c := range []byte(hexa) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return bad("holds a character that is no lower-case hexadecimal digit")
		}
	}
	return Digest(s), nil
}

// Hex returns the 64 hexadecimal digits without the algorithm.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), digestPrefix) }

// Short returns the first 12 hexadecimal digits, for people to read; it
// identifies nothing.
func (d Digest) Short() string { return clip(d.Hex(), 12) }

// Sum returns the raw 32 bytes, or an error where d is not well formed.
func (d Digest) Sum() (sum [sha256.Size]byte, err error) {
	if _, err = ParseDigest(string(d)); err != nil {
		return sum, err
	}
	_, err = hex.Decode(sum[:], []byte(d.Hex()))
	return sum, err
}

func (d Digest) String() string { return string(d) }

// clip shortens s to n bytes, for messages.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n]
}
