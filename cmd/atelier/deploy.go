package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	prefetch, change, plan             bool // change is --switch
	timeout                            time.Duration
	collect                            collectFlags
	serving                            servingFlags
	routing                            routeFlags
	cpus                               float64
	container                          containerFlags
	trialFlags
}

func (a *app) deployCommand() *cobra.Command {
	var f deployFlags
	cmd := &cobra.Command{
		Use:   "deploy MODEL[:VERSION] | --image REPOSITORY:TAG",
		Short: "Deploy a model version or a container image to devices, or bring a deployment to another one",
		Long: `Deploy a model version or a container image to devices, or bring a deployment to another one.

A deployment of that name is made, or changed where there is one: what is not given stays as it is. Without a version the
newest is taken. The command waits until every selected device serves the version, and tells why one does not; a device
that is away gets it when it comes back (--no-wait returns at once).

With --prefetch the devices only fetch the version, and go on with what they run; --switch then changes all of them within
seconds. One that does not have all of it yet changes when it has. To deploy any version without either takes a prefetch back.

With --canary or --shadow the version runs beside the one that serves. A canary answers a share of the requests, which another
--canary changes at once, since both run; a shadow gets copies, and 'atelier endpoint shadow' tells what it answers otherwise.
--promote makes it the version that serves, --rollback ends it. Without a version these are about the one that runs already.

How a module answers requests is set with --max-batch, --max-delay, --threads, --concurrency and --providers (ONNX models), --workers and
--worker-memory (what runs in Python) and --deadline; 0 leaves it to the model server again. A change begins a new rollout, and no request is dropped.

With --plan nothing is changed. It says, per device and in all, what would come over the wire and onto the disk, in which way and
why, how long that takes at the device's rate, and which devices would not take it. The wire's bytes are those of content with its
headers, as devices count what they receive; MQTT, TLS and the desired state add some 5 KB and 0.2%. The hub makes the differences
that the deploy would use, and --timeout bounds how long the plan waits for them.

With --image the devices run a container of the workspace's registry, by containerd, in place of a model. --port makes it the
deployment's endpoint; without one it is a module that nobody asks. The other flags about containers replace what the image says; an
empty one takes back what was said before.

With --collect a part of the requests, 0 to 1, is recorded with inputs and outputs, and comes into the workspace as Parquet; see
'atelier data'. --collect 0 ends that. No module is restarted for it. Values named by --collect-mask are left out on the device.

With --route messages go from a module's output to another module's input on the same device, or into the workspace ('INTO upstream'; see
'atelier message'). Those that cannot be taken wait on the device's disk for --ttl. No module is restarted for it.`,
		Example: `  atelier deploy digits:1 --to site=hall-2
  atelier deploy digits:2                      # the same devices get version 2; no request is dropped
  atelier deploy digits:3 --prefetch           # they fetch version 3, and go on with 2
  atelier deploy digits --switch               # and change to it
  atelier deploy digits:5 --canary 10          # beside it, version 5 answers a tenth of the requests
  atelier deploy digits --promote              # and takes its place
  atelier deploy digits --max-batch 16 --max-delay 2ms
  atelier deploy digits:4 --plan               # what would version 4 cost? Nothing is changed
  atelier deploy digits --collect 0.05 --collect-mask inputs.name --collect-budget 100MB --collect-rate 1MB
  atelier deploy counter --route 'FROM /modules/camera/outputs/frames INTO /modules/counter/inputs/frames' --route 'FROM /modules/counter/outputs/* INTO upstream'
  atelier deploy silero --device press-4 --name speech
  atelier deploy --image press/cell:1.4 --port 8080 --probe http:/healthz --to site=hall-2`,
		Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.serving.read(cmd.Flags()); err != nil {
				return err
			}
			ref, err := f.deployWhat(args)
			if err != nil {
				return err
			}
			return a.deploy(cmd.Context(), ref, f)
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
	flags.Float64Var(&f.cpus, "cpus", 0, "processors that a module may use, such as 1.5")
	f.container.register(flags)
	f.serving.add(flags)
	flags.BoolVar(&f.prefetch, "prefetch", false, "only bring the version to the devices, and switch nothing")
	flags.BoolVar(&f.change, "switch", false, "switch the devices to the version that they prefetched")
	f.register(cmd)
	flags.BoolVar(&f.plan, "plan", false, "say what would come to which device, and change nothing")
	f.collect.register(flags)
	f.routing.register(flags)
	flags.BoolVar(&f.noWait, "no-wait", false, "return as soon as the hub has it")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Minute, "how long to wait")
	return cmd
}

