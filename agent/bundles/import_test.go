package bundles

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/agenttest"
	"github.com/atelier-edge/atelier/internal/bundle"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/content/delta"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

func TestImportsAStateWithItsContent(t *testing.T) {
	t.Parallel()
	i := newIsland(t)
	first, second := i.parcel(1, "one"), i.parcel(2, "one", "two")
	done := i.takes(first.file(t))
	if !done.New || done.Position.Generation != 1 || done.Bytes != int64(len("one")+len("runtime")) || i.told != 1 || !i.has("one") {
		t.Errorf("%+v, told %d times", done, i.told)
	}
	dir := filepath.Join(t.TempDir(), "dir")
	unpack(t, second.bytes(t), dir)
	done = i.takes(dir)
	if !done.New || done.Position.Generation != 2 || done.Bytes != 3 || i.told != 2 || !i.has("two") {
		t.Errorf("%+v, told %d times", done, i.told)
	}
	if done = i.takes(dir); done.New || done.Bytes != 0 || i.told != 2 {
		t.Errorf("the same again: %+v, told %d times", done, i.told)
	}
	if err := i.start(); err != nil || i.state.Position().Generation != 2 {
		t.Errorf("after a restart: %v, %v", i.state.Position(), err)
	}
	if got := i.importer.Outcomes(); len(got) != 0 {
		t.Errorf("outcomes %v", got)
	}
}

// TestMemoryStaysSmall whatever the bundle's size. It counts what the whole process
// allocates, so that it does not run beside others.
func TestMemoryStaysSmall(t *testing.T) { //nolint:paralleltest // see above
	i := newIsland(t)
	i.fs, i.dir = durable.OS{}, t.TempDir()
	if err := i.start(); err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	name := i.parcel(1, strings.Repeat("0123456789abcdef", size/16)).file(t)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	i.takes(name)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 { // a thousand checkpoints take most of it
		t.Errorf("%d bytes were allocated to import %d", n, size)
	}
}

func TestLeavesOutWhatTheDeviceHas(t *testing.T) {
	t.Parallel()
	i := newIsland(t)
	small := i.parcel(2, "one", "two")
	small.layers = append(small.layers[:1], small.layers[2]) // the state and "two"
	name := small.file(t)
	i.refuses(name, atelier.ReasonContentMissing)
	if i.has("two") {
		t.Error("content was brought although some is missing")
	}
	i.takes(i.parcel(1, "one").file(t))
	if done := i.takes(name); done.Bytes != 3 {
		t.Errorf("%+v", done)
	}
}

// TestBringsDifferences to who holds the base, and to nobody else.
func TestBringsDifferences(t *testing.T) {
	t.Parallel()
	i := newIsland(t)
	rng := rand.New(rand.NewPCG(1, 2))
	base := make([]byte, 200<<10)
	for n := range base {
		base[n] = byte(rng.Uint32())
	}
	target := bytes.Clone(base)
	copy(target[100<<10:], "some new weights")
	var difference bytes.Buffer
	_, err := delta.Encode(t.Context(), &difference, delta.File{Digest: atelier.DigestOf(target), Size: int64(len(target)), Content: bytes.NewReader(target)},
		[]delta.File{{Digest: atelier.DigestOf(base), Size: int64(len(base)), Content: bytes.NewReader(base)}}, delta.Options{})
	if err != nil {
		t.Fatal(err)
	}
	// with makes a bundle with these bytes for the difference.
	with := func(changes []byte) string {
		p := i.parcel(2, string(target))
		d := atelier.DigestOf(changes)
		p.layers = []bundle.Source{p.layers[0], bundle.Changes(d, int64(len(changes)), func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(changes)), nil
		})}
		p.config.Requires = []string{bundle.FeatureDifferences}
		p.config.Files[0].Difference = &bundle.Difference{Digest: d, Bases: []atelier.Digest{atelier.DigestOf(base)}}
		return p.file(t)
	}
	good := with(difference.Bytes())
	i.refuses(good, atelier.ReasonContentMissing)
	i.takes(i.parcel(1, string(base)).file(t))
	bad := bytes.Clone(difference.Bytes())
	bad[len(bad)/2] ^= 1
	i.refuses(with(bad), atelier.ReasonDigestMismatch) // signed, and wrong all the same
	i.refuses(with([]byte("no difference")), atelier.ReasonDigestMismatch)
	if i.has(string(target)) {
		t.Error("content of a bad difference is in the store")
	}
	if done := i.takes(good); done.Position.Generation != 2 || !i.has(string(target)) || len(difference.Bytes()) > len(target)/10 {
		t.Errorf("%+v by a difference of %d bytes", done, difference.Len())
	}
}

