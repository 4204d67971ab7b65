package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

// servers returns the directories of the model servers of several that a device has.
func (d *device) servers(t testing.TB) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(d.state(), "instances", "process", "server-*"))
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// Two models share a process. Under load one of them changes its version and the agent is
// killed, and no request is lost; the device says what memory each takes; the process goes
// with the last of them.
func TestModelsInOneServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t).plant()
	d := w.join("press")
	w.atelier("deploy", "digits:1", "--all", "--server", "shelf")
	w.atelier("deploy", "digits:1", "--all", "--server", "shelf", "--name", "more")
	e, more := w.endpoint("digits"), w.endpoint("more")
	if dirs := d.servers(t); len(dirs) != 1 {
		t.Fatalf("the device has the servers %v, one was expected", dirs)
	}
	below := endpoint{"shelf", e.key} // the server's address: model and key say which is meant
	loads := []*load{e.load(t, d), more.load(t, d), below.load(t, d)}
	w.atelier("deploy", "digits:2")
	d.agent.signal(t, syscall.SIGKILL)
	d.agent.start(t)
	for i, l := range loads {
		if i != 1 {
			l.untilVersion(t, "2")
		}
		if failed := l.stop(); len(failed) > 0 {
			t.Errorf("%d requests failed, the first: %v", len(failed), failed[0])
		}
	}
	if a := more.infer(t, d, 1); a.version != "1" {
		t.Errorf("the model beside answers with version %s", a.version)
	}
	if dirs := d.servers(t); len(dirs) != 1 {
		t.Errorf("the device has the servers %v, one was expected", dirs)
	}

	var shown struct {
		Statuses []atelier.DeviceStatus `json:"device_statuses"`
	}
	eventually(t, patience, func() error {
		w.asked(&shown, "deployment", "show", "digits")
		if len(shown.Statuses) != 1 || shown.Statuses[0].Memory <= 0 {
			return fmt.Errorf("it is told as %+v", shown.Statuses)
		}
		return nil
	})
	req, err := http.NewRequest(http.MethodPost, "http://"+d.gateway+"/shelf/v2/repository/index", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", more.key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var index []struct {
		Name, Version, State string
		Memory               int64 `json:"memory_bytes"`
	}
	b, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(b, &index)
	}
	if err != nil || len(index) != 2 || index[0].State != "READY" || index[0].Memory <= 0 || index[0].Version == index[1].Version {
		t.Errorf("the server's index is %s %s (%v)", resp.Status, b, err)
	}

	w.atelier("deploy", "digits", "--server", "")
	w.atelier("deployment", "delete", "more")
	eventually(t, patience, func() error {
		if dirs := d.servers(t); len(dirs) != 0 {
			return fmt.Errorf("the device still has the servers %v", dirs)
		}
		return nil
	})
	e.infer(t, d, 1)
}