func (a *app) deploy(ctx context.Context, ref string, f deployFlags) error {
	if f.prefetch && f.change {
		return errUsage{errors.New("--prefetch and --switch do not go together\n  Prefetch first, and switch when the devices are ready")}
	}
	model, number := "", ""
	if ref != "" {
		var err error
		if model, number, err = splitVersion(ref); err != nil {
			return err
		}
	}
	cl, ws, err := a.open()
	if err != nil {
		return err
	}
	spec := client.DeploymentSpec{
		Model: model, Version: firstOf(number, "latest"), Endpoint: f.endpoint, Target: f.target, Prefetch: f.prefetch, Switch: f.change,
		Serving: f.serving.change,
	}
	if f.change {
		spec.Version = number // what is staged where it is empty
	}
	if ref == "" {
		spec.Version = ""
	}
	if err := f.put(&spec, number); err != nil {
		return err
	}
	if spec.Selector, err = selector(ctx, cl, ws, f); err != nil {
		return err
	}
	if spec.Routes, err = f.routing.change(); err != nil {
		return err
	}
	name := firstOf(f.name, model, imageDeployment(f.container.image))
	d, err := cl.Deployment(ctx, ws, name)
	if wrong := f.limit(&spec, d.Limits); wrong != nil {
		return wrong
	}
	if ref == "" {
		if wrong := f.container.put(&spec, d.Image); wrong != nil {
			return wrong
		}
	}
	if err == nil || atelier.CodeOf(err) == atelier.NotFound {
		var wrong error
		if spec.Collect, wrong = f.collect.change(d.Collect); wrong != nil {
			return wrong
		}
	}
	fresh := atelier.CodeOf(err) == atelier.NotFound && !f.change && !f.asked()
	switch {
	case fresh && spec.Selector == nil:
		err = errUsage{fmt.Errorf("there is no deployment %q yet, and nothing says to which devices\n  Pass --to key=value, --device NAME or --all", name)}
	case f.plan && (err == nil || fresh):
		spec.Name = name
		return a.plan(ctx, cl, ws, spec, f.timeout)
	case err == nil && f.change:
		d, err = a.change(ctx, cl, ws, d, spec)
	case err == nil:
		d, err = cl.UpdateDeployment(ctx, ws, d.ID, spec)
	case fresh:
		spec.Name = name
		d, err = cl.CreateDeployment(ctx, ws, spec)
	}
	if err != nil {
		return err
	}
	goal := serving(d)
	switch {
	case f.prefetch:
		goal = staging(d)
	case d.Trial != nil && f.asked():
		goal = trying(d)
	}
	a.say("Deployment %s wants %s", d.Name, goal.wants)
	if f.noWait {
		return a.print(d, func() table { return deploymentsTable([]atelier.Deployment{d}) })
	}
	statuses, err := a.await(ctx, cl, ws, d, goal, f.timeout)
	if err != nil {
		return err
	}
	return a.print(statuses, func() table { return statusesTable(statuses) })
}

