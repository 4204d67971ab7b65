package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving"
	"github.com/atelier-edge/atelier/serving/onnxruntime"
)

// unbearable is how long an inference of zeros takes that is not repeated.
const unbearable = 10 * time.Millisecond

// load loads the runtime and the model, and warms it.
func load(ctx context.Context, c config, log *slog.Logger) (*serving.Model, error) {
	library := c.library
	if library == nil {
		var err error
		if library, err = onnxruntime.Load(c.runtime); err != nil {
			return nil, &exitError{exitRuntime, err}
		}
	}
	before := memoryOf(os.Getpid())
	begin := time.Now()
	options := onnxruntime.Options{Threads: c.threads, Spin: c.spin, Providers: c.providers}
	if n := processors(); n < runtime.NumCPU() {
		options.Processors = n // the library counts processors, not the time that a group allows
	}
	engine, err := library.Open(c.model, options)
	if err != nil {
		return nil, &exitError{exitModel, err}
	}
	for _, name := range engine.Skipped() {
		log.Warn("an output is no tensor and cannot be asked for", "output", name)
	}
	inference, threads := warm(ctx, c, engine, log)
	model := serving.NewModel(c.name, c.version, engine, concurrency(c, threads))
	model.Deadline = c.deadline
	model.Health = atelier.ModuleHealth{Provider: engine.Provider(), Fallback: engine.Fallback()}
	if err := prove(ctx, c, model, log); err != nil {
		return nil, errors.Join(err, model.Close())
	}
	if err := model.Batch(ctx, c.batching, func(why string) { log.Warn("requests run one by one from now on", "why", why) }); err != nil {
		if atelier.CodeOf(err) != atelier.Unsupported {
			return nil, errors.Join(err, model.Close())
		}
		log.Warn("requests run one by one", "error", err)
	}
	debug.FreeOSMemory() // what loading left
	model.Health.Memory = cmp.Or(c.memory, max(memoryOf(os.Getpid())-before, 0))
	log.Info("loaded", "runtime", library.Version(), "took", time.Since(begin), "inference", inference, "threads", threads, "provider", model.Health.Provider, "memory", atelier.FormatBytes(model.Health.Memory))
	if why := model.Health.Fallback; why != "" {
		log.Warn("another execution provider was preferred", "why", why)
	}
	return model, nil
}

// prove runs the model's golden inputs, where it has any.
func prove(ctx context.Context, c config, model *serving.Model, log *slog.Logger) error {
	if c.golden == "" {
		return nil
	}
	b, err := os.ReadFile(c.golden)
	if err != nil {
		return &exitError{exitGolden, err}
	}
	golden, err := atelier.ParseGolden(b)
	if err != nil {
		return &exitError{exitGolden, err}
	}
	begin := time.Now()
	median, err := model.Prove(ctx, golden)
	if err != nil {
		return &exitError{exitGolden, err}
	}
	log.Info("passed its golden inputs", "cases", len(golden.Cases), "took", time.Since(begin), "median", median)
	return nil
}

// warm runs the model on zeros. It returns how long an inference takes when the
// model is warm, 0 where it does not take zeros, and how many threads share one.
func warm(ctx context.Context, c config, engine *onnxruntime.Model, log *slog.Logger) (inference time.Duration, threads int) {
	model := serving.NewModel(c.name, c.version, engine, 0)
	threads = c.threads
	const times = 3 // the first is the cold one, and the others show whether it needs but one thread
	for i := 0; i < times; i++ {
		begin := time.Now()
		if err := model.Warm(ctx); err != nil {
			log.Warn("the model does not take zeros; it starts cold", "error", err)
			return 0, threads
		}
		if inference = time.Since(begin); inference > unbearable {
			return inference, threads // warm enough, and its time is told
		}
		if now := engine.Settle(); now != threads {
			threads, i = now, -1 // what runs now is cold again
		}
	}
	return inference, threads
}

// concurrency is how many inferences run at a time.
func concurrency(c config, threads int) int {
	switch {
	case c.concurrency > 0:
		return c.concurrency
	case c.batching.MaxRows == 1:
		return 2 * processors()
	case threads > 0: // more at a time would take rows from each other's batches
		return max(1, processors()/threads)
	}
	return 1
}
