package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/agenttest"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// bench is a store on a disk that can be cut, and the hub that it belongs to.
type bench struct {
	*testing.T
	hub    *agenttest.Authority
	disk   *durabletest.Disk
	device string
	store  *Store
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t, hub: agenttest.NewAuthority(t), disk: durabletest.NewDisk(), device: atelier.NewID()}
	b.open()
	return b
}

func (b *bench) options() Options {
	return Options{
		FS: b.disk, Dir: "/state", Device: b.device, Workspace: b.hub.Workspace,
		Root: b.hub.Root(), Delegation: b.hub.Delegation(), Features: []string{"known"},
	}
}

// open opens the store anew, as an agent that starts.
func (b *bench) open() {
	b.Helper()
	s, err := Open(b.options())
	if err != nil {
		b.Fatal(err)
	}
	b.store = s
}

func (b *bench) desired(generation uint64, modules ...atelier.Module) atelier.DesiredState {
	return atelier.DesiredState{Workspace: b.hub.Workspace, Device: b.device, Epoch: 1, Generation: generation, Modules: modules}
}

// receive takes an envelope as the session does.
func (b *bench) receive(raw []byte) (wire.DesiredAck, bool) {
	b.Helper()
	_, payload, err := b.store.Verify(raw)
	if err != nil {
		return Refusal(raw, err), false
	}
	return b.store.Receive(raw, payload)
}

func (b *bench) wants(ack wire.DesiredAck, reason atelier.Reason) {
	b.Helper()
	if ack.Saved != (reason == atelier.ReasonAsDesired) || ack.Why.Reason() != reason {
		b.Errorf("got saved %v, %s: %s; want %s", ack.Saved, ack.Why.Reason(), ack.Why.Message(), reason)
	}
}

func TestSavesBeforeItCounts(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	raw := b.hub.Desired(t, b.desired(1, agenttest.Module("digits", []byte("one"))))
	ack, changed := b.receive(raw)
	b.wants(ack, atelier.ReasonAsDesired)
	if !changed || ack.Position.Generation != 1 {
		t.Errorf("changed %v, position %v", changed, ack.Position)
	}
	onDisk, err := durable.ReadFile(b.disk, "/state/desired.json")
	if err != nil || string(onDisk) != string(raw) {
		t.Errorf("the disk does not hold the envelope as it came: %v", err)
	}
	ack, changed = b.receive(raw)
	b.wants(ack, atelier.ReasonAsDesired)
	if changed {
		t.Error("a repeated state counts as a change")
	}
	b.disk.Restart(nil)
	b.open()
	if d := b.store.Desired(); d == nil || d.Generation != 1 || d.Modules[0].Name != "digits" {
		t.Errorf("after a power cut: %+v", d)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.hub.Desired(t, b.desired(5))
	ack, _ := b.receive(held)
	b.wants(ack, atelier.ReasonAsDesired)

	other := agenttest.NewAuthority(t)
	stranger := b.desired(6)
	forAnother := b.desired(6)
	forAnother.Device = atelier.NewID()
	elsewhere := b.desired(6)
	elsewhere.Workspace = atelier.NewID()
	newFeature := b.desired(6)
	newFeature.Requires = []string{"known", "teleport"}
	traversal := agenttest.Module("digits", nil)
	traversal.Model.Variant.Files[0].Path = "../../etc/passwd"
	noID := agenttest.Module("digits", nil)
	noID.Rollout = "../x"
	twice := agenttest.Module("digits", nil)
	var env map[string]any
	if err := json.Unmarshal(b.hub.Desired(t, b.desired(6)), &env); err != nil {
		t.Fatal(err)
	}
	env["payload"] = "e30="
	tampered, err := json.Marshal(env)
	if err != nil {
		t.Fatal(err)
	}
	same := b.desired(5, agenttest.Module("digits", nil))

	for name, c := range map[string]struct {
		raw    []byte
		reason atelier.Reason
	}{
		"older":             {b.hub.Desired(t, b.desired(4)), atelier.ReasonReplayed},
		"same, other words": {b.hub.Desired(t, same), atelier.ReasonReplayed},
		"another hub":       {other.Desired(t, stranger), atelier.ReasonKeyUnknown},
		"tampered":          {tampered, atelier.ReasonSignatureInvalid},
		"another device":    {b.hub.Desired(t, forAnother), atelier.ReasonSignatureInvalid},
		"another workspace": {b.hub.Desired(t, elsewhere), atelier.ReasonSignatureInvalid},
		"feature":           {b.hub.Desired(t, newFeature), atelier.ReasonUnsupportedFeature},
		"traversal":         {b.hub.Desired(t, b.desired(6, traversal)), atelier.ReasonUnsupportedFeature},
		"no id":             {b.hub.Desired(t, b.desired(6, noID)), atelier.ReasonUnsupportedFeature},
		"twice":             {b.hub.Desired(t, b.desired(6, twice, twice)), atelier.ReasonUnsupportedFeature},
		"no envelope":       {[]byte("nonsense"), atelier.ReasonSignatureInvalid},
	} {
		ack, changed := b.receive(c.raw)
		if ack.Saved || changed || ack.Why.Reason() != c.reason {
			t.Errorf("%s: got saved %v, %s: %s; want %s", name, ack.Saved, ack.Why.Reason(), ack.Why.Message(), c.reason)
		}
	}
	if p := b.store.Position(); p.Generation != 5 {
		t.Errorf("a refused state moved the position to %v", p)
	}
}

func TestARestoredHubBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.receive(b.hub.Desired(t, b.desired(9)))
	again := b.desired(1)
	again.Epoch = 2
	ack, changed := b.receive(b.hub.Desired(t, again))
	b.wants(ack, atelier.ReasonAsDesired)
	if !changed {
		t.Error("the new epoch's first generation is no change")
	}
}

