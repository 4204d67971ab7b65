package e2e

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

// observer measures hub and devices from outside, and asks them for what only
// they know.
type observer struct {
	w       *world
	devices []*device
	client  *http.Client
	token   string
	figures []*figure
	byName  map[string]*figure
	lax     float64 // the race detector's own memory grows for a while
	journal float64 // bytes by which the hub's journal of telemetry may still grow
}

const mega = 1 << 20

func newObserver(w *world, devices ...*device) *observer {
	_, token, _ := strings.Cut(w.login, "--token ")
	token, _, _ = strings.Cut(token, " ")
	o := &observer{w: w, devices: devices, token: token, byName: map[string]*figure{}, lax: 1, client: &http.Client{
		Timeout: 20 * time.Second,
		// Its own hub, on the loopback address.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}}
	if raceEnabled {
		o.lax = 2
	}
	return o
}

// note adds a value to a figure, which is made with its first one.
func (o *observer) note(name, unit string, scale, share, slack, value float64) {
	f := o.byName[name]
	if f == nil {
		f = &figure{name: name, unit: unit, scale: scale, share: share * o.lax, slack: slack * o.lax}
		o.byName[name] = f
		o.figures = append(o.figures, f)
	}
	f.values = append(f.values, value)
}

// told reports whether the hub has heard of every device what they tell of themselves.
func (o *observer) told() error {
	for _, d := range o.devices {
		if _, err := o.query(fmt.Sprintf(`last_over_time(go_goroutine_count{device=%q}[10m])`, d.name)); err != nil {
			return err
		}
	}
	return nil
}

// sample takes one round of measurements.
func (o *observer) sample() error {
	text, err := o.get("/metrics")
	if err != nil {
		return err
	}
	n, err := gauge(text, "go_goroutines")
	if err != nil {
		return err
	}
	series, err := gauge(text, "prometheus_tsdb_head_series")
	if err != nil {
		return err
	}
	if err := o.process("hub", o.w.hub.PID()); err != nil {
		return err
	}
	o.note("hub: goroutines", "", 1, 0.1, 8, n)
	o.note("hub: series in memory", "", 1, 0.15, 100, series) // two versions more or less on two devices
	data := filepath.Join(o.w.dir, "hub")
	for _, part := range []struct {
		name  string
		slack float64
		of    func(path string) bool
	}{
		{"hub: metadata on disk", 0, func(p string) bool { return strings.HasPrefix(p, "hub.db") }},
		{"hub: content on disk", 0, func(p string) bool { return strings.HasPrefix(p, "content/") }},
		{"hub: journal of telemetry, on disk", o.journal, func(p string) bool { return strings.HasPrefix(p, "telemetry/journal/") }},
		{"hub: measurements on disk", 0, func(p string) bool { return strings.HasPrefix(p, "telemetry/tsdb/") }},
		{"hub: all on disk", o.journal, func(string) bool { return true }},
	} {
		bytes, _, err := usage(data, part.of)
		if err != nil {
			return err
		}
		o.note(part.name, "MiB", mega, 0.15, mega+part.slack, bytes)
	}
	_, blobs, err := usage(data, func(p string) bool { return strings.HasPrefix(p, "content/") })
	if err != nil {
		return err
	}
	o.note("hub: contents", "", 1, 0.15, 3, blobs)
	for _, d := range o.devices {
		if err := o.device(d); err != nil {
			return err
		}
	}
	return nil
}

func (o *observer) device(d *device) error {
	who := "agent " + d.name
	if err := o.process(who, d.agent.PID()); err != nil {
		return err
	}
	n, err := o.query(fmt.Sprintf(`last_over_time(go_goroutine_count{device=%q}[10m])`, d.name))
	if err != nil {
		return err
	}
	o.note(who+": goroutines", "", 1, 0.1, 8, n)
	if n, err = o.query(fmt.Sprintf(`last_over_time(atelier_spool_size_bytes{device=%q}[10m])`, d.name)); err != nil {
		return err
	}
	o.note(who+": spool", "MiB", mega, 0.15, mega, n)
	bytes, files, err := usage(d.dir, func(string) bool { return true })
	if err != nil {
		return err
	}
	o.note(who+": all on disk", "MiB", mega, 0.15, mega, bytes)
	o.note(who+": files on disk", "", 1, 0.15, 20, files)
	pids, err := boot.Processes(d.dir)
	if err != nil {
		return err
	}
	o.note(who+": processes", "", 1, 0, 2, float64(len(pids)))
	for _, pid := range pids {
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.HasPrefix(string(name), "atelier-gateway") {
			return o.process("gateway "+d.name, pid)
		}
	}
	return fmt.Errorf("%s has no gateway", d.name)
}

// process notes resident memory and open descriptors.
func (o *observer) process(who string, pid int) error {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return err
	}
	pages, err := strconv.ParseFloat(strings.Fields(string(status))[1], 64)
	if err != nil {
		return err
	}
	descriptors, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return err
	}
	share := 0.1
	if raceEnabled {
		share = 0.5 // what the race detector notes of memory stays resident when the memory has been given back
	}
	o.note(who+": resident memory", "MiB", mega, share, 4*mega, pages*float64(os.Getpagesize()))
	o.note(who+": descriptors", "", 1, 0.1, 6, float64(len(descriptors)))
	return nil
}

