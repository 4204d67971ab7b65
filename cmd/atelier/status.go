package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

// workspaceStatus is the workspace at a glance.
type workspaceStatus struct {
	Workspace   string             `json:"workspace"`
	Models      int                `json:"models"`
	Devices     int                `json:"devices"`
	Connected   int                `json:"connected"`
	InSync      int                `json:"in_sync"`
	Deployments []deploymentStatus `json:"deployments"`
}

type deploymentStatus struct {
	Name    string `json:"name"`
	Model   string `json:"model"`
	Version int    `json:"version"`
	Image   string `json:"image,omitempty"`
	Serving int    `json:"serving"`
	Devices int    `json:"devices"`
	// Staged is the version that devices prefetch, and Ready how many hold it.
	Staged int `json:"staged,omitempty"`
	Ready  int `json:"ready,omitempty"`
	// Trial is the version that runs beside it, and Tried on how many.
	Trial *atelier.Trial `json:"trial,omitempty"`
	Tried int            `json:"tried,omitempty"`
}

func (a *app) statusCommand() *cobra.Command {
	var watch time.Duration
	cmd := &cobra.Command{
		Use: "status", Short: "Show the workspace at a glance", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			for {
				s, err := statusOf(cmd.Context(), cl, ws)
				if err != nil {
					return err
				}
				if err := a.print(s, func() table { return statusTable(s) }); err != nil || watch == 0 {
					return err
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(watch):
				}
			}
		},
	}
	cmd.Flags().DurationVar(&watch, "every", 0, "print it again and again, this long apart")
	return cmd
}

func statusOf(ctx context.Context, cl *client.Client, ws string) (workspaceStatus, error) {
	s := workspaceStatus{Workspace: ws, Deployments: []deploymentStatus{}}
	for _, err := range cl.Models(ctx, ws) {
		if err != nil {
			return s, err
		}
		s.Models++
	}
	for d, err := range cl.Devices(ctx, ws, "") {
		if err != nil {
			return s, err
		}
		s.Devices++
		if d.Connected {
			s.Connected++
		}
		if holds(d, atelier.ConditionInSync) {
			s.InSync++
		}
	}
	for d, err := range cl.Deployments(ctx, ws) {
		if err != nil {
			return s, err
		}
		one := deploymentStatus{Name: d.Name, Model: d.Model, Version: d.Version}
		if d.Staged != nil {
			one.Model, one.Staged = firstOf(d.Model, d.Staged.Model), d.Staged.Version
		}
		if d.Image != nil {
			one.Image = d.Image.Reference
		}
		one.Trial = d.Trial
		for on, err := range cl.DeploymentDevices(ctx, ws, d.ID) {
			if err != nil {
				return s, err
			}
			one.Devices++
			if on.State() == atelier.Serving && on.Version == on.Wanted {
				one.Serving++
			}
			if on.ReadyToSwitch() {
				one.Ready++
			}
			if on.Trial != nil && on.Trial.State() == atelier.Serving {
				one.Tried++
			}
		}
		s.Deployments = append(s.Deployments, one)
	}
	return s, nil
}

func statusTable(s workspaceStatus) table {
	t := table{rows: [][]string{
		{"Workspace:", s.Workspace},
		{"Models:", fmt.Sprint(s.Models)},
		{"Devices:", fmt.Sprintf("%d, %d connected, %d in sync", s.Devices, s.Connected, s.InSync)},
	}}
	for _, d := range s.Deployments {
		text := fmt.Sprintf("%s:%d, serving on %d of %s", d.Model, d.Version, d.Serving, count(d.Devices, "device", "devices"))
		if d.Image != "" {
			text = fmt.Sprintf("%s, serving on %d of %s", d.Image, d.Serving, count(d.Devices, "device", "devices"))
		} else if d.Version == 0 {
			text = fmt.Sprintf("%s, nothing runs yet on %s", d.Model, count(d.Devices, "device", "devices"))
		}
		if d.Staged > 0 {
			text += fmt.Sprintf("; version %d ready to switch on %d", d.Staged, d.Ready)
		}
		if d.Trial != nil {
			text += fmt.Sprintf("; beside it version %d on %d, %s", d.Trial.Version, d.Tried, splitWords(d.Trial.Split))
		}
		t.add("Deployment "+d.Name+":", text)
	}
	if s.Connected < s.Devices || s.InSync < s.Devices {
		t.note = "'atelier device list' shows which, 'atelier why DEVICE' says why."
	}
	return t
}

func (a *app) eventsCommand() *cobra.Command {
	var f client.EventFilter
	var watch bool
	var last int
	cmd := &cobra.Command{
		Use: "events", Short: "Show what happened in the workspace", Args: exactly(0),
		Example: "  atelier events --kind device --watch",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.Events(cmd.Context(), ws, f))
			if err != nil {
				return err
			}
			if last > 0 {
				all = all[max(0, len(all)-last):]
			}
			if !watch {
				return a.print(all, func() table {
					t := table{head: []string{"TIME", "WHO", "WHAT", "NAME"}}
					for _, e := range all {
						t.add(eventCells(e)...)
					}
					if len(all) == 0 {
						t.note = "Nothing of this kind happened in the workspace yet."
					}
					return t
				})
			}
			if len(all) > 0 {
				f.After = all[len(all)-1].Sequence
			}
			return a.watch(cmd.Context(), cl, ws, f)
		},
	}
	cmd.Flags().StringVar(&f.Kind, "kind", "", "only of this kind: model, version, device, deployment, endpoint, …")
	cmd.Flags().Int64Var(&f.After, "after", 0, "only after this sequence")
	cmd.Flags().IntVar(&last, "last", 100, "only the last `N`; 0 for all")
	cmd.Flags().BoolVar(&watch, "watch", false, "print what happens from now on, until interrupted")
	return cmd
}

// watch prints events as they come, and goes on after a broken connection.
func (a *app) watch(ctx context.Context, cl *client.Client, ws string, f client.EventFilter) error {
	for ctx.Err() == nil {
		for e, err := range cl.Watch(ctx, ws, f) {
			if err != nil {
				if atelier.CodeOf(err) != atelier.Unavailable {
					return err
				}
				a.say("%v; trying again", err)
				break
			}
			f.After = e.Sequence
			if err := a.print(e, func() table { return table{rows: [][]string{eventCells(e)}} }); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

func eventCells(e atelier.Event) []string {
	return []string{e.Time.Local().Format("2006-01-02 15:04:05"), e.Actor, e.Kind + " " + string(e.Change), firstOf(e.Name, e.ID)}
}

func (a *app) auditCommand() *cobra.Command {
	return &cobra.Command{
		Use: "audit", Short: "Show who did or tried what in the workspace", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.Audit(cmd.Context(), ws))
			if err != nil {
				return err
			}
			return a.print(all, func() table {
				t := table{head: []string{"TIME", "WHO", "VERB", "ON", "ALLOWED", "WHY"}}
				for _, e := range all {
					t.add(e.Time.Local().Format("2006-01-02 15:04:05"), e.Actor, e.Verb, firstOf(e.Object, e.Kind), yesNo(e.Allowed), e.Why)
				}
				if len(all) == 0 {
					t.note = "Nobody did anything in the workspace yet."
				}
				return t
			})
		},
	}
}