func TestTrustMovesForwardAndSurvives(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	old := b.hub.Delegation()
	before := b.hub.Desired(t, b.desired(1))
	b.receive(before)
	newer := b.hub.Rotate(t)
	after := b.hub.Desired(t, b.desired(2))
	ack, _ := b.receive(after)
	b.wants(ack, atelier.ReasonKeyUnknown)
	if changed, err := b.store.ApplyTrust([]wire.Raw{old, newer}); err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
	ack, _ = b.receive(after)
	b.wants(ack, atelier.ReasonAsDesired)
	if changed, err := b.store.ApplyTrust([]wire.Raw{old, newer}); err != nil || changed {
		t.Errorf("applied again: changed %v, %v", changed, err)
	}
	b.disk.Restart(nil)
	b.open()
	if _, d := b.store.TrustVersions(); d != 2 {
		t.Errorf("after a power cut the delegation has version %d, want 2", d)
	}
	if _, err := b.store.ApplyTrust([]wire.Raw{[]byte("{}")}); err == nil {
		t.Error("an envelope that is none was accepted")
	}
}

func TestTrustThatCannotBeSavedDoesNotCount(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	newer := b.hub.Rotate(t)
	b.disk.SetSpace(0)
	if _, err := b.store.ApplyTrust([]wire.Raw{newer}); atelier.CodeOf(err) != atelier.NoSpace {
		t.Fatalf("got %v, want no_space", err)
	}
	if _, d := b.store.TrustVersions(); d != 1 {
		t.Errorf("version %d counts, and is not saved", d)
	}
}

