// Command atelier-router brings the messages of a device's modules to each other and into
// the workspace. It is started by atelier-agent where a deployment has routes or twins,
// outlives it, and goes on from its saved table while the agent is away.
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
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/routing"
)

// version is set by the build.
var version = "dev"

type config struct{ state, control string }

var errUsage = errors.New("see atelier-router --help")

func main() {
	// Messages wait for the disk, not for processors; and what is idle shall be small.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS((runtime.NumCPU() + 3) / 4)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	c, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		signal.Ignore(syscall.SIGHUP)
		err = run(ctx, c, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		if errors.Is(err, errUsage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

func parse(args []string) (config, error) {
	var c config
	flags := flag.NewFlagSet("atelier-router", flag.ContinueOnError)
	flags.StringVar(&c.state, "state", "/var/lib/atelier/router", "`DIRECTORY` that keeps the routes and the messages that wait")
	flags.StringVar(&c.control, "control", "/run/atelier/router.sock", "Unix socket on which the agent gives routes, a `PATH`")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return c, err
		}
		return c, fmt.Errorf("%w; %w", err, errUsage)
	}
	if flags.NArg() > 0 {
		return c, fmt.Errorf("%q is no option; %w", flags.Arg(0), errUsage)
	}
	return c, nil
}

// run routes until ctx ends.
func run(ctx context.Context, c config, log *slog.Logger) error {
	control, err := listenControl(c.control)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w", c.control, err)
	}
	r, err := routing.Open(routing.Options{Dir: c.state, Log: log})
	if err != nil {
		return errors.Join(err, control.Close())
	}
	server := &http.Server{Handler: r.Control(), ReadHeaderTimeout: 10 * time.Second}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(control); !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("the control socket failed: %w", err))
		}
	}()
	log.Info("started", "version", version, "state", c.state, "control", c.control)
	err = r.Run(ctx)
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = errors.Join(err, cause)
	}
	err = errors.Join(err, server.Close())
	<-served
	return err
}

// listenControl opens the control socket, for this user only. A socket that a former
// router left behind is taken over; one on which another answers is not.
func listenControl(path string) (net.Listener, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close() // nothing was sent
		return nil, errors.New("another router answers there")
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// The mode must be right from the first moment on.
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	return net.Listen("unix", path)
}
