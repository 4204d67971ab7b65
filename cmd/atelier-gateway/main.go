// Command atelier-gateway is the data side of a device: it owns the listener and
// leads each endpoint's requests to its module. It is started by atelier-agent,
// outlives it, and answers from its last route table while the agent is away.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/serving/gateway"
)

// version is set by the build.
var version = "dev"

type config struct {
	state, listen, control, cert, key string
	maxBody                           int64
	maxConns                          int
}

var errUsage = errors.New("see atelier-gateway --help")

func main() {
	// Passing requests on is waiting, not computing: one processor in four keeps
	// answers quick, since fewer threads wake each other, and leaves the rest to models.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS((runtime.NumCPU() + 3) / 4)
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
	flags := flag.NewFlagSet("atelier-gateway", flag.ContinueOnError)
	flags.StringVar(&c.state, "state", "/var/lib/atelier/gateway", "`DIRECTORY` that keeps the route table")
	flags.StringVar(&c.listen, "listen", "127.0.0.1:8600", "`ADDRESS` to answer on")
	flags.StringVar(&c.control, "control", "/run/atelier/gateway.sock", "Unix socket on which the agent gives routes, a `PATH`")
	flags.StringVar(&c.cert, "tls-cert", "", "certificate chain to answer with over TLS, a PEM `FILE`; read anew for each client")
	flags.StringVar(&c.key, "tls-key", "", "its private key, a PEM `FILE`")
	flags.Int64Var(&c.maxBody, "max-body", 64<<20, "largest body of a request, in `BYTES`")
	flags.IntVar(&c.maxConns, "max-connections", 1024, "how many clients may be connected at a time")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return c, err
		}
		return c, fmt.Errorf("%w; %w", err, errUsage)
	}
	switch {
	case flags.NArg() > 0:
		return c, fmt.Errorf("%q is no option; %w", flags.Arg(0), errUsage)
	case (c.cert == "") != (c.key == ""):
		return c, fmt.Errorf("--tls-cert and --tls-key belong together; %w", errUsage)
	case c.maxBody <= 0 || c.maxConns <= 0:
		return c, fmt.Errorf("--max-body and --max-connections must be positive; %w", errUsage)
	}
	return c, nil
}

// run answers until ctx ends.
func run(ctx context.Context, c config, log *slog.Logger) error {
	opts := gateway.Options{State: c.state, Listen: c.listen, MaxBody: c.maxBody, MaxConns: c.maxConns, Log: log}
	if c.cert != "" {
		if _, err := tls.LoadX509KeyPair(c.cert, c.key); err != nil {
			return fmt.Errorf("cannot use the certificate: %w", err)
		}
		opts.TLS = &tls.Config{
			MinVersion: tls.VersionTLS12, NextProtos: gateway.TLSProtocols,
			// Certificates are renewed while the gateway runs.
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				pair, err := tls.LoadX509KeyPair(c.cert, c.key)
				return &pair, err
			},
		}
	}
	control, err := listenControl(c.control)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w", c.control, err)
	}
	g, err := gateway.New(opts)
	if err != nil {
		return errors.Join(err, control.Close())
	}
	server := &http.Server{Handler: g.Control(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute}
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
	err = g.Run(ctx)
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = errors.Join(err, cause)
	}
	err = errors.Join(err, server.Close())
	<-served
	return err
}

// listenControl opens the control socket, for this user only. A socket that a
// former gateway left behind is taken over; one on which another answers is not.
func listenControl(path string) (net.Listener, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close() // nothing was sent
		return nil, errors.New("another gateway answers there")
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
