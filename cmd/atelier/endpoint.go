package main

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/atelier-edge/atelier/hub/client"
)

func (a *app) endpointCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the endpoints", Aliases: []string{"ls"}, Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.Endpoints(cmd.Context(), ws))
			if err != nil {
				return err
			}
			return a.print(all, func() table { return endpointsTable(all...) })
		},
	}
	show := &cobra.Command{
		Use: "show NAME", Short: "Show where an endpoint answers", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			e, err := cl.Endpoint(cmd.Context(), ws, args[0])
			if err != nil {
				return err
			}
			return a.print(e, func() table { return endpointsTable(e) })
		},
	}
	keys := &cobra.Command{
		Use: "keys NAME", Short: "Print an endpoint's two keys", Args: exactly(1),
		Long: `Print an endpoint's two keys. A request carries one as "Authorization: Bearer KEY" or "X-Api-Key: KEY".`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			k, err := cl.Keys(cmd.Context(), ws, args[0])
			if err != nil {
				return err
			}
			return a.print(k, func() table { return keysTable(k) })
		},
	}
	rotate := &cobra.Command{
		Use: "rotate-key NAME primary|secondary", Short: "Replace one of an endpoint's keys", Args: exactly(2),
		Long: `Replace one of an endpoint's keys. Give clients the other key first: the replaced one stops working on each device as
soon as the device has heard of it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] != "primary" && args[1] != "secondary" {
				return errUsage{fmt.Errorf("%q is neither primary nor secondary", args[1])}
			}
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			k, err := cl.RotateKey(cmd.Context(), ws, args[0], args[1])
			if err != nil {
				return err
			}
			return a.print(k, func() table { return keysTable(k) })
		},
	}
	trace := &cobra.Command{
		Use: "trace REQUEST-ID", Short: "Find what answered a request", Args: exactly(1),
		Long: "Find what answered a request: every answer of an endpoint carries its id in the header X-Atelier-Request-Id.",
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			t, err := cl.Trace(cmd.Context(), ws, args[0])
			if err != nil {
				return err
			}
			return a.print(t, func() table {
				return table{rows: [][]string{
					{"Deployment:", t.Deployment}, {"Endpoint:", "/" + t.Endpoint},
					{"Model:", fmt.Sprintf("%s:%d", t.Model, t.Version)}, {"Digest:", string(t.Digest)}, {"Package:", string(t.Package)},
					{"Rolled out:", fmt.Sprintf("%s by %s", t.Created.Local().Format("2006-01-02 15:04:05"), t.By)},
				}}
			})
		},
	}
	return group("endpoint", "See where models answer, and who may ask", list, show, keys, rotate, trace, a.endpointShadowCommand())
}

func endpointsTable(all ...client.Endpoint) table {
	t := table{head: []string{"NAME", "DEVICE", "STATE", "ADDRESS", "VERSION"}}
	tried := slices.ContainsFunc(all, func(e client.Endpoint) bool { return e.Trial != nil })
	if tried {
		t.head = append(t.head, "BESIDE")
	}
	for _, e := range all {
		for i, at := range e.Addresses {
			name := e.Name
			if i > 0 {
				name = ""
			}
			cells := []string{name, at.Device, string(at.State), at.URL, strconv.Itoa(at.Version)}
			if tried && at.Trial != nil && e.Trial != nil {
				cells = append(cells, fmt.Sprintf("%s; %s", trialCell(at.Trial), splitWords(e.Trial.Split)))
			}
			t.add(cells...)
		}
		if len(e.Addresses) == 0 {
			t.add(e.Name, "no device")
		}
	}
	if len(all) == 0 {
		t.note = "There is no endpoint yet; 'atelier deploy' makes them."
	}
	return t
}

func keysTable(k client.EndpointKeys) table {
	return table{rows: [][]string{{"Primary:", k.Primary}, {"Secondary:", k.Secondary}}}
}
