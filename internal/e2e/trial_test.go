package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

// trial returns how far a device is with the version beside the one that serves, and its
// rollout: "2 Serving".
func (w *world) trial(deployment string) (state, rollout string) {
	w.t.Helper()
	var shown struct {
		Statuses []struct {
			Trial *struct {
				Version int
				State   string
				Rollout string
			}
		} `json:"device_statuses"`
	}
	w.asked(&shown, "deployment", "show", deployment)
	for _, s := range shown.Statuses {
		if s.Trial != nil {
			return fmt.Sprintf("%d %s", s.Trial.Version, s.Trial.State), s.Trial.Rollout
		}
	}
	return "", ""
}

// Under load a canary begins, ends by itself, and takes the other's place; the agent is
// killed meanwhile, and in the end the device's power is cut without a hub. No request is lost before that.
func TestCanaryUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t).plant()
	d := w.join("press")
	w.atelier("deploy", "digits:1", "--all")
	e := w.endpoint("digits")
	l := e.load(t, d)
	w.atelier("deploy", "digits:2", "--canary", "50")
	l.untilVersion(t, "1")
	l.untilVersion(t, "2")

	_, rollout := w.trial("digits")
	held, err := filepath.Glob(filepath.Join(d.state(), "instances", "process", "*-"+rollout, "status.json"))
	if err != nil || len(held) != 1 {
		t.Fatalf("the canary's process is %v, %v", held, err)
	}
	var process struct{ PID int }
	if err := json.Unmarshal([]byte(read(t, held[0])), &process); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(process.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		var shown struct {
			Statuses []struct{ Trial *atelier.SlotStatus } `json:"device_statuses"`
		}
		w.asked(&shown, "deployment", "show", "digits")
		if s := shown.Statuses[0].Trial; s.Restarts != 1 || s.State() != atelier.Serving {
			return fmt.Errorf("after its end the canary is %s, restarted %d times", s.State(), s.Restarts)
		}
		return nil
	})
	d.agent.signal(t, syscall.SIGKILL)
	d.agent.start(t)
	w.atelier("deploy", "digits", "--promote")
	w.atelier("deploy", "digits:1", "--canary", "30")
	if failed := l.stop(); len(failed) > 0 {
		t.Errorf("%d requests failed, the first: %v", len(failed), failed[0])
	}

	w.hub.signal(t, syscall.SIGKILL)
	d.cut(t)
	d.agent.start(t)
	both := map[string]bool{}
	eventually(t, patience, func() error {
		a, err := e.try(d, 1)
		if err != nil {
			return err
		}
		if both[a.version] = true; len(both) < 2 {
			return fmt.Errorf("only %v answer", both)
		}
		return nil
	})
}

// An agent of the version before goes on with what it runs, and says so.
func TestEarlierAgentAndCanary(t *testing.T) {
	t.Parallel()
	old := earlier(t)
	w := newWorld(t).plant()
	d := w.newDevice("press", old)
	e := w.first(d)
	if out := w.fails(4, "deploy", "digits:2", "--canary", "50"); !strings.Contains(out, "UnsupportedFeature") || !strings.Contains(out, "Update atelier-agent") {
		t.Errorf("a canary on an earlier agent says %s", out)
	}
	if a := e.infer(t, d, 1); a.version != "1" {
		t.Errorf("version %s answers", a.version)
	}
}
