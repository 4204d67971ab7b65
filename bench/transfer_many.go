package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

const (
	// manySize is the size of the version. The issue names none; all of what a device
	// costs while it comes (connecting twice, its desired state, reports, first
	// telemetry) counts besides the bytes, which weighs the less the larger this is.
	manySize    = 50_000_000
	manyStagger = 30 * time.Second // over which the devices come
	manySlow    = 10               // one in so many has a slow link
	most        = 200
)

// manyRounds is how often so many devices pull a version.
var manyRounds = map[int]int{1: 3, 20: 1, most: 1}

// The slow devices' link.
var slowLink = thinLink{name: "slow", rate: 1_000_000, trip: 20 * time.Millisecond}

// transferMany lets one device, then 20 and 200 at once, pull a version, and reads
// how much of the processors the hub takes for each delivered byte. The devices
// come one after the other within half a minute, which counts, and a tenth of them
// have a slow link. A version comes to all of them by prefetching; no module is started.
func transferMany(ctx context.Context, w *world) ([]Figure, error) {
	var addresses [3]string
	for i := range addresses {
		var err error
		if addresses[i], err = boot.FreeAddress(); err != nil {
			return nil, err
		}
	}
	slow, nowhere := addresses[0], addresses[1]
	// The slow devices learn another address of the hub than the others, when they join.
	if err := w.boot(ctx, "--advertise-mqtt", slow, "--advertise", nowhere); err != nil {
		return nil, err
	}
	if err := w.register(ctx); err != nil {
		return nil, err
	}
	proxy, err := w.startToxiproxy(ctx, slow, w.mqtt)
	if err != nil {
		return nil, err
	}
	if err := proxy.thin(ctx, slowLink); err != nil {
		return nil, err
	}
	devices := make([]*device, most)
	join := func(is func(int) bool) error {
		for i := range devices {
			if !is(i) {
				continue
			}
			if devices[i], err = w.admit(ctx, fmt.Sprintf("press-%d", i)); err != nil {
				return err
			}
		}
		return nil
	}
	isSlow := func(i int) bool { return i%manySlow == manySlow-1 }
	if err := join(isSlow); err != nil {
		return nil, err
	}
	if err := w.restartHub(ctx, "--advertise", nowhere); err != nil {
		return nil, err
	}
	if err := join(func(i int) bool { return !isSlow(i) }); err != nil {
		return nil, err
	}
	if err := w.giveRuntime(ctx, devices); err != nil {
		return nil, err
	}
	var figures []Figure
	var alone []float64
	for _, count := range []int{1, 20, most} {
		var taken, spread []float64
		for round := range manyRounds[count] {
			seconds, slowest, err := w.wave(ctx, devices[:count], uint64(1000*count+round), isSlow)
			if err != nil {
				return nil, err
			}
			taken, spread = append(taken, seconds), append(spread, slowest)
			fmt.Fprintf(w.out, "  %d devices: %.1f s of the processors for each GB; the slowest of equal links took %.2f times the median\n", count, seconds, slowest)
		}
		if count == 1 {
			alone = taken
			figures = append(figures, lower("the hub's processor time for each GB delivered, to one device", "s", alone))
			continue
		}
		beside := make([]float64, len(taken))
		for i := range beside {
			beside[i] = median(alone)
		}
		share := lower(fmt.Sprintf("the hub's processor time for each GB delivered, to %d devices, against one", count), "times", ratios(taken, beside))
		if count == most {
			share = share.want(0.7)
		}
		figures = append(figures, share.beside("to one device, s/GB", alone),
			lower(fmt.Sprintf("the slowest of %d devices of equal link, against their median", count), "times", spread).want(1.5))
	}
	return figures, nil
}

// giveRuntime lets the first device pull ONNX Runtime, and gives it to the others on
// their disks: it is larger than a version, and would come with the first one.
func (w *world) giveRuntime(ctx context.Context, devices []*device) error {
	library, err := os.ReadFile(w.library())
	if err != nil {
		return err
	}
	sum := sha256.Sum256(library)
	runtime := "sha256:" + hex.EncodeToString(sum[:])
	first := devices[0]
	if err := w.start(ctx, first); err != nil {
		return err
	}
	if err := w.atelier(ctx, "deploy", "digits:1", "--prefetch", "--device", first.name, "-q", "--no-wait"); err != nil {
		return err
	}
	if _, err := first.has(ctx, runtime); err != nil {
		return err
	}
	for _, d := range devices[1:] {
		to := d.content(runtime)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.Link(first.content(runtime), to)); err != nil {
			return err
		}
	}
	return first.agent.Stop(syscall.SIGTERM, 10*time.Second)
}

