package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving"
	"github.com/atelier-edge/atelier/serving/onnxruntime"
)

// A model whose inference is quick keeps to one thread: waking another for its
// share of so little work takes longer than the share, and requests that come
// together run beside each other anyway. Loading a model anew for that must not
// be noticed.
const (
	quick     = time.Millisecond       // for an inference
	unnoticed = 500 * time.Millisecond // for loading and warming
)

// load loads the runtime and the model, and warms it.
func load(ctx context.Context, c config, log *slog.Logger) (*serving.Model, error) {
	library, err := onnxruntime.Load(c.runtime)
	if err != nil {
		return nil, &exitError{exitRuntime, err}
	}
	begin := time.Now()
	threads := c.threads
	model, inference, err := open(ctx, c, library, threads, log)
	if err != nil {
		return nil, err
	}
	if threads == 0 && runtime.NumCPU() > 1 && inference > 0 && inference < quick && time.Since(begin) < unnoticed {
		threads = 1
		if err := model.Close(); err != nil {
			return nil, err
		}
		if model, inference, err = open(ctx, c, library, threads, log); err != nil {
			return nil, err
		}
	}
	if err := prove(ctx, c, model, log); err != nil {
		return nil, errors.Join(err, model.Close())
	}
	if err := model.Batch(ctx, c.batching, func(why string) { log.Warn("requests run one by one from now on", "why", why) }); err != nil {
		if atelier.CodeOf(err) != atelier.Unsupported {
			return nil, errors.Join(err, model.Close())
		}
		log.Warn("requests run one by one", "error", err)
	}
	log.Info("loaded", "runtime", library.Version(), "took", time.Since(begin), "inference", inference, "threads", threads)
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

// open loads the model and warms it. It returns how long an inference of zeros
// takes when the model is warm, 0 where it does not take zeros.
func open(ctx context.Context, c config, library *onnxruntime.Library, threads int, log *slog.Logger) (_ *serving.Model, inference time.Duration, err error) {
	engine, err := library.Open(c.model, onnxruntime.Options{Threads: threads, Spin: c.spin})
	if err != nil {
		return nil, 0, &exitError{exitModel, err}
	}
	for _, name := range engine.Skipped() {
		log.Warn("an output is no tensor and cannot be asked for", "output", name)
	}
	concurrency := c.concurrency
	if concurrency == 0 {
		concurrency = 2 * runtime.NumCPU()
		if c.batching.MaxRows > 1 { // more at a time would take rows from each other's batches
			concurrency = 1
			if threads > 0 {
				concurrency = max(1, runtime.NumCPU()/threads)
			}
		}
	}
	model := serving.NewModel(c.name, c.version, engine, concurrency)
	const times = 3 // the first is the cold one
	for range times {
		begin := time.Now()
		if err := model.Warm(ctx); err != nil {
			log.Warn("the model does not take zeros; it starts cold", "error", err)
			return model, 0, nil
		}
		if inference = time.Since(begin); inference > quick*10 {
			break // warm enough, and its time is told
		}
	}
	return model, inference, nil
}
