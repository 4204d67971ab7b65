package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

func (a *app) deviceCommand() *cobra.Command {
	return group("device", "Join devices and look after them",
		a.deviceToken(), a.deviceList(), a.deviceShow(), a.deviceLabel(), a.deviceSet(), a.deviceLogs(),
		a.inWorkspace("revoke DEVICE", "Cut a device off at once; it stays listed", "Revoked device %s.", (*client.Client).RevokeDevice),
		a.inWorkspace("delete DEVICE", "Revoke a device and forget it", "Deleted device %s.", (*client.Client).DeleteDevice))
}

func (a *app) deviceToken() *cobra.Command {
	var t client.NewJoinToken
	var labels []string
	cmd := &cobra.Command{
		Use: "token", Short: "Make a token with which devices join, and print the command to run on them", Args: exactly(0),
		Example: "  atelier device token --label site=hall-2 --uses 10 --expires-in 24h",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if t.Labels, err = atelier.ParseLabels(strings.Join(labels, ",")); err != nil {
				return err
			}
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			info, err := cl.Info(cmd.Context())
			if err != nil {
				return err
			}
			token, err := cl.CreateJoinToken(cmd.Context(), ws, t)
			if err != nil {
				return err
			}
			command := fmt.Sprintf("atelier-agent join --hub %s --fingerprint %s --token %s", cl.Hub(), info.Fingerprint, token.Secret)
			out := struct {
				client.JoinToken
				Hub         string `json:"hub"`
				Fingerprint string `json:"fingerprint"`
				Command     string `json:"command"`
			}{token, cl.Hub(), info.Fingerprint, command}
			a.say("The token lets %s join until %s and is shown once. On the device, run:", count(token.Uses, "device", "devices"), token.Expires.Local().Format("2006-01-02 15:04"))
			return a.print(out, func() table { return table{rows: [][]string{{command}}} })
		},
	}
	cmd.Flags().StringArrayVar(&labels, "label", nil, "label that joining devices get, key=value; may be repeated")
	cmd.Flags().StringVar(&t.ExpiresIn, "expires-in", "24h", "how long the token works")
	cmd.Flags().IntVar(&t.Uses, "uses", 1, "how many devices may join with it")
	cmd.Flags().StringVar(&t.Name, "name", "", "name to find the token again by")
	list := &cobra.Command{
		Use: "list", Short: "List the join tokens", Aliases: []string{"ls"}, Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.JoinTokens(cmd.Context(), ws))
			if err != nil {
				return err
			}
			return a.print(all, func() table {
				tab := table{head: []string{"ID", "NAME", "USED", "EXPIRES", "LABELS"}}
				for _, t := range all {
					tab.add(t.ID, t.Name, fmt.Sprintf("%d of %d", t.Used, t.Uses), ago(t.Expires), labelsOf(t.Labels))
				}
				return tab
			})
		},
	}
	cmd.AddCommand(list, a.inWorkspace("revoke ID", "End a join token", "Revoked join token %s.", (*client.Client).RevokeJoinToken))
	return cmd
}

func connection(d atelier.Device) string {
	switch {
	case d.Revoked != nil:
		return "revoked"
	case d.Connected:
		return "connected"
	case d.LastSeen == nil:
		return "never connected"
	}
	return "away, seen " + ago(*d.LastSeen)
}

func (a *app) deviceList() *cobra.Command {
	var selector string
	cmd := &cobra.Command{
		Use: "list", Short: "List the devices", Aliases: []string{"ls"}, Args: exactly(0),
		Example: "  atelier device list --label site=hall-2",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.Devices(cmd.Context(), ws, selector))
			if err != nil {
				return err
			}
			return a.print(all, func() table {
				t := table{head: []string{"NAME", "STATE", "IN SYNC", "PLATFORM", "AGENT", "LABELS"}}
				for _, d := range all {
					t.add(d.Name, connection(d), yesNo(holds(d, atelier.ConditionInSync)), platform(d.Facts), d.Agent, labelsOf(d.Labels))
				}
				if len(all) == 0 {
					t.note = "No device here; make a token with 'atelier device token'."
				}
				return t
			})
		},
	}
	cmd.Flags().StringVar(&selector, "label", "", "only devices with these labels, key=value,…")
	return cmd
}

func holds(d atelier.Device, condition string) bool {
	for _, c := range d.Conditions {
		if c.Type() == condition {
			return c.True()
		}
	}
	return false
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func platform(f atelier.Facts) string {
	if f.OS == "" {
		return ""
	}
	return f.OS + "/" + f.Arch
}

func (a *app) deviceShow() *cobra.Command {
	return &cobra.Command{
		Use: "show DEVICE", Short: "Show a device: its facts and conditions", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			d, err := cl.Device(cmd.Context(), ws, args[0])
			if err != nil {
				return err
			}
			return a.print(d, func() table { return deviceTable(d) })
		},
	}
}

