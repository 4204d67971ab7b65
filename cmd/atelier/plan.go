package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

// askAgain is how long the hub may wait for differences before it answers, so that
// people see how far it is.
const askAgain = 5 * time.Second

// plan prints what the deploy would bring to devices. It waits until the differences
// are made that the deploy would use, as long as timeout allows.
func (a *app) plan(ctx context.Context, cl *client.Client, ws string, spec client.DeploymentSpec, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for told := 0; ; {
		wait := min(askAgain, time.Until(deadline))
		p, err := cl.PlanDeployment(ctx, ws, spec, max(0, wait))
		if err != nil {
			return err
		}
		if p.Pending == 0 || wait < time.Second {
			return a.print(p, func() table { return planTable(p) })
		}
		if p.Pending != told {
			told = p.Pending
			a.say("Waiting until the hub has made %s", count(told, "difference", "differences"))
		}
	}
}

func planTable(p atelier.DeploymentPlan) table {
	t := table{head: []string{"DEVICE", "WAY", "WIRE", "DISK", "TIME", "RATE", "WHY"}}
	deployment, takers, about := p.Deployment, count(len(p.Devices)-p.Refused, "device", "devices"), ""
	if p.New {
		deployment += ", new"
	}
	if p.Refused > 0 {
		takers += fmt.Sprintf("; %d would not take it", p.Refused)
	}
	if p.Estimate {
		about = "about "
	}
	t.about = [][]string{
		{"Deployment:", deployment},
		{"Model:", fmt.Sprintf("%s:%d", p.Model, p.Version)},
		{"Devices:", takers},
		{"Over the wire:", about + atelier.FormatBytes(p.Wire)},
		{"On disk:", about + atelier.FormatBytes(p.Disk)},
		{"Time:", "about " + seconds(p.Seconds)},
	}
	assumed := false
	for i := range p.Devices {
		d := &p.Devices[i]
		if d.Refusal != nil {
			t.add(d.DeviceName, "cannot", "", "", "", "", fmt.Sprintf("%s: %s", d.Refusal.Reason(), d.Refusal.Message()))
			continue
		}
		assumed = assumed || d.RateFrom == atelier.RateAssumed
		wire := atelier.FormatBytes(d.Wire)
		if d.Estimate {
			wire = "~" + wire
		}
		t.add(d.DeviceName, wayCell(d), wire, atelier.FormatBytes(d.Disk), timeCell(d), rateCell(d), whyCell(d))
	}
	var notes []string
	if p.Pending > 0 {
		notes = append(notes, fmt.Sprintf("%s not made yet: it is not known how much would come. Ask again, or with a longer --timeout.", count(p.Pending, "difference is", "differences are")))
	}
	if assumed {
		notes = append(notes, "A rate is assumed where nothing came to a device since its agent started.")
	}
	if len(p.Devices) == 0 {
		notes = append(notes, "No device is selected; those that match later would get it.")
	}
	t.note = strings.Join(append(notes, "Nothing was changed."), "\n")
	return t
}

// wayCell names the way of what comes to a device.
func wayCell(d *atelier.DevicePlan) string {
	switch d.Way {
	case atelier.WayNone:
		return "nothing to do"
	case atelier.WayThere:
		return "already there"
	case atelier.WayWhole:
		return "plain"
	case atelier.WayDifference:
		for _, file := range d.Files {
			if file.Way == d.Way && file.Base != "" {
				return "difference to " + file.Base
			}
		}
	}
	return d.Way
}

func rateCell(d *atelier.DevicePlan) string {
	if d.Rate == 0 {
		return ""
	}
	return fmt.Sprintf("%s/s, %s", atelier.FormatBytes(d.Rate), d.RateFrom)
}

func timeCell(d *atelier.DevicePlan) string {
	text := seconds(d.Seconds)
	if d.Opens != nil && d.Wire > 0 {
		text += " from " + d.Opens.Local().Format("Jan 2 15:04")
	}
	return text
}

func whyCell(d *atelier.DevicePlan) string {
	words := []string{d.Why}
	for _, u := range d.Unknown {
		if u != d.Why {
			words = append(words, u)
		}
	}
	return strings.Join(words, "; ")
}

// seconds writes a time as exactly as an estimate deserves.
func seconds(s float64) string {
	d := time.Duration(min(s, 1e9) * float64(time.Second))
	switch {
	case d == 0:
		return "0s"
	case d < time.Second:
		return "under 1s"
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}
