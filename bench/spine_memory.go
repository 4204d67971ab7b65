package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

const (
	agents = 5
	// settling is longer than the minute after which an agent gives free memory
	// back, and sampling as long as its interval of telemetry, so that the work
	// of one is among the samples.
	settling = 75 * time.Second
	sampling = 15 * time.Second
	// pulled is the size of the model that is pulled.
	pulled = 200_000_000
)

// agentMemory runs five agents at a time with their own settings, and reads what
// each has resident: connected and idle, then with an endpoint, then the peak
// while one after the other pulls a model of 200 MB. The model is the digits
// classifier with a file of noise beside it: to the agent content is content.
func agentMemory(ctx context.Context, w *world) ([]Figure, error) {
	if err := w.boot(ctx); err != nil {
		return nil, err
	}
	if err := w.register(ctx); err != nil {
		return nil, err
	}
	var devices []*device
	for i := range agents {
		d, err := w.join(ctx, fmt.Sprintf("press-%d", i+1))
		if err != nil {
			return nil, err
		}
		devices = append(devices, d)
	}
	fmt.Fprintf(w.out, "  %d agents are connected; they settle for %s\n", agents, settling)
	idle, idleAnonymous, err := settled(ctx, devices)
	if err != nil {
		return nil, err
	}
	if err := w.atelier(ctx, "deploy", "digits:1", "--all", "-q"); err != nil {
		return nil, err
	}
	fmt.Fprintf(w.out, "  each serves one endpoint; they settle for %s\n", settling)
	serving, servingAnonymous, err := settled(ctx, devices)
	if err != nil {
		return nil, err
	}
	peak, seconds, err := pulling(ctx, w, devices)
	if err != nil {
		return nil, err
	}
	return []Figure{
		lower("atelier-agent resident, connected, idle", "bytes", idle).want(12e6),
		lower("of it heap and stacks (RssAnon), idle", "bytes", idleAnonymous),
		lower("atelier-agent resident, connected, one endpoint serving", "bytes", serving).want(12e6),
		lower("of it heap and stacks (RssAnon), one endpoint serving", "bytes", servingAnonymous),
		lower("atelier-agent resident, peak while it pulls 200 MB", "bytes", peak).want(16e6),
		lower("that pull, until the model serves", "s", seconds),
	}, nil
}

// settled waits and then gives each agent's median.
func settled(ctx context.Context, devices []*device) (resident, anonymous []float64, err error) {
	if err := pause(ctx, settling); err != nil {
		return nil, nil, err
	}
	all := make([][2][]float64, len(devices))
	for began := time.Now(); time.Since(began) < sampling; {
		for i, d := range devices {
			m, err := memoryOf(d.agent.PID())
			if err != nil {
				return nil, nil, err
			}
			all[i][0], all[i][1] = append(all[i][0], m.resident), append(all[i][1], m.anonymous)
		}
		if err := pause(ctx, 250*time.Millisecond); err != nil {
			return nil, nil, err
		}
	}
	for _, samples := range all {
		resident, anonymous = append(resident, median(samples[0])), append(anonymous, median(samples[1]))
	}
	return resident, anonymous, nil
}

// pulling lets one agent after the other pull the large model.
func pulling(ctx context.Context, w *world, devices []*device) (peak, seconds []float64, err error) {
	dir := filepath.Join(w.dir, "large")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, nil, err
	}
	model, err := os.ReadFile(w.digits(1))
	if err != nil {
		return nil, nil, err
	}
	noise := make([]byte, pulled-len(model))
	if _, err := rand.NewChaCha8([32]byte{}).Read(noise); err != nil {
		return nil, nil, err
	}
	for name, content := range map[string][]byte{"model.onnx": model, "noise.bin": noise} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return nil, nil, err
		}
	}
	if err := w.atelier(ctx, "model", "register", "large", dir, "--entry", "model.onnx", "-q"); err != nil {
		return nil, nil, err
	}
	for _, d := range devices {
		if err := resetPeak(d.agent.PID()); err != nil {
			return nil, nil, err
		}
		began := time.Now()
		if err := w.atelier(ctx, "deploy", "large", "--device", d.name, "--name", "large-"+d.name, "-q"); err != nil {
			return nil, nil, err
		}
		seconds = append(seconds, time.Since(began).Seconds())
		m, err := memoryOf(d.agent.PID())
		if err != nil {
			return nil, nil, err
		}
		peak = append(peak, m.peak)
	}
	return peak, seconds, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
