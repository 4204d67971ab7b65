package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent"
	"github.com/atelier-edge/atelier/agent/bundles"
	"github.com/atelier-edge/atelier/agent/config"
	"github.com/atelier-edge/atelier/agent/enrol"
	"github.com/atelier-edge/atelier/agent/facts"
)

// labels is a flag that may be given more than once.
type labels atelier.Labels

// String implements flag.Value.
func (l labels) String() string { return "" }

// Set implements flag.Value.
func (l labels) Set(s string) error {
	more, err := atelier.ParseLabels(s)
	if err != nil {
		return err
	}
	for k, v := range more {
		l[k] = v
	}
	return nil
}

func setupJoin(flags *flag.FlagSet, p *paths) func(context.Context, config.Config) error {
	o := enrol.JoinOptions{Labels: atelier.Labels{}}
	flags.StringVar(&o.Hub, "hub", "", "the hub's `URL`, such as https://hub.example.org:8443")
	flags.StringVar(&o.Fingerprint, "fingerprint", "", "the `SHA256` of the hub's authority")
	flags.StringVar(&o.Token, "token", "", "the join `TOKEN`; - reads it from standard input")
	flags.StringVar(&o.Name, "name", "", "the device's `NAME` (default: the hub makes one of the host's name)")
	flags.Var(labels(o.Labels), "label", "a label `KEY=VALUE` of the device; may be given more than once")
	flags.BoolVar(&o.Replace, "replace", false, "leave the hub that the device belongs to and join anew")
	return func(ctx context.Context, c config.Config) error {
		for name, value := range map[string]string{"hub": o.Hub, "fingerprint": o.Fingerprint, "token": o.Token} {
			if value == "" {
				return atelier.Errorf(atelier.Invalid, "--%s is missing", name).WithField(name).
					WithRemedy("Run the command that 'atelier device token' prints.")
			}
		}
		if o.Token == "-" {
			b, err := io.ReadAll(io.LimitReader(os.Stdin, 4096))
			if err != nil {
				return err
			}
			o.Token = strings.TrimSpace(string(b))
		}
		o.StateDir = c.Paths.State
		id, err := enrol.Join(ctx, o)
		if err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "This device is now %q (%s) in workspace %q of %s.\n", id.Name, id.Device, id.WorkspaceName, id.Hub)
		fmt.Fprintln(p.stdout, "Start the agent with 'systemctl enable --now atelier-agent' or 'atelier-agent run'; restart it if it runs.")
		return nil
	}
}

func setupRun(_ *flag.FlagSet, p *paths) func(context.Context, config.Config) error {
	return func(ctx context.Context, c config.Config) error {
		return agent.Run(ctx, agent.Options{
			Config: c, ConfigPath: p.config, Version: version, Targets: kinds,
			Facts: facts.Options{Root: os.DirFS("/")}, Log: p.stderr,
		})
	}
}

func setupImport(flags *flag.FlagSet, p *paths) func(context.Context, config.Config) error {
	output := flags.String("o", "", "the `FORMAT` of the output: json, or nothing for people")
	return func(ctx context.Context, c config.Config) error {
		path, err := filepath.Abs(flags.Arg(0))
		if err != nil {
			return err
		}
		done, err := agent.Import(ctx, agent.Options{
			Config: c, ConfigPath: p.config, Version: version, Targets: kinds,
			Facts: facts.Options{Root: os.DirFS("/")}, Log: io.Discard,
		}, path)
		if err != nil {
			return err
		}
		return show(p.stdout, *output, done, func(w io.Writer) { fmt.Fprintf(w, "Imported: %s.\n", done) })
	}
}

func setupDown(_ *flag.FlagSet, _ *paths) func(context.Context, config.Config) error {
	return func(ctx context.Context, c config.Config) error {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		return agent.Down(ctx, c, kinds)
	}
}

