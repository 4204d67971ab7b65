// Command atelier-driver-containerd runs an agent's modules as containers, by containerd and
// runc. The agent starts it when a deployment asks for it; it ends by itself when it was not
// asked anything for a while, and containers go on without it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/targets/containerd"
	"github.com/atelier-edge/atelier/targets/driver/serve"
)

// version is set by the build.
var version = "dev"

// idle is how long the driver stays where nobody asks anything.
const idle = time.Minute

func main() {
	if len(os.Args) == 2 && (os.Args[1] == "version" || os.Args[1] == "--version") {
		fmt.Fprintln(os.Stdout, "atelier-driver-containerd", version)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	default:
		fmt.Fprintln(os.Stderr, "atelier-driver-containerd:", err)
		var known *atelier.Error
		if errors.As(err, &known) && known.Remedy != "" {
			fmt.Fprintln(os.Stderr, " ", known.Remedy)
		}
		os.Exit(1)
	}
}

// list is a flag that may be repeated.
type list []string

func (l *list) String() string     { return fmt.Sprint([]string(*l)) }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("atelier-driver-containerd", flag.ContinueOnError)
	socket := flags.String("socket", "", "the Unix `SOCKET` on which the agent asks")
	var o containerd.Options
	flags.StringVar(&o.Dir, "dir", "", "the `DIRECTORY` for what must last")
	flags.StringVar(&o.Run, "run", "", "the `DIRECTORY` for what a reboot may take")
	flags.StringVar(&o.Address, "address", "/run/containerd/containerd.sock", "containerd's `SOCKET`")
	flags.StringVar(&o.Namespace, "namespace", "atelier", "containerd's namespace `NAME`, of this device's alone")
	flags.StringVar(&o.Snapshotter, "snapshotter", "", "containerd's snapshotter `NAME` (default overlayfs, or native where that does not work)")
	flags.Int64Var(&o.Reserve, "reserve", 64<<20, "`BYTES` of the disk that stay free")
	var private list
	flags.Var(&private, "private", "a `DIRECTORY` that no container may be shown; may be repeated")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *socket == "" || o.Dir == "" || o.Run == "" {
		return atelier.Errorf(atelier.Invalid, "--socket, --dir and --run are needed").WithRemedy("atelier-agent starts this program; people need not.")
	}
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return atelier.Errorf(atelier.Internal, "find the driver's own executable: %w", err)
	}
	o.Keep = filepath.Join(filepath.Dir(self), "atelier-keep")
	if _, err := os.Stat(o.Keep); err != nil {
		return atelier.Errorf(atelier.Invalid, "atelier-keep is not there: %w", err).WithRemedy("Install it beside atelier-driver-containerd.")
	}
	o.Private = append(private, o.Dir, o.Run, filepath.Dir(o.Address))
	o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	target, err := containerd.New(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	return serve.Run(ctx, serve.Options{Target: target, Version: version, Socket: *socket, Idle: idle})
}
