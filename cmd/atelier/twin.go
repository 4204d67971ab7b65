package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
)

func (a *app) twinCommand() *cobra.Command {
	show := &cobra.Command{
		Use: "show DEPLOYMENT or DEVICE/MODULE", Short: "Show the desired properties of modules, and what the one on a device reports", Args: exactly(1),
		Example: `  atelier twin show counter
  atelier twin show press-4/counter`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			device, deployment := splitTwin(args[0])
			t, err := cl.Twin(cmd.Context(), ws, deployment, device)
			if err != nil {
				return err
			}
			return a.print(t, func() table { return twinTable(&t) })
		},
	}
	set := &cobra.Command{
		Use: "set DEPLOYMENT or DEVICE/MODULE KEY=JSON…", Short: "Change desired properties of modules", Args: between(2, -1),
		Long: `Change desired properties of modules: of all modules of a deployment, or of the one on a device, whose own properties are merged into those
of the deployment. A value is JSON, or text where it is none; null takes the property away, and KEY.INNER=… reaches into an object. The module
gets all of them as one message, also while the hub is away from then on.`,
		Example: `  atelier twin set counter interval=5 mode=fast
  atelier twin set press-4/counter interval=null camera.gain=1.5`,
		RunE: func(cmd *cobra.Command, args []string) error {
			patch, err := twinPatch(args[1:])
			if err != nil {
				return err
			}
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			device, deployment := splitTwin(args[0])
			t, err := cl.SetTwin(cmd.Context(), ws, deployment, device, patch)
			if err != nil {
				return err
			}
			return a.print(t, func() table { return twinTable(&t) })
		},
	}
	return group("twin", "Look after the properties of modules", show, set)
}

// splitTwin splits DEVICE/MODULE; without a slash it is a deployment, which a module is
// named after.
func splitTwin(ref string) (device, deployment string) {
	if device, module, ok := strings.Cut(ref, "/"); ok {
		return device, module
	}
	return "", ref
}

// twinPatch makes a JSON merge patch of KEY=JSON pairs.
func twinPatch(pairs []string) (json.RawMessage, error) {
	patch := map[string]any{}
	for _, pair := range pairs {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, errUsage{fmt.Errorf("%q is no property; write it like interval=5", pair)}
		}
		var v any = value
		if json.Valid([]byte(value)) {
			v = json.RawMessage(value)
		}
		at := patch
		names := strings.Split(key, ".")
		for _, name := range names[:len(names)-1] {
			inner, ok := at[name].(map[string]any)
			if !ok {
				if at[name] != nil {
					return nil, errUsage{fmt.Errorf("%q reaches into a property that is set as a whole too", pair)}
				}
				inner = map[string]any{}
				at[name] = inner
			}
			at = inner
		}
		at[names[len(names)-1]] = v
	}
	b, err := json.Marshal(patch)
	if err != nil {
		return nil, errUsage{errors.New("the properties cannot be written as JSON")}
	}
	return b, nil
}

func twinTable(t *atelier.Twin) table {
	of := t.Deployment
	if t.Device != "" {
		of = t.Device + "/" + t.Deployment
	}
	out := table{about: [][]string{{"Twin:", of}, {"Version:", fmt.Sprint(t.Version)}, {"Desired:", string(t.Desired)}, {"Changed:", ago(t.Updated)}}}
	switch {
	case t.Device == "":
	case t.Reported == nil:
		out.about = append(out.about, []string{"Reported:", "nothing yet"})
	default:
		out.about = append(out.about, []string{"Reported:", string(t.Reported.Properties)},
			[]string{"", fmt.Sprintf("version %d, %s by the device's clock", t.Reported.Version, t.Reported.Time.UTC().Format(time.RFC3339))})
	}
	return out
}
