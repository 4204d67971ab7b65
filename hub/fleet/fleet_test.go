package fleet_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/internal/broker/brokertest"
)

var edge = atelier.Labels{"where": "edge"}

func noise(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// mainWay is the whole way of a deployment: desired, acknowledged, content pulled,
// reported, replaced by a new version, and its log fetched.
func mainWay(t *testing.T, h *hub, ws string, d *device) {
	t.Helper()
	h.runtime("1.20.1")
	v1 := h.model(ws, "digits", noise(t, 3<<20+17))
	d.connect()
	dep := h.deploy(ws, "digits", "digits", edge)
	s := d.serves(dep)
	if !s.Connected || s.Wanted != 1 || s.Address != "http://127.0.0.1:8600/digits" {
		t.Errorf("status %+v", s)
	}
	if has, err := d.store.Has(v1.Variants[0].Files[0].Digest); err != nil || !has {
		t.Errorf("the device has the model: %v, %v", has, err)
	}
	eventually(t, func() string {
		w, err := h.fleet.Why(h.ctx, ws, d.name)
		if err != nil || !w.InSync {
			return "not in sync: " + d.name
		}
		return ""
	})
	before := d.position()

	h.model(ws, "digits", noise(t, 1<<20))
	two := "2"
	dep2, err := h.fleet.UpdateDeployment(h.ctx, ws, "digits", dep.Revision, fleet.DeploymentSpec{Version: &two})
	if err != nil {
		t.Fatal(err)
	}
	if dep2.Rollout == dep.Rollout {
		t.Error("a new version did not begin a new rollout")
	}
	d.serves(dep2)
	if after := d.position(); after.Epoch != before.Epoch || after.Generation != before.Generation+1 {
		t.Errorf("position went from %+v to %+v", before, after)
	}
	log, err := h.fleet.CollectLog(h.ctx, ws, d.name, "digits", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(log)
	if err != nil || log.Close() != nil || len(text) != 1<<20 || !bytes.HasSuffix(text, []byte("a line of "+dep.ID+"\n")) {
		t.Errorf("log of %d bytes, %v", len(text), err)
	}
	if _, err := h.fleet.CollectLog(h.ctx, ws, d.name, "", 0); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("a log that the device does not have: %v", err)
	}
	r, err := h.fleet.Trace(h.ctx, ws, dep.Rollout+"-xyz")
	if err != nil || r.Version != 1 || r.Digest != v1.Digest || r.By != "token:admin" || r.DeploymentName != "digits" {
		t.Errorf("trace %+v, %v", r, err)
	}
}

// What a log left half-way when the hub was killed is gone after its next start.
func TestUploadsAreEmptied(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	left := filepath.Join(h.uploads, "collect-1", "content")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	h.start()
	d := h.join(h.workspace("lab"), "kiosk", edge)
	d.connect() // so that the fleet has begun
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what an earlier run left is still there: %v", err)
	}
}

func TestMainWayEmbedded(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	d := h.join(ws, "kiosk", edge)
	h.start()
	mainWay(t, h, ws, d)
}

func TestMainWayMosquitto(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	d := h.join(ws, "kiosk", edge)
	h.startOn(brokertest.Mosquitto(t, h))
	mainWay(t, h, ws, d)
}

func TestMainWayNATS(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	d := h.join(ws, "kiosk", edge)
	h.startOn(brokertest.NATS(t, h, d.id))
	mainWay(t, h, ws, d)
}
