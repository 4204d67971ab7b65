package main

import (
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

// trialFlags are what 'atelier deploy' was asked for about a version beside the one that
// serves. Texts and numbers count only where they were given.
type trialFlags struct {
	canary            float64
	sticky            string
	shadow            bool
	sample            float64
	absolute          float64
	relative          float64
	integer           int64
	promote, rollback bool
	given             func(flag string) bool
}

func (f *trialFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	f.given = flags.Changed
	flags.Float64Var(&f.canary, "canary", 0, "run the version beside the one that serves, for this `percent` of the requests")
	flags.StringVar(&f.sticky, "sticky", "", "let a canary's requests belong together by key, or by header:NAME")
	flags.BoolVar(&f.shadow, "shadow", false, "run the version beside the one that serves, for copies of requests; its answers are only compared")
	flags.Float64Var(&f.sample, "sample", 1, "share of the requests that a shadow gets, over 0 to 1")
	flags.Float64Var(&f.absolute, "absolute", atelier.DefaultTolerance.Absolute, "how far a shadow's numbers may be off")
	flags.Float64Var(&f.relative, "relative", atelier.DefaultTolerance.Relative, "the same, as a part of the number")
	flags.Int64Var(&f.integer, "integer", atelier.DefaultTolerance.Integer, "the same for whole numbers")
	flags.BoolVar(&f.promote, "promote", false, "make the version that runs beside the one that serves the one that does")
	flags.BoolVar(&f.rollback, "rollback", false, "end the version that runs beside the one that serves")
}

// asked reports whether the flags are about a version beside the one that serves.
func (f *trialFlags) asked() bool { return f.given("canary") || f.shadow || f.promote || f.rollback }

// put puts what the flags say into spec. number is the version that was named, "" for none.
func (f *trialFlags) put(spec *client.DeploymentSpec, number string) error {
	for flag, needs := range map[string]bool{
		"sticky": f.given("canary"), "sample": f.shadow, "absolute": f.shadow, "relative": f.shadow, "integer": f.shadow,
	} {
		if f.given(flag) && !needs {
			return errUsage{fmt.Errorf("--%s says something of a version beside the one that serves, and none is asked for\n  --sticky belongs to --canary, the others to --shadow", flag)}
		}
	}
	if !f.asked() {
		return nil
	}
	modes := 0
	for _, is := range []bool{f.given("canary"), f.shadow, f.promote, f.rollback, spec.Prefetch, spec.Switch} {
		if is {
			modes++
		}
	}
	if modes > 1 {
		return errUsage{errors.New("--canary, --shadow, --promote, --rollback, --prefetch and --switch do not go together\n  Do one, and the other afterwards")}
	}
	spec.Version, spec.Promote, spec.Rollback = number, f.promote, f.rollback // what runs beside it where none is named
	switch {
	case f.given("canary"):
		spec.Trial = &client.TrialSpec{Kind: atelier.Canary, Weight: &f.canary}
		if f.given("sticky") {
			spec.Trial.Sticky = &f.sticky
		}
	case f.shadow:
		spec.Trial = &client.TrialSpec{Kind: atelier.Shadow}
		if f.given("sample") {
			spec.Trial.Sample = &f.sample
		}
		if f.given("absolute") || f.given("relative") || f.given("integer") {
			spec.Trial.Tolerance = &atelier.Tolerance{Absolute: f.absolute, Relative: f.relative, Integer: f.integer}
		}
	}
	return nil
}

// trying is the goal that every device gives its share to the version beside the one that
// serves.
func trying(d atelier.Deployment) goal {
	return goal{
		wants:  fmt.Sprintf("%s beside version %d, as %s", trialVersion(d), d.Version, splitWords(d.Trial.Split)),
		missed: "do not run " + trialVersion(d) + " beside version " + strconv.Itoa(d.Version),
		slot: func(s atelier.DeviceStatus) goalStatus {
			if s.Trial == nil { // it was promoted or ended meanwhile
				return goalStatus{s.Standing, true, "nothing runs beside it any more"}
			}
			// The split is in force when the device says so: another weight starts nothing.
			reached := s.Trial.Rollout == d.Trial.Rollout && s.Trial.State() == atelier.Serving && s.Trial.Split != nil && *s.Trial.Split == d.Trial.Split
			return goalStatus{s.Trial.Standing, reached, trialLine(s, reached)}
		},
		summary: func([]atelier.DeviceStatus) string { return "" },
	}
}

func trialVersion(d atelier.Deployment) string {
	if d.Trial == nil {
		return ""
	}
	return fmt.Sprintf("%s:%d", d.Model, d.Trial.Version)
}

// splitWords says in words what a version gets that runs beside another.
func splitWords(s atelier.Split) string {
	if s.Kind == atelier.Shadow {
		return fmt.Sprintf("shadow of %s of the requests", percent(100*s.Sample))
	}
	words := fmt.Sprintf("canary for %s of the requests", percent(s.Weight))
	if s.Sticky != "" {
		words += ", by " + s.Sticky
	}
	return words
}

func percent(p float64) string { return strconv.FormatFloat(p, 'f', -1, 64) + "%" }

// trialLine tells in a line how far a device is with the version beside the one that serves.
func trialLine(s atelier.DeviceStatus, reached bool) string {
	switch {
	case reached:
		return fmt.Sprintf("version %d runs beside version %d, as %s", s.Trial.Version, s.Version, splitWords(*s.Trial.Split))
	case s.Trial.State() == atelier.Serving:
		return fmt.Sprintf("version %d runs beside version %d, and gets another share before long", s.Trial.Version, s.Version)
	}
	return standingLine(s.Trial.Standing, s.Trial.Fetched, s.Trial.Size)
}

// trialCell is trialLine where a line has no room.
func trialCell(t *atelier.SlotStatus) string {
	if t == nil {
		return ""
	}
	cell := fmt.Sprintf("%d, %s", t.Version, t.State())
	if r := t.Shadow; r != nil && r.Compared > 0 {
		cell += fmt.Sprintf(", %s differ", share(r))
	}
	return cell
}

// share is how many of a shadow's answers differ.
func share(r *atelier.ShadowReport) string {
	if r.Compared == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(r.Disagreed)/float64(r.Compared))
}

