package enrol

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
	"github.com/atelier-edge/atelier/internal/wire"
)

// FuzzEnrolment lets a hub answer a device that joins. An answer that does not
// hold makes no identity; one that does makes an identity that can be read back.
func FuzzEnrolment(f *testing.F) {
	h := newTestHub(f, time.Now)
	o := h.options(f.TempDir())
	var answered wire.Enrolment
	h.tamper = func(e *wire.Enrolment) { answered = *e }
	id, err := Join(context.Background(), o)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(answered)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"device":"../../x","mqtt":[""]}`))
	f.Add([]byte(`{"root":null,"delegation":{}}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		var e wire.Enrolment
		if json.Unmarshal(answer, &e) != nil {
			return
		}
		o := JoinOptions{Options: Options{StateDir: "/state", FS: durabletest.NewDisk()}.complete()}
		s := id.saved
		s.Device, s.Name, s.Workspace, s.WorkspaceName = e.Device, e.Name, e.Workspace, e.WorkspaceName
		s.Shard, s.MQTT, s.Certificate, s.Root, s.Delegation = e.Shard, e.MQTT, e.Certificate, e.Root, e.Delegation
		if err := o.FS.Mkdir("/state", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := o.FS.Mkdir("/state/"+dirName, 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := o.commit(s)
		read, loadErr := Load(o.Options)
		if err != nil {
			if atelier.CodeOf(loadErr) != atelier.NotFound {
				t.Fatalf("%s was refused (%v) and left something: %v", answer, err, loadErr)
			}
			return
		}
		if loadErr != nil || read.Device != e.Device || !atelier.IsID(read.Device) {
			t.Fatalf("%s was taken and reads as %+v, %v", answer, read, loadErr)
		}
	})
}
