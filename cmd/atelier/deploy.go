package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

// deployFlags are what 'atelier deploy' was asked for.
type deployFlags struct {
	name, endpoint, target, memory, to string
	devices                            []string
	all, noWait                        bool
	timeout                            time.Duration
}

func (a *app) deployCommand() *cobra.Command {
	var f deployFlags
	cmd := &cobra.Command{
		Use:   "deploy MODEL[:VERSION]",
		Short: "Deploy a model version to devices, or bring a deployment to another version",
		Long: `Deploy a model version to devices, or bring a deployment to another version.

A deployment of that name is made, or changed where there is one: what is not given stays as it is. Without a version the
newest is taken. The command waits until every selected device serves the version, and tells why one does not; a device
that is away gets it when it comes back (--no-wait returns at once).`,
		Example: `  atelier deploy digits:1 --to site=hall-2
  atelier deploy digits:2                      # the same devices get version 2; no request is dropped
  atelier deploy silero --device press-4 --name speech`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.deploy(cmd.Context(), args[0], f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "name of the deployment (default the model's)")
	flags.StringVar(&f.to, "to", "", "devices with these labels, key=value,…")
	flags.StringArrayVar(&f.devices, "device", nil, "a device by name or id; may be repeated")
	flags.BoolVar(&f.all, "all", false, "every device of the workspace")
	flags.StringVar(&f.endpoint, "endpoint", "", "name of the endpoint (default the deployment's)")
	flags.StringVar(&f.target, "target", "", "kind of target to run on (default the device's own)")
	flags.StringVar(&f.memory, "memory", "", "memory that a module may use, such as 512MiB")
	flags.BoolVar(&f.noWait, "no-wait", false, "return as soon as the hub has it")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Minute, "how long to wait")
	return cmd
}

func (a *app) deploy(ctx context.Context, ref string, f deployFlags) error {
	model, number, err := splitVersion(ref)
	if err != nil {
		return err
	}
	cl, ws, err := a.open()
	if err != nil {
		return err
	}
	spec := client.DeploymentSpec{Model: model, Version: firstOf(number, "latest"), Endpoint: f.endpoint, Target: f.target}
	if spec.Selector, err = selector(ctx, cl, ws, f); err != nil {
		return err
	}
	if f.memory != "" {
		n, err := parseBytes(f.memory)
		if err != nil {
			return err
		}
		spec.Limits = &atelier.Limits{Memory: n}
	}
	name := firstOf(f.name, model)
	d, err := cl.Deployment(ctx, ws, name)
	switch {
	case err == nil:
		d, err = cl.UpdateDeployment(ctx, ws, d.ID, spec)
	case atelier.CodeOf(err) != atelier.NotFound:
	case spec.Selector == nil:
		err = errUsage{fmt.Errorf("there is no deployment %q yet, and nothing says to which devices\n  Pass --to key=value, --device NAME or --all", name)}
	default:
		spec.Name = name
		d, err = cl.CreateDeployment(ctx, ws, spec)
	}
	if err != nil {
		return err
	}
	a.say("Deployment %s wants %s:%d on endpoint /%s", d.Name, d.Model, d.Version, d.Endpoint)
	if f.noWait {
		return a.print(d, func() table { return deploymentsTable([]atelier.Deployment{d}) })
	}
	statuses, err := a.await(ctx, cl, ws, d, f.timeout)
	if err != nil {
		return err
	}
	return a.print(statuses, func() table { return statusesTable(statuses) })
}

// selector returns what the flags select, nil where they say nothing.
func selector(ctx context.Context, cl *client.Client, ws string, f deployFlags) (*atelier.Selector, error) {
	if f.to == "" && len(f.devices) == 0 && !f.all {
		return nil, nil
	}
	s := &atelier.Selector{All: f.all}
	var err error
	if s.Labels, err = atelier.ParseLabels(f.to); err != nil {
		return nil, err
	}
	for _, name := range f.devices {
		d, err := cl.Device(ctx, ws, name)
		if err != nil {
			return nil, err
		}
		s.Devices = append(s.Devices, d.ID)
	}
	return s, nil
}

