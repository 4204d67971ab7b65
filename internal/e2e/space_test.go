package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// heavy makes a version of the digits classifier with a comment of so many bytes
// that no other version has, and returns its path.
func heavy(t testing.TB, version, bytes int) string {
	t.Helper()
	model, err := os.ReadFile(digits(version%2 + 1))
	if err != nil {
		t.Fatal(err)
	}
	model = append(model, 6<<3|2) // doc_string, a string of the protocol buffer
	for n := bytes; ; n >>= 7 {
		if n < 0x80 {
			model = append(model, byte(n))
			break
		}
		model = append(model, byte(n)|0x80)
	}
	random := rand.New(rand.NewPCG(uint64(version), 0))
	for range bytes {
		model = append(model, ' '+byte(random.UintN(95)))
	}
	path := filepath.Join(t.TempDir(), fmt.Sprintf("digits-%d.onnx", version))
	if err := os.WriteFile(path, model, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A device whose disk holds two versions and the runtime says what a third needs
// and what stands in its way. It goes on serving, and takes the new one when its
// owner gives up the way back.
func TestSmallDisk(t *testing.T) {
	t.Parallel()
	if !isRoot(t) {
		t.Skip("the small disk is mounted: run it as root")
	}
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	for version := 1; version <= 3; version++ {
		w.atelier("model", "register", "digits", heavy(t, version, 24*mega))
	}
	d := w.prepare("press")
	settings := read(t, d.config)
	write(t, d.config, "%s", settings+fmt.Sprintf("reserve_bytes = %d\n", 4*mega))
	tmpfs(t, d.state(), "100m") // 34 MiB of which the runtime takes
	w.agentJoins(d, w.joinCommand("--label", "site=a"))
	w.startAgent(d)
	w.connected(d)
	w.atelier("deploy", "digits:1", "--to", "site=a")
	w.atelier("deploy", "digits:2")
	e := w.endpoint("digits")

	w.atelier("deploy", "digits:3", "--no-wait")
	words := []string{"NoSpace", "needs 24.0 MiB", "free (4.0 MiB of it kept in reserve)", "24.0 MiB can be freed by removing version 1 of digits", "keep_previous = false"}
	eventually(t, patience, func() error {
		out := w.atelier("why", "press")
		for _, word := range words {
			if !strings.Contains(out, word) {
				return fmt.Errorf("why press says no %q:\n%s", word, out)
			}
		}
		status, _, err := d.runs("status")
		if err != nil || !strings.Contains(status, "can be freed by removing version 1 of digits") || !strings.Contains(status, "keep_previous = false") {
			return fmt.Errorf("the device says, %v:\n%s", err, status)
		}
		return nil
	})
	if a := e.infer(t, d, 1); a.version != "2" {
		t.Errorf("version %s answers, while 3 does not fit", a.version)
	}

	write(t, d.config, "%s", read(t, d.config)+"keep_previous = false\n")
	eventually(t, patience, func() error {
		a, err := e.try(d, 1)
		if err == nil && a.version != "3" {
			err = fmt.Errorf("version %s answers", a.version)
		}
		return err
	})
}
