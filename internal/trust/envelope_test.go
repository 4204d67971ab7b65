package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

const testType = "application/vnd.atelier.test.v1+json"

func newSigner(t testing.TB, make func() (crypto.Signer, error)) Signer {
	t.Helper()
	key, err := make()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func hubSigner(t testing.TB) Signer {
	return newSigner(t, func() (crypto.Signer, error) { return NewHubKey() })
}

func deviceSigner(t testing.TB) Signer {
	return newSigner(t, func() (crypto.Signer, error) { return NewDeviceKey() })
}

func mustSign(t testing.TB, payloadType string, payload string, signers ...Signer) []byte {
	t.Helper()
	raw, err := Sign(payloadType, []byte(payload), signers...)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// wantReason fails unless err is an *Error with the reason and, behind it, an
// *atelier.Error.
func wantReason(t testing.TB, err error, reason atelier.Reason) {
	t.Helper()
	var e *Error
	var typed *atelier.Error
	if !errors.As(err, &e) || e.Reason != reason || !errors.As(err, &typed) {
		t.Fatalf("got %v (%T), want an *Error with reason %s", err, err, reason)
	}
	if WhyOf(err).Reason() != reason {
		t.Fatalf("WhyOf says %s, want %s", WhyOf(err).Reason(), reason)
	}
}

func TestSignOpen(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]Signer{"hub": hubSigner(t), "device": deviceSigner(t)} {
		for _, payload := range []string{"", `{"a":1}`, strings.Repeat("x", 100_000)} {
			raw := mustSign(t, testType, payload, s)
			typ, got, err := Open(raw, NewKeySet(hubSigner(t).Public(), s.Public()))
			if err != nil || typ != testType || string(got) != payload {
				t.Fatalf("%s: got %q, %d bytes, %v", name, typ, len(got), err)
			}
		}
	}
}

// The example of DSSE's protocol.md: its key, its signature, its bytes.
func TestPreAuthIsTheSpecifications(t *testing.T) {
	t.Parallel()
	message := preAuth("http://example.com/HelloWorld", []byte("hello world"))
	if want := "DSSEv1 29 http://example.com/HelloWorld 11 hello world"; string(message) != want {
		t.Fatalf("got %q, want %q", message, want)
	}
	number := func(s string) *big.Int {
		n, _ := new(big.Int).SetString(s, 10)
		return n
	}
	key := ecdsa.PublicKey{
		Curve: elliptic.P256(),
		X:     number("46950820868899156662930047687818585632848591499744589407958293238635476079160"),
		Y:     number("5640078356564379163099075877009565129882514886557779369047442380624545832820"),
	}
	sig, err := base64.StdEncoding.DecodeString("A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA==")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(message)
	if !ecdsa.Verify(&key, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		t.Fatal("the specification's signature does not verify over these bytes")
	}
}

func TestOpenTakesBothBase64Alphabets(t *testing.T) {
	t.Parallel()
	s := deviceSigner(t)
	raw := mustSign(t, testType, "\xff\xfe\xfd?>", s)
	var env envelope
	if err := json.Unmarshal(raw, &env); err != nil {
		t.Fatal(err)
	}
	url := strings.NewReplacer("+", "-", "/", "_")
	env.Payload, env.Signatures[0].Sig = url.Replace(env.Payload), url.Replace(env.Signatures[0].Sig)
	raw, err := json.Marshal(env)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(raw, NewKeySet(s.Public())); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefusesWhatWasChanged(t *testing.T) {
	t.Parallel()
	s, stranger := deviceSigner(t), deviceSigner(t)
	keys := NewKeySet(s.Public())
	raw := mustSign(t, testType, `{"generation":7}`, s)
	for name, change := range map[string]func(*envelope){
		"payload":      func(e *envelope) { e.Payload = base64.StdEncoding.EncodeToString([]byte(`{"generation":8}`)) },
		"type":         func(e *envelope) { e.PayloadType = "application/other" },
		"signature":    func(e *envelope) { e.Signatures[0].Sig = base64.StdEncoding.EncodeToString([]byte("no signature")) },
		"no signature": func(e *envelope) { e.Signatures[0].Sig = "" },
		"another's": func(e *envelope) {
			other := mustSign(t, testType, `{"generation":7}`, stranger)
			var o envelope
			if err := json.Unmarshal(other, &o); err != nil {
				t.Fatal(err)
			}
			e.Signatures[0].Sig = o.Signatures[0].Sig
		},
	} {
		var env envelope
		if err := json.Unmarshal(raw, &env); err != nil {
			t.Fatal(err)
		}
		change(&env)
		changed, err := json.Marshal(env)
		if err != nil {
			t.Fatal(err)
		}
		if _, payload, err := Open(changed, keys); err == nil || payload != nil {
			t.Fatalf("%s: accepted", name)
		} else {
			wantReason(t, err, atelier.ReasonSignatureInvalid)
		}
	}
}

func TestOpenNamesTheReason(t *testing.T) {
	t.Parallel()
	s := hubSigner(t)
	raw := mustSign(t, testType, "{}", s)
	_, _, err := Open(raw, NewKeySet(hubSigner(t).Public()))
	wantReason(t, err, atelier.ReasonKeyUnknown)
	_, _, err = Open(raw, nil)
	wantReason(t, err, atelier.ReasonKeyUnknown)
	for _, bad := range []string{
		"", "null", "{}", "[]", `{"payload":"e30=","payloadType":"t"}`, `{"payload":"e30=","payloadType":"t","signatures":[]}`,
		`{"payload":"!","payloadType":"t","signatures":[{"keyid":"a","sig":""}]}`,
		`{"payload":"e30=","payloadType":"","signatures":[{"keyid":"a","sig":""}]}`,
		string(raw) + "{}", strings.Repeat(" ", MaxEnvelope) + string(raw),
	} {
		_, _, err := Open([]byte(bad), NewKeySet(s.Public()))
		wantReason(t, err, atelier.ReasonSignatureInvalid)
		if atelier.CodeOf(err) != atelier.Invalid {
			t.Fatalf("%.40q: code %s, want %s", bad, atelier.CodeOf(err), atelier.Invalid)
		}
	}
}

// One valid signature is enough, whatever else is there, and a key counts once.
func TestSignaturesAreCountedByKey(t *testing.T) {
	t.Parallel()
	one, two, stranger := hubSigner(t), hubSigner(t), hubSigner(t)
	keys := NewKeySet(one.Public(), two.Public())
	raw := mustSign(t, testType, "{}", stranger, one)
	if _, _, err := Open(raw, keys); err != nil {
		t.Fatal(err)
	}
	s, err := parse(mustSign(t, testType, "{}", one, one, one))
	if err != nil {
		t.Fatal(err)
	}
	wantReason(t, s.verify(keys, 2), atelier.ReasonSignatureInvalid)
	if s, err = parse(mustSign(t, testType, "{}", one, two)); err != nil {
		t.Fatal(err)
	}
	if err := s.verify(keys, 2); err != nil {
		t.Fatal(err)
	}
}

func TestSignRefusesWhatNobodyCouldOpen(t *testing.T) {
	t.Parallel()
	if _, err := Sign(testType, nil); err == nil {
		t.Fatal("signed by nobody")
	}
	if _, err := Sign("", nil, hubSigner(t)); err == nil {
		t.Fatal("signed without a type")
	}
	if _, err := Sign(testType, nil, Signer{}); err == nil {
		t.Fatal("signed without a key")
	}
	if _, err := Sign(testType, make([]byte, MaxEnvelope), hubSigner(t)); atelier.CodeOf(err) != atelier.TooLarge {
		t.Fatalf("got %v, want code %s", err, atelier.TooLarge)
	}
}

func TestKeysOfOtherKindsAreRefused(t *testing.T) {
	t.Parallel()
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.Signer{weak, other} {
		if _, err := NewSigner(key); atelier.CodeOf(err) != atelier.Invalid {
			t.Fatalf("%T: got %v, want code %s", key, err, atelier.Invalid)
		}
		if _, err := NewCSR(key, "x"); err != nil {
			t.Fatal(err)
		}
		csr, err := NewCSR(key, "x")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := ParseCSR(csr); atelier.CodeOf(err) != atelier.Invalid {
			t.Fatalf("%T: got %v, want code %s", key, err, atelier.Invalid)
		}
	}
}

func TestPublicKeyJSON(t *testing.T) {
	t.Parallel()
	for _, s := range []Signer{hubSigner(t), deviceSigner(t)} {
		b, err := json.Marshal(s.Public())
		if err != nil {
			t.Fatal(err)
		}
		var got PublicKey
		if err := json.Unmarshal(b, &got); err != nil || !got.Equal(s.Public()) || got.ID() != s.Public().ID() {
			t.Fatalf("got %v, %v", got, err)
		}
	}
	var k PublicKey
	for _, bad := range []string{"null", `""`, `"AAAA"`, "1"} {
		if err := json.Unmarshal([]byte(bad), &k); err == nil {
			t.Fatalf("%s was taken for a key", bad)
		}
	}
}

func FuzzOpen(f *testing.F) {
	s := deviceSigner(f)
	keys := NewKeySet(s.Public())
	f.Add(mustSign(f, testType, `{"a":1}`, s))
	f.Add([]byte(`{"payload":"e30=","payloadType":"t","signatures":[{"keyid":"a","sig":"AA=="}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		typ, payload, err := Open(raw, keys)
		if err == nil && (typ != testType || string(payload) != `{"a":1}`) {
			t.Fatalf("something else than what was signed was opened: %q %q", typ, payload)
		}
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("%T is no *Error", err)
		}
	})
}
