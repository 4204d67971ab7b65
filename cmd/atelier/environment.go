package main

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

func (a *app) environmentCommand() *cobra.Command {
	return group("environment", "Define the Python environments that scoring scripts run in",
		a.environmentCreate(), a.environmentList(), a.environmentShow(), a.environmentLog(),
		a.inWorkspace("delete NAME[:VERSION]", "Delete a version of an environment in which nothing runs", "Deleted environment %s.", (*client.Client).DeleteEnvironment))
}

func (a *app) environmentCreate() *cobra.Command {
	var n client.NewEnvironment
	var file string
	var wait bool
	cmd := &cobra.Command{
		Use:   "create NAME -f FILE",
		Short: "Define the next version of an environment, for a builder to build",
		Long: `Define the next version of an environment, for a builder to build.

FILE is a requirements.txt, or a conda file (a name that ends in .yml or .yaml) whose pip section is what is installed. Requirements
are names with extras, versions, markers and hashes; options, addresses, paths and packages of conda are refused, with the line.
The environment brings an interpreter of its own, so that devices need no Python. It is built by 'atelier-builder', once for each
architecture; what was built of the same definition before is taken at once.`,
		Example: `  atelier environment create sklearn -f requirements.txt --python 3.11 --wait
  atelier environment create sklearn -f conda.yml --arch amd64 --arch arm64`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n.Name = args[0]
			text, err := readDefinition(file)
			if err != nil {
				return err
			}
			if strings.HasSuffix(file, ".yml") || strings.HasSuffix(file, ".yaml") {
				n.Conda = text
			} else {
				n.Requirements = text
			}
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			e, err := cl.CreateEnvironment(cmd.Context(), ws, n)
			if err != nil {
				return err
			}
			a.say("Created %s:%d", e.Environment, e.Number)
			return a.showEnvironment(cmd.Context(), cl, ws, e, wait)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "requirements.txt or conda file")
	f.StringVar(&n.Python, "python", "", "version of the interpreter (default: what the conda file says, or 3.11)")
	f.StringArrayVar(&n.Arch, "arch", []string{runtime.GOARCH}, "architecture of the devices, amd64 or arm64; may be repeated")
	f.StringVar(&n.Description, "description", "", "what it is for, or what is new in this version")
	f.BoolVar(&wait, "wait", false, "wait until it is built; fail where it cannot be")
	_ = cmd.MarkFlagRequired("file") // the flag is there
	return cmd
}

// maxDefinition is more than the hub takes.
const maxDefinition = 128 << 10

func readDefinition(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", atelier.Errorf(atelier.Invalid, "read the definition: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxDefinition))
	if err := errors.Join(err, f.Close()); err != nil {
		return "", atelier.Errorf(atelier.Invalid, "read the definition: %w", err)
	}
	return string(b), nil
}

// showEnvironment prints an environment, with wait once its builds are over; one that
// failed is an error then.
func (a *app) showEnvironment(ctx context.Context, cl *client.Client, ws string, e atelier.Environment, wait bool) error {
	if wait {
		var err error
		if e, err = a.awaitBuilds(ctx, cl, ws, e); err != nil {
			return err
		}
	}
	if err := a.print(e, func() table { return environmentTable(e) }); err != nil {
		return err
	}
	for _, b := range e.Builds {
		if wait && b.State == atelier.BuildFailed {
			return atelier.Errorf(atelier.Unsupported, "%s:%d could not be built for %s: %s", e.Environment, e.Number, b.Arch, b.Why.Message()).
				WithRemedy("%s", b.Why.Remedy())
		}
	}
	return nil
}

// awaitBuilds waits until the builds of an environment are over, and says each step.
func (a *app) awaitBuilds(ctx context.Context, cl *client.Client, ws string, e atelier.Environment) (atelier.Environment, error) {
	told := map[string]string{}
	for {
		over := true
		for _, b := range e.Builds {
			line := string(b.State)
			if !b.State.Over() {
				over = false
				line += ": " + b.Why.Message()
			}
			if told[b.Arch] != line {
				a.say("%s: %s", b.Arch, line)
			}
			told[b.Arch] = line
		}
		if over {
			return e, nil
		}
		select {
		case <-ctx.Done():
			return e, atelier.Errorf(atelier.Timeout, "interrupted: %w", ctx.Err()).
				WithRemedy("The build goes on; see 'atelier environment show %s:%d'.", e.Environment, e.Number)
		case <-time.After(time.Second):
		}
		var err error
		if e, err = cl.Environment(ctx, ws, e.ID); err != nil {
			return e, err
		}
	}
}

func (a *app) environmentList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the environments", Aliases: []string{"ls"}, Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.Environments(cmd.Context(), ws))
			if err != nil {
				return err
			}
			return a.print(all, func() table {
				t := table{head: []string{"NAME", "VERSION", "PYTHON", "REQUIRES", "BUILDS", "CREATED"}}
				for _, e := range all {
					var builds []string
					for _, b := range e.Builds {
						builds = append(builds, b.Arch+" "+string(b.State))
					}
					t.add(e.Environment, strconv.Itoa(e.Number), e.Python, count(len(e.Requirements), "package", "packages"), strings.Join(builds, ", "), ago(e.Created))
				}
				if len(all) == 0 {
					t.note = "There is no environment yet; make one with 'atelier environment create NAME -f requirements.txt'."
				}
				return t
			})
		},
	}
}

func (a *app) environmentShow() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "show NAME[:VERSION]", Short: "Show a version of an environment and its builds", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			e, err := cl.Environment(cmd.Context(), ws, args[0])
			if err != nil {
				return err
			}
			return a.showEnvironment(cmd.Context(), cl, ws, e, wait)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it is built; fail where it cannot be")
	return cmd
}

func environmentTable(e atelier.Environment) table {
	t := table{
		about: [][]string{
			{"Environment:", e.Environment + ":" + strconv.Itoa(e.Number)},
			{"Python:", e.Python},
			{"Requirements:", strings.Join(e.Requirements, ", ")},
			{"Definition:", e.Digest.Short()},
		},
		head: []string{"ARCH", "STATE", "SIZE", "PACKAGES", "NEEDS", "WHY"},
	}
	if e.Description != "" {
		t.about = append(t.about, []string{"Description:", e.Description})
	}
	for _, b := range e.Builds {
		size, needs, why, packages := "", "", "", ""
		if b.Artifact != nil {
			size, packages = atelier.FormatBytes(b.Artifact.Size), strconv.Itoa(len(b.Packages))
		}
		if b.NeedsGlibc != "" {
			needs = "glibc " + b.NeedsGlibc
		}
		if b.State != atelier.BuildReady {
			why = b.Why.Message()
		}
		t.add(b.Arch, string(b.State), size, packages, needs, why)
	}
	return t
}

func (a *app) environmentLog() *cobra.Command {
	var arch string
	cmd := &cobra.Command{
		Use: "log NAME[:VERSION]", Short: "Print the log of a build, whatever came of it", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			log, err := cl.OpenBuildLog(cmd.Context(), ws, args[0], arch)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, log.Close()) }()
			if _, err := io.Copy(a.out, log); err != nil {
				return atelier.Errorf(atelier.Unavailable, "the log broke off: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&arch, "arch", "", "the build's architecture (default: the one that failed, or the first)")
	return cmd
}
