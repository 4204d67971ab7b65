package main

import (
	"context"
	"os"
	"path/filepath"
)

// spine measures the main job: the agent's size, a model's way to a device and
// the way of a request to it.
var spine = benchmark{
	name:  "spine",
	about: "the main job: the agent's size, rollouts, requests, restarts, registering",
	parts: []part{
		{"size", agentSize},
		{"memory", agentMemory},
		{"infer", infer},
		{"deploy", deploy},
		{"restart", restart},
		{"register", register},
	},
}

// agentSize is the size of the agent as `make build` strips it.
func agentSize(_ context.Context, w *world) ([]Figure, error) {
	info, err := os.Stat(filepath.Join(w.root, "bin/atelier-agent"))
	if err != nil {
		return nil, err
	}
	return []Figure{lower("atelier-agent on disk, stripped", "bytes", []float64{float64(info.Size())}).want(10_000_000)}, nil
}

// oneDevice boots a hub with all models and one device.
func oneDevice(ctx context.Context, w *world) (*device, error) {
	if err := w.boot(ctx); err != nil {
		return nil, err
	}
	if err := w.register(ctx); err != nil {
		return nil, err
	}
	return w.join(ctx, "press")
}
