package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

// hubContext is one hub as one principal, with a workspace.
type hubContext struct {
	Hub       string `toml:"hub" json:"hub"`
	Workspace string `toml:"workspace,omitempty" json:"workspace,omitempty"`
	Token     string `toml:"token" json:"-"`
	Authority string `toml:"authority,multiline" json:"-"`
}

// contexts is the configuration file of the command line.
type contexts struct {
	Current string                `toml:"current"`
	Context map[string]hubContext `toml:"context"`
}

func contextsPath() (string, error) {
	if p := os.Getenv("ATELIER_CONFIG"); p != "" {
		return p, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", atelier.Errorf(atelier.Invalid, "no directory for the configuration: %w", err).
			WithRemedy("Set ATELIER_CONFIG to a file.")
	}
	return filepath.Join(dir, "atelier", "config.toml"), nil
}

func loadContexts() (contexts, error) {
	cs := contexts{Context: map[string]hubContext{}}
	path, err := contextsPath()
	if err != nil {
		return cs, err
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return cs, nil
	}
	if err != nil {
		return cs, atelier.Errorf(atelier.Invalid, "read the contexts: %w", err)
	}
	if err := toml.Unmarshal(b, &cs); err != nil {
		return cs, atelier.Errorf(atelier.Invalid, "%s is damaged: %w", path, err).
			WithRemedy("Mend it, or move it away and log in again.")
	}
	if cs.Context == nil {
		cs.Context = map[string]hubContext{}
	}
	return cs, nil
}