// get asks the hub, past the links that go wrong.
func (o *observer) get(path string) (string, error) {
	req, err := http.NewRequestWithContext(o.w.t.Context(), http.MethodGet, "https://"+o.w.listen+path, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+o.token)
	res, err := o.client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", path, res.Status, b)
	}
	return string(b), err
}

// query returns the one value of a PromQL query.
func (o *observer) query(promql string) (float64, error) {
	text, err := o.get("/w/plant/prometheus/api/v1/query?query=" + url.QueryEscape(promql))
	if err != nil {
		return 0, err
	}
	var answer struct {
		Data struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return 0, err
	}
	if len(answer.Data.Result) != 1 {
		return 0, fmt.Errorf("%s has %d values", promql, len(answer.Data.Result))
	}
	value, _ := answer.Data.Result[0].Value[1].(string)
	return strconv.ParseFloat(value, 64)
}

// gauge reads a value without labels out of Prometheus' text form.
func gauge(text, name string) (float64, error) {
	for line := range strings.SplitSeq(text, "\n") {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("the hub does not tell %s", name)
}

// usage returns the bytes that files below dir take on disk, each once however many
// names it has, and how many there are. of is told paths from dir on.
func usage(dir string, of func(path string) bool) (bytes, files float64, err error) {
	seen := map[uint64]bool{}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went meanwhile
		}
		if err != nil {
			return err
		}
		below, err := filepath.Rel(dir, path)
		if err != nil || !e.Type().IsRegular() || strings.HasSuffix(path, "agent.log") && filepath.Dir(path) == dir || !of(below) {
			return err // the log that the test itself keeps is not the agent's
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		inode, blocks := onDisk(info)
		if files++; !seen[inode] {
			seen[inode] = true
			bytes += float64(blocks) * 512
		}
		return nil
	})
	return bytes, files, err
}

// table writes what was measured as Markdown, and fails the test for what grows.
func (o *observer) table(t testing.TB) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| | at the start | median, first half after the warm-up | median, last half | highest | at the end | levels off |\n|---|---|---|---|---|---|---|\n")
	for _, f := range o.figures {
		early, late, err := f.level()
		verdict := "yes"
		if err != nil {
			verdict = "**no**"
			t.Error(err)
		}
		highest := f.values[0]
		for _, v := range f.values {
			highest = max(highest, v)
		}
		name := f.name
		if f.unit != "" {
			name += ", " + f.unit
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", name, f.show(f.values[0]), f.show(early), f.show(late),
			f.show(highest), f.show(f.values[len(f.values)-1]), verdict)
	}
	return b.String()
}
