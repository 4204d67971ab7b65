package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

// The clock of a static program cannot be set from outside. The programs of a
// device are built once more for these tests, with a time.Now that adds the seconds in
// the file "clock" beside the program; monotonic time stays as it is. The file is
// read anew ten times a second, so that a test can step the clock.
const (
	clockCall   = "\tsec, nsec, mono := runtimeNow()\n"
	clockSource = `package time

import (
	"sync/atomic"
	"syscall"
)

var testOffset atomic.Int64

// Now runs where nothing may be read from a file: another goroutine does it.
func init() {
	var b [1024]byte
	n, err := syscall.Readlink("/proc/self/exe", b[:])
	if err != nil {
		panic(err)
	}
	for n > 0 && b[n-1] != '/' {
		n--
	}
	path := string(b[:n]) + "clock"
	readTestClock(path)
	go func() {
		for {
			Sleep(100 * Millisecond)
			readTestClock(path)
		}
	}()
}

func readTestClock(path string) {
	fd, err := open(path)
	if err != nil {
		return
	}
	defer closefd(fd)
	var b [32]byte
	if n, err := read(fd, b[:]); err == nil {
		if seconds, err := atoi(b[:n]); err == nil {
			testOffset.Store(int64(seconds))
		}
	}
}
`
)

// withClocks builds the device's programs with a clock that can be set, once.
var withClocks = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(bin, "clocks")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	of := filepath.Join(strings.TrimSpace(string(goroot)), "src", "time")
	now, err := os.ReadFile(filepath.Join(of, "time.go"))
	if err != nil {
		return "", err
	}
	set := strings.Replace(string(now), "func Now() Time {\n"+clockCall, "func Now() Time {\n"+clockCall+"\tsec += testOffset.Load()\n", 1)
	if set == string(now) {
		return "", fmt.Errorf("time.Now of this Go does not begin as expected; look at %s", of)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		filepath.Join(of, "time.go"):      filepath.Join(dir, "time.go"),
		filepath.Join(of, "testclock.go"): filepath.Join(dir, "testclock.go"),
	}})
	if err != nil {
		return "", err
	}
	for name, text := range map[string]string{"time.go": set, "testclock.go": clockSource, "overlay.json": string(overlay)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", filepath.Join(dir, "overlay.json"), "-o", dir+"/",
		"./cmd/atelier-agent", "./cmd/atelier-gateway", "./cmd/atelier-serve", "./cmd/atelier-shim")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the programs with clocks: %w\n%s", err, out)
	}
	return dir, nil
})

// useClock gives a device, before it joins, programs with a clock of its own.
func (w *world) useClock(d *device) {
	w.t.Helper()
	dir, err := withClocks()
	if err != nil {
		w.t.Fatal(err)
	}
	d.usePrograms(filepath.Join(d.dir, "bin"))
	if err := os.Mkdir(d.programs, 0o700); err != nil {
		w.t.Fatal(err)
	}
	for _, name := range []string{"atelier-agent", "atelier-gateway", "atelier-serve", "atelier-shim"} {
		if err := os.Link(filepath.Join(dir, name), filepath.Join(d.programs, name)); err != nil {
			w.t.Fatal(err)
		}
	}
	d.setClock(w.t, 0)
}

