package main

import (
	"fmt"
	"time"

	"github.com/spf13/pflag"

	atelier "github.com/atelier-edge/atelier"
)

// servingFlags are the flags that say how a module answers requests. They have the
// names that they have with atelier-serve.
type servingFlags struct {
	maxBatch, threads, concurrency, workers int
	maxDelay, deadline                      time.Duration
	workerMemory, providers, server         string

	change *atelier.ServingChange // nil where nothing was given; read fills it in
}

func (f *servingFlags) add(flags *pflag.FlagSet) {
	flags.IntVar(&f.maxBatch, "max-batch", 0, "rows of an ONNX model that run together at most, of requests that come while it is busy")
	flags.DurationVar(&f.maxDelay, "max-delay", 0, "how long a request may wait for others to run with, with --max-batch")
	flags.IntVar(&f.threads, "threads", 0, "threads that share one inference of an ONNX model")
	flags.IntVar(&f.concurrency, "concurrency", 0, "inferences of an ONNX model at a time")
	flags.IntVar(&f.workers, "workers", 0, "processes that run a scoring script")
	flags.StringVar(&f.workerMemory, "worker-memory", "", "memory at which one of them is replaced, such as 512MiB")
	flags.StringVar(&f.providers, "providers", "", "what an ONNX model may run on, the preferred one first: cuda,cpu for example")
	flags.StringVar(&f.server, "server", "", "run the ONNX model in one process with those of other deployments that name the same server, a `NAME` ('' for a process of its own)")
	flags.DurationVar(&f.deadline, "deadline", 0, "how long one request may take")
}

// read notes what was given: a flag that was not leaves the setting as it is.
func (f *servingFlags) read(flags *pflag.FlagSet) error {
	var c atelier.ServingChange
	given(flags, "max-batch", &c.MaxBatch, f.maxBatch)
	given(flags, "threads", &c.Threads, f.threads)
	given(flags, "concurrency", &c.Concurrency, f.concurrency)
	given(flags, "workers", &c.Workers, f.workers)
	given(flags, "providers", &c.Providers, f.providers)
	given(flags, "server", &c.Server, f.server)
	given(flags, "max-delay", &c.MaxDelay, millis(f.maxDelay))
	given(flags, "deadline", &c.Deadline, millis(f.deadline))
	if flags.Changed("worker-memory") {
		n := int64(0)
		if f.workerMemory != "0" {
			var err error
			if n, err = parseBytes(f.workerMemory); err != nil {
				return fmt.Errorf("--worker-memory: %w", err)
			}
		}
		c.WorkerMemory = &n
	}
	if c != (atelier.ServingChange{}) {
		f.change = &c
	}
	return nil
}

func given[T any](flags *pflag.FlagSet, name string, to **T, value T) {
	if flags.Changed(name) {
		*to = &value
	}
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
