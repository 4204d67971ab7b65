// Command atelier is the command line of an Atelier hub, for the people who
// register models, deploy them to devices and look after them. It is a thin,
// typed client of the hub's REST API.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// The exit codes, also told by 'atelier --help'.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4
	exitUnreachable = 5
)

// run runs one command line and returns its exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{in: stdin, out: stdout, err: stderr}
	root := a.command()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		printError(stderr, err)
		return exitCode(err)
	}
	return 0
}

func printError(w io.Writer, err error) {
	_, _ = fmt.Fprintln(w, "Error:", err)
	var e *atelier.Error
	if !errors.As(err, &e) {
		return
	}
	if e.Remedy != "" {
		_, _ = fmt.Fprintln(w, "  "+e.Remedy)
	}
}

// errUsage marks what was wrong with the command line itself.
type errUsage struct{ error }

func exitCode(err error) int {
	var usage errUsage
	if errors.As(err, &usage) {
		return exitUsage
	}
	var e *atelier.Error
	if !errors.As(err, &e) {
		return exitFailed
	}
	switch e.Code {
	case atelier.Invalid:
		return exitUsage
	case atelier.NotFound:
		return exitNotFound
	case atelier.Unauthenticated, atelier.Forbidden, atelier.Exists, atelier.Conflict, atelier.Stale,
		atelier.InUse, atelier.TooLarge, atelier.Unsupported, atelier.Exhausted, atelier.NoSpace:
		return exitRefused
	case atelier.Unavailable, atelier.Timeout:
		return exitUnreachable
	}
	return exitFailed
}

// app is one run of the command line.
type app struct {
	in       io.Reader
	out, err io.Writer

	// Flags of every command.
	context, workspace, output string
	quiet                      bool
}

const longHelp = `Atelier deploys machine-learning models to devices, and tells how they fare there.

  atelier login https://HUB:8443 --fingerprint sha256:… --token atl_…
  atelier workspace create plant-7
  atelier device token --label site=hall-2       # then, on the device: atelier-agent join …
  atelier model register digits digits.onnx
  atelier deploy digits:1 --to site=hall-2
  atelier why DEVICE

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 not found, 4 refused, 5 hub or device not reachable.

Environment: ATELIER_CONFIG (file with the contexts), ATELIER_CONTEXT, ATELIER_WORKSPACE, ATELIER_TOKEN.`

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "atelier",
		Short:         "Deploy machine-learning models to devices",
		Long:          longHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return a.checkOutput()
		},
		Args: cobra.ArbitraryArgs,
		RunE: groupRun,
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.context, "context", "", "the context to use instead of the current one")
	flags.StringVarP(&a.workspace, "workspace", "w", "", "the workspace to use instead of the context's")
	flags.StringVarP(&a.output, "output", "o", "table", "how to print: table, json or yaml")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "no progress")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return errUsage{fmt.Errorf("%w\n  See '%s --help'", err, cmd.CommandPath())}
	})
	root.AddCommand(
		a.loginCommand(), a.contextCommand(), a.workspaceCommand(), a.tokenCommand(),
		a.modelCommand(), a.environmentCommand(), a.packageCommand(), a.baseCommand(), a.imageCommand(), a.keyCommand(), a.runtimeCommand(),
		a.deviceCommand(), a.deployCommand(), a.deploymentCommand(), a.bundleCommand(), a.endpointCommand(), a.dataCommand(), a.messageCommand(), a.twinCommand(),
		a.statusCommand(), a.whyCommand(), a.telemetryCommand(), a.eventsCommand(), a.auditCommand(),
		a.versionCommand(),
	)
	return root
}

// group makes a command that only holds others; called alone or with a word
// that none of them has, it says so instead of passing silently.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short,
		Args: cobra.ArbitraryArgs,
		RunE: groupRun,
	}
	cmd.AddCommand(children...)
	return cmd
}

func groupRun(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return errUsage{fmt.Errorf("%q is no command of '%s'\n  See '%s --help'", args[0], cmd.CommandPath(), cmd.CommandPath())}
}

// exactly wants n arguments, named as in the command's use line.
func exactly(n int) cobra.PositionalArgs { return between(n, n) }

// between wants from least to most arguments; most < 0 is no bound.
func between(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		return errUsage{fmt.Errorf("%d arguments came, expected was: %s\n  See '%s --help'", len(args), cmd.UseLine(), cmd.CommandPath())}
	}
}

// client returns the client of the context in use.
func (a *app) client() (*client.Client, error) {
	c, err := a.currentContext()
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{Hub: c.Hub, Token: c.Token, Authority: []byte(c.Authority)})
}

// open returns the client and the workspace in use.
func (a *app) open() (*client.Client, string, error) {
	c, err := a.currentContext()
	if err != nil {
		return nil, "", err
	}
	if c.Workspace == "" {
		return nil, "", atelier.Errorf(atelier.Invalid, "no workspace is chosen").
			WithRemedy("Choose one with 'atelier workspace use NAME', or pass --workspace.")
	}
	cl, err := client.New(client.Config{Hub: c.Hub, Token: c.Token, Authority: []byte(c.Authority)})
	return cl, c.Workspace, err
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: exactly(0),
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{"version": version}
			if info, ok := debug.ReadBuildInfo(); ok {
				v["go"] = info.GoVersion
			}
			return a.print(v, func() table {
				return table{rows: [][]string{{"atelier " + strings.TrimSpace(version)}}}
			})
		},
	}
}
