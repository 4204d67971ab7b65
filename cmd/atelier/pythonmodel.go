package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

// mlflowFile is the file by which a directory is known as MLflow's.
const mlflowFile = "MLmodel"

// detect says what kind of model the files are where they show it: ONNX wherever
// there is an ONNX file, also in a directory of MLflow's.
func detect(v *client.NewVersion, files []localFile) {
	if v.Kind == "" && v.Entry == "" && !slices.ContainsFunc(files, func(f localFile) bool { return strings.HasSuffix(f.file.Path, ".onnx") }) {
		switch {
		case slices.ContainsFunc(files, func(f localFile) bool { return f.file.Path == mlflowFile }):
			v.Kind = atelier.VariantMLflow
		case len(pickles(files)) == 1:
			v.Kind = atelier.VariantPickle
		}
	}
	if all := pickles(files); v.Kind == atelier.VariantPickle && v.Entry == "" && len(all) == 1 {
		v.Entry = all[0]
	}
}

// pickles returns the paths of the files that joblib or pickle wrote, by their names.
func pickles(files []localFile) []string {
	var found []string
	for _, f := range files {
		if slices.Contains([]string{".joblib", ".pkl", ".pickle"}, path.Ext(f.file.Path)) {
			found = append(found, f.file.Path)
		}
	}
	return found
}

// environmentOf defines the environment that the files themselves ask for, waits until
// it is built, and returns its name with its version; "" where they ask for none. arch
// are the architectures of the devices.
func (a *app) environmentOf(ctx context.Context, cl *client.Client, ws, model string, files []localFile, arch []string) (string, error) {
	n := client.NewEnvironment{Name: model, Arch: arch, Description: "what the files of model " + model + " ask for"}
	var asks string
	for _, name := range []string{"requirements.txt", "conda.yaml", "conda.yml"} {
		text, err := textOf(files, name)
		if err != nil {
			return "", err
		}
		if text == "" {
			continue
		}
		if asks = name; name == "requirements.txt" {
			n.Requirements = text
		} else {
			n.Conda = text
		}
		break
	}
	if asks == "" {
		return "", nil
	}
	text, err := textOf(files, "python_env.yaml")
	if err != nil {
		return "", err
	}
	n.Python = pythonOf(text)
	e, err := cl.CreateEnvironment(ctx, ws, n)
	if err != nil {
		return "", err
	}
	ref := fmt.Sprintf("%s:%d", e.Environment, e.Number)
	a.say("Created environment %s of the model's %s; name another with --environment", ref, asks)
	if e, err = a.awaitBuilds(ctx, cl, ws, e); err != nil {
		return "", err
	}
	for _, b := range e.Builds {
		if b.State == atelier.BuildFailed {
			return "", atelier.Errorf(atelier.Unsupported, "environment %s, which the model's %s asks for, could not be built for %s: %s", ref, asks, b.Arch, b.Why.Message()).
				WithRemedy("Make one that can be with 'atelier environment create', and name it with --environment. %s", b.Why.Remedy())
		}
	}
	return ref, nil
}

// textOf returns the text of the file at path, "" where there is none.
func textOf(files []localFile, path string) (_ string, err error) {
	i := slices.IndexFunc(files, func(f localFile) bool { return f.file.Path == path })
	if i < 0 {
		return "", nil
	}
	in, err := files[i].open()
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	b, err := io.ReadAll(io.LimitReader(in, maxDefinition))
	return string(b), err
}

// pythonOf returns the version of Python, such as "3.11", that the text of MLflow's
// python_env.yaml asks for; "" where it asks for none.
func pythonOf(text string) string {
	var env struct {
		Python string `yaml:"python"`
	}
	if yaml.Unmarshal([]byte(text), &env) != nil {
		return ""
	}
	parts := strings.SplitN(env.Python, ".", 3)
	if len(parts) < 2 {
		return env.Python
	}
	return parts[0] + "." + parts[1]
}
