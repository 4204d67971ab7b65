package authority

import (
	"testing"

	"github.com/atelier-edge/atelier/internal/trust"
)

// The keys of images survive a restart and every rotation of the keys above them.
func TestImageKeysStayThroughRotations(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := open(t, Options{Dir: dir})
	key, err := trust.NewImageKey()
	if err != nil {
		t.Fatal(err)
	}
	signer, err := trust.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	root, before, err := a.Pin(workspace)
	if err != nil {
		t.Fatal(err)
	}
	device, err := trust.Pin(workspace, root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := device.Apply(before); err != nil {
		t.Fatal(err)
	}
	follow := func(a *Authority) {
		t.Helper()
		chain, err := a.TrustChain(workspace, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, envelope := range chain {
			_, _ = device.Apply(envelope) // what it has is refused
		}
		if _, has := device.ImageKeys()[signer.Public().ID()]; !has {
			t.Error("the device does not trust the key of images")
		}
		if keys := a.ImageKeys(workspace); len(keys) != 1 || !keys[0].Equal(signer.Public()) {
			t.Errorf("the authority names %d keys for images", len(keys))
		}
	}
	for i, want := range []bool{true, false} {
		if changed, err := a.DelegateImages(workspace, []trust.PublicKey{signer.Public()}); changed != want || err != nil {
			t.Fatalf("time %d: changed %v, %v", i+1, changed, err)
		}
	}
	follow(a)
	if err := a.RotateStateKey(t.Context(), workspace); err != nil {
		t.Fatal(err)
	}
	follow(a)
	if err := a.RotateRoot(t.Context()); err != nil {
		t.Fatal(err)
	}
	follow(a)
	follow(open(t, Options{Dir: dir}))
	if keys := a.ImageKeys(another); len(keys) != 0 {
		t.Errorf("another workspace has %d keys for images", len(keys))
	}
	if _, err := a.DelegateImages(workspace, nil); err != nil {
		t.Fatal(err)
	}
	chain, err := a.TrustChain(workspace, 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := device.Apply(chain[0]); err != nil || len(device.ImageKeys()) != 0 {
		t.Errorf("a key that is no longer named is trusted: %v", err)
	}
}
