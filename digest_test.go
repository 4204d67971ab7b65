package atelier

import (
	"crypto/sha256"
	"strings"
	"testing"
)

func TestParseDigest(t *testing.T) {
	t.Parallel()
	good := string(DigestOf([]byte("x")))
	for _, c := range []struct {
		in string
		ok bool
	}{
		{good, true},
		{"", false},
		{strings.ToUpper(good), false},
		{good[7:], false},
		{good + "0", false},
		{good[:len(good)-1], false},
		{good[:len(good)-1] + "g", false},
		{"sha256:../../../../etc/passwd" + strings.Repeat("0", 42), false},
		{"sha512:" + good[7:], false},
	} {
		d, err := ParseDigest(c.in)
		if (err == nil) != c.ok {
			t.Errorf("ParseDigest(%q) gave %v", c.in, err)
		}
		if err != nil && (CodeOf(err) != Invalid || d != "") {
			t.Errorf("ParseDigest(%q) gave %q and code %s", c.in, d, CodeOf(err))
		}
	}
}

func TestDigestForms(t *testing.T) {
	t.Parallel()
	sum := sha256.Sum256([]byte("content"))
	h := sha256.New()
	h.Write([]byte("content"))
	d := DigestOf([]byte("content"))
	if DigestFrom(h) != d || DigestFromSum(sum) != d {
		t.Errorf("%s, %s and %s are not one", DigestFrom(h), DigestFromSum(sum), d)
	}
	if got, err := d.Sum(); err != nil || got != sum {
		t.Errorf("Sum gave %x, %v", got, err)
	}
	if _, err := Digest("sha256:xyz").Sum(); err == nil {
		t.Error("Sum of a malformed digest gave no error")
	}
	if d.Short() != d.Hex()[:12] || Digest("").Short() != "" {
		t.Errorf("Short gave %q", d.Short())
	}
}