// limit puts the limits that were given into spec, over those that the deployment has.
func (f *deployFlags) limit(spec *client.DeploymentSpec, has atelier.Limits) error {
	if f.memory == "" && !f.given("cpus") {
		return nil
	}
	if f.memory != "" {
		n, err := parseBytes(f.memory)
		if err != nil {
			return err
		}
		has.Memory = n
	}
	if f.given("cpus") {
		has.CPUs = f.cpus
	}
	spec.Limits = &has
	return nil
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

// goal is what await waits for on each device.
type goal struct {
	wants   string                                // for people: what the deployment wants
	missed  string                                // and what a device does not do that has not reached it
	slot    func(atelier.DeviceStatus) goalStatus // how far a device is
	summary func([]atelier.DeviceStatus) string   // a line on all of them, "" for none
}

// goalStatus is how far a device is with a goal.
type goalStatus struct {
	atelier.Standing
	reached bool
	line    string
}

// serving is the goal that every device serves the version that is wanted.
func serving(d atelier.Deployment) goal {
	return goal{
		wants:  fmt.Sprintf("%s%s", d.Runs(), onEndpoint(d)),
		missed: "do not serve " + d.Runs(),
		slot: func(s atelier.DeviceStatus) goalStatus {
			if d.Image != nil && s.State() == atelier.Serving {
				return goalStatus{s.Standing, true, "runs " + d.Runs()}
			}
			return goalStatus{s.Standing, s.State() == atelier.Serving && s.Version == s.Wanted, statusLine(s)}
		},
		summary: func([]atelier.DeviceStatus) string { return "" },
	}
}

// onEndpoint names a deployment's endpoint, where it has one.
func onEndpoint(d atelier.Deployment) string {
	if d.Image != nil && d.Image.Container.Port == 0 {
		return ""
	}
	return " on endpoint /" + d.Endpoint
}

// await polls a deployment until every selected device has reached the goal.
// It prints each change, and returns a refusal as soon as a device can never
// get there by itself.
func (a *app) await(ctx context.Context, cl *client.Client, ws string, d atelier.Deployment, goal goal, timeout time.Duration) ([]atelier.DeviceStatus, error) {
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
			is := goal.slot(s)
			if told[s.Device] != is.line {
				told[s.Device] = is.line
				a.say("  %s: %s", printable(s.DeviceName), printable(is.line))
			}
			switch {
			case is.State() == atelier.Refused || is.State() == atelier.Quarantined:
				refused = append(refused, s)
			case !is.reached:
				waiting = append(waiting, s)
			}
		}
		if line := goal.summary(statuses); err == nil && line != told[""] {
			told[""] = line
			a.say("%s", line)
		}
		switch {
		case err == nil && len(refused) > 0 && len(waiting) == 0:
			return nil, goal.notReached(atelier.Conflict, refused)
		case err == nil && len(statuses) == 0:
			a.say("No device is selected; those that match later will get it.")
			return statuses, nil
		case err == nil && len(waiting) == 0:
			return statuses, nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, goal.notReached(atelier.Timeout, append(refused, waiting...)).
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
	case s.State() == atelier.Serving && s.Version == s.Wanted && s.Why().Reason() == atelier.ReasonProviderFallback:
		return fmt.Sprintf("serves version %d, %s: %s", s.Version, s.Why().Reason(), firstLine(s.Why().Message()))
	case s.State() == atelier.Serving && s.Version == s.Wanted:
		return fmt.Sprintf("serves version %d", s.Version)
	}
	return standingLine(s.Standing, s.Fetched, s.Size)
}

// standingLine tells in a line where a module stands, and how much of it is fetched.
func standingLine(s atelier.Standing, fetched, size int64) string {
	passing := s.Why().Reason() == atelier.ReasonInProgress || s.Why().Reason() == atelier.ReasonWaiting
	switch {
	case s.State() == atelier.Fetching && passing && size > 0:
		return fmt.Sprintf("Fetching, %d%% of %s", fetched*100/size/10*10, atelier.FormatBytes(size))
	case passing:
		return string(s.State())
	}
	return fmt.Sprintf("%s, %s: %s", s.State(), s.Why().Reason(), firstLine(s.Why().Message()))
}