// A power cut at any step leaves the old state or the new, and what was
// acknowledged is never lost.
func TestPowerCutsAtEveryStep(t *testing.T) {
	t.Parallel()
	for n := 1; ; n++ {
		b := newBench(t)
		b.receive(b.hub.Desired(t, b.desired(1)))
		operations := b.disk.Operations()
		b.disk.CutAt(n)
		ack, _ := b.receive(b.hub.Desired(t, b.desired(2)))
		finished := b.disk.Operations() - operations
		b.disk.Restart(nil)
		b.open()
		switch g := b.store.Position().Generation; {
		case g == 2, g == 1 && !ack.Saved:
		default:
			t.Fatalf("cut at step %d: saved %v, generation %d", n, ack.Saved, g)
		}
		if n > finished {
			return
		}
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	opts := b.options()
	opts.Ballast = 64 << 10
	b.disk.SetSpace(1 << 20)
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	b.store = s
	// Something else fills the disk.
	free, err := b.disk.Free("/")
	if err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(b.disk, "/hog", make([]byte, free-8), 0o600); err != nil {
		t.Fatal(err)
	}
	ack, _ := b.receive(b.hub.Desired(t, b.desired(1)))
	b.wants(ack, atelier.ReasonAsDesired)
	if _, err := b.disk.Stat("/state/ballast"); err == nil {
		t.Error("the ballast is still there")
	}
	free, err = b.disk.Free("/")
	if err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(b.disk, "/hog2", make([]byte, free-8), 0o600); err != nil {
		t.Fatal(err)
	}
	ack, changed := b.receive(b.hub.Desired(t, b.desired(2)))
	b.wants(ack, atelier.ReasonStateNotDurable)
	if c := b.store.Durable(); changed || c.True() || c.Why().Reason() != atelier.ReasonStateNotDurable {
		t.Errorf("changed %v, condition %+v", changed, c)
	}
	if b.store.Position().Generation != 1 {
		t.Error("a state that was not saved counts")
	}
	if err := durable.Remove(b.disk, "/hog"); err != nil {
		t.Fatal(err)
	}
	ack, _ = b.receive(b.hub.Desired(t, b.desired(2)))
	b.wants(ack, atelier.ReasonAsDesired)
	b.store.RefillBallast()
	if info, err := b.disk.Stat("/state/ballast"); err != nil || info.Size() != opts.Ballast {
		t.Errorf("the ballast was not made again: %v", err)
	}
	if !b.store.Durable().True() {
		t.Error("the condition stays false")
	}
}

func TestJoiningAnewLeavesTheOldStateAside(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.receive(b.hub.Desired(t, b.desired(7)))
	b.store.pinned, b.hub = nil, agenttest.NewAuthority(t)
	b.device = atelier.NewID()
	b.open()
	if b.store.Desired() != nil {
		t.Error("the former device's state counts")
	}
	ack, _ := b.receive(b.hub.Desired(t, b.desired(1)))
	b.wants(ack, atelier.ReasonAsDesired)
}

func TestSlotsSurvive(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	one := agenttest.Module("digits", []byte("one"))
	two := agenttest.Next(one, []byte("two"))
	slots := Slots{
		RouteTable: atelier.RouteTable{Sequence: 3},
		Modules:    map[string]*Record{one.Deployment: {Current: &Slot{one}, Candidate: &Slot{two}}},
	}
	if err := b.store.SaveSlots(slots); err != nil {
		t.Fatal(err)
	}
	operations := b.disk.Operations()
	if err := b.store.SaveSlots(slots); err != nil || b.disk.Operations() != operations {
		t.Errorf("the same slots were written again: %v", err)
	}
	b.disk.Restart(nil)
	b.open()
	if got := b.store.Slots(); !reflect.DeepEqual(got, slots) {
		t.Errorf("got %+v, want %+v", got, slots)
	}
}

func TestOpenRefusesDamagedFiles(t *testing.T) {
	t.Parallel()
	for _, name := range []string{desiredFile, trustFile, slotsFile} {
		b := newBench(t)
		if err := durable.WriteFile(b.disk, filepath.Join("/state", name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(b.options()); err == nil {
			t.Errorf("%s: damage was passed over", name)
		}
	}
}

// What a newer agent wrote is not damaged: the older one says which to run.
func TestOpenRefusesNewerForms(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		trustFile: `{"format":2}`, slotsFile: `{"format":2}`, revokedFile: `{"format":2}`,
		desiredFile: `{"payload":"e30=","payloadType":"application/vnd.atelier.desired.v2+json","signatures":[{"keyid":"x","sig":"eA=="}]}`,
	} {
		b := newBench(t)
		if err := durable.WriteFile(b.disk, filepath.Join("/state", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(b.options())
		if err == nil {
			_, err = s.Revoked()
		}
		var typed *atelier.Error
		if !errors.As(err, &typed) || typed.Code != atelier.Unsupported || typed.Remedy == "" {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// testdata/slots.json is what the first agents wrote, before files had forms.
func TestSlotsGolden(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join("testdata", "slots.json"))
	if err != nil {
		t.Fatal(err)
	}
	slots, err := decodeSlots(b)
	if err != nil {
		t.Fatal(err)
	}
	r := slots.Modules["01jz3v4c5d6e7f8g9h0j1k2m3n"]
	if slots.RouteTable.Sequence != 3 || slots.RouteTable.Routes[0].Backend.Version != 1 || r == nil || r.Current == nil || r.Candidate == nil {
		t.Fatalf("%+v", slots)
	}
	c := r.Current.Module
	if c.Rollout != "01jz3v4c5d6e7f8g9h0j1k2m3p" || c.Model.Version != 1 || c.Model.Variant.Files[0].Path != "model.onnx" ||
		c.Runtime.Name != "onnxruntime" || c.Limits.Memory != 1<<28 || c.Endpoint.Name != "digits" {
		t.Errorf("%+v", c)
	}
}

// What is staged is checked as what runs is: its names become paths, too.
func TestStagedModulesAreChecked(t *testing.T) {
	t.Parallel()
	one := agenttest.Module("digits", []byte("one"))
	two := agenttest.Next(one, []byte("two"))
	outside, nameless := two, two
	outside.Model.Variant.Files = []atelier.File{{Path: "../model.onnx", Digest: two.Model.Digest, Size: 3}}
	nameless.Rollout = "../x"
	for name, c := range map[string]struct {
		staged []atelier.Module
		code   atelier.Code
	}{
		"beside what runs": {[]atelier.Module{two}, ""},
		"twice":            {[]atelier.Module{two, agenttest.Next(two, nil)}, atelier.Invalid},
		"outside":          {[]atelier.Module{outside}, atelier.Invalid},
		"no id":            {[]atelier.Module{nameless}, atelier.Invalid},
		"too many":         {make([]atelier.Module, maxModules), atelier.TooLarge},
	} {
		payload, err := json.Marshal(atelier.DesiredState{Modules: []atelier.Module{one}, Staged: c.staged})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeDesired(payload); atelier.CodeOf(err) != c.code {
			t.Errorf("%s: %v, expected code %q", name, err, c.code)
		}
	}
}

func FuzzDecodeDesired(f *testing.F) {
	good, err := json.Marshal(atelier.DesiredState{Modules: []atelier.Module{agenttest.Module("digits", nil)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"modules":[{"deployment":"x"}]}`))
	f.Add([]byte(`{"modules":[null]}`))
	f.Add(bytes.Replace(good, []byte(`"modules"`), []byte(`"staged"`), 1))
	f.Fuzz(func(t *testing.T, payload []byte) {
		d, err := decodeDesired(payload)
		if err != nil {
			return
		}
		for _, m := range append(d.Modules, d.Staged...) {
			if !atelier.IsID(m.Deployment) || !atelier.IsID(m.Rollout) {
				t.Errorf("accepted the ids %q, %q", m.Deployment, m.Rollout)
			}
			for _, file := range m.Content() {
				if !filepath.IsLocal(file.Path) {
					t.Errorf("accepted the path %q", file.Path)
				}
			}
		}
	})
}

func FuzzDecodeSlots(f *testing.F) {
	m := agenttest.Module("digits", nil)
	good, err := json.Marshal(Slots{Modules: map[string]*Record{m.Deployment: {Current: &Slot{m}, Leaving: []*Slot{{m}}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"modules":{"x":null}}`))
	f.Add([]byte(`{"modules":{"x":{"leaving":[null]}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		slots, err := decodeSlots(b)
		if err != nil {
			return
		}
		slots.clone()
	})
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte(`{"payload":"e30=","payloadType":"` + wire.TypeDesired + `","signatures":[{"keyid":"","sig":""}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		ack := Refusal(raw, &trust.Error{Reason: atelier.ReasonKeyUnknown, Err: atelier.Errorf(atelier.Unauthenticated, "x")})
		if ack.Saved {
			t.Error("a refusal says that it saved")
		}
	})
}

func TestARevocationIsOfOneDevice(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if r, err := b.store.Revoked(); r != nil || err != nil {
		t.Fatalf("got %v, %v", r, err)
	}
	if err := b.store.Revoke(wire.Revoked{Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	b.disk.Restart(nil)
	b.open()
	if r, err := b.store.Revoked(); err != nil || r == nil || r.Reason != "stolen" {
		t.Errorf("after a power cut: %v, %v", r, err)
	}
	b.device = atelier.NewID()
	b.open()
	if r, err := b.store.Revoked(); r != nil || err != nil {
		t.Errorf("a device that joined anew is revoked: %v, %v", r, err)
	}
}
