package main

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/spf13/pflag"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

// containerFlags are what 'atelier deploy' was asked for about a container image.
type containerFlags struct {
	image, network, probe string
	port                  int
	processes             int64
	entrypoint, args, env []string
	devices, mounts       []string
	given                 func(flag string) bool
}

func (f *containerFlags) register(flags *pflag.FlagSet) {
	f.given = flags.Changed
	flags.StringVar(&f.image, "image", "", "run this container image of the workspace's registry, `REPOSITORY:TAG`, in place of a model")
	flags.IntVar(&f.port, "port", 0, "where the container listens for what its endpoint is asked; it finds the number in PORT")
	flags.StringArrayVar(&f.entrypoint, "entrypoint", nil, "run this `word` in place of what the image runs; may be repeated")
	flags.StringArrayVar(&f.args, "arg", nil, "give this `word` to it in place of the image's; may be repeated")
	flags.StringArrayVar(&f.env, "env", nil, "an environment variable of the container, `NAME=value`; may be repeated")
	flags.StringVar(&f.network, "network", "", "host for the device's network; the container's own has no way out")
	flags.StringVar(&f.probe, "probe", "", "how to see that the container is well: http:/`PATH`, tcp or exec:COMMAND")
	flags.StringArrayVar(&f.devices, "device-node", nil, "a `device` for the container, such as /dev/ttyUSB0; may be repeated")
	flags.StringArrayVar(&f.mounts, "mount", nil, "show a directory or file of the device to the container, `/from:/to`, with :rw behind it to write; may be repeated")
	flags.Int64Var(&f.processes, "processes", 0, "how many processes and threads the container may have (default 2048)")
}

// names are the flags that say how a container runs.
func (f *containerFlags) names() []string {
	return []string{"port", "entrypoint", "arg", "env", "network", "probe", "device-node", "mount", "processes"}
}

// asked reports whether a flag is about containers.
func (f *containerFlags) asked() bool {
	for _, name := range f.names() {
		if f.given(name) {
			return true
		}
	}
	return f.image != ""
}

// put puts what the flags say into spec, over what the deployment has.
func (f *containerFlags) put(spec *client.DeploymentSpec, has *atelier.DeploymentImage) error {
	var set atelier.ContainerSettings
	if has != nil {
		set = has.Container
	}
	for name, put := range map[string]func() error{
		"port":        func() error { set.Port = f.port; return nil },
		"entrypoint":  func() error { set.Entrypoint = words(f.entrypoint); return nil },
		"arg":         func() error { set.Args = words(f.args); return nil },
		"env":         func() error { set.Env = words(f.env); return nil },
		"network":     func() error { set.Network = f.network; return nil },
		"device-node": func() error { set.Devices = words(f.devices); return nil },
		"processes":   func() error { set.Processes = f.processes; return nil },
		"probe":       func() (err error) { set.Probe, err = parseProbe(f.probe); return err },
		"mount":       func() (err error) { set.Mounts, err = parseMounts(words(f.mounts)); return err },
	} {
		if f.given(name) {
			if err := put(); err != nil {
				return err
			}
		}
	}
	spec.Image = &client.ImageSpec{Reference: f.image, Container: &set}
	return nil
}

// words returns what a flag was given; one empty word takes back what was said before.
func words(given []string) []string {
	if len(given) == 1 && given[0] == "" {
		return nil
	}
	return given
}

func parseProbe(s string) (*atelier.ContainerProbe, error) {
	kind, rest, _ := strings.Cut(s, ":")
	switch {
	case s == "":
		return nil, nil
	case kind == atelier.ProbeHTTP && rest != "":
		return &atelier.ContainerProbe{Kind: kind, Path: rest}, nil
	case s == atelier.ProbeTCP:
		return &atelier.ContainerProbe{Kind: kind}, nil
	case kind == atelier.ProbeExec && strings.TrimSpace(rest) != "":
		return &atelier.ContainerProbe{Kind: kind, Command: strings.Fields(rest)}, nil
	}
	return nil, errUsage{fmt.Errorf("%q is no probe\n  Write it as http:/PATH, tcp or exec:COMMAND", s)}
}

func parseMounts(given []string) (mounts []atelier.ContainerMount, err error) {
	for _, s := range given {
		parts := strings.Split(s, ":")
		if len(parts) < 2 || len(parts) > 3 || len(parts) == 3 && parts[2] != "rw" && parts[2] != "ro" {
			return nil, errUsage{fmt.Errorf("%q is no mount\n  Write it as /on/the/device:/in/the/container, and :rw behind it where the container may write", s)}
		}
		mounts = append(mounts, atelier.ContainerMount{Source: parts[0], Target: parts[1], Writable: len(parts) == 3 && parts[2] == "rw"})
	}
	return mounts, nil
}

// imageDeployment is the name of a deployment of an image that is given none: the last part of
// its repository.
func imageDeployment(reference string) string {
	name, _, _ := strings.Cut(reference, "@")
	name, _, _ = strings.Cut(name, ":")
	return path.Base(name)
}

// deployWhat returns what 'atelier deploy' is to deploy: the argument, or an image.
func (f *deployFlags) deployWhat(args []string) (ref string, err error) {
	switch {
	case len(args) == 1 && f.container.image == "" && !f.container.asked():
		return args[0], nil
	case len(args) == 1 && f.container.image != "":
		return "", errUsage{errors.New("a deployment runs a model or an image, not both\n  Leave out the model, or --image")}
	case len(args) == 1:
		return "", errUsage{errors.New("the flags are about a container, and no image is named\n  Pass --image REPOSITORY:TAG in place of the model")}
	case f.container.image == "":
		return "", errUsage{errors.New("nothing says what to deploy\n  Name MODEL[:VERSION], or --image REPOSITORY:TAG")}
	}
	return "", nil
}
