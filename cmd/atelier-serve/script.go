package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/python"
)

// exitScript says that a scoring script failed before it could take requests
// (sysexits.h: EX_PROTOCOL).
const exitScript = 76

// lineSeparator stands for the ends of lines within the last line of standard
// error, where a script's output is part of the reason.
const lineSeparator = "\u2028"

// scriptConfig says how a scoring script is run.
type scriptConfig struct {
	script, modelDir, python string
	workers                  int
	memory, requests         int64
	initTimeout              time.Duration
}

func (c *scriptConfig) flags(flags *flag.FlagSet) {
	flags.StringVar(&c.script, "script", "", "serve this scoring script, a `FILE`, in place of an ONNX file; needs --model-dir and --python")
	flags.StringVar(&c.modelDir, "model-dir", "", "the `DIRECTORY` that the script finds as AZUREML_MODEL_DIR")
	flags.StringVar(&c.python, "python", "", "the interpreter that runs the script, a `FILE`")
	flags.IntVar(&c.workers, "workers", python.DefaultWorkers, "processes that run the script, or the model of --mlflow or --pickle, a `NUMBER` (0: one for each processor)")
	flags.Int64Var(&c.memory, "worker-memory", 0, "replace a worker that has more resident memory than these `BYTES`; end it at once at twice as much (0: no limit)")
	flags.Int64Var(&c.requests, "worker-requests", 0, "replace a worker after this `NUMBER` of requests (0: never)")
	flags.DurationVar(&c.initTimeout, "init-timeout", python.DefaultInitTimeout, "give up a script that is not ready after this `DURATION`")
}

func (c *scriptConfig) check() error {
	switch {
	case c.modelDir == "":
		return errors.New("--script needs --model-dir; see atelier-serve --help")
	case c.python == "":
		return errors.New("--script needs --python; see atelier-serve --help")
	}
	return c.checkWorkers()
}

// checkWorkers checks what concerns the processes that run Python.
func (c *scriptConfig) checkWorkers() error {
	switch {
	case c.workers < 0 || c.memory < 0 || c.requests < 0:
		return errors.New("--workers, --worker-memory and --worker-requests must not be negative")
	case c.initTimeout <= 0:
		return errors.New("--init-timeout must be positive")
	}
	return nil
}

// runScript serves a scoring script until ctx ends and the last request is
// answered.
func runScript(ctx context.Context, c config, log *slog.Logger) error {
	s := c.script
	if s.workers == 0 {
		s.workers = processors()
	}
	for _, path := range []*string{&s.script, &s.modelDir} {
		absolute, err := filepath.Abs(*path) // scripts change their directory
		if err != nil {
			return err
		}
		*path = absolute
	}
	handler := python.NewHandler(c.name, c.version, version, s.script, c.maxBody, log)
	listener, err := listen(c.listen)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w", c.listen, err)
	}
	samples, handOver := sampler(c, log)
	handler.SetSampler(samples)
	defer handOver()
	server := &http.Server{
		Handler: handler, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 64 << 10,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	pool, err := python.Start(ctx, python.Options{
		Python: s.python, Script: s.script, ModelDir: s.modelDir, Workers: s.workers, Memory: s.memory, Requests: s.requests,
		Deadline: c.deadline, InitTimeout: s.initTimeout, Log: log,
	})
	if ctx.Err() != nil && err != nil {
		return server.Close() // it was asked to end
	}
	if err != nil {
		return errors.Join(scriptExit(err), server.Close())
	}
	defer pool.Close()
	if err := proveScript(ctx, c, pool, log); err != nil {
		return errors.Join(err, server.Close())
	}
	if err := handler.SetReady(pool); err != nil {
		return errors.Join(scriptExit(err), server.Close())
	}
	giveBack := borrow(c.listen, &lentScript{handler, c.maxBody}, log)
	log.Info("ready", "model", c.name, "version", c.version, "script", s.script, "workers", s.workers, "listen", listener.Addr().String())
	var failed error
	select {
	case err := <-served:
		failed = fmt.Errorf("stopped listening: %w", err)
	case <-pool.Failed():
		failed = scriptExit(pool.Reason())
	case <-ctx.Done():
		log.Info("stopping")
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if err := errors.Join(giveBack(grace), server.Shutdown(grace)); err != nil {
		return errors.Join(failed, fmt.Errorf("requests were still in progress after %v: %w", drainTime, err))
	}
	return failed
}

// scriptExit gives err its exit code, and makes one line of it.
func scriptExit(err error) error {
	var script *python.ScriptError
	if !errors.As(err, &script) {
		return &exitError{exitRuntime, err}
	}
	return &exitError{exitScript, errors.New(oneLine(err.Error()))}
}

// oneLine makes one line of text, short enough to be remembered as a module's
// last (4 KiB): the middle is left out where it is not.
func oneLine(text string) string {
	const head, tail = 1200, 2600
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r", ""), "\n", lineSeparator)
	if len(text) > head+tail {
		text = text[:head] + lineSeparator + "[…]" + lineSeparator + text[len(text)-tail:]
	}
	return strings.ToValidUTF8(text, "")
}

// proveScript sends the script its golden inputs, where it has any. Versions of before
// may have a file of that name that is something of the script's own.
func proveScript(ctx context.Context, c config, pool *python.Pool, log *slog.Logger) error {
	if c.golden == "" {
		return nil
	}
	b, err := os.ReadFile(c.golden)
	if err != nil {
		return &exitError{exitGolden, err}
	}
	golden, err := atelier.ParseGolden(b)
	if err == nil {
		err = golden.CheckFor(atelier.VariantPython)
	}
	if err != nil {
		log.Warn("a file is not golden inputs of a scoring script, and is not looked at", "file", c.golden, "error", err)
		return nil
	}
	begin := time.Now()
	median, err := pool.Prove(ctx, golden)
	if err != nil {
		return &exitError{exitGolden, errors.New(oneLine(err.Error()))}
	}
	log.Info("passed its golden inputs", "cases", len(golden.Cases), "took", time.Since(begin), "median", median)
	return nil
}
