package telemetry_test

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/telemetry"
	"github.com/atelier-edge/atelier/internal/otlp"
)

// The store takes as much of the disk after four retention times as after two:
// blocks, logs and the head's chunks all end, also with a device that is always late
// and with series that come and go as models are switched.
func TestDiskLevelsOff(t *testing.T) {
	t.Parallel()
	const (
		block     = 2 * time.Hour
		retention = 12 * block
		late      = 6 * time.Hour
	)
	dir, figures := t.TempDir(), prometheus.NewRegistry()
	c := &clock{now: start}
	s := open(t, dir, c, func(cfg *telemetry.Config) {
		cfg.Retention, cfg.Late, cfg.Block, cfg.Metrics = retention, 2*late, block, figures
	})
	used := map[int]float64{}
	sequence := uint64(0)
	for period := 1; period <= 4; period++ {
		for end := c.now.Add(retention); c.now.Before(end); c.now = c.now.Add(block) {
			sequence++
			for dev, behind := range map[*atelier.Device]time.Duration{&devA: 0, &devB: late} {
				var metrics []otlp.Metric
				for at := c.now; at.Before(c.now.Add(block)); at = at.Add(5 * time.Minute) {
					for n := range 40 {
						metrics = append(metrics, gauge("g", at.Add(-behind), float64(at.Unix()%9973), "n", fmt.Sprint(n), "version", fmt.Sprint(sequence)))
					}
				}
				ingest(t, s, wsA, *dev, newFrame(wsB, sequence, c.now, metrics...))
			}
			compacted(t, figures, block)
		}
		used[period] = onDisk(t, filepath.Join(dir, "tsdb"))
	}
	if allowed := used[2]*1.15 + 256<<10; used[4] > allowed {
		t.Errorf("the store took %v bytes after 2 retention times and %v after 4, at most %v were allowed", used[2], used[4], allowed)
	}
	t.Logf("bytes by retention times: %v", used)
}

// compacted waits until the head holds no more than it keeps by design.
func compacted(t testing.TB, figures prometheus.Gatherer, block time.Duration) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if head := headSpan(t, figures); head <= block*3/2 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the head still spans %s", headSpan(t, figures))
		}
	}
}

func headSpan(t testing.TB, figures prometheus.Gatherer) time.Duration {
	t.Helper()
	families, err := figures.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var first, last float64
	for _, f := range families {
		switch f.GetName() {
		case "prometheus_tsdb_head_min_time":
			first = f.GetMetric()[0].GetGauge().GetValue()
		case "prometheus_tsdb_head_max_time":
			last = f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return time.Duration(last-first) * time.Millisecond
}

// onDisk returns the bytes that the files below dir take.
func onDisk(t testing.TB, dir string) (bytes float64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			info, err = e.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // of a block that is being replaced
		}
		if err != nil || info.IsDir() {
			return err
		}
		bytes += float64(info.Sys().(*syscall.Stat_t).Blocks) * 512
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}