func deviceTable(d atelier.Device) table {
	t := table{rows: [][]string{
		{"Name:", d.Name}, {"Id:", d.ID}, {"State:", connection(d)}, {"Labels:", labelsOf(d.Labels)},
		{"Target:", d.Target}, {"Agent:", d.Agent},
		{"Platform:", strings.TrimSpace(platform(d.Facts) + " " + d.Facts.Kernel)},
		{"CPUs, memory:", fmt.Sprintf("%d, %s", d.Facts.CPUs, atelier.FormatBytes(d.Facts.Memory))},
		{"Disk free:", atelier.FormatBytes(d.Facts.DiskFree)},
		{"Endpoints at:", d.Facts.Gateway},
		{"Transfers:", transferCell(d.Transfer)},
		{"Certificate until:", d.Certificate.NotAfter.Local().Format("2006-01-02 15:04")},
	}}
	for _, r := range d.Facts.Runtimes {
		state := "can run here"
		if !r.OK {
			state = "cannot run here: " + r.Why
		}
		t.add(r.Name+":", state)
	}
	for _, c := range d.Conditions {
		state := "yes"
		if !c.True() {
			state = fmt.Sprintf("no, %s: %s", c.Why().Reason(), firstLine(c.Why().Message()))
		}
		t.add(c.Type()+":", state)
	}
	return t
}

func (a *app) deviceLabel() *cobra.Command {
	var remove []string
	cmd := &cobra.Command{
		Use: "label DEVICE [key=value...]", Short: "Set or remove labels of a device", Args: between(1, -1),
		Example: "  atelier device label press-4 site=hall-2 --remove spare",
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := atelier.ParseLabels(strings.Join(args[1:], ","))
			if err != nil {
				return err
			}
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			d, err := cl.Device(cmd.Context(), ws, args[0])
			if err != nil {
				return err
			}
			labels := atelier.Labels{}
			for k, v := range d.Labels {
				labels[k] = v
			}
			for k, v := range set {
				labels[k] = v
			}
			for _, k := range remove {
				delete(labels, k)
			}
			if d, err = cl.LabelDevice(cmd.Context(), ws, args[0], labels); err != nil {
				return err
			}
			return a.print(d, func() table { return table{rows: [][]string{{"Name:", d.Name}, {"Labels:", labelsOf(d.Labels)}}} })
		},
	}
	cmd.Flags().StringArrayVar(&remove, "remove", nil, "key of a label to remove; may be repeated")
	return cmd
}

func (a *app) deviceLogs() *cobra.Command {
	var maxBytes int64
	cmd := &cobra.Command{
		Use: "logs DEVICE [DEPLOYMENT]", Short: "Fetch the end of a module's log from a device, or of the agent's own", Args: between(1, 2),
		Example: "  atelier device logs press-4 digits",
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			deployment := ""
			if len(args) == 2 {
				deployment = args[1]
			}
			body, err := cl.Logs(cmd.Context(), ws, args[0], deployment, maxBytes)
			if err != nil {
				return err
			}
			_, err = io.Copy(a.out, body)
			if closeErr := body.Close(); err == nil {
				err = closeErr
			}
			return err
		},
	}
	cmd.Flags().Int64Var(&maxBytes, "max-bytes", 64<<10, "how much of the end to fetch")
	return cmd
}

func (a *app) whyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "why DEVICE", Short: "Say why a device is not in its desired state, and what would mend it", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			w, err := cl.Why(cmd.Context(), ws, args[0])
			if err != nil {
				return err
			}
			if a.output != "table" {
				return a.print(w, nil)
			}
			if len(w.Findings) == 0 {
				_, err = fmt.Fprintf(a.out, "%s is as desired.\n", args[0])
				return err
			}
			headline := "%s is as desired, but:\n"
			if !w.InSync {
				headline = "%s is not in its desired state:\n"
			}
			_, _ = fmt.Fprintf(a.out, headline, args[0])
			for _, f := range w.Findings {
				_, _ = fmt.Fprintf(a.out, "\n  %s: %s\n", printable(f.Subject), f.Why.Reason())
				for line := range strings.SplitSeq(f.Why.Message(), "\n") {
					_, _ = fmt.Fprintf(a.out, "    %s\n", printable(line))
				}
				if f.Why.Remedy() != "" {
					_, _ = fmt.Fprintf(a.out, "    → %s\n", printable(f.Why.Remedy()))
				}
			}
			return nil
		},
	}
}
