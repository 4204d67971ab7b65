package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

// transferFlags bound the transfer of content.
type transferFlags struct{ bandwidth, window string }

// none takes a bound away.
const none = "none"

func (f *transferFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.bandwidth, "bandwidth", "", "how fast content may be transferred, such as 1MB/s or 8Mbit/s; none for no limit")
	cmd.Flags().StringVar(&f.window, "transfer-window", "", "when, such as 22:00-06:00 (UTC) or '22:00-06:00 Europe/Berlin'; none for always")
}

// given reports whether any of the flags was.
func (f *transferFlags) given() bool { return f.bandwidth != "" || f.window != "" }

// change returns what the flags ask for.
func (f *transferFlags) change() (c atelier.TransferChange, err error) {
	if !f.given() {
		return c, errUsage{fmt.Errorf("nothing is to be set\n  Pass --bandwidth RATE or --transfer-window HH:MM-HH:MM")}
	}
	if f.bandwidth != "" {
		var n int64
		if f.bandwidth != none {
			if n, err = parseRate(f.bandwidth); err != nil {
				return c, err
			}
		}
		c.Bandwidth = &n
	}
	if f.window != "" {
		window := f.window
		if window == none {
			window = ""
		}
		c.Window = &window
	}
	return c, nil
}

// parseRate reads rates as people write them: 1MB/s, 512 KiB/s, 8Mbit/s.
func parseRate(s string) (int64, error) {
	size, ok := strings.CutSuffix(strings.TrimSpace(s), "/s")
	if ok {
		bits := int64(1)
		if unit, ok := strings.CutSuffix(size, "bit"); ok {
			size, bits = unit+"B", 8
		}
		if n, err := parseBytes(size); err == nil && n >= bits {
			return n / bits, nil
		}
	}
	return 0, errUsage{fmt.Errorf("%q is no rate; write it like 1MB/s or 8Mbit/s", s)}
}

// transferCell tells of a policy.
func transferCell(p *atelier.TransferPolicy) string {
	if p == nil {
		return "any time, as fast as can be"
	}
	when, speed := "any time", "as fast as can be"
	if p.Window != nil {
		when = p.Window.String()
	}
	if p.Bandwidth > 0 {
		speed = fmt.Sprintf("at most %s/s", atelier.FormatBytes(p.Bandwidth))
	}
	return when + ", " + speed
}

func (a *app) deviceSet() *cobra.Command {
	var f transferFlags
	cmd := &cobra.Command{
		Use: "set DEVICE", Short: "Set how fast, and when, content is transferred to a device", Args: exactly(1),
		Long: `Set how fast, and when, content is transferred to a device. What is not given stays as it is. Desired states and
telemetry are not content: they always pass. A transfer that the window closes on goes on by itself when it opens.`,
		Example: `  atelier device set press-4 --bandwidth 1MB/s --transfer-window '22:00-06:00 Europe/Berlin'
  atelier device set press-4 --bandwidth none`,
		RunE: func(cmd *cobra.Command, args []string) error {
			change, err := f.change()
			if err != nil {
				return err
			}
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			d, err := cl.SetDeviceTransfer(cmd.Context(), ws, args[0], change)
			if err != nil {
				return err
			}
			return a.print(d, func() table {
				return table{rows: [][]string{{"Name:", d.Name}, {"Transfers:", transferCell(d.Transfer)}}}
			})
		},
	}
	f.add(cmd)
	return cmd
}

func (a *app) workspaceSet() *cobra.Command {
	var f transferFlags
	var registry string
	cmd := &cobra.Command{
		Use: "set [NAME]", Short: "Set how content is transferred to a workspace's devices, and who keeps its images", Args: between(0, 1),
		Long: `Set how fast, and when, content is transferred to all devices of a workspace together. They share the bandwidth
evenly. A device's own settings hold beside these.

The hub is the workspace's container registry, unless you bring one of your own with --registry. It can be changed as long as
the hub keeps no images.`,
		Example: `  atelier workspace set --bandwidth 50MB/s --transfer-window none
  atelier workspace set --registry https://registry.example/plant-7`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var change client.WorkspaceChange
			if registry != "" {
				change.Registry = &registry
			}
			if transfer, err := f.change(); err == nil {
				change.Transfer = &transfer
			} else if registry == "" || f.given() {
				return err
			}
			name, err := a.named(args)
			if err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			w, err := cl.SetWorkspace(cmd.Context(), name, change)
			if err != nil {
				return err
			}
			return a.print(w, func() table { return workspaceTable(w) })
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&registry, "registry", "", "address of your own container registry, https://HOST; builtin for the hub's")
	return cmd
}
