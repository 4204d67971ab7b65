package trust

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

func TestKeyPEM(t *testing.T) {
	t.Parallel()
	key, err := NewDeviceKey()
	if err != nil {
		t.Fatal(err)
	}
	b, err := EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseKey(b)
	if err != nil || !key.PublicKey.Equal(back.Public()) {
		t.Fatalf("another key came back: %v", err)
	}
	for _, bad := range [][]byte{nil, []byte("x"), bytes.Replace(b, []byte("PRIVATE"), []byte("PUBLIC"), 2), b[:len(b)/2]} {
		if _, err := ParseKey(bad); atelier.CodeOf(err) != atelier.Invalid {
			t.Fatalf("got %v, want code %s", err, atelier.Invalid)
		}
	}
}

func TestCSR(t *testing.T) {
	t.Parallel()
	key, err := NewDeviceKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := NewCSR(key, "shed-7")
	if err != nil {
		t.Fatal(err)
	}
	csr, public, err := ParseCSR(der)
	if err != nil || csr.Subject.CommonName != "shed-7" {
		t.Fatalf("got %v, %v", csr, err)
	}
	signer, err := NewSigner(key)
	if err != nil || public.ID() != signer.Public().ID() {
		t.Fatalf("the request is for another key: %v", err)
	}
	forged := bytes.Clone(der)
	forged[bytes.Index(forged, []byte("shed-7"))] = 'S'
	for _, bad := range [][]byte{nil, forged, make([]byte, maxCSR+1)} {
		if _, _, err := ParseCSR(bad); atelier.CodeOf(err) != atelier.Invalid {
			t.Fatalf("got %v, want code %s", err, atelier.Invalid)
		}
	}
}

func testCertificate(t testing.TB) *x509.Certificate {
	t.Helper()
	key, err := NewDeviceKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestCertificatePEM(t *testing.T) {
	t.Parallel()
	cert := testCertificate(t)
	b := EncodeCertificate(cert.Raw)
	got, err := ParseCertificate(b)
	if err != nil || !got.Equal(cert) {
		t.Fatalf("another certificate came back: %v", err)
	}
	for _, bad := range [][]byte{nil, cert.Raw, append(bytes.Clone(b), b...), append(bytes.Clone(b), 'x')} {
		if _, err := ParseCertificate(bad); atelier.CodeOf(err) != atelier.Invalid {
			t.Fatalf("got %v, want code %s", err, atelier.Invalid)
		}
	}
}

func TestParseFingerprint(t *testing.T) {
	t.Parallel()
	want := Fingerprint(testCertificate(t))
	hexa := want.Hex()
	var pairs []string
	for i := 0; i < len(hexa); i += 2 {
		pairs = append(pairs, hexa[i:i+2])
	}
	colons := strings.Join(pairs, ":")
	for _, s := range []string{
		string(want), hexa, strings.ToUpper(hexa), colons, strings.ToUpper(colons), "sha256:" + colons,
		" SHA256:" + hexa + "\n", "sha256 Fingerprint=" + strings.ToUpper(colons),
	} {
		if got, err := ParseFingerprint(s); err != nil || got != want {
			t.Errorf("%q: got %s, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "sha256:", hexa[1:], hexa + "00", "sha1:" + hexa, strings.Repeat("g", 64)} {
		if _, err := ParseFingerprint(s); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%q: got %v, want code %s", s, err, atelier.Invalid)
		}
	}
}

func FuzzParseCSR(f *testing.F) {
	key, err := NewDeviceKey()
	if err != nil {
		f.Fatal(err)
	}
	der, err := NewCSR(key, "x")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add([]byte("0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if csr, public, err := ParseCSR(b); err == nil && (csr == nil || len(public.SPKI()) == 0) {
			t.Fatal("accepted without a key")
		}
	})
}

func FuzzParsePEM(f *testing.F) {
	key, err := NewHubKey()
	if err != nil {
		f.Fatal(err)
	}
	b, err := EncodeKey(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(EncodeCertificate(testCertificate(f).Raw))
	f.Fuzz(func(t *testing.T, b []byte) {
		if key, err := ParseKey(b); err == nil {
			if _, err := NewSigner(key); err != nil {
				t.Fatalf("a key was read that cannot sign: %v", err)
			}
		}
		if cert, err := ParseCertificate(b); err == nil && len(cert.Raw) == 0 {
			t.Fatal("an empty certificate was read")
		}
	})
}

func FuzzParseFingerprint(f *testing.F) {
	f.Add("sha256:" + strings.Repeat("0a", 32))
	f.Add("AB:CD")
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := ParseFingerprint(s); err == nil {
			if _, err := atelier.ParseDigest(string(d)); err != nil {
				t.Fatalf("%q became %q: %v", s, d, err)
			}
		}
	})
}