func setupStatus(flags *flag.FlagSet, p *paths) func(context.Context, config.Config) error {
	output := flags.String("o", "", "the `FORMAT` of the output: json, or nothing for people")
	return func(ctx context.Context, c config.Config) error {
		places, err := agent.NewPlaces(c)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		s, err := agent.ReadStatus(ctx, places)
		if err != nil {
			return err
		}
		return show(p.stdout, *output, s, func(w io.Writer) { printStatus(w, s) })
	}
}

// show prints v as JSON, or as people does.
func show(stdout io.Writer, format string, v any, people func(io.Writer)) error {
	switch format {
	case "json":
		e := json.NewEncoder(stdout)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "":
		w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
		people(w)
		return w.Flush()
	}
	return atelier.Errorf(atelier.Invalid, "there is no output format %q", format).WithField("o").WithRemedy("Use -o json, or leave it away.")
}

func printStatus(w io.Writer, s agent.Status) {
	fmt.Fprintf(w, "Device\t%s (%s)\n", s.Name, s.Device)
	fmt.Fprintf(w, "Workspace\t%s\n", s.WorkspaceName)
	fmt.Fprintf(w, "Hub\t%s\n", s.Hub)
	agentLine := "does not run"
	if s.Running {
		agentLine = "runs, version " + s.Version
	}
	fmt.Fprintf(w, "Agent\t%s\n", agentLine)
	if s.Gateway != "" {
		fmt.Fprintf(w, "Endpoints\thttp://%s\n", s.Gateway)
	}
	fmt.Fprintf(w, "Certificate\tuntil %s\n", s.CertificateTo.Format(time.RFC3339))
	for _, c := range s.Conditions {
		if c.Type() == atelier.ConditionConnected && c.True() {
			fmt.Fprintln(w, "Connected\tyes")
		}
		if !c.True() {
			fmt.Fprintf(w, "%s\tno: %s: %s\n", c.Type(), c.Why().Reason(), c.Why().Message())
			if r := c.Why().Remedy(); r != "" {
				fmt.Fprintf(w, "\t%s\n", r)
			}
		}
	}
	for _, b := range s.Bundles {
		fmt.Fprintf(w, "Bundle\t%s: %s\n", b.Name, b.State)
		if b.State != bundles.StateImported {
			fmt.Fprintf(w, "\t%s: %s\n\t%s\n", b.Why.Reason(), b.Why.Message(), b.Why.Remedy())
		}
	}
	if len(s.Modules) == 0 {
		return
	}
	fmt.Fprintln(w, "\nMODULE\tSLOT\tMODEL\tSTATE\tRESTARTS\tWHY")
	for _, m := range s.Modules {
		for _, slot := range []struct {
			name   string
			status *atelier.SlotStatus
		}{{"current", m.Current}, {"candidate", m.Candidate}, {"staged", m.Staged}, {"trial", m.Trial}} {
			if t := slot.status; t != nil {
				why := ""
				if t.State() != atelier.Serving {
					first, _, _ := strings.Cut(t.Why().Message(), "\n") // a script's output may follow
					why = string(t.Why().Reason()) + ": " + first
				}
				fmt.Fprintf(w, "%s\t%s\t%s:%d\t%s\t%d\t%s\n", m.Name, slot.name, t.Model, t.Version, t.State(), t.Restarts, why)
			}
		}
	}
}

func setupCheck(flags *flag.FlagSet, p *paths) func(context.Context, config.Config) error {
	output := flags.String("o", "", "the `FORMAT` of the output: json, or nothing for people")
	return func(context.Context, config.Config) error {
		f := facts.Read(facts.Options{Root: os.DirFS("/"), Targets: []string{"process"}})
		return show(p.stdout, *output, f, func(w io.Writer) {
			fmt.Fprintf(w, "Host\t%s\nSystem\t%s on %s, kernel %s\n", f.Hostname, f.OS, f.Arch, f.Kernel)
			fmt.Fprintf(w, "Processors\t%d\nMemory\t%d MiB\n", f.CPUs, f.Memory>>20)
			for _, r := range f.Runtimes {
				can := "can run here"
				if !r.OK {
					can = "cannot run here: " + r.Why
				}
				fmt.Fprintf(w, "%s\t%s\n", r.Name, can)
			}
		})
	}
}