// shadowed is what 'atelier endpoint shadow' prints.
type shadowed struct {
	Endpoint string         `json:"endpoint"`
	Trial    *atelier.Trial `json:"trial"`
	Devices  []shadowOn     `json:"devices"`
}

type shadowOn struct {
	Device string `json:"device"`
	atelier.ShadowReport
}

func (a *app) endpointShadowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "shadow NAME", Short: "Show what a shadow answered differently", Args: exactly(1),
		Long: `Show how often a shadow's answers differ from those that were given, per device, and some of the requests.

A shadow is a version that runs beside the one that serves ('atelier deploy MODEL:VERSION --shadow'). Numbers count from the
start of the device's gateway; the telemetry keeps them over time (atelier_endpoint_shadow_compared_total and others).`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			e, err := cl.Endpoint(cmd.Context(), ws, args[0])
			if err != nil {
				return err
			}
			if e.Trial == nil || e.Trial.Kind != atelier.Shadow {
				return atelier.Errorf(atelier.NotFound, "endpoint %q has no shadow", e.Name).
					WithRemedy("'atelier deploy MODEL:VERSION --shadow' runs a version as one.")
			}
			statuses, err := client.Collect(cl.DeploymentDevices(cmd.Context(), ws, e.Deployment))
			if err != nil {
				return err
			}
			s := shadowed{Endpoint: e.Name, Trial: e.Trial, Devices: []shadowOn{}}
			for _, on := range statuses {
				if on.Trial != nil && on.Trial.Shadow != nil {
					s.Devices = append(s.Devices, shadowOn{on.DeviceName, *on.Trial.Shadow})
				}
			}
			return a.print(s, func() table { return shadowTable(s, e) })
		},
	}
}

func shadowTable(s shadowed, e client.Endpoint) table {
	t := table{
		about: [][]string{
			{"Endpoint:", "/" + s.Endpoint}, {"Serves:", fmt.Sprintf("%s:%d", e.Model, e.Version)},
			{"Shadow:", fmt.Sprintf("%s:%d, since %s", e.Model, s.Trial.Version, ago(s.Trial.Since))},
			{"Tolerance:", fmt.Sprintf("absolute %v, relative %v, whole numbers %d", s.Trial.Tolerance.Absolute, s.Trial.Tolerance.Relative, s.Trial.Tolerance.Integer)},
		},
		head: []string{"DEVICE", "COMPARED", "DIFFER", "SHARE", "DROPPED", "ERRORS", "SERVED MEAN", "SHADOW MEAN"},
	}
	var notes []string
	for _, d := range s.Devices {
		t.add(d.Device, fmt.Sprint(d.Compared), fmt.Sprint(d.Disagreed), share(&d.ShadowReport), fmt.Sprint(d.Dropped), fmt.Sprint(d.Errors),
			mean(d.ServedSeconds, d.Compared), mean(d.ShadowSeconds, d.Compared))
		for _, x := range slices.Backward(d.Samples) {
			notes = append(notes, fmt.Sprintf("%s %s on %s, /%s\n  %s\n  served: %s\n  shadow: %s",
				x.Time.Local().Format("2006-01-02 15:04:05"), printable(x.Request), d.Device, printable(x.Path), printable(x.Difference),
				printable(firstLine(x.Served)), printable(firstLine(x.Shadow))))
		}
	}
	if len(s.Devices) == 0 {
		notes = append(notes, "No device has told of a comparison yet.")
	}
	t.note = strings.Join(notes, "\n")
	return t
}

func mean(seconds float64, n uint64) string {
	if n == 0 {
		return "-"
	}
	return time.Duration(seconds / float64(n) * float64(time.Second)).Round(10 * time.Microsecond).String()
}
