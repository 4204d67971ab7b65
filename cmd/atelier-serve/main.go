// Command atelier-serve is the model server of one module: ONNX Runtime behind
// Open Inference Protocol v2 (REST and gRPC), POST /score and MLflow's POST
// /invocations; an MLflow model or a pickled estimator behind the same, in Python; or a
// scoring script in Python.
//
// It exits with 65 where the model cannot be loaded, 69 where the runtime or the
// interpreter cannot (sysexits.h: EX_DATAERR, EX_UNAVAILABLE), 70 where the model
// does not give what its golden inputs say (EX_SOFTWARE), and 76 where a scoring
// script fails (EX_PROTOCOL), the reason on the last line of its standard error. On
// SIGTERM it finishes the requests that it has.
//
// With --server it holds several ONNX models in one process, each on a socket of its own;
// see server.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving"
	"github.com/atelier-edge/atelier/serving/onnxruntime"
)

// The exit codes.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitModel   = 65
	exitRuntime = 69
	exitGolden  = 70
	exitMemory  = 71 // a server of several models has no room for one; sysexits.h: EX_OSERR
)

// version is set by the build.
var version = "dev"

// handOverTime is how long records may take that the agent has not taken yet.
const handOverTime = time.Second

// drainTime is how long requests may take to finish once the end was asked for.
const drainTime = 30 * time.Second

type config struct {
	name, version, model, runtime, listen, golden string
	threads, concurrency                          int
	deadline                                      time.Duration
	providers                                     []string
	spin                                          bool
	maxBody                                       int64
	script                                        scriptConfig
	predictor                                     predictorConfig
	fpga                                          fpgaConfig
	batching                                      serving.Batching
	server                                        serverConfig
	measure                                       bool

	// Where it is one of several in a server:
	library *onnxruntime.Library
	memory  int64 // what it was measured to take
	onReady func()
	index   func() []serving.IndexEntry
}

// exitError carries the exit code of a failure.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func main() {
	cfg, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		serve := run
		switch {
		case cfg.script.script != "":
			serve = runScript
		case cfg.server.socket != "":
			serve = runServer
		case cfg.measure:
			serve = measure
		}
		err = serve(ctx, cfg, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, strings.ReplaceAll(err.Error(), "\n", " "))
		code := exitFailed
		var exit *exitError
		if errors.As(err, &exit) {
			code = exit.code
		}
		os.Exit(code)
	}
}

func parse(args []string) (config, error) {
	var c config
	flags := flag.NewFlagSet("atelier-serve", flag.ContinueOnError)
	flags.StringVar(&c.name, "name", "", "the model's `NAME`, part of its URLs")
	flags.StringVar(&c.version, "version", "1", "the model's version, a `NUMBER`")
	flags.StringVar(&c.model, "model", "", "the ONNX `FILE`")
	flags.StringVar(&c.runtime, "runtime", "", "ONNX Runtime's shared library, a `FILE`")
	flags.StringVar(&c.golden, "golden", "", "golden inputs that the model must pass before it is ready, a `FILE`")
	flags.StringVar(&c.listen, "listen", "127.0.0.1:8000", "`ADDRESS` to answer on: host:port, or unix:PATH")
	flags.IntVar(&c.threads, "threads", 0, "threads that share one inference (0: one for each processor that the process may use, one alone for a quick model)")
	flags.IntVar(&c.concurrency, "concurrency", 0, "inferences at a time (0: twice the processors)")
	flags.BoolVar(&c.spin, "spin", false, "let threads wait actively after an inference: quicker under load, busier when idle")
	providers := flags.String("providers", "", "execution providers that the model may run on, the preferred one first, a `LIST` such as cuda,cpu (default the processor)")
	flags.IntVar(&c.batching.MaxRows, "max-batch", 1, "`ROWS` that run together at most, of requests that come while the model is busy")
	flags.DurationVar(&c.batching.MaxDelay, "max-delay", 0, "how long a request may wait for others to run with, with --max-batch (0: no longer than the model is busy)")
	flags.Int64Var(&c.maxBody, "max-body", serving.DefaultMaxBody, "largest body of a request, in `BYTES`")
	flags.DurationVar(&c.deadline, "deadline", 0, "how long a request may take for the model, a `DURATION` (0: no bound); a worker whose run() takes longer is ended (0: 1m)")
	c.script.flags(flags)
	c.predictor.flags(flags)
	c.fpga.flags(flags)
	c.server.flags(flags)
	flags.BoolVar(&c.measure, "measure", false, "load, warm and prove the model, write as JSON what memory it takes, and end")
	if err := flags.Parse(args); err != nil {
		return c, &exitError{exitUsage, err}
	}
	var err error
	if c.providers, err = atelier.ParseProviders(*providers); err != nil {
		return c, &exitError{exitUsage, fmt.Errorf("--providers: %w", err)}
	}
	needed := map[string]string{"--name": c.name, "--model": c.model, "--runtime": c.runtime}
	named := map[string]string{"--name": c.name}
	switch {
	case c.server.socket != "":
		err, needed = c.server.check(&c), map[string]string{"--runtime": c.runtime}
	case c.fpga.given():
		err, needed = c.fpga.check(&c), named
	case c.predictor.given():
		err, needed = c.predictor.check(&c.script), named
	case c.script.script != "":
		err, needed = c.script.check(), named
	}
	if err != nil {
		return c, &exitError{exitUsage, err}
	}
	for name, value := range needed {
		if value == "" {
			return c, &exitError{exitUsage, fmt.Errorf("%s is missing; see atelier-serve --help", name)}
		}
	}
	if flags.NArg() > 0 {
		return c, &exitError{exitUsage, fmt.Errorf("%q is no option; see atelier-serve --help", flags.Arg(0))}
	}
	if c.threads < 0 || c.concurrency < 0 || c.maxBody <= 0 {
		return c, &exitError{exitUsage, errors.New("--threads and --concurrency must not be negative, --max-body must be positive")}
	}
	if c.deadline < 0 {
		return c, &exitError{exitUsage, errors.New("--deadline must not be negative")}
	}
	if c.batching.MaxRows < 1 || c.batching.MaxDelay < 0 {
		return c, &exitError{exitUsage, errors.New("--max-batch must be positive, --max-delay must not be negative")}
	}
	if c.batching.MaxRows == 1 && c.batching.MaxDelay > 0 {
		return c, &exitError{exitUsage, errors.New("--max-delay is of no use without --max-batch")}
	}
	return c, nil
}