func TestRefusesWithItsReason(t *testing.T) {
	t.Parallel()
	other := agenttest.NewAuthority(t)
	for name, c := range map[string]struct {
		make func(t *testing.T, i *island) string
		want atelier.Reason
	}{
		"of another workspace": {func(t *testing.T, i *island) string {
			p := i.parcel(1, "one")
			p.config.Workspace, p.config.WorkspaceName = other.Workspace, "yard"
			p.sign = func(payloadType string, payload []byte) ([]byte, error) {
				return other.Sign(t, payloadType, json.RawMessage(payload)), nil
			}
			return p.file(t)
		}, atelier.ReasonNotForDevice},
		"by a stranger": {func(t *testing.T, i *island) string {
			p := i.parcel(1, "one")
			p.config.Trust = []wire.Raw{other.Root(), other.Delegation()}
			p.sign = func(payloadType string, payload []byte) ([]byte, error) {
				return other.Sign(t, payloadType, json.RawMessage(payload)), nil
			}
			return p.file(t)
		}, atelier.ReasonKeyUnknown},
		"for another device": {func(t *testing.T, i *island) string {
			p := i.parcel(1, "one")
			p.config.Devices[0].ID = atelier.NewID()
			return p.file(t)
		}, atelier.ReasonNotForDevice},
		"with another device's state": {func(t *testing.T, i *island) string {
			p := i.parcel(1, "one")
			p.config.Devices = nil
			p.add(t, atelier.DesiredState{Workspace: i.hub.Workspace, Device: atelier.NewID(), Epoch: 1, Generation: 5}, i.hub)
			p.config.Devices[0].ID = i.device
			return p.file(t)
		}, atelier.ReasonSignatureInvalid},
		"with a state by a stranger": {func(t *testing.T, i *island) string {
			p := i.parcel(1, "one")
			p.config.Devices = nil
			p.add(t, atelier.DesiredState{Workspace: i.hub.Workspace, Device: i.device, Epoch: 1, Generation: 5}, other)
			return p.file(t)
		}, atelier.ReasonKeyUnknown},
		"with something else for a state": {func(t *testing.T, i *island) string {
			p := i.parcel(1, "one")
			layer := bundle.State(i.hub.Sign(t, wire.TypeWelcome, wire.Welcome{}))
			p.layers, p.config.Devices[0].State = append(p.layers, layer), layer.Digest
			return p.file(t)
		}, atelier.ReasonBundleInvalid},
		"with a replayed state": {func(t *testing.T, i *island) string {
			i.takes(i.parcel(7, "seven").file(t))
			return i.parcel(6, "six").file(t)
		}, atelier.ReasonReplayed},
		"with another state of the same number": {func(t *testing.T, i *island) string {
			i.takes(i.parcel(7, "seven").file(t))
			return i.parcel(7, "other").file(t)
		}, atelier.ReasonReplayed},
		"by a key that was replaced": {func(t *testing.T, i *island) string {
			p := i.parcel(1, "one").file(t)
			i.hub.Rotate(t)
			if _, err := i.state.ApplyTrust([]wire.Raw{i.hub.Delegation()}); err != nil {
				t.Fatal(err)
			}
			return p
		}, atelier.ReasonKeyUnknown},
		"with the signature of another": {func(t *testing.T, i *island) string {
			p := i.parcel(1, "one")
			p.sign = func(payloadType string, payload []byte) ([]byte, error) {
				s := bundle.Statement{Manifest: bundle.Descriptor{Digest: atelier.DigestOf([]byte("another"))}}
				return i.hub.Sign(t, payloadType, s), nil
			}
			return p.file(t)
		}, atelier.ReasonSignatureInvalid},
		"with a signature over something else": {func(t *testing.T, i *island) string {
			p := i.parcel(1, "one")
			p.sign = func(_ string, payload []byte) ([]byte, error) {
				return i.hub.Sign(t, wire.TypeAck, json.RawMessage(payload)), nil
			}
			return p.file(t)
		}, atelier.ReasonSignatureInvalid},
		"that needs what nobody has": {func(t *testing.T, i *island) string {
			p := i.parcel(1, "one")
			p.config.Requires = []string{"flight"}
			return p.file(t)
		}, atelier.ReasonUnsupportedFeature},
		"that lies of a size": {func(t *testing.T, i *island) string {
			p := i.parcel(1, "one")
			m := agenttest.Module("a", []byte("one"))
			m.Model.Variant.Files[0].Size = 4
			p.config.Devices = nil
			p.add(t, atelier.DesiredState{Workspace: i.hub.Workspace, Device: i.device, Epoch: 1, Generation: 5, Modules: []atelier.Module{m}}, i.hub)
			return p.file(t)
		}, atelier.ReasonBundleInvalid},
		"that lies of content": {func(t *testing.T, i *island) string {
			return save(t, bytes.Replace(i.parcel(1, "one").bytes(t), []byte("one\x00"), []byte("two\x00"), 1))
		}, atelier.ReasonDigestMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := newIsland(t)
			i.refuses(c.make(t, i), c.want)
			if i.has("one") {
				t.Error("content of a refused bundle is in the store")
			}
		})
	}
}

