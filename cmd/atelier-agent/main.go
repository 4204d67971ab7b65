// Command atelier-agent is the control side of a device: it joins a hub, pulls
// the models that the hub deploys to the device, and keeps them running.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent"
	"github.com/atelier-edge/atelier/agent/config"
	"github.com/atelier-edge/atelier/targets"
	"github.com/atelier-edge/atelier/targets/process"
)

// version is set by the build.
var version = "dev"

// kinds is the list of the kinds of targets that the agent knows. A new kind is
// one line here.
func kinds(p agent.Places) ([]targets.Target, error) {
	processes, err := process.New(p.Instances(process.Kind), p.Shim())
	if err != nil {
		return nil, err
	}
	list := []targets.Target{processes}
	if containers := containersOf(p); containers != nil {
		list = append(list, containers)
	}
	return list, nil
}

const usage = `atelier-agent runs models on this device as its Atelier hub deploys them.

Usage:
  atelier-agent join --hub URL --fingerprint SHA256 --token TOKEN [--name NAME] [--label KEY=VALUE]…
  atelier-agent run
  atelier-agent status [-o json]
  atelier-agent import BUNDLE
  atelier-agent check
  atelier-agent down
  atelier-agent version

  join      become a device of a hub; 'atelier device token' prints the command
  run       run the agent; it goes on until it is told to end, and modules go on without it
  status    tell how the agent and its modules are
  import    take a deployment from a bundle that 'atelier bundle export' wrote, without a network
  check     tell what this machine is and whether it can run models
  down      end the modules and the gateway; only while no agent runs
  version   print the version

'atelier-agent COMMAND --help' lists a command's flags.
`

// The exit codes, the same as those of the command line 'atelier'.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4
	exitUnreachable = 5
)

// command is one of the program's commands.
type command struct {
	about string
	args  string // what follows the flags, "" for nothing; one word each
	// setup adds the command's flags and returns what runs it after they are read.
	setup func(*flag.FlagSet, *paths) func(ctx context.Context, c config.Config) error
}

// paths are the flags that all commands have.
type paths struct {
	config, state, run string
	stdout, stderr     io.Writer
}

var commands = map[string]command{
	"join":   {"Become a device of a hub.", "", setupJoin},
	"run":    {"Run the agent.", "", setupRun},
	"status": {"Tell how the agent and its modules are.", "", setupStatus},
	"import": {"Take a deployment from a bundle: a directory or a .tar file.", "BUNDLE", setupImport},
	"check":  {"Tell what this machine is and whether it can run models.", "", setupCheck},
	"down":   {"End the modules and the gateway.", "", setupDown},
}

func main() {
	// It lives long, and allocates little once it runs.
	// The agent lives long, holds half a megabyte, and shares a small device with
	// models: it collects early, and keeps no profile of its memory. ADR 0061.
	runtime.MemProfileRate = 0
	debug.SetGCPercent(25)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run runs one command and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return exitUsage
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdout, usage)
		return 0
	case "version", "-version", "--version":
		fmt.Fprintln(stdout, "atelier-agent", version)
		return 0
	}
	cmd, ok := commands[args[0]]
	if !ok {
		fmt.Fprintf(stderr, "atelier-agent: there is no command %q\n\n%s", args[0], usage)
		return exitUsage
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "%s\n\nUsage: %s\n\n", cmd.about, strings.TrimSpace("atelier-agent "+args[0]+" [flags] "+cmd.args))
		flags.PrintDefaults()
	}
	p := &paths{stdout: stdout, stderr: stderr}
	flags.StringVar(&p.config, "config", config.DefaultPath, "the configuration `FILE`")
	flags.StringVar(&p.state, "state", "", "the `DIRECTORY` for what must last (default: paths.state of the configuration)")
	flags.StringVar(&p.run, "run", "", "the `DIRECTORY` for sockets (default: paths.run of the configuration)")
	do := cmd.setup(flags, p)
	switch err := flags.Parse(args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return exitUsage
	case flags.NArg() > len(strings.Fields(cmd.args)):
		fmt.Fprintf(stderr, "atelier-agent %s: unexpected argument %q\n", args[0], flags.Arg(flags.NArg()-1))
		return exitUsage
	case flags.NArg() < len(strings.Fields(cmd.args)):
		fmt.Fprintf(stderr, "atelier-agent %s: %s is missing\n", args[0], cmd.args)
		return exitUsage
	}
	c, err := p.load()
	if err == nil {
		err = do(ctx, c)
	}
	return explain(stderr, err)
}

// load reads the configuration and puts the flags above it.
func (p *paths) load() (config.Config, error) {
	c, err := config.Load(p.config)
	if err != nil {
		return c, err
	}
	if p.config, err = filepath.Abs(p.config); err != nil {
		return c, err
	}
	for _, o := range []struct {
		flag string
		to   *string
	}{{p.state, &c.Paths.State}, {p.run, &c.Paths.Run}} {
		if o.flag == "" {
			continue
		}
		if *o.to, err = filepath.Abs(o.flag); err != nil {
			return c, err
		}
	}
	return c, nil
}

// explain prints what went wrong and what to do, and returns the exit code.
func explain(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "atelier-agent: %v\n", err)
	var e *atelier.Error
	if errors.As(err, &e) && e.Remedy != "" {
		fmt.Fprintf(stderr, "  %s\n", e.Remedy)
	}
	switch atelier.CodeOf(err) {
	case atelier.NotFound:
		return exitNotFound
	case atelier.Unauthenticated, atelier.Forbidden, atelier.Exists, atelier.Conflict, atelier.Stale, atelier.Exhausted:
		return exitRefused
	case atelier.Unavailable, atelier.Timeout:
		return exitUnreachable
	}
	return exitFailed
}
