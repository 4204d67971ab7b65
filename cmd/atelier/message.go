package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

func (a *app) messageCommand() *cobra.Command {
	var f client.MessageFilter
	var last, tailLast int
	list := &cobra.Command{
		Use: "list DEVICE", Short: "List what modules of a device said into the workspace", Aliases: []string{"ls"}, Args: exactly(1),
		Long: `List what modules of a device said into the workspace, in the order in which it came. Routes that end INTO upstream bring it there.`,
		Example: `  atelier message list press-4
  atelier message list press-4 --module counter -o json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.Messages(cmd.Context(), ws, args[0], f))
			if err != nil {
				return err
			}
			if last > 0 && len(all) > last {
				all = all[len(all)-last:]
			}
			return a.print(all, func() table { return messagesTable(all) })
		},
	}
	list.Flags().IntVar(&last, "last", 0, "only the last `N`")
	tail := &cobra.Command{
		Use: "tail DEVICE", Short: "Follow what modules of a device say into the workspace", Args: exactly(1),
		Long:    `Follow what modules of a device say into the workspace: the last messages, then each as it comes, one a line, until interrupted.`,
		Example: `  atelier message tail press-4 --module counter`,
		RunE:    func(cmd *cobra.Command, args []string) error { return a.tail(cmd.Context(), args[0], f, tailLast) },
	}
	tail.Flags().IntVar(&tailLast, "last", 10, "begin with the last `N`")
	for _, cmd := range []*cobra.Command{list, tail} {
		cmd.Flags().StringVar(&f.Module, "module", "", "only those of this module")
		cmd.Flags().StringVar(&f.Output, "output-name", "", "only those of this output of a module")
	}
	return group("message", "Read what modules of devices said into the workspace", list, tail)
}

// payload is a message's payload as people read it.
func payload(m *atelier.ModuleMessage) string {
	switch {
	case m.JSON != nil:
		return string(m.JSON)
	case m.Base64 != nil:
		return fmt.Sprintf("%d bytes", len(m.Base64))
	}
	return m.Text
}

func messagesTable(all []atelier.ModuleMessage) table {
	t := table{head: []string{"TIME", "MODULE", "OUTPUT", "MESSAGE"}}
	for i := range all {
		m := &all[i]
		t.add(m.Time.UTC().Format("2006-01-02 15:04:05.000"), m.Module, m.Output, payload(m))
	}
	if len(all) == 0 {
		t.note = "There are no messages; 'atelier deploy MODEL --route \"FROM /modules/NAME/outputs/* INTO upstream\"' brings them here."
	}
	return t
}

// tailEvery is how often new messages are asked for.
const tailEvery = time.Second

// tail prints messages as they come.
func (a *app) tail(ctx context.Context, device string, f client.MessageFilter, last int) error {
	cl, ws, err := a.open()
	if err != nil {
		return err
	}
	all, err := client.Collect(cl.Messages(ctx, ws, device, f))
	if err != nil {
		return err
	}
	if n := len(all); n > 0 {
		f.After = all[n-1].ID
		all = all[max(0, n-max(0, last)):]
	}
	for {
		for i := range all {
			if err := a.printMessage(&all[i]); err != nil {
				return err
			}
			f.After = all[i].ID
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(tailEvery):
		}
		if all, err = client.Collect(cl.Messages(ctx, ws, device, f)); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

func (a *app) printMessage(m *atelier.ModuleMessage) error {
	if a.output == "json" {
		enc := json.NewEncoder(a.out)
		enc.SetEscapeHTML(false)
		return enc.Encode(m)
	}
	_, err := fmt.Fprintf(a.out, "%s %s/%s %s\n", m.Time.UTC().Format("2006-01-02 15:04:05.000"), printable(m.Module), printable(m.Output), printable(payload(m)))
	return err
}
