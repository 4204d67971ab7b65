package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// soak is what a run is asked for.
type soak struct {
	duration time.Duration
	seed     uint64
	period   time.Duration // between two versions
	kept     time.Duration // what is kept for a time is kept for so long
}

// soakOf reads SOAK_DURATION and SOAK_SEED, which `make soak` sets. CI takes three
// minutes.
func soakOf(t *testing.T) soak {
	s := soak{duration: 45 * time.Second, seed: rand.Uint64N(1_000_000)}
	if os.Getenv("CI") == "true" {
		s.duration = 3 * time.Minute
	}
	var err error
	if text := os.Getenv("SOAK_DURATION"); text != "" {
		if s.duration, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	if text := os.Getenv("SOAK_SEED"); text != "" {
		if s.seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	s.period = min(time.Minute, max(5*time.Second, s.duration/60))
	s.kept = max(4*time.Second, s.duration/24)
	return s
}

// TestDayInAnHour lets two devices live through bad links and ever new versions,
// and looks whether anything of theirs or of their hub's grows without end. What
// is kept for a time, by default up to days, is kept for a 24th of the run, so that
// an hour stands for a day.
func TestDayInAnHour(t *testing.T) {
	t.Parallel()
	s := soakOf(t)
	t.Logf("%s with the seed %d; SOAK_DURATION=%[1]s SOAK_SEED=%[2]d repeats it", s.duration, s.seed)
	w := &world{t: t, dir: shortDir(t), listen: freeAddress(t), mqtt: freeAddress(t), advertised: freeAddress(t)}
	mqtt := freeAddress(t)
	links := startToxiproxy(t, w.dir, map[string][2]string{"rest": {w.advertised, w.listen}, "mqtt": {mqtt, w.mqtt}})
	w.boot("--advertise", w.advertised, "--advertise-mqtt", mqtt,
		"--keep-events", s.kept.String(), "--keep-audit", s.kept.String(), "--keep-content", s.kept.String(),
		"--telemetry-block", s.kept.String(), "--retention", (4 * s.kept).String(), "--lateness", (4 * s.kept).String())
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	devices := []*device{w.joinThrough("one", s), w.joinThrough("two", s)}

	life := &life{w: w, seed: s.seed, devices: devices, first: map[string]map[string]time.Time{"one": {}, "two": {}}}
	life.change(t)
	life.endpoint = w.endpoint("digits")
	life.untilServed(t)

	observer := newObserver(w, devices...)
	if s.duration < 30*time.Minute {
		observer.journal = 16 * mega // it is shortened when it is so large, or each 5 minutes: a saw that such a run does not see
	}
	eventually(t, time.Minute, observer.told)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	done := &cuts{counts: map[string]int{}}
	running.Go(func() {
		if err := links.trouble(ctx, s.seed, done); err != nil {
			t.Error(err)
		}
	})
	for _, d := range devices {
		running.Go(func() { life.ask(ctx, d) })
	}
	began := time.Now()
	live(t, s, life, observer, done)
	lasted := time.Since(began).Round(time.Second)
	stop()
	running.Wait()
	life.untilServed(t) // nothing but a whole link is needed
	for _, d := range devices {
		w.connected(d)
	}
	report(t, life, observer, done, fmt.Sprintf("%s, seed %d, %s", lasted, s.seed, machine()))
}

// live changes versions and measures until the time is over.
func live(t *testing.T, s soak, life *life, observer *observer, done *cuts) {
	end := time.NewTimer(s.duration)
	defer end.Stop()
	change := time.NewTicker(s.period)
	defer change.Stop()
	sample := time.NewTicker(max(time.Second, s.duration/180))
	defer sample.Stop()
	progress := time.NewTicker(max(15*time.Second, s.duration/30))
	defer progress.Stop()
	for {
		select {
		case <-end.C:
			return
		case <-change.C:
			life.change(t)
		case <-sample.C:
			if err := observer.sample(); err != nil {
				t.Fatal(err)
			}
		case <-progress.C:
			t.Log(life.summary(), done.summary())
		}
	}
}

func report(t *testing.T, life *life, observer *observer, done *cuts, heading string) {
	text := fmt.Sprintf("%s\n\n%s %s\n\n%s", heading, life.summary(), done.summary(), observer.table(t))
	t.Logf("\n%s", text)
	if path := os.Getenv("SOAK_TABLE"); path != "" {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Error(err)
		}
	}
	for _, failed := range life.failed[:min(5, len(life.failed))] {
		t.Errorf("a request failed: %v", failed)
	}
	for name, served := range life.first {
		if len(served) < life.number/4 {
			t.Errorf("%s served %d of %d versions", name, len(served), life.number)
		}
	}
}

// machine tells what a run ran on.
func machine() string {
	detector := ""
	if raceEnabled {
		detector = ", race detector"
	}
	return fmt.Sprintf("%d processors, %s/%s%s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, detector)
}

// joinThrough makes a device that knows its hub by the address of a proxy only.
func (w *world) joinThrough(name string, s soak) *device {
	w.t.Helper()
	d := w.prepare(name)
	text, err := os.ReadFile(d.config)
	if err != nil {
		w.t.Fatal(err)
	}
	write(w.t, d.config, "%skeep_unused = %q\n", text, s.kept) // prepare ends with [disk]
	join := w.joinCommand("--label", "site=a")
	for i := range join {
		join[i] = strings.ReplaceAll(join[i], w.listen, w.advertised)
	}
	w.agentJoins(d, join)
	w.startAgent(d)
	w.connected(d)
	return d
}

// life is what goes on: versions come and go, requests are asked and answered.
type life struct {
	w        *world
	seed     uint64
	devices  []*device
	endpoint endpoint

	mu       sync.Mutex
	number   int                             // of the newest version
	changed  []time.Time                     // when each version was deployed
	first    map[string]map[string]time.Time // by device and version: the first answer
	answered int
	failed   []error
}

// old is how many versions stay before the newest.
const old = 3

// change registers a version that has content of its own, deploys it, and deletes
// one that is out of use.
func (l *life) change(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	l.number++
	number := l.number
	l.mu.Unlock()
	path := filepath.Join(l.w.dir, "digits.onnx")
	base, err := os.ReadFile(digits(1 + number%2))
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 256<<10)
	r := rand.New(rand.NewPCG(l.seed, uint64(number)))
	for i := range noise {
		noise[i] = 'a' + byte(r.UintN(26))
	}
	// ModelProto.metadata_props (field 14 of onnx.proto) is a list of keys and values.
	entry := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "noise")
	entry = protowire.AppendBytes(protowire.AppendTag(entry, 2, protowire.BytesType), noise)
	base = protowire.AppendBytes(protowire.AppendTag(base, 14, protowire.BytesType), entry)
	if err := os.WriteFile(path, base, 0o600); err != nil {
		t.Fatal(err)
	}
	l.w.atelier("model", "register", "digits", path)
	args := []string{"deploy", fmt.Sprintf("digits:%d", number), "--no-wait"}
	if number == 1 {
		args = append(args, "--to", "site=a")
	}
	l.w.atelier(args...)
	l.mu.Lock()
	l.changed = append(l.changed, time.Now())
	l.mu.Unlock()
	if number > old+1 {
		l.w.atelier("model", "delete", fmt.Sprintf("digits:%d", number-old-1))
	}
}