// TestNewerTrustComesAlong: the keys were rotated while the device was away.
func TestNewerTrustComesAlong(t *testing.T) {
	t.Parallel()
	i := newIsland(t)
	i.hub.Rotate(t)
	p := i.parcel(1, "one")
	i.refuses(p.file(t), atelier.ReasonKeyUnknown)
	p.config.Trust = []wire.Raw{i.hub.Root(), i.hub.Delegation()}
	i.takes(p.file(t))
}

// TestTruncatedIsIncomplete cuts a bundle everywhere.
func TestTruncatedIsIncomplete(t *testing.T) {
	t.Parallel()
	i := newIsland(t)
	raw := i.parcel(1, "one").bytes(t)
	last := len(raw) - 1024 - 512 // the end of the archive, and the padding of the last file
	for n := 0; n < last; n += 131 {
		i.refuses(save(t, raw[:n]), atelier.ReasonBundleIncomplete)
	}
	if i.has("one") {
		t.Error("content of an incomplete bundle is in the store")
	}
	i.takes(save(t, raw))
}

// TestFlippedBitsAreFound flips a bit of every 7th byte of each file.
func TestFlippedBitsAreFound(t *testing.T) {
	t.Parallel()
	i := newIsland(t)
	raw := i.parcel(1, "one").bytes(t)
	dir := filepath.Join(t.TempDir(), "dir")
	unpack(t, raw, dir)
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Base(path) == "oci-layout" {
			return err
		}
		good, err := os.ReadFile(path)
		if err != nil || string(good) == "{}" { // OCI's empty config says nothing
			return err
		}
		for n := 0; n < len(good); n += 7 {
			bad := bytes.Clone(good)
			bad[n] ^= 4
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				return err
			}
			_, err := i.importer.Import(t.Context(), dir)
			if filepath.Base(path) == "index.json" {
				// What it says beside digests, nobody goes by.
				if err == nil {
					i.device = atelier.NewID()
					if err := i.start(); err != nil {
						return err
					}
				}
				continue
			}
			if why := bundle.WhyOf(err); err == nil || why.Reason() != atelier.ReasonDigestMismatch {
				t.Errorf("%s, byte %d: %v", path, n, err)
			}
		}
		return os.WriteFile(path, good, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRefusesWhatIsNoPlainFile(t *testing.T) {
	t.Parallel()
	i := newIsland(t)
	raw := i.parcel(1, "one").bytes(t)
	secret := filepath.Join(t.TempDir(), "one")
	if err := os.WriteFile(secret, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "dir")
	unpack(t, raw, dir)
	blob := filepath.Join(dir, "blobs", "sha256", atelier.DigestOf([]byte("one")).Hex())
	if err := errors.Join(os.Remove(blob), os.Symlink(secret, blob)); err != nil {
		t.Fatal(err)
	}
	i.refuses(dir, atelier.ReasonBundleInvalid)

	for name, h := range map[string]*tar.Header{
		"link":   {Typeflag: tar.TypeSymlink, Name: "blobs/sha256/x", Linkname: "/etc/passwd"},
		"hard":   {Typeflag: tar.TypeLink, Name: "x", Linkname: "/etc/passwd"},
		"device": {Typeflag: tar.TypeBlock, Name: "x", Devmajor: 8},
		"pipe":   {Typeflag: tar.TypeFifo, Name: "x"},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(name, err)
		}
		i.refuses(save(t, append(b.Bytes(), raw...)), atelier.ReasonBundleInvalid)
	}
	i.refuses(save(t, []byte(strings.Repeat("no tar file\n", 100))), atelier.ReasonBundleInvalid)
	i.refuses(save(t, append(bytes.Clone(raw[:len(raw)-1024]), raw...)), atelier.ReasonBundleInvalid) // everything twice
}

