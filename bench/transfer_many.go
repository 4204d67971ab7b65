package main

import (
	"context"
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
	manySize    = 20_000_000
	manyStagger = 30 * time.Second // over which the devices come
	manySlow    = 10               // one in so many has a slow link
	manyRounds  = 5
)

// The slow devices' link.
var slowLink = thinLink{name: "slow", rate: 1_000_000, trip: 20 * time.Millisecond}

// transferMany lets one device, then 20 and 200 at once, pull a version, and reads
// how much of the processors the hub takes for each delivered byte. The devices
// come one after the other within half a minute, and a tenth of them have a slow
// link. A version comes to all of them by prefetching; no module is started.
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
	const most = 200
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
	alone, err := w.one(ctx, devices[0])
	if err != nil {
		return nil, err
	}
	figures := []Figure{lower("the hub's processor time for each GB delivered, to one device", "s", alone)}
	for _, count := range []int{20, most} {
		var taken, spread []float64
		rounds := 1
		if count < most {
			rounds = 2
		}
		for round := range rounds {
			seconds, slowest, err := w.wave(ctx, devices[:count], uint64(1000*count+round), isSlow)
			if err != nil {
				return nil, err
			}
			taken, spread = append(taken, seconds), append(spread, slowest)
			fmt.Fprintf(w.out, "  %d devices: %.1f s of the processors for each GB; the slowest of equal links took %.2f times the median\n", count, seconds, slowest)
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

// one lets one device pull a few versions, and returns the hub's seconds for each GB.
func (w *world) one(ctx context.Context, d *device) (seconds []float64, err error) {
	if err := w.start(ctx, d); err != nil {
		return nil, err
	}
	for round := range manyRounds {
		file, err := w.registerNoise(ctx, "many", manySize, uint64(round))
		if err != nil {
			return nil, err
		}
		before, err := processorTime(w.hub.PID())
		if err != nil {
			return nil, err
		}
		if err := w.atelier(ctx, "deploy", "many", "--prefetch", "--device", d.name, "--name", fmt.Sprintf("one-%d", round), "-q", "--no-wait"); err != nil {
			return nil, err
		}
		if _, err := d.has(ctx, file); err != nil {
			return nil, err
		}
		after, err := processorTime(w.hub.PID())
		if err != nil {
			return nil, err
		}
		seconds = append(seconds, (after-before).Seconds()/(manySize/1e9))
	}
	return seconds, d.agent.Stop(syscall.SIGTERM, 10*time.Second)
}

// wave starts devices, one after the other, for which a version is waiting. It
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
			at, errs[i] = d.has(ctx, file)
			took[i] = at.Sub(began).Seconds()
		})
	}
	all.Wait()
	after, cpuErr := processorTime(w.hub.PID())
	for _, d := range devices {
		errs = append(errs, d.agent.Stop(syscall.SIGTERM, 10*time.Second))
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

// has waits until the device has the file, verified and durable, and returns when
// that was: its content store shows it only then (docs/agent.md).
func (d *device) has(ctx context.Context, file noiseFile) (time.Time, error) {
	hex := strings.TrimPrefix(file.digest, "sha256:")
	path := filepath.Join(d.dir, "state/content/blobs/sha256", hex[:2], hex)
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); {
		if _, err := os.Stat(path); err == nil {
			return time.Now(), nil
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return time.Time{}, err
		}
	}
	return time.Time{}, fmt.Errorf("%s does not have %s; the end of its agent's log:\n%s", d.name, file.digest, d.agent.Tail(10))
}
