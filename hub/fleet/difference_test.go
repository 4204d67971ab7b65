package fleet_test

import (
	"bytes"
	"crypto/rand"
	"slices"
	"sync"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/internal/content/delta"
	"github.com/atelier-edge/atelier/internal/content/transfer"
)

// asked is what somebody wants of differences: {target, base}.
type asked [2]atelier.Digest

// differences remembers what is asked for, and has those that were put into it.
type differences struct {
	mu       sync.Mutex
	found    []asked
	prepared []asked
	have     map[asked][]byte
}

type blob struct{ *bytes.Reader }

func (blob) Close() error  { return nil }
func (b blob) Size() int64 { return b.Reader.Size() }

func (d *differences) Find(target, base atelier.Digest) (*transfer.Difference, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.found = append(d.found, asked{target, base})
	b, ok := d.have[asked{target, base}]
	if !ok {
		return nil, nil
	}
	return &transfer.Difference{Blob: blob{bytes.NewReader(b)}, Digest: atelier.DigestOf(b), Bases: []atelier.Digest{base}}, nil
}

func (d *differences) Prepare(target, base atelier.Digest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.prepared = append(d.prepared, asked{target, base})
}

func (d *differences) Expect(atelier.Digest, atelier.Digest) (transfer.Expectation, bool) {
	return transfer.Expectation{}, false
}

// since returns what was looked for since the last call.
func (d *differences) since() []asked {
	d.mu.Lock()
	defer d.mu.Unlock()
	found := d.found
	d.found = nil
	return found
}

// A difference is looked for to nothing but what the device was to have itself: it
// tells of its base to whoever has the target.
func TestBasesAreTheDevicesOwn(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	made := &differences{have: map[asked][]byte{}}
	h.differences = made
	lab, shop := h.workspace("lab"), h.workspace("shop")
	h.runtime("1.20.1")
	one := noise(t, 100_000)
	two := slices.Clone(one)
	if _, err := rand.Read(two[:1000]); err != nil {
		t.Fatal(err)
	}
	first := h.model(lab, "digits", one).Variants[0].Files[0]
	theirs := h.model(shop, "secret", noise(t, 1000)).Variants[0].Files[0]
	d := h.join(lab, "kiosk", edge)
	h.start()
	d.connect()
	d.serves(h.deploy(lab, "digits", "digits", edge))
	unused := h.model(lab, "unused", noise(t, 1000)).Variants[0].Files[0]

	second := h.model(lab, "digits", two).Variants[0].Files[0]
	eventually(t, func() string {
		made.mu.Lock()
		defer made.mu.Unlock()
		if !slices.Equal(made.prepared, []asked{{second.Digest, first.Digest}}) {
			return "the difference to the new version is not made beforehand"
		}
		return ""
	})
	file := func(b []byte, f atelier.File) delta.File {
		return delta.File{Digest: f.Digest, Size: f.Size, Content: bytes.NewReader(b)}
	}
	var difference bytes.Buffer
	if _, err := delta.Encode(t.Context(), &difference, file(two, second), []delta.File{file(one, first)}, delta.Options{}); err != nil {
		t.Fatal(err)
	}
	made.have[asked{second.Digest, first.Digest}] = difference.Bytes()

	// Before it may have the target, a device gets no difference either.
	bases := []atelier.Digest{theirs.Digest, unused.Digest, first.Digest}
	if _, err := d.receiver.Fetch(t.Context(), second, bases, nil); atelier.CodeOf(err) != atelier.Forbidden {
		t.Fatalf("a difference to what the device may not have: %v", err)
	}
	if found := made.since(); slices.ContainsFunc(found, func(a asked) bool { return a[0] == second.Digest }) {
		t.Errorf("it was looked for: %v", found)
	}
	latest := fleet.Latest
	dep, err := h.fleet.UpdateDeployment(h.ctx, lab, "digits", 0, fleet.DeploymentSpec{Version: &latest})
	if err != nil {
		t.Fatal(err)
	}
	d.serves(dep) // the device of the test pulls it as it is
	again := func(bases ...atelier.Digest) transfer.Arrival {
		t.Helper()
		if err := d.store.Delete(second.Digest); err != nil {
			t.Fatal(err)
		}
		a, err := d.receiver.Fetch(t.Context(), second, bases, nil)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	made.since()
	// A device on a slow line may get compressed content, to which nothing is a base.
	bare := func(a asked) bool { return a[1] == "" }
	// What it was to have before is a base; what is not its own is not even looked at.
	if a := again(bases...); a.Way != transfer.WayDifference || a.Received > 10_000 {
		t.Errorf("%+v", a)
	}
	if found := slices.DeleteFunc(made.since(), bare); !slices.Equal(found, []asked{{second.Digest, first.Digest}}) {
		t.Errorf("looked for %v", found)
	}
	if a := again(theirs.Digest, unused.Digest); a.Way != transfer.WayWhole {
		t.Errorf("%+v", a)
	}
	if found := slices.DeleteFunc(made.since(), bare); len(found) > 0 {
		t.Errorf("looked for %v", found)
	}
	if whole, differences := h.fleet.Sent(); whole < 200_000 || differences < uint64(difference.Len()) {
		t.Errorf("%d and %d bytes are counted", whole, differences)
	}
}
