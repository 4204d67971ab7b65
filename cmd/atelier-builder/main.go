// Command atelier-builder builds what neither hub nor devices can: Python
// environments, for the architecture of the machine that it runs on. It asks the hub for
// builds that wait, claims one at a time, and uploads what came of it. Several may run;
// what one that dies has claimed another takes over.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "Error:", err)
		var e *atelier.Error
		if errors.As(err, &e) && e.Remedy != "" {
			_, _ = fmt.Fprintln(os.Stderr, "  "+e.Remedy)
		}
		os.Exit(1)
	}
}

const longHelp = `Build Python environments for the architecture of this machine.

The builder needs a token that may change the workspaces that it serves: one that is bound to a workspace serves that one, one that
is not serves all. It takes the token from ATELIER_TOKEN, so that it does not show in the list of processes.

Interpreters come out of the packages of this machine's Debian (or Ubuntu), downloaded by apt and not installed; their version is
what that has. Packages come by pip, with this machine's configuration of it, as wheels only. The builder runs no code of what it
builds but pip and the interpreter, and needs no root.`

func command() *cobra.Command {
	var o options
	var fingerprint, authority string
	cmd := &cobra.Command{
		Use:     "atelier-builder --hub https://HUB:8443 --fingerprint sha256:…",
		Short:   "Build Python environments for devices",
		Long:    longHelp,
		Example: "  ATELIER_TOKEN=atl_… atelier-builder --hub https://localhost:8443 --fingerprint sha256:1f2e…",
		Args:    cobra.NoArgs, SilenceErrors: true, SilenceUsage: true, Version: version,
		RunE: func(cmd *cobra.Command, _ []string) error {
			token := os.Getenv("ATELIER_TOKEN")
			if token == "" {
				return atelier.Errorf(atelier.Invalid, "there is no token").WithRemedy("Make one with 'atelier token create builder --role builder', and set ATELIER_TOKEN.")
			}
			// What the builder runs has no business with it.
			if err := os.Unsetenv("ATELIER_TOKEN"); err != nil {
				return err
			}
			pem, err := readAuthority(cmd.Context(), o.hub, fingerprint, authority)
			if err != nil {
				return err
			}
			if o.client, err = client.New(client.Config{Hub: o.hub, Token: token, Authority: pem}); err != nil {
				return err
			}
			o.log = slog.New(slog.NewTextHandler(os.Stderr, nil))
			return run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.hub, "hub", "", "address of the hub")
	f.StringVar(&fingerprint, "fingerprint", "", "SHA-256 of the certificate of the hub's authority")
	f.StringVar(&authority, "authority", "", "file with the certificate of the hub's authority, in place of its fingerprint")
	f.StringVar(&o.name, "name", defaultName(), "name under which builds show this builder")
	f.StringVar(&o.work, "work", "", "directory for what is being built; a new temporary one where it is empty")
	f.DurationVar(&o.poll, "poll", 2*time.Second, "how often to ask for builds")
	f.DurationVar(&o.limit, "limit", time.Hour, "how long one build may take")
	f.BoolVar(&o.once, "once", false, "end when nothing waits for a builder")
	o.arch = runtime.GOARCH
	return cmd
}

// readAuthority returns the certificate that the hub is known by; nil trusts the
// system's authorities.
func readAuthority(ctx context.Context, hub, fingerprint, file string) ([]byte, error) {
	switch {
	case file != "":
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, atelier.Errorf(atelier.Invalid, "read the hub's authority: %w", err)
		}
		return b, nil
	case fingerprint != "":
		return client.FetchAuthority(ctx, hub, fingerprint)
	}
	return nil, nil
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// defaultName is the machine's name, as far as it can be one here.
func defaultName() string {
	host, err := os.Hostname()
	if err != nil {
		return "builder"
	}
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(host), "-"), "-")
	if atelier.CheckName("builder", name) != nil {
		return "builder"
	}
	return name
}
