package enrol

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

func (h *testHub) options(state string) JoinOptions {
	return JoinOptions{Options: Options{StateDir: state}, Hub: h.url, Fingerprint: h.fingerprint(), Token: testToken, Name: "shed"}
}

func wantCode(t testing.TB, err error, code atelier.Code) {
	t.Helper()
	if atelier.CodeOf(err) != code {
		t.Fatalf("got %v (code %s), want code %s", err, atelier.CodeOf(err), code)
	}
}

func TestJoinThenLoad(t *testing.T) {
	t.Parallel()
	h := newTestHub(t, time.Now)
	state := t.TempDir()
	o := h.options(state)
	o.Hub += "/"
	joined, err := Join(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	id, err := Load(Options{StateDir: state})
	if err != nil {
		t.Fatal(err)
	}
	if id.Device != joined.Device || id.Hub != h.url || id.Name != "shed" || id.Workspace != h.authority.Workspace ||
		id.WorkspaceName != "plant" || id.Shard != wire.DefaultShard || len(id.MQTT()) != 1 {
		t.Fatalf("loaded %+v", id)
	}
	pinned, err := trust.Pin(id.Workspace, id.Root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pinned.Apply(id.Delegation); err != nil {
		t.Fatal(err)
	}
	signer, err := id.Signer()
	if err != nil || h.devices[signer.Public().ID()] != id.Device {
		t.Fatalf("the hub does not know the key: %v", err)
	}
	files, err := os.ReadDir(filepath.Join(state, dirName))
	if err != nil || len(files) != 1 {
		t.Fatalf("left behind: %v, %v", files, err)
	}
	info, err := files[0].Info()
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
}

func TestJoinBelievesOnlyTheFingerprint(t *testing.T) {
	t.Parallel()
	h, other := newTestHub(t, time.Now), newTestHub(t, time.Now)
	o := h.options(t.TempDir())
	o.Fingerprint = other.fingerprint()
	_, err := Join(context.Background(), o)
	wantCode(t, err, atelier.Forbidden)
	for _, fingerprint := range []string{h.fingerprint(), other.fingerprint()} {
		if !strings.Contains(err.Error(), fingerprint) {
			t.Fatalf("%q does not say %s", err, fingerprint)
		}
	}
	if len(h.devices) != 0 {
		t.Fatal("the hub was asked all the same")
	}
	if _, err := os.Stat(filepath.Join(o.StateDir, dirName)); err == nil {
		t.Fatal("something was written")
	}
}

// Whoever passes the hub's authority on without having its key gets no token.
func TestJoinSendsTheTokenOnlyToTheHub(t *testing.T) {
	t.Parallel()
	h, thief := newTestHub(t, time.Now), newTestHub(t, time.Now)
	thief.ca = h.ca // that is what /v1/ca answers; its server's certificate is its own
	o := h.options(t.TempDir())
	o.Hub = thief.url
	_, err := Join(context.Background(), o)
	wantCode(t, err, atelier.Unavailable)
	if thief.uses != 1 {
		t.Fatal("the thief got the token")
	}
}

func TestJoinRefusesAServerUnderAnotherName(t *testing.T) {
	t.Parallel()
	h := newTestHub(t, time.Now, "hub.example")
	o := h.options(t.TempDir())
	o.Hub = strings.Replace(h.url, "127.0.0.1", "localhost", 1)
	_, err := Join(context.Background(), o)
	wantCode(t, err, atelier.Unavailable)
	if !strings.Contains(err.Error(), "hub.example") {
		t.Fatalf("%q does not say which names are good", err)
	}
}

func TestJoinPassesOnWhatTheHubSays(t *testing.T) {
	t.Parallel()
	h := newTestHub(t, time.Now)
	o := h.options(t.TempDir())
	o.Token = "atj_wrong"
	_, err := Join(context.Background(), o)
	wantCode(t, err, atelier.Unauthenticated)
	o = h.options(t.TempDir())
	h.set(func() { h.fail["/v1/enrol"] = true })
	_, err = Join(context.Background(), o)
	wantCode(t, err, atelier.Unavailable)
	for _, address := range []string{"", "http://localhost", "localhost:8443", "https://", "https://u:p@h", "https://h?x=1"} {
		o.Hub = address
		_, err = Join(context.Background(), o)
		wantCode(t, err, atelier.Invalid)
	}
	o = h.options(t.TempDir())
	o.Fingerprint = "abc"
	_, err = Join(context.Background(), o)
	wantCode(t, err, atelier.Invalid)
	o = h.options(t.TempDir())
	o.Hub = "https://127.0.0.1:1"
	_, err = Join(context.Background(), o)
	wantCode(t, err, atelier.Unavailable)
}

func TestJoinChecksTheAnswer(t *testing.T) {
	t.Parallel()
	other := newTestHub(t, time.Now)
	for name, tamper := range map[string]func(*wire.Enrolment){
		"another device's certificate": func(e *wire.Enrolment) { e.Device = atelier.NewID() },
		"no device":                    func(e *wire.Enrolment) { e.Device = "../.." },
		"no certificate":               func(e *wire.Enrolment) { e.Certificate = "" },
		"the authority's certificate":  func(e *wire.Enrolment) { e.Certificate = e.CA },
		"no root":                      func(e *wire.Enrolment) { e.Root = wire.Raw("{}") },
		"another root's delegation":    func(e *wire.Enrolment) { e.Delegation = other.authority.Delegation() },
		"another workspace":            func(e *wire.Enrolment) { e.Workspace = other.authority.Workspace },
		"no address":                   func(e *wire.Enrolment) { e.MQTT = nil },
	} {
		h := newTestHub(t, time.Now)
		h.tamper = tamper
		o := h.options(t.TempDir())
		if _, err := Join(context.Background(), o); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%s: got %v, want code %s", name, err, atelier.Invalid)
		}
		if _, err := Load(o.Options); atelier.CodeOf(err) != atelier.NotFound {
			t.Errorf("%s: it was kept: %v", name, err)
		}
	}
}

func TestAJoinedDeviceIsNotJoinedByMistake(t *testing.T) {
	t.Parallel()
	h := newTestHub(t, time.Now)
	h.uses = 2
	o := h.options(t.TempDir())
	first, err := Join(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Join(context.Background(), o)
	wantCode(t, err, atelier.Exists)
	o.Replace = true
	second, err := Join(context.Background(), o)
	if err != nil || second.Device == first.Device || len(h.devices) != 2 {
		t.Fatalf("joined again as %s, was %s: %v", second.Device, first.Device, err)
	}
}

// The power goes at each step in turn, and each time the same command, run
// again with a token that is good for one device, ends with an identity.
func TestJoinSurvivesAPowerCutAtEveryStep(t *testing.T) {
	t.Parallel()
	for n := 1; ; n++ {
		h := newTestHub(t, time.Now)
		disk := durabletest.NewDisk()
		o := h.options("/var/lib/atelier")
		o.FS = disk
		disk.CutAt(n)
		_, err := Join(context.Background(), o)
		disk.Restart(nil)
		if _, again := Join(context.Background(), o); again != nil && atelier.CodeOf(again) != atelier.Exists {
			t.Fatalf("after a cut at step %d: %v", n, again)
		}
		id, loadErr := Load(o.Options)
		if loadErr != nil {
			t.Fatalf("after a cut at step %d: %v", n, loadErr)
		}
		if len(h.devices) != 1 {
			t.Fatalf("after a cut at step %d: the hub knows %d devices", n, len(h.devices))
		}
		if signer, err := id.Signer(); err != nil || h.devices[signer.Public().ID()] != id.Device {
			t.Fatalf("after a cut at step %d: the identity is not what the hub knows: %v", n, err)
		}
		if err == nil && disk.Operations() < n {
			return
		}
	}
}

func TestALostAnswerCostsNoSecondUse(t *testing.T) {
	t.Parallel()
	h := newTestHub(t, time.Now)
	h.lose["/v1/enrol"] = 1
	o := h.options(t.TempDir())
	_, err := Join(context.Background(), o)
	wantCode(t, err, atelier.Unavailable)
	if _, err := Join(context.Background(), o); err != nil {
		t.Fatal(err)
	}
}

// Joining anew keeps the old identity until the new one is saved, whatever fails.
func TestReplaceLosesNothingWhenItFails(t *testing.T) {
	t.Parallel()
	h := newTestHub(t, time.Now)
	h.uses = 1000
	disk := durabletest.NewDisk()
	o := h.options("/state")
	o.FS = disk
	id, err := Join(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	o.Replace = true
	for n := 1; ; n++ {
		before := disk.Operations()
		disk.FailAt(n, syscall.ENOSPC)
		next, err := Join(context.Background(), o)
		got, loadErr := Load(o.Options)
		if loadErr != nil {
			t.Fatalf("step %d failed, and the identity is gone: %v", n, loadErr)
		}
		if err != nil {
			wantCode(t, err, atelier.NoSpace)
			if signer, err := got.Signer(); err != nil || h.devices[signer.Public().ID()] != got.Device {
				t.Fatalf("step %d failed, and the identity is not what the hub knows: %v", n, err)
			}
			continue
		}
		if got.Device != next.Device || got.Device == id.Device {
			t.Fatalf("joined as %s, loaded %s", next.Device, got.Device)
		}
		if disk.Operations()-before < n {
			return
		}
	}
}

func TestLoadNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	h := newTestHub(t, time.Now)
	o := h.options(t.TempDir())
	_, err := Load(o.Options)
	wantCode(t, err, atelier.NotFound)
	if _, err := Join(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	path := o.path(identityFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, []byte("{}"), b[:len(b)/2]} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(o.Options)
		wantCode(t, err, atelier.Corrupt)
		_, err = Join(context.Background(), o)
		wantCode(t, err, atelier.Corrupt)
	}
	// A newer agent's is not damaged, and one from before there were forms is good.
	for form, want := range map[string]atelier.Code{`"format": 2,`: atelier.Unsupported, "": ""} {
		if err := os.WriteFile(path, bytes.Replace(b, []byte(`"format": 1,`), []byte(form), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(o.Options); atelier.CodeOf(err) != want {
			t.Errorf("with %q: %v, want code %q", form, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	h := newTestHub(f, time.Now)
	o := h.options(f.TempDir())
	if _, err := Join(context.Background(), o); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(o.path(identityFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"device":"01j00000000000000000000001"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := Options{}.complete().parse(b)
		if err != nil {
			return
		}
		if _, err := json.Marshal(id.saved); err != nil || id.Certificate() == nil {
			t.Fatalf("an identity was read that cannot be used: %v", err)
		}
	})
}

func FuzzRefusal(f *testing.F) {
	f.Add(403, []byte(`{"detail":"no","code":"forbidden"}`))
	f.Add(502, []byte(`<html>`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		if err := refusal(status, body); err.Error() == "" || atelier.CodeOf(err) == "" {
			t.Fatalf("%d %q became nothing", status, body)
		}
	})
}