// ask asks a device steadily until ctx ends.
func (l *life) ask(ctx context.Context, d *device) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, err := l.once(d); err != nil {
				l.mu.Lock()
				l.failed = append(l.failed, fmt.Errorf("%s at %s: %w", d.name, time.Now().Format(time.TimeOnly), err))
				l.mu.Unlock()
			}
		}
	}
}

func (l *life) once(d *device) (answer, error) {
	a, err := l.endpoint.try(d, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.answered++
		if served := l.first[d.name]; served[a.version].IsZero() {
			served[a.version] = time.Now()
		}
	}
	return a, err
}

// untilServed waits until every device serves the newest version.
func (l *life) untilServed(t *testing.T) {
	t.Helper()
	for _, d := range l.devices {
		eventually(t, 2*time.Minute, func() error {
			a, err := l.once(d)
			if err == nil && a.version != strconv.Itoa(l.number) {
				err = fmt.Errorf("%s answers with version %s, the newest is %d", d.name, a.version, l.number)
			}
			return err
		})
	}
}

func (l *life) summary() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lags []float64
	for _, served := range l.first {
		for version, at := range served {
			if n, err := strconv.Atoi(version); err == nil && n <= len(l.changed) {
				lags = append(lags, at.Sub(l.changed[n-1]).Seconds())
			}
		}
	}
	if len(lags) == 0 {
		return ""
	}
	return fmt.Sprintf("%d versions, of which one served %d and two %d; from deploy to the first answer on a device a median of %.1f s, at most %.1f s; "+
		"%d requests answered, %d failed.", l.number, len(l.first["one"]), len(l.first["two"]), median(lags), slices.Max(lags), l.answered, len(l.failed))
}

func (c *cuts) summary() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	total := 0
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(c.counts)) {
		total += c.counts[kind]
		kinds = append(kinds, fmt.Sprintf("%s %d", kind, c.counts[kind]))
	}
	return fmt.Sprintf("Links went wrong %d times: %s.", total, strings.Join(kinds, ", "))
}

// onDisk returns a file's inode and the blocks of 512 bytes that it takes.
func onDisk(info os.FileInfo) (inode uint64, blocks int64) {
	s := info.Sys().(*syscall.Stat_t)
	return s.Ino, s.Blocks
}