// setClock sets the device's clock so far off the true time, at once or at its next start.
func (d *device) setClock(t testing.TB, off time.Duration) {
	t.Helper()
	path := filepath.Join(d.programs, "clock")
	if err := os.WriteFile(path+".new", []byte(strconv.FormatInt(int64(off/time.Second), 10)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// cut ends everything of the device as a power cut does, and takes away what
// lies in memory only.
func (d *device) cut(t testing.TB) {
	t.Helper()
	if err := boot.CutAll(context.WithoutCancel(t.Context()), d.dir); err != nil {
		t.Fatal(err)
	}
	<-d.agent.Exited()
	if err := os.RemoveAll(filepath.Join(d.dir, "run")); err != nil {
		t.Fatal(err)
	}
}

// deviceStatus is what the agent tells on its own device.
type deviceStatus struct {
	CertificateUntil time.Time `json:"certificate_until"`
	Conditions       []struct {
		Type string
		True bool
		Why  struct{ Reason, Message, Remedy string }
	}
}

func (d *device) tells(t testing.TB) (deviceStatus, error) {
	t.Helper()
	var s deviceStatus
	out, errOut, err := run(t.Context(), nil, d.agent.Path, "status", "--config", d.config, "-o", "json")
	if err != nil {
		return s, fmt.Errorf("%w: %s", err, errOut)
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// condition returns the sentence of a condition that is not good, "" where it is.
func (s deviceStatus) condition(kind string) string {
	for _, c := range s.Conditions {
		if c.Type == kind && !c.True {
			return c.Why.Reason + ": " + c.Why.Message
		}
	}
	return ""
}

const tenYears = 10 * 365 * 24 * time.Hour

// TestRebootsOfflineWithAWrongClock cuts the power of devices whose clocks are
// off when they come back, while their hub is away and their certificates run
// out: the modules run, and when the hub is back so is the device.
func TestRebootsOfflineWithAWrongClock(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "--device-certificates", "1m")
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	w.atelier("model", "register", "digits", digits(1))
	w.atelier("model", "register", "digits", digits(2))
	w.atelier("deploy", "digits:1", "--to", "site=a")
	e := w.endpoint("digits")

	type wrong struct {
		*device
		off     time.Duration
		offline string // what its status says about the clock or the certificate without the hub
		online  string // what the hub says of it
	}
	epoch := time.Until(time.Unix(3600, 0)).Truncate(time.Second)
	all := []wrong{
		{w.prepare("ahead"), tenYears, "CertificateExpired: The certificate ran out at", "10 years ahead of the hub's"},
		{w.prepare("behind"), -tenYears, "ClockUntrusted: The device's clock says", "10 years behind the hub's"},
		{w.prepare("epoch"), epoch, "ClockUntrusted: The device's clock says 1970-01-01T", "years behind the hub's"},
		{w.prepare("right"), 0, "CertificateExpired: The certificate ran out at", ""},
	}
	var devices []*device
	for _, d := range all {
		w.useClock(d.device)
		w.agentJoins(d.device, w.joinCommand("--label", "site=a"))
		w.startAgent(d.device)
		devices = append(devices, d.device)
	}
	answers := func(when string) {
		t.Helper()
		for _, d := range devices {
			eventually(t, 90*time.Second, func() error {
				if _, err := e.try(d, 1); err != nil {
					return fmt.Errorf("%s, %s: %w", d.name, when, err)
				}
				return nil
			})
		}
	}
	answers("at first")

	w.hub.signal(t, 15)
	left := time.Now()
	reboot := func() {
		t.Helper()
		for _, d := range all {
			d.cut(t)
			d.setClock(t, d.off)
			d.agent.start(t)
		}
	}
	reboot()
	answers("offline")
	eventually(t, 2*time.Minute, func() error {
		for _, d := range devices {
			if s, err := d.tells(t); err != nil || time.Now().Before(s.CertificateUntil) {
				return fmt.Errorf("%s's certificate is valid until %s (%v)", d.name, s.CertificateUntil, err)
			}
		}
		return nil
	})
	reboot()
	answers("offline, with an expired certificate")
	for _, d := range all {
		eventually(t, 30*time.Second, func() error {
			s, err := d.tells(t)
			if err != nil {
				return err
			}
			said := s.condition("Certificate") + "\n" + s.condition("Clock")
			if !strings.Contains(s.condition("Connected"), "connection refused") || !strings.Contains(said, d.offline) {
				return fmt.Errorf("%s: connected: %s; other conditions: %s", d.name, s.condition("Connected"), said)
			}
			return nil
		})
	}

	w.startHub()
	back := time.Now()
	for _, d := range all {
		w.connected(d.device)
		w.whySays(d.device, d.online)
		s, err := d.tells(t)
		if err != nil {
			t.Fatal(err)
		}
		if said := s.condition("Certificate"); said != "" {
			t.Errorf("%s: %s", d.name, said)
		}
	}
	answers("with the hub")
	// What was measured meanwhile, and what is measured now, stands at the hub's time.
	for _, d := range all {
		w.measured(d.device, back.Sub(left), back)
		w.measured(d.device, 10*time.Second, time.Now().Add(10*time.Second))
	}

	// Such a device is one like any other: a new version, without a failed request.
	load := e.load(t, devices...)
	w.atelier("deploy", "digits:2")
	load.untilVersion(t, "2")

	// Somebody sets the clocks while all this runs.
	for _, d := range all {
		d.setClock(t, -d.off)
	}
	for _, d := range all[:2] {
		w.whySays(d.device, strings.NewReplacer("ahead of", "behind", "behind", "ahead of").Replace(d.online))
	}
	for _, d := range all {
		d.setClock(t, 0)
	}
	for _, d := range all {
		w.whySays(d.device, "")
		w.measured(d.device, 10*time.Second, time.Now().Add(10*time.Second))
	}
	if failed := load.stop(); len(failed) > 0 {
		t.Errorf("%d requests failed, the first: %v", len(failed), failed[0])
	}
	for _, d := range all {
		// One at the start, and then with the certificates' life of a minute.
		most := 2 + int(time.Since(back)/(20*time.Second))
		log := d.agent.Output()
		if n := strings.Count(log[strings.LastIndex(log, "agent runs"):], "certificate renewed"); n == 0 || n > most {
			t.Errorf("%s renewed its certificate %d times, expected were 1 to %d", d.name, n, most)
		}
		if strings.Contains(log, "too many wait") {
			t.Errorf("%s was flooded", d.name)
		}
	}
}

// whySays waits until the hub's finding about the device's clock contains the
// text, or until there is no finding at all where it is "".
func (w *world) whySays(d *device, text string) {
	w.t.Helper()
	eventually(w.t, 60*time.Second, func() error {
		out := w.atelier("why", d.name)
		good := strings.Contains(out, "ClockUntrusted") && strings.Contains(out, text) && strings.Contains(out, "Set the device's clock")
		if text == "" {
			good = strings.Contains(out, "is as desired.")
		}
		if !good {
			return fmt.Errorf("why %s: %s", d.name, out)
		}
		return nil
	})
}

// measured waits until there are measurements of the device in the time before at.
func (w *world) measured(d *device, before time.Duration, at time.Time) {
	w.t.Helper()
	query := fmt.Sprintf(`count_over_time(system_uptime_seconds{device=%q}[%ds] @ %d)`, d.name, int(before.Seconds()), at.Unix())
	eventually(w.t, 60*time.Second, func() error {
		if n := w.query(query); n < 3 {
			return fmt.Errorf("%s is %v", query, n)
		}
		return nil
	})
}
