package trust

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

func imageSigner(t testing.TB) Signer {
	t.Helper()
	key, err := NewImageKey()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func refusedAs(t *testing.T, err error, reason atelier.Reason) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Reason != reason || WhyOf(err).Reason() != reason {
		t.Errorf("%v, want the reason %s", err, reason)
	}
}

func TestVerifyImage(t *testing.T) {
	t.Parallel()
	manifest, other := []byte(`{"schemaVersion":2}`), []byte(`{"schemaVersion":2} `)
	key, stranger := imageSigner(t), imageSigner(t)
	keys := NewKeySet(key.Public())
	sign := func(s Signer) []byte {
		t.Helper()
		envelope, err := SignImage(atelier.DigestOf(manifest), s)
		if err != nil {
			t.Fatal(err)
		}
		return envelope
	}
	envelope := sign(key)
	if err := VerifyImage(manifest, envelope, keys); err != nil {
		t.Fatal(err)
	}
	if err := VerifyImage(manifest, envelope, NewKeySet(stranger.Public(), key.Public())); err != nil {
		t.Fatal("a second key that is trusted spoils it:", err)
	}
	refusedAs(t, VerifyImage(manifest, nil, keys), atelier.ReasonImageUnsigned)
	refusedAs(t, VerifyImage(other, envelope, keys), atelier.ReasonImageSignatureWrong)
	refusedAs(t, VerifyImage(manifest, sign(stranger), keys), atelier.ReasonImageSignatureWrong)
	refusedAs(t, VerifyImage(manifest, envelope, nil), atelier.ReasonImageSignatureWrong)
	refusedAs(t, VerifyImage(manifest, []byte("{}"), keys), atelier.ReasonImageSignatureWrong)

	// A statement that is no signature, and a signature of something else.
	lineage, err := SignStatement(atelier.DigestOf(manifest), "https://slsa.dev/provenance/v1", []byte("{}"), key)
	if err != nil {
		t.Fatal(err)
	}
	refusedAs(t, VerifyImage(manifest, lineage, keys), atelier.ReasonImageSignatureWrong)
	foreign, err := Sign("application/vnd.atelier.desired.v1+json", []byte("{}"), key)
	if err != nil {
		t.Fatal(err)
	}
	refusedAs(t, VerifyImage(manifest, foreign, keys), atelier.ReasonImageSignatureWrong)

	// One flipped byte anywhere: refused, or without meaning.
	for i := range envelope {
		flipped := bytes.Clone(envelope)
		flipped[i] ^= 1
		if err := VerifyImage(manifest, flipped, keys); err == nil {
			if _, err := OpenStatement(flipped, keys); err != nil {
				t.Errorf("byte %d: taken as an image's signature, and is no statement: %v", i, err)
			}
			if bytes.Equal(payloadOf(t, flipped), payloadOf(t, envelope)) {
				continue // base64 has bits that say nothing
			}
			t.Errorf("byte %d flipped is taken", i)
		}
	}
	for i := range manifest {
		flipped := bytes.Clone(manifest)
		flipped[i] ^= 1
		refusedAs(t, VerifyImage(flipped, envelope, keys), atelier.ReasonImageSignatureWrong)
	}
}

func payloadOf(t *testing.T, envelope []byte) []byte {
	t.Helper()
	_, payload, err := Peek(envelope)
	if err != nil {
		t.Fatal(err)
	}
	return payload
}

// The keys of images stand in the delegation, which devices of before read too.
func TestImageKeysFollowTheDelegation(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := pin(t, h)
	state, first, second := hubSigner(t), imageSigner(t), imageSigner(t)
	delegate := func(version int, images ...PublicKey) []byte {
		t.Helper()
		raw, err := SignDelegation(Delegation{
			Role: RoleState, Workspace: ours, Version: version, Issued: time.Unix(0, 0), Keys: []PublicKey{state.Public()}, Images: images,
		}, h.key)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	apply(t, p, delegate(1))
	if n := len(p.ImageKeys()); n != 0 {
		t.Fatalf("%d keys are trusted for images before there is one", n)
	}
	apply(t, p, delegate(2, second.Public(), first.Public()))
	saved, err := p.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if p, err = ParsePinned(saved); err != nil {
		t.Fatal(err)
	}
	manifest := []byte("{}")
	for _, key := range []Signer{first, second} {
		envelope, err := SignImage(atelier.DigestOf(manifest), key)
		if err != nil {
			t.Fatal(err)
		}
		if err := VerifyImage(manifest, envelope, p.ImageKeys()); err != nil {
			t.Error(err)
		}
	}
	if len(p.StateKeys(ours)) != 1 {
		t.Error("a key of images may sign desired states")
	}
	apply(t, p, delegate(3, second.Public()))
	envelope, err := SignImage(atelier.DigestOf(manifest), first)
	if err != nil {
		t.Fatal(err)
	}
	refusedAs(t, VerifyImage(manifest, envelope, p.ImageKeys()), atelier.ReasonImageSignatureWrong)
	if _, err := p.Apply(delegate(4, slices.Repeat([]PublicKey{first.Public()}, MaxKeys+1)...)); err == nil {
		t.Error("a delegation with too many keys is taken")
	}
}

// A signature is refused with one of the two reasons, or is one of these keys' about
// this manifest.
func FuzzVerifyImage(f *testing.F) {
	key := imageSigner(f)
	keys := NewKeySet(key.Public())
	manifest := []byte(`{"schemaVersion":2}`)
	good, err := SignImage(atelier.DigestOf(manifest), key)
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range [][]byte{nil, []byte("{}"), good, bytes.ToUpper(good), []byte(`{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":""}]}`)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, envelope []byte) {
		err := VerifyImage(manifest, envelope, keys)
		if err == nil {
			if _, payload, err := Peek(envelope); err != nil || !bytes.Contains(payload, []byte(atelier.DigestOf(manifest)[len("sha256:"):])) {
				t.Errorf("taken is %q", envelope)
			}
			return
		}
		var e *Error
		if !errors.As(err, &e) || e.Reason != atelier.ReasonImageUnsigned && e.Reason != atelier.ReasonImageSignatureWrong || e.Err.Remedy == "" {
			t.Errorf("%v carries no reason of an image", err)
		}
	})
}