func (g goal) notReached(code atelier.Code, statuses []atelier.DeviceStatus) *atelier.Error {
	lines := make([]string, 0, len(statuses))
	for _, s := range statuses {
		lines = append(lines, fmt.Sprintf("\n  %s: %s", printable(s.DeviceName), printable(g.slot(s).line)))
	}
	e := atelier.Errorf(code, "%d devices %s:%s", len(statuses), g.missed, strings.Join(lines, ""))
	if len(statuses) > 0 {
		e.Remedy = g.slot(statuses[0]).Why().Remedy()
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
				t.about = aboutDeployment(d, statuses)
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
		t.add(d.Name, runningVersion(d), "/"+d.Endpoint, selected(d.Selector), ago(d.Updated))
	}
	if len(all) == 0 {
		t.note = "There is no deployment yet; see 'atelier deploy --help'."
	}
	return t
}

func aboutDeployment(d atelier.Deployment, statuses []atelier.DeviceStatus) [][]string {
	about := [][]string{
		{"Deployment:", d.Name}, {whatRuns(d), runningVersion(d)}, {"Endpoint:", "/" + d.Endpoint},
		{"Devices:", selected(d.Selector)}, {"Target:", firstOf(d.Target, "the device's own")},
	}
	if d.Staged != nil {
		about = append(about, []string{"Staged:", fmt.Sprintf("%s, %s", stagedVersion(d), readyLine(statuses))})
	}
	if d.Trial != nil {
		about = append(about, []string{"Beside:", fmt.Sprintf("%s, %s", trialVersion(d), splitWords(d.Trial.Split))})
	}
	if d.Collect != nil {
		about = append(about, []string{"Collected:", collected(d.Collect)})
	}
	about = append(about, routeLines(d.Routes)...)
	if d.Limits.Memory > 0 {
		about = append(about, []string{"Memory:", atelier.FormatBytes(d.Limits.Memory)})
	}
	if !d.Serving.IsZero() {
		about = append(about, []string{"Serving:", d.Serving.String()})
	}
	return append(about, []string{"Updated:", ago(d.Updated)})
}

func whatRuns(d atelier.Deployment) string {
	if d.Image != nil {
		return "Image:"
	}
	return "Model:"
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

// providerCell tells what a module runs on, and whether another one was preferred.
func providerCell(s atelier.DeviceStatus) string {
	switch {
	case s.Provider == "":
		return "-"
	case s.Why().Reason() == atelier.ReasonProviderFallback:
		return s.Provider + " (fallback)"
	}
	return s.Provider
}

func statusesTable(all []atelier.DeviceStatus) table {
	t := table{head: []string{"DEVICE", "STATE", "VERSION", "WANTED", "RESTARTS", "ADDRESS"}}
	staged := slices.ContainsFunc(all, func(s atelier.DeviceStatus) bool { return s.Staged != nil })
	if staged {
		t.head = append(t.head, "STAGED")
	}
	tried := slices.ContainsFunc(all, func(s atelier.DeviceStatus) bool { return s.Trial != nil })
	if tried {
		t.head = append(t.head, "BESIDE")
	}
	provided := slices.ContainsFunc(all, func(s atelier.DeviceStatus) bool { return s.Provider != "" })
	if provided {
		t.head = append(t.head, "PROVIDER")
	}
	number := func(version int) string {
		if version == 0 {
			return "-"
		}
		return strconv.Itoa(version)
	}
	for _, s := range all {
		cells := []string{s.DeviceName, string(s.State()), number(s.Version), number(s.Wanted), strconv.Itoa(s.Restarts), s.Address}
		if staged {
			cells = append(cells, stagedCell(s))
		}
		if tried {
			cells = append(cells, trialCell(s.Trial))
		}
		if provided {
			cells = append(cells, providerCell(s))
		}
		t.add(cells...)
	}
	if len(all) == 0 {
		t.note = "No device is selected."
	}
	return t
}