// run serves until ctx ends and the last request is answered.
func run(ctx context.Context, c config, log *slog.Logger) error {
	handler := serving.NewHandler(c.name, c.version, version, c.maxBody, log)
	listener, err := listen(c.listen)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w", c.listen, err)
	}
	samples, handOver := sampler(c, log)
	handler.SetSampler(samples)
	handler.SetIndex(c.index)
	defer handOver()
	var answers http.Handler = handler
	if c.predictor.given() {
		answers = withIDs(handler)
	}
	device := &fpgaRoute{next: handler}
	if c.fpga.given() {
		answers = device
	}
	server := &http.Server{
		Handler: answers, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 64 << 10,
	}
	// gRPC's clients begin with HTTP/2 at once.
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	var model *serving.Model
	var gone <-chan struct{} // closed when the model can serve no longer; why then tells the reason
	var why func() error
	switch {
	case c.fpga.given():
		model, err = loadFPGA(ctx, c, log)
	case c.predictor.given():
		model, gone, why, err = loadPredictor(ctx, c, log)
	default:
		model, err = load(ctx, c, log)
	}
	if ctx.Err() != nil && err != nil {
		return server.Close() // it was asked to end
	}
	if err != nil {
		return errors.Join(err, server.Close())
	}
	giveBack := func(context.Context) error { return nil }
	if !c.predictor.given() { // a hop costs little beside Python
		giveBack = borrow(c.listen, newLent(c, handler), log)
	}
	handler.SetReady(model)
	device.model.Store(model)
	log.Info("ready", "model", c.name, "version", c.version, "listen", listener.Addr().String())
	if c.onReady != nil {
		c.onReady()
	}
	var failed error
	select {
	case err := <-served:
		failed = fmt.Errorf("stopped listening: %w", err)
	case <-gone:
		failed = why()
	case <-ctx.Done():
		log.Info("stopping")
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if err := errors.Join(giveBack(grace), server.Shutdown(grace)); err != nil {
		// Freeing the model under a request would crash; the end of the process frees it.
		return errors.Join(failed, fmt.Errorf("requests were still in progress after %v: %w", drainTime, err))
	}
	return errors.Join(failed, model.Close())
}

// listen opens address. A socket that a former process left behind is taken over;
// one on which somebody answers is not.
func listen(address string) (net.Listener, error) {
	path, unix := strings.CutPrefix(address, "unix:")
	if !unix {
		return net.Listen("tcp", address)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close() // nothing was sent
		return nil, fmt.Errorf("another process answers on %s", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return listener, os.Chmod(path, 0o600)
}
