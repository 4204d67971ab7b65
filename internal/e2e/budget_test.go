package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// fetched is how many bytes of what the deployment wants a device holds, and
// whether it serves that.
func (w *world) fetched(deployment, device string) (bytes float64, serves bool) {
	w.t.Helper()
	var shown struct {
		Statuses []struct {
			Device  string `json:"device_name"`
			State   string
			Version int
			Wanted  int
			Fetched float64 `json:"fetched_bytes"`
		} `json:"device_statuses"`
	}
	w.asked(&shown, "deployment", "show", deployment)
	for _, s := range shown.Statuses {
		if s.Device == device {
			return s.Fetched, s.State == "Serving" && s.Version == s.Wanted
		}
	}
	w.t.Fatalf("%s is not on %s", deployment, device)
	return 0, false
}

// A device gets content no faster than its budget says, nothing outside of its
// window, and the rest by itself when it opens.
func TestBudget(t *testing.T) {
	t.Parallel()
	const budget, size = 1e6, 8 * mega
	w := newWorld(t)
	w.plant()
	w.atelier("model", "register", "digits", heavy(t, 3, size))
	d := w.join("press", "site=a")
	w.atelier("deploy", "digits:1", "--to", "site=a")
	e := w.endpoint("digits")
	now := time.Now().UTC()
	closed := fmt.Sprintf("%02d:00-%02d:00", (now.Hour()+12)%24, (now.Hour()+13)%24)
	w.atelier("device", "set", "press", "--bandwidth", "1MB/s", "--transfer-window", closed)

	w.atelier("deploy", "digits:3", "--no-wait")
	eventually(t, patience, func() error {
		out := w.atelier("why", "press")
		if !strings.Contains(out, "WindowClosed") || !strings.Contains(out, "device press from "+closed+" UTC; that opens in") {
			return fmt.Errorf("why press: %s", out)
		}
		return nil
	})
	before, _ := w.fetched("digits", "press")
	if a := e.infer(t, d, 1); a.version != "1" {
		t.Errorf("version %s answers, while the window is closed", a.version)
	}
	w.atelier("device", "set", "press", "--transfer-window", "none")
	opened := time.Now()

	var sent, last float64
	eventually(t, patience, func() error {
		bytes, serves := w.fetched("digits", "press")
		elapsed := time.Since(opened).Seconds()
		sent, last = bytes-before, elapsed
		// One burst is a second's worth.
		if most := budget*(elapsed+1) + mega; sent > most {
			t.Errorf("after %.1f s %.0f bytes have come, a budget of %.0f allows %.0f", elapsed, sent, budget, most)
		}
		if !serves {
			return fmt.Errorf("after %.1f s %.0f bytes have come", elapsed, sent)
		}
		return nil
	})
	if sent < size || last < (size-2*budget)/budget {
		t.Errorf("%.0f bytes came in %.1f s", sent, last)
	}
	if a := e.infer(t, d, 1); a.version != "3" {
		t.Errorf("version %s answers", a.version)
	}
}
