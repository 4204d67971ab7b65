package registry

import (
	"context"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

// pythonVariants makes a variant of a scoring script for each architecture that its
// environment was built for.
func (r *Registry) pythonVariants(ctx context.Context, workspace string, n NewVersion) ([]atelier.Variant, error) {
	files := slices.Clone(n.Files)
	if err := checkPaths(files); err != nil {
		return nil, err
	}
	switch {
	case n.Environment == "":
		return nil, atelier.Errorf(atelier.Invalid, "a scoring script needs an environment to run in, and none is named").WithField("environment").
			WithRemedy("Make one with 'atelier environment create NAME -f requirements.txt', and name it with --environment.")
	case !strings.HasSuffix(n.Entry, ".py"):
		return nil, atelier.Errorf(atelier.Invalid, "the script %.120q is no file that ends in .py", n.Entry).WithField("entry").
			WithRemedy("Name the file that has init() and run(data).")
	case !slices.ContainsFunc(files, func(f atelier.File) bool { return f.Path == n.Entry }):
		return nil, atelier.Errorf(atelier.Invalid, "the script %.120q is none of the files", n.Entry).WithField("entry")
	}
	var variants []atelier.Variant
	err := r.store.View(ctx, func(tx store.Tx) error {
		if err := r.checkFiles(tx, workspace, files); err != nil {
			return err
		}
		e, err := findEnvironment(tx, workspace, n.Environment)
		if err != nil {
			return inField(err, "environment")
		}
		variants, err = variantsIn(e, n.Entry, files)
		return err
	})
	return variants, err
}

// variantsIn makes the variants of a script in an environment.
func variantsIn(e atelier.Environment, script string, files []atelier.File) ([]atelier.Variant, error) {
	var variants []atelier.Variant
	for _, b := range e.Builds {
		if !b.State.Over() {
			return nil, atelier.Errorf(atelier.Conflict, "version %d of environment %q is not built for %s yet: it is %s", e.Number, e.Environment, b.Arch, b.State).
				WithField("environment").WithRemedy("Wait for it with 'atelier environment show %s:%d --wait'.", e.Environment, e.Number)
		}
		if b.State != atelier.BuildReady {
			continue
		}
		variants = append(variants, atelier.Variant{
			Kind: atelier.VariantPython, Entry: script, Files: files,
			Requires: atelier.Requirements{Arch: []string{b.Arch}},
			Environment: &atelier.VariantEnvironment{
				ID: e.ID, Name: e.Environment, Number: e.Number, Python: e.Python, Artifact: *b.Artifact, NeedsGlibc: b.NeedsGlibc,
			},
		})
	}
	if len(variants) == 0 {
		return nil, atelier.Errorf(atelier.Invalid, "version %d of environment %q could be built for no architecture: %s", e.Number, e.Environment, e.Builds[0].Why.Message()).
			WithField("environment").WithRemedy("Read why with 'atelier environment log %s:%d', and create it anew.", e.Environment, e.Number)
	}
	return variants, nil
}
