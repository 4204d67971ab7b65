package trust

import (
	"encoding/json"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

const (
	ours   = "01j00000000000000000000001"
	theirs = "01j00000000000000000000002"
)

// hub is as much of a hub as signing takes.
type hub struct {
	t       testing.TB
	key     Signer
	version int
}

func newHub(t testing.TB) *hub { return &hub{t: t, key: hubSigner(t)} }

// next returns the next root, with a new key, signed by signers.
func (h *hub) next(key Signer, signers ...Signer) []byte {
	h.t.Helper()
	h.version++
	h.key = key
	raw, err := SignRoot(Root{
		Version: h.version, Issued: time.Unix(0, 0), Expires: time.Unix(1<<36, 0),
		Roles: map[string]Role{
			RoleRoot: {Threshold: 1, Keys: []PublicKey{key.Public()}},
			"future": {Threshold: 9, Keys: nil}, // what we do not know is ignored
		},
	}, signers...)
	if err != nil {
		h.t.Fatal(err)
	}
	return raw
}

func (h *hub) first() []byte { return h.next(h.key, h.key) }

func (h *hub) rotate() []byte {
	before, after := h.key, hubSigner(h.t)
	return h.next(after, before, after)
}

func (h *hub) delegate(workspace string, version int, keys ...Signer) []byte {
	h.t.Helper()
	d := Delegation{Role: RoleState, Workspace: workspace, Version: version, Issued: time.Unix(0, 0)}
	for _, k := range keys {
		d.Keys = append(d.Keys, k.Public())
	}
	raw, err := SignDelegation(d, h.key)
	if err != nil {
		h.t.Fatal(err)
	}
	return raw
}

func pin(t testing.TB, h *hub) *Pinned {
	t.Helper()
	p, err := Pin(ours, h.first())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func apply(t testing.TB, p *Pinned, envelope []byte) {
	t.Helper()
	changed, err := p.Apply(envelope)
	if err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
	changed, err = p.Apply(envelope)
	if err != nil || changed {
		t.Fatalf("a second time: changed %v, %v", changed, err)
	}
}

func refuse(t testing.TB, p *Pinned, envelope []byte, reason atelier.Reason) {
	t.Helper()
	before, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	changed, err := p.Apply(envelope)
	if changed {
		t.Fatal("a refused envelope changed something")
	}
	wantReason(t, err, reason)
	after, err := json.Marshal(p)
	if err != nil || string(before) != string(after) {
		t.Fatalf("a refused envelope changed what is pinned: %v", err)
	}
}

func TestAReplacedStateKeyVerifiesNothingMore(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := pin(t, h)
	old, current := hubSigner(t), hubSigner(t)
	apply(t, p, h.delegate(ours, 1, old))
	state := mustSign(t, testType, `{"generation":1}`, old)
	if _, _, err := Open(state, p.StateKeys(ours)); err != nil {
		t.Fatal(err)
	}
	apply(t, p, h.delegate(ours, 2, current))
	for _, by := range [][]Signer{{old}, {old, old}} {
		_, _, err := Open(mustSign(t, testType, `{"generation":2}`, by...), p.StateKeys(ours))
		wantReason(t, err, atelier.ReasonKeyUnknown)
	}
	if _, _, err := Open(mustSign(t, testType, `{"generation":2}`, current), p.StateKeys(ours)); err != nil {
		t.Fatal(err)
	}
	refuse(t, p, h.delegate(ours, 1, old), atelier.ReasonReplayed)
	refuse(t, p, h.delegate(ours, 2, old), atelier.ReasonReplayed)
	forged, err := SignDelegation(Delegation{Role: RoleState, Workspace: ours, Version: 3, Keys: []PublicKey{old.Public()}}, old)
	if err != nil {
		t.Fatal(err)
	}
	refuse(t, p, forged, atelier.ReasonKeyUnknown)
}

func TestAForeignWorkspaceIsRefused(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := pin(t, h)
	refuse(t, p, h.delegate(theirs, 1, hubSigner(t)), atelier.ReasonSignatureInvalid)
	apply(t, p, h.delegate(ours, 1, hubSigner(t)))
	if len(p.StateKeys(ours)) != 1 || len(p.StateKeys(theirs)) != 0 {
		t.Fatalf("%d keys of ours, %d of theirs", len(p.StateKeys(ours)), len(p.StateKeys(theirs)))
	}
}

func TestRootsFollowEachOther(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := pin(t, h)
	leaked := h.key
	state := hubSigner(t)
	apply(t, p, h.delegate(ours, 5, state))

	second := h.rotate()
	third := h.rotate()
	refuse(t, p, third, atelier.ReasonSignatureInvalid) // a version is missing
	apply(t, p, second)
	if root, delegation := p.Versions(); root != 2 || delegation != 0 {
		t.Fatalf("root %d, delegation %d; want 2, and none of the replaced root's", root, delegation)
	}
	if len(p.StateKeys(ours)) != 0 {
		t.Fatal("a delegation outlived the root that signed it")
	}
	apply(t, p, third)
	refuse(t, p, second, atelier.ReasonReplayed)
	// Nor may the new root go back behind what the old one had delegated.
	refuse(t, p, h.delegate(ours, 5, state), atelier.ReasonReplayed)
	apply(t, p, h.delegate(ours, 6, state))

	thief := &hub{t: t, key: leaked}
	refuse(t, p, thief.delegate(ours, 7, leaked), atelier.ReasonKeyUnknown)
	thief.version = 3
	refuse(t, p, thief.next(leaked, leaked), atelier.ReasonKeyUnknown)
}

func TestARootNeedsBothSignatures(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := pin(t, h)
	before, after := h.key, hubSigner(t)
	refuse(t, p, h.next(after, after), atelier.ReasonKeyUnknown) // not its predecessor's
	h.version--
	refuse(t, p, h.next(after, before), atelier.ReasonKeyUnknown) // not its own
	h.version--
	apply(t, p, h.next(after, before, after))
}

func TestARootWithAThresholdNeedsThatManyKeys(t *testing.T) {
	t.Parallel()
	one, two, next := hubSigner(t), hubSigner(t), hubSigner(t)
	root := func(version, threshold int, keys []Signer, signers ...Signer) []byte {
		r := Root{Version: version, Roles: map[string]Role{}}
		role := Role{Threshold: threshold}
		for _, k := range keys {
			role.Keys = append(role.Keys, k.Public())
		}
		r.Roles[RoleRoot] = role
		raw, err := SignRoot(r, signers...)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	both := []Signer{one, two}
	if _, err := Pin(ours, root(1, 2, both, one)); err == nil {
		t.Fatal("one of two signatures was enough")
	}
	p, err := Pin(ours, root(1, 2, both, one, two))
	if err != nil {
		t.Fatal(err)
	}
	refuse(t, p, root(2, 1, []Signer{next}, next, one), atelier.ReasonSignatureInvalid)
	apply(t, p, root(2, 1, []Signer{next}, next, one, two))
}

func TestPinnedIsSavedAndReadBack(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := pin(t, h)
	state := hubSigner(t)
	reload := func() {
		t.Helper()
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		root, delegation := p.Versions()
		if p, err = ParsePinned(b); err != nil {
			t.Fatal(err)
		}
		if r, d := p.Versions(); r != root || d != delegation || p.Workspace() != ours {
			t.Fatalf("came back with root %d, delegation %d for %s", r, d, p.Workspace())
		}
	}
	reload()
	apply(t, p, h.delegate(ours, 3, state))
	reload()
	if _, _, err := Open(mustSign(t, testType, "{}", state), p.StateKeys(ours)); err != nil {
		t.Fatal(err)
	}
	old := h.delegate(ours, 3, state)
	apply(t, p, h.rotate())
	reload()
	refuse(t, p, old, atelier.ReasonKeyUnknown)
	refuse(t, p, h.delegate(ours, 3, state), atelier.ReasonReplayed)
}

func TestApplyTakesOnlyTrust(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := pin(t, h)
	refuse(t, p, mustSign(t, testType, "{}", h.key), atelier.ReasonSignatureInvalid)
	refuse(t, p, mustSign(t, TypeRoot, "{}", h.key), atelier.ReasonSignatureInvalid)
	refuse(t, p, mustSign(t, TypeDelegation, "{}", h.key), atelier.ReasonSignatureInvalid)
	refuse(t, p, mustSign(t, TypeDelegation, `{"role":"other","version":1,"keys":[]}`, h.key), atelier.ReasonSignatureInvalid)
	refuse(t, p, []byte("{"), atelier.ReasonSignatureInvalid)
}

func FuzzApply(f *testing.F) {
	h := newHub(f)
	pinned, err := json.Marshal(pin(f, h))
	if err != nil {
		f.Fatal(err)
	}
	state := hubSigner(f)
	good := h.delegate(ours, 1, state)
	f.Add(good)
	f.Add(h.delegate(theirs, 1, state))
	f.Add(h.rotate())
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := ParsePinned(pinned)
		if err != nil {
			t.Fatal(err)
		}
		if changed, err := p.Apply(raw); changed == (err != nil) {
			t.Fatalf("changed %v with %v", changed, err)
		}
	})
}

func FuzzParsePinned(f *testing.F) {
	h := newHub(f)
	p := pin(f, h)
	b, err := json.Marshal(p)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	apply(f, p, h.delegate(ours, 1, hubSigner(f)))
	if b, err = json.Marshal(p); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"workspace":"01j00000000000000000000001","root":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePinned(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParsePinned(again); err != nil {
			t.Fatalf("what was read cannot be read back: %v", err)
		}
	})
}