// save replaces the file in one step; it holds tokens and is for its owner only.
func (cs contexts) save() error {
	path, err := contextsPath()
	if err != nil {
		return err
	}
	b, err := toml.Marshal(cs)
	if err != nil {
		return atelier.Errorf(atelier.Internal, "encode the contexts: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return atelier.Errorf(atelier.Invalid, "save the contexts: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".config-*") // created 0600
	if err != nil {
		return atelier.Errorf(atelier.Invalid, "save the contexts: %w", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return atelier.Errorf(atelier.Invalid, "save the contexts: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// currentContext returns the context in use, with what flags and environment
// put in its place.
func (a *app) currentContext() (hubContext, error) {
	cs, err := loadContexts()
	if err != nil {
		return hubContext{}, err
	}
	name := firstOf(a.context, os.Getenv("ATELIER_CONTEXT"), cs.Current)
	if name == "" {
		return hubContext{}, atelier.Errorf(atelier.Invalid, "not logged in to any hub").
			WithRemedy("Log in with the command that atelier-hub printed at its first start: atelier login https://HUB:8443 --fingerprint … --token …")
	}
	c, ok := cs.Context[name]
	if !ok {
		return hubContext{}, noContext(name, cs)
	}
	c.Workspace = firstOf(a.workspace, os.Getenv("ATELIER_WORKSPACE"), c.Workspace)
	c.Token = firstOf(os.Getenv("ATELIER_TOKEN"), c.Token)
	return c, nil
}

func noContext(name string, cs contexts) error {
	return atelier.Errorf(atelier.NotFound, "there is no context %q; there are: %s", name, strings.Join(sortedKeys(cs.Context), ", ")).
		WithRemedy("See 'atelier context list'.")
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (a *app) loginCommand() *cobra.Command {
	var fingerprint, token, name string
	cmd := &cobra.Command{
		Use:   "login HUB --fingerprint sha256:… --token atl_…",
		Short: "Log in to a hub and make it the current context",
		Long: `Log in to a hub and make it the current context.

The hub's authority is pinned by its fingerprint, which atelier-hub prints at its first start; from then on every connection
is verified against it. The token may also come from ATELIER_TOKEN, so that it does not show in the list of processes.`,
		Example: "  atelier login https://localhost:8443 --fingerprint sha256:1f2e… --token atl_…",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := hubContext{Hub: strings.TrimRight(args[0], "/"), Token: firstOf(token, os.Getenv("ATELIER_TOKEN"))}
			if c.Token == "" {
				return errUsage{errors.New("no token: pass --token or set ATELIER_TOKEN")}
			}
			return a.login(cmd.Context(), name, fingerprint, c)
		},
	}
	cmd.Flags().StringVar(&fingerprint, "fingerprint", "", "SHA-256 of the certificate of the hub's authority")
	cmd.Flags().StringVar(&token, "token", "", "access token")
	cmd.Flags().StringVar(&name, "name", "default", "name of the context to make or replace")
	return cmd
}

func (a *app) login(ctx context.Context, name, fingerprint string, c hubContext) error {
	authority, err := client.FetchAuthority(ctx, c.Hub, fingerprint)
	if err != nil {
		return err
	}
	c.Authority = string(authority)
	cl, err := client.New(client.Config{Hub: c.Hub, Token: c.Token, Authority: authority})
	if err != nil {
		return err
	}
	info, err := cl.Info(ctx)
	if err != nil {
		return err
	}
	workspaces, err := client.Collect(cl.Workspaces(ctx))
	if err != nil {
		return err
	}
	c.Workspace = a.workspace
	if c.Workspace == "" && len(workspaces) == 1 {
		c.Workspace = workspaces[0].Name
	}
	cs, err := loadContexts()
	if err != nil {
		return err
	}
	cs.Context[name], cs.Current = c, name
	if err := cs.save(); err != nil {
		return err
	}
	a.say("Logged in to %s as %s.", c.Hub, firstOf(info.Principal.Name, info.Principal.Kind))
	switch {
	case c.Workspace != "":
		a.say("Workspace: %s", c.Workspace)
	case len(workspaces) == 0:
		a.say("There is no workspace yet; make one with 'atelier workspace create NAME'.")
	default:
		a.say("Choose a workspace with 'atelier workspace use NAME'.")
	}
	return nil
}

func (a *app) contextCommand() *cobra.Command {
	listCmd := &cobra.Command{
		Use: "list", Short: "List the contexts", Aliases: []string{"ls"}, Args: exactly(0),
		RunE: func(*cobra.Command, []string) error {
			cs, err := loadContexts()
			if err != nil {
				return err
			}
			return a.print(cs.Context, func() table {
				t := table{head: []string{"", "NAME", "HUB", "WORKSPACE"}}
				for _, name := range sortedKeys(cs.Context) {
					mark := ""
					if name == cs.Current {
						mark = "*"
					}
					t.add(mark, name, cs.Context[name].Hub, cs.Context[name].Workspace)
				}
				return t
			})
		},
	}
	useCmd := &cobra.Command{
		Use: "use NAME", Short: "Make a context the current one", Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			cs, err := loadContexts()
			if err != nil {
				return err
			}
			if _, ok := cs.Context[args[0]]; !ok {
				return noContext(args[0], cs)
			}
			cs.Current = args[0]
			return cs.save()
		},
	}
	showCmd := &cobra.Command{
		Use: "show", Short: "Show the context in use", Args: exactly(0),
		RunE: func(*cobra.Command, []string) error {
			c, err := a.currentContext()
			if err != nil {
				return err
			}
			return a.print(c, func() table {
				return table{rows: [][]string{{"Hub:", c.Hub}, {"Workspace:", c.Workspace}}}
			})
		},
	}
	deleteCmd := &cobra.Command{
		Use: "delete NAME", Short: "Forget a context and its token", Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			cs, err := loadContexts()
			if err != nil {
				return err
			}
			if _, ok := cs.Context[args[0]]; !ok {
				return noContext(args[0], cs)
			}
			delete(cs.Context, args[0])
			if cs.Current == args[0] {
				cs.Current = ""
			}
			return cs.save()
		},
	}
	return group("context", "Choose between hubs that you are logged in to", listCmd, useCmd, showCmd, deleteCmd)
}
