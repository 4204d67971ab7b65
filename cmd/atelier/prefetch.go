package main

import (
	"context"
	"fmt"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

// staging is the goal that every device holds what the deployment has staged.
func staging(d atelier.Deployment) goal {
	return goal{
		wants:  fmt.Sprintf("%s on its devices; %s", stagedVersion(d), meanwhile(d)),
		missed: "have not fetched " + stagedVersion(d),
		slot: func(s atelier.DeviceStatus) goalStatus {
			if s.Staged == nil { // it was switched or taken back meanwhile
				return goalStatus{s.Standing, true, "nothing is staged any more"}
			}
			return goalStatus{s.Staged.Standing, s.ReadyToSwitch(), stagedLine(s)}
		},
		summary: readyLine,
	}
}

// meanwhile says what goes on while a version is staged.
func meanwhile(d atelier.Deployment) string {
	if d.VersionID == "" {
		return "nothing runs before the switch"
	}
	return fmt.Sprintf("version %d goes on serving", d.Version)
}

// change switches a deployment to what it has staged, and says which devices will be
// late.
func (a *app) change(ctx context.Context, cl *client.Client, ws string, d atelier.Deployment, spec client.DeploymentSpec) (atelier.Deployment, error) {
	statuses, err := client.Collect(cl.DeploymentDevices(ctx, ws, d.ID))
	if err != nil {
		return d, err
	}
	if d, err = cl.UpdateDeployment(ctx, ws, d.ID, spec); err != nil {
		return d, err
	}
	late := 0
	for _, s := range statuses {
		if !s.ReadyToSwitch() {
			late++
		}
	}
	if late > 0 {
		a.say("%d of %s without all of it yet: they switch when they have it.", late, count(len(statuses), "device", "devices"))
	}
	return d, nil
}

// runningVersion is what of a deployment runs, "-" where nothing does.
func runningVersion(d atelier.Deployment) string {
	if d.VersionID == "" && d.Image == nil {
		return "-"
	}
	return d.Runs()
}

func stagedVersion(d atelier.Deployment) string {
	if d.Staged == nil {
		return ""
	}
	return fmt.Sprintf("%s:%d", d.Staged.Model, d.Staged.Version)
}

// stagedLine tells in a line how far a device is with what is staged.
func stagedLine(s atelier.DeviceStatus) string {
	if s.ReadyToSwitch() {
		return fmt.Sprintf("ready to switch to version %d", s.Staged.Version)
	}
	return standingLine(s.Staged.Standing, s.Staged.Fetched, s.Staged.Size)
}

// stagedCell is stagedLine where a line has no room.
func stagedCell(s atelier.DeviceStatus) string {
	switch {
	case s.Staged == nil:
		return ""
	case s.ReadyToSwitch():
		return fmt.Sprintf("%d, ready", s.Staged.Version)
	case s.Staged.State() == atelier.Fetching && s.Staged.Size > 0:
		return fmt.Sprintf("%d, %d%%", s.Staged.Version, s.Staged.Fetched*100/s.Staged.Size)
	}
	return fmt.Sprintf("%d, %s", s.Staged.Version, s.Staged.Why().Reason())
}

// readyLine tells on how many devices a switch would take effect at once.
func readyLine(all []atelier.DeviceStatus) string {
	ready := 0
	for i := range all {
		if all[i].ReadyToSwitch() {
			ready++
		}
	}
	return fmt.Sprintf("ready to switch on %d of %s", ready, count(len(all), "device", "devices"))
}