// parseBytes reads sizes as people write them: 512MiB, 2GB, 1000000.
func parseBytes(s string) (int64, error) {
	units := []struct {
		suffix string
		factor float64
	}{
		{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}, {"", 1},
	}
	for _, u := range units {
		digits, ok := strings.CutSuffix(strings.TrimSpace(s), u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
		if err == nil && n*u.factor >= 1 && n*u.factor < 1<<62 {
			return int64(n * u.factor), nil
		}
		break
	}
	return 0, errUsage{fmt.Errorf("%q is no size; write it like 512MiB or 2GB", s)}
}

// await polls a deployment until every selected device serves what is wanted.
// It prints each change, and returns a refusal as soon as a device can never
// get there by itself.
func (a *app) await(ctx context.Context, cl *client.Client, ws string, d atelier.Deployment, timeout time.Duration) ([]atelier.DeviceStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	told := map[string]string{}
	for {
		statuses, err := client.Collect(cl.DeploymentDevices(ctx, ws, d.ID))
		if err != nil && ctx.Err() == nil {
			return nil, err
		}
		var waiting, refused []atelier.DeviceStatus
		for _, s := range statuses {
			line := statusLine(s)
			if told[s.Device] != line {
				told[s.Device] = line
				a.say("  %s: %s", printable(s.DeviceName), printable(line))
			}
			switch {
			case s.State() == atelier.Refused || s.State() == atelier.Quarantined:
				refused = append(refused, s)
			case s.State() != atelier.Serving || s.Version != s.Wanted:
				waiting = append(waiting, s)
			}
		}
		switch {
		case err == nil && len(refused) > 0 && len(waiting) == 0:
			return nil, notServing(atelier.Conflict, d, refused)
		case err == nil && len(statuses) == 0:
			a.say("No device is selected; those that match later will get it.")
			return statuses, nil
		case err == nil && len(waiting) == 0:
			return statuses, nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, notServing(atelier.Timeout, d, append(refused, waiting...)).
					WithRemedy("The deployment stays wanted. See 'atelier deployment show %s' and 'atelier why DEVICE'.", d.Name)
			}
			return nil, atelier.Errorf(atelier.Timeout, "interrupted; the deployment stays wanted")
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func statusLine(s atelier.DeviceStatus) string {
	switch {
	case s.State() == atelier.Serving && s.Version == s.Wanted && s.Way == "difference":
		return fmt.Sprintf("serves version %d; of its %s, %s came over the wire", s.Version, atelier.FormatBytes(s.Size), atelier.FormatBytes(s.Received))
	case s.State() == atelier.Serving && s.Version == s.Wanted:
		return fmt.Sprintf("serves version %d", s.Version)
	case s.State() == atelier.Fetching && s.Size > 0:
		return fmt.Sprintf("Fetching, %d%% of %s", s.Fetched*100/s.Size/10*10, atelier.FormatBytes(s.Size))
	case s.Why().Reason() == atelier.ReasonInProgress || s.Why().Reason() == atelier.ReasonWaiting:
		return string(s.State())
	}
	return fmt.Sprintf("%s, %s: %s", s.State(), s.Why().Reason(), s.Why().Message())
}

func notServing(code atelier.Code, d atelier.Deployment, statuses []atelier.DeviceStatus) *atelier.Error {
	lines := make([]string, 0, len(statuses))
	for _, s := range statuses {
		lines = append(lines, fmt.Sprintf("\n  %s: %s", printable(s.DeviceName), printable(statusLine(s))))
	}
	e := atelier.Errorf(code, "%d devices do not serve %s:%d:%s", len(statuses), d.Model, d.Version, strings.Join(lines, ""))
	if len(statuses) > 0 {
		e.Remedy = statuses[0].Why().Remedy()
	}
	return e
}

func (a *app) deploymentCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the deployments", Aliases: []string{"ls"}, Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.Deployments(cmd.Context(), ws))
			if err != nil {
				return err
			}
			return a.print(all, func() table { return deploymentsTable(all) })
		},
	}
	show := &cobra.Command{
		Use: "show NAME", Short: "Show a deployment and its state on each device", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			d, err := cl.Deployment(cmd.Context(), ws, args[0])
			if err != nil {
				return err
			}
			statuses, err := client.Collect(cl.DeploymentDevices(cmd.Context(), ws, d.ID))
			if err != nil {
				return err
			}
			both := struct {
				atelier.Deployment
				DeviceStatuses []atelier.DeviceStatus `json:"device_statuses"`
			}{d, statuses}
			return a.print(both, func() table {
				t := statusesTable(statuses)
				t.about = aboutDeployment(d)
				return t
			})
		},
	}
	remove := a.inWorkspace("delete NAME", "Take a deployment off its devices", "Deleted deployment %s; its devices stop serving it.", (*client.Client).DeleteDeployment)
	return group("deployment", "Look after deployments; 'atelier deploy' makes them", list, show, remove)
}

func deploymentsTable(all []atelier.Deployment) table {
	t := table{head: []string{"NAME", "MODEL", "ENDPOINT", "DEVICES", "UPDATED"}}
	for _, d := range all {
		t.add(d.Name, fmt.Sprintf("%s:%d", d.Model, d.Version), "/"+d.Endpoint, selected(d.Selector), ago(d.Updated))
	}
	if len(all) == 0 {
		t.note = "There is no deployment yet; see 'atelier deploy --help'."
	}
	return t
}

func aboutDeployment(d atelier.Deployment) [][]string {
	about := [][]string{
		{"Deployment:", d.Name}, {"Model:", fmt.Sprintf("%s:%d", d.Model, d.Version)}, {"Endpoint:", "/" + d.Endpoint},
		{"Devices:", selected(d.Selector)}, {"Target:", firstOf(d.Target, "the device's own")},
	}
	if d.Limits.Memory > 0 {
		about = append(about, []string{"Memory:", atelier.FormatBytes(d.Limits.Memory)})
	}
	return append(about, []string{"Updated:", ago(d.Updated)})
}

func selected(s atelier.Selector) string {
	var parts []string
	if s.All {
		parts = append(parts, "all")
	}
	if len(s.Labels) > 0 {
		parts = append(parts, labelsOf(s.Labels))
	}
	if len(s.Devices) > 0 {
		parts = append(parts, fmt.Sprintf("%d by name", len(s.Devices)))
	}
	return strings.Join(parts, " or ")
}

func statusesTable(all []atelier.DeviceStatus) table {
	t := table{head: []string{"DEVICE", "STATE", "VERSION", "WANTED", "RESTARTS", "ADDRESS"}}
	for _, s := range all {
		serving := "-"
		if s.Version > 0 {
			serving = strconv.Itoa(s.Version)
		}
		t.add(s.DeviceName, string(s.State()), serving, strconv.Itoa(s.Wanted), strconv.Itoa(s.Restarts), s.Address)
	}
	if len(all) == 0 {
		t.note = "No device is selected."
	}
	return t
}
