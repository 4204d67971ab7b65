package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

func (a *app) workspaceCommand() *cobra.Command {
	var description, registry string
	create := &cobra.Command{
		Use: "create NAME", Short: "Make a workspace and use it", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			w, err := cl.CreateWorkspace(cmd.Context(), args[0], description, registry)
			if err != nil {
				return err
			}
			if err := a.use(w.Name); err != nil {
				return err
			}
			return a.print(w, func() table { return workspaceTable(w) })
		},
	}
	create.Flags().StringVar(&description, "description", "", "what the workspace is for")
	create.Flags().StringVar(&registry, "registry", "", "address of your own container registry, https://HOST; the hub keeps the images where empty")

	list := &cobra.Command{
		Use: "list", Short: "List the workspaces", Aliases: []string{"ls"}, Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.Workspaces(cmd.Context()))
			if err != nil {
				return err
			}
			return a.print(all, func() table {
				t := table{head: []string{"NAME", "DESCRIPTION", "CREATED"}}
				for _, w := range all {
					t.add(w.Name, w.Description, ago(w.Created))
				}
				if len(all) == 0 {
					t.note = "There is no workspace yet; make one with 'atelier workspace create NAME'."
				}
				return t
			})
		},
	}
	show := &cobra.Command{
		Use: "show [NAME]", Short: "Show a workspace and its associated resources", Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := a.named(args)
			if err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			w, err := cl.Workspace(cmd.Context(), name)
			if err != nil {
				return err
			}
			return a.print(w, func() table { return workspaceTable(w) })
		},
	}
	use := &cobra.Command{
		Use: "use NAME", Short: "Use a workspace from now on", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			w, err := cl.Workspace(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.use(w.Name)
		},
	}
	remove := a.simple("delete NAME", "Delete an empty workspace", "Deleted workspace %s.", (*client.Client).DeleteWorkspace)
	rotate := a.simple("rotate-key NAME", "Give the workspace a new key for signing desired states", "The devices of %s learn the new key when they next connect.", (*client.Client).RotateStateKey)
	return group("workspace", "Make and show workspaces", create, list, show, use, a.workspaceSet(), remove, rotate)
}

// simple makes a command that does one thing to one thing by name and says so;
// do is a method of the client.
func (a *app) simple(use, short, done string, do func(cl *client.Client, ctx context.Context, name string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			if err := do(cl, cmd.Context(), args[0]); err != nil {
				return err
			}
			a.say(done, args[0])
			return nil
		},
	}
}

// inWorkspace is simple for things of the workspace in use.
func (a *app) inWorkspace(use, short, done string, do func(cl *client.Client, ctx context.Context, ws, name string) error) *cobra.Command {
	return a.simple(use, short, done, func(cl *client.Client, ctx context.Context, name string) error {
		_, ws, err := a.open()
		if err != nil {
			return err
		}
		return do(cl, ctx, ws, name)
	})
}

// use makes ws the workspace of the context in use.
func (a *app) use(ws string) error {
	cs, err := loadContexts()
	if err != nil {
		return err
	}
	name := firstOf(a.context, cs.Current)
	c, ok := cs.Context[name]
	if !ok {
		return noContext(name, cs)
	}
	c.Workspace = ws
	cs.Context[name] = c
	if err := cs.save(); err != nil {
		return err
	}
	a.say("Using workspace %s.", ws)
	return nil
}

// named returns the only argument, or the workspace in use where there is none.
func (a *app) named(args []string) (string, error) {
	if len(args) == 1 {
		return args[0], nil
	}
	_, ws, err := a.open()
	return ws, err
}

func workspaceTable(w atelier.Workspace) table {
	t := table{rows: [][]string{
		{"Name:", w.Name}, {"Id:", w.ID}, {"Description:", w.Description}, {"Created:", w.Created.Local().Format("2006-01-02 15:04")},
		{"Transfers:", transferCell(w.Transfer)},
	}}
	for _, r := range w.Resources {
		state := "not yet made"
		if r.Made {
			state = firstOf(r.Address, "made")
		}
		t.add(r.Kind+":", fmt.Sprintf("%s, %s", r.Provider, state))
	}
	return t
}

func (a *app) tokenCommand() *cobra.Command {
	var role, workspace string
	create := &cobra.Command{
		Use: "create NAME", Short: "Make an access token and print it once", Args: exactly(1),
		Example: "  atelier token create grafana --role viewer --for plant-7",
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			t, err := cl.CreateToken(cmd.Context(), args[0], role, workspace)
			if err != nil {
				return err
			}
			a.say("This is shown once; keep it safe:")
			return a.print(t, func() table { return table{rows: [][]string{{t.Secret}}} })
		},
	}
	create.Flags().StringVar(&role, "role", "viewer", "what it may do: viewer reads, builder builds environments, admin does everything")
	create.Flags().StringVar(&workspace, "for", "", "the only workspace that it may touch; all where empty")
	list := &cobra.Command{
		Use: "list", Short: "List the access tokens", Aliases: []string{"ls"}, Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.Tokens(cmd.Context()))
			if err != nil {
				return err
			}
			return a.print(all, func() table {
				t := table{head: []string{"NAME", "ROLE", "WORKSPACE", "CREATED"}}
				for _, k := range all {
					t.add(k.Name, k.Role, firstOf(k.Workspace, "all"), ago(k.Created))
				}
				return t
			})
		},
	}
	revoke := a.simple("revoke NAME", "End an access token at once", "Revoked token %s.", (*client.Client).RevokeToken)
	return group("token", "Give people and programs access to the hub", create, list, revoke)
}
