package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// staged is what the hub says of a deployment on devices, by the device's name.
func (w *world) staged(deployment string) map[string]string {
	w.t.Helper()
	var shown struct {
		Statuses []struct {
			Device string `json:"device_name"`
			Staged *struct {
				Version int
				State   string
			}
		} `json:"device_statuses"`
	}
	w.asked(&shown, "deployment", "show", deployment)
	states := map[string]string{}
	for _, s := range shown.Statuses {
		if s.Staged != nil {
			states[s.Device] = fmt.Sprintf("%d %s", s.Staged.Version, s.Staged.State)
		}
	}
	return states
}

// A version is brought to devices while another answers, also to one whose agent
// is away at first. The switch fails no request and takes no transfer.
func TestPrefetch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.plant()
	w.atelier("model", "register", "digits", heavy(t, 3, 8*mega))
	one, two := w.join("one", "site=a"), w.join("two", "site=a")
	w.atelier("deploy", "digits:1", "--to", "site=a")
	e := w.endpoint("digits")
	two.agent.signal(t, syscall.SIGKILL)

	load := e.load(t, one, two)
	w.atelier("deploy", "digits:3", "--prefetch", "--no-wait")
	eventually(t, patience, func() error {
		if s := w.staged("digits"); s["one"] != "3 Staged" || s["two"] == "3 Staged" {
			return fmt.Errorf("staged: %v", s)
		}
		return nil
	})
	two.agent.start(t)
	eventually(t, patience, func() error {
		if s := w.staged("digits"); s["two"] != "3 Staged" {
			return fmt.Errorf("staged: %v", s)
		}
		return nil
	})
	for _, d := range []*device{one, two} {
		if a := e.infer(t, d, 1); a.version != "1" {
			t.Errorf("%s answers with version %s before the switch", d.name, a.version)
		}
		if out := w.atelier("why", d.name); !strings.Contains(out, "is as desired.") {
			t.Errorf("why %s: %s", d.name, out)
		}
	}

	began := time.Now()
	w.atelier("deploy", "digits", "--switch")
	t.Logf("the switch took %v", time.Since(began).Round(time.Millisecond))
	load.untilVersion(t, "3")
	if failed := load.stop(); len(failed) > 0 {
		t.Errorf("%d requests failed, the first: %v", len(failed), failed[0])
	}
	w.healthy(e, one, 3)
}

// An agent of the version before does not know of prefetching: it goes on with what
// it runs, says so, and fetches with the switch.
func TestEarlierAgentAndPrefetch(t *testing.T) {
	t.Parallel()
	old := earlier(t)
	w := newWorld(t).plant()
	d := w.newDevice("press", old)
	e := w.first(d)
	if out := w.fails(4, "deploy", "digits:2", "--prefetch"); !strings.Contains(out, "UnsupportedFeature") || !strings.Contains(out, "Update atelier-agent") {
		t.Errorf("prefetch on an earlier agent says %s", out)
	}
	if a := e.infer(t, d, 1); a.version != "1" {
		t.Errorf("version %s answers", a.version)
	}
	w.restartAgent(d, bin)
	eventually(t, patience, func() error {
		if s := w.staged("digits"); s["press"] != "2 Staged" {
			return fmt.Errorf("after the update of the agent, staged is %v", s)
		}
		return nil
	})
	w.restartAgent(d, old)
	w.atelier("deploy", "digits", "--switch")
	w.healthy(e, d, 2)
}