func TestUnsignedIsRefused(t *testing.T) {
	t.Parallel()
	i := newIsland(t)
	dir := filepath.Join(t.TempDir(), "dir")
	unpack(t, i.parcel(1, "one").bytes(t), dir)
	path := filepath.Join(dir, "index.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var index struct {
		SchemaVersion int               `json:"schemaVersion"`
		Manifests     []json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &index); err != nil {
		t.Fatal(err)
	}
	index.Manifests = index.Manifests[:1]
	if raw, err = json.Marshal(index); err == nil {
		err = os.WriteFile(path, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	i.refuses(dir, atelier.ReasonSignatureInvalid)
}

func TestFullDiskSaysSoAndWaits(t *testing.T) {
	t.Parallel()
	i := newIsland(t)
	p := i.parcel(1, strings.Repeat("x", 1<<20)).file(t)
	i.disk.SetSpace(1 << 19)
	i.refuses(p, atelier.ReasonNoSpace)
	if o := i.importer.Outcomes(); len(o) != 1 || o[0].State != StateWaiting {
		t.Errorf("outcomes %+v", o)
	}
	i.disk.SetSpace(1 << 24)
	i.takes(p)
}

// TestImportSurvivesAPowerCutAtEveryStep: whatever the step, the device has the
// old state or the new one with all its content, and the import can be done again.
func TestImportSurvivesAPowerCutAtEveryStep(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("0123456789abcdef", 16<<10) // four checkpoints
	for step := 1; ; step++ {
		i := newIsland(t)
		i.takes(i.parcel(1, "one").file(t))
		next := i.parcel(2, "one", big).file(t)
		i.disk.CutAt(step)
		_, err := i.importer.Import(t.Context(), next)
		if err == nil {
			if step < 10 {
				t.Fatalf("the import took %d steps only", step)
			}
			return
		}
		i.disk.Restart(nil)
		if err := i.start(); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		if i.state.Position().Generation == 2 && !i.has(big) {
			t.Fatalf("step %d: the state is there and its content is not", step)
		}
		i.takes(next)
		if i.state.Position().Generation != 2 || !i.has(big) {
			t.Fatalf("step %d: the second import did not bring everything", step)
		}
	}
}

// TestImportGoesOnWhereItWasCut: what was written before is not read again.
func TestImportGoesOnWhereItWasCut(t *testing.T) {
	t.Parallel()
	i := newIsland(t)
	big := strings.Repeat("0123456789abcdef", 64<<10)
	name := i.parcel(1, big).file(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancelAt := &cancelling{Fetcher: i.importer.opts.Fetcher, cancel: cancel, store: i.content, d: atelier.DigestOf([]byte(big))}
	i.importer.opts.Fetcher = cancelAt
	if _, err := i.importer.Import(ctx, name); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	w, err := i.content.Writer(atelier.DigestOf([]byte(big)).Hex())
	if err != nil || w.Offset() != 1<<19 {
		t.Errorf("%d bytes are kept, expected %d: %v", w.Offset(), 1<<19, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	i.takes(name)
}

// cancelling writes half of a content before the import begins, and ends it.
type cancelling struct {
	Fetcher
	cancel func()
	store  *content.Store
	d      atelier.Digest
}

func (c *cancelling) Import(ctx context.Context, files []atelier.File, bring func(context.Context, atelier.File) error) (int64, error) {
	if c.cancel == nil {
		return c.Fetcher.Import(ctx, files, bring)
	}
	c.cancel()
	c.cancel = nil
	w, err := c.store.Writer(c.d.Hex())
	if err == nil {
		_, err = io.WriteString(w, strings.Repeat("0123456789abcdef", 32<<10))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return 0, err
	}
	return c.Fetcher.Import(ctx, files, bring)
}
