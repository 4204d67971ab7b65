package state

import (
	"errors"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// What is not signed, or not by a key that is pinned, is refused with a reason, also
// after a restart without a hub.
func TestImagesAreVerifiedOffline(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	key, stranger := imageKey(t), imageKey(t)
	manifest := []byte(`{"schemaVersion":2}`)
	sign := func(s trust.Signer) []byte {
		t.Helper()
		envelope, err := trust.SignImage(atelier.DigestOf(manifest), s)
		if err != nil {
			t.Fatal(err)
		}
		return envelope
	}
	refused := func(manifest, envelope []byte, reason atelier.Reason) {
		t.Helper()
		err := b.store.VerifyImage(manifest, envelope)
		var e *trust.Error
		if why := trust.WhyOf(err); !errors.As(err, &e) || why.Reason() != reason || why.Remedy() == "" {
			t.Errorf("%v, want the reason %s with a remedy", err, reason)
		}
	}
	// A hub of before signs no images, and delegates no key for them.
	refused(manifest, nil, atelier.ReasonImageUnsigned)
	refused(manifest, sign(key), atelier.ReasonImageSignatureWrong)

	if changed, err := b.store.ApplyTrust([]wire.Raw{b.hub.DelegateImages(t, key.Public())}); !changed || err != nil {
		t.Fatal(changed, err)
	}
	for range 2 {
		if err := b.store.VerifyImage(manifest, sign(key)); err != nil {
			t.Error(err)
		}
		refused(manifest, sign(stranger), atelier.ReasonImageSignatureWrong)
		refused([]byte(`{"schemaVersion":3}`), sign(key), atelier.ReasonImageSignatureWrong)
		refused(manifest, nil, atelier.ReasonImageUnsigned)
		b.open() // the agent starts again, and knows no more than what is on its disk
	}
}

func imageKey(t *testing.T) trust.Signer {
	t.Helper()
	key, err := trust.NewImageKey()
	if err != nil {
		t.Fatal(err)
	}
	s, err := trust.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