// wave starts devices, one after the other, for which a version is waiting: what is
// measured begins with the first agent's start and ends when the last device has the
// version, so that connecting counts, and joining and registering do not. It
// returns the hub's seconds for each GB, and how much longer the slowest of the
// devices took that have no slow link than their median.
func (w *world) wave(ctx context.Context, devices []*device, seed uint64, isSlow func(int) bool) (seconds, slowest float64, err error) {
	file, err := w.registerNoise(ctx, "many", manySize, seed)
	if err != nil {
		return 0, 0, err
	}
	args := []string{"deploy", "many", "--prefetch", "--name", fmt.Sprintf("wave-%d", seed), "-q", "--no-wait"}
	for _, d := range devices {
		args = append(args, "--device", d.name)
	}
	if err := w.atelier(ctx, args...); err != nil {
		return 0, 0, err
	}
	// What the hub does with a version that was registered, whoever pulls it.
	if err := w.hubIsIdle(ctx); err != nil {
		return 0, 0, err
	}
	before, err := processorTime(w.hub.PID())
	if err != nil {
		return 0, 0, err
	}
	took := make([]float64, len(devices))
	errs := make([]error, len(devices))
	var all sync.WaitGroup
	for i, d := range devices {
		all.Go(func() {
			if errs[i] = pause(ctx, manyStagger*time.Duration(i)/time.Duration(len(devices))); errs[i] != nil {
				return
			}
			began := time.Now()
			if errs[i] = d.agent.Start(); errs[i] != nil {
				return
			}
			var at time.Time
			at, errs[i] = d.has(ctx, file.digest)
			took[i] = at.Sub(began).Seconds()
		})
	}
	all.Wait()
	after, cpuErr := processorTime(w.hub.PID())
	for _, d := range devices {
		errs = append(errs, d.agent.Stop(syscall.SIGTERM, 10*time.Second))
	}
	// The next wave begins as this one did, and with room on the disk.
	errs = append(errs, w.atelier(ctx, "deployment", "delete", fmt.Sprintf("wave-%d", seed), "-q"))
	for _, d := range devices {
		errs = append(errs, os.Remove(d.content(file.digest)))
	}
	if err := errors.Join(append(errs, cpuErr)...); err != nil {
		return 0, 0, err
	}
	var equal []float64
	for i := range devices {
		if !isSlow(i) {
			equal = append(equal, took[i])
		}
	}
	fmt.Fprintf(w.out, "  %d devices: median %.1f s, slowest %.1f s\n", len(devices), median(equal), quantile(equal, 1))
	return (after - before).Seconds() / (manySize / 1e9 * float64(len(devices))), quantile(equal, 1) / median(equal), nil
}

// hubIsIdle waits until the hub takes less than a tenth of a processor for a second.
func (w *world) hubIsIdle(ctx context.Context) error {
	for deadline := time.Now().Add(time.Minute); ; {
		before, err := processorTime(w.hub.PID())
		if err != nil {
			return err
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
		after, err := processorTime(w.hub.PID())
		if err != nil {
			return err
		}
		if after-before < 100*time.Millisecond {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("the hub does not come to rest")
		}
	}
}

// content is where the device keeps a content (docs/agent.md).
func (d *device) content(digest string) string {
	hex := strings.TrimPrefix(digest, "sha256:")
	return filepath.Join(d.dir, "state/content/blobs/sha256", hex[:2], hex)
}

// has waits until the device has a content, verified and durable, and returns when
// that was: its content store shows it only then.
func (d *device) has(ctx context.Context, digest string) (time.Time, error) {
	path := d.content(digest)
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); {
		if _, err := os.Stat(path); err == nil {
			return time.Now(), nil
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return time.Time{}, err
		}
	}
	return time.Time{}, fmt.Errorf("%s does not have %s; the end of its agent's log:\n%s", d.name, digest, d.agent.Tail(10))
}
