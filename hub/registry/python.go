package registry

import (
	"context"
	"errors"
	"io"
	"path"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/mlflow"
)

// pythonVariants makes a variant of what runs in Python for each architecture that its
// environment was built for.
func (r *Registry) pythonVariants(ctx context.Context, workspace string, n NewVersion) ([]atelier.Variant, error) {
	files := slices.Clone(n.Files)
	if err := checkPaths(files); err != nil {
		return nil, err
	}
	v := atelier.Variant{Kind: n.Kind, Entry: n.Entry, Files: files}
	if err := checkPython(&v, n.Environment); err != nil {
		return nil, err
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
		variants, err = variantsIn(e, v)
		return err
	})
	if err != nil || n.Kind == atelier.VariantPython {
		return variants, err
	}
	signature, err := r.readMLflow(&v)
	for i := range variants {
		variants[i].Signature = signature
	}
	return variants, errors.Join(err, r.checkGolden(n.Kind, files))
}

// checkPython checks what of a variant in Python can be told before its files are
// looked at, and sets its entry where only one file can be it.
func checkPython(v *atelier.Variant, environment string) error {
	what := map[string]string{atelier.VariantPython: "a scoring script", atelier.VariantMLflow: "an MLflow model", atelier.VariantPickle: "a pickled model"}[v.Kind]
	if v.Kind == atelier.VariantMLflow && v.Entry == "" {
		v.Entry = mlflow.File
	}
	at := slices.IndexFunc(v.Files, func(f atelier.File) bool { return f.Path == v.Entry })
	switch {
	case environment == "":
		return atelier.Errorf(atelier.Invalid, "%s needs an environment to run in, and none is named", what).WithField("environment").
			WithRemedy("Make one with 'atelier environment create NAME -f requirements.txt', and name it with --environment.")
	case v.Kind == atelier.VariantPython && !strings.HasSuffix(v.Entry, ".py"):
		return atelier.Errorf(atelier.Invalid, "the script %.120q is no file that ends in .py", v.Entry).WithField("entry").
			WithRemedy("Name the file that has init() and run(data).")
	case v.Kind == atelier.VariantMLflow && path.Base(v.Entry) != mlflow.File:
		return atelier.Errorf(atelier.Invalid, "the entry of an MLflow model is %.120q, its file %s was expected", v.Entry, mlflow.File).WithField("entry")
	case at < 0:
		return atelier.Errorf(atelier.Invalid, "the entry %.120q of %s is none of the files", v.Entry, what).WithField("entry")
	}
	return nil
}

// readMLflow reads the signature of an MLflow model, nil for other kinds and where it
// has none that tensors stand for. Nothing of the model is run here, nor unpickled.
func (r *Registry) readMLflow(v *atelier.Variant) (_ *atelier.Signature, err error) {
	if v.Kind != atelier.VariantMLflow {
		return nil, nil
	}
	entry := v.Files[slices.IndexFunc(v.Files, func(f atelier.File) bool { return f.Path == v.Entry })]
	b, err := r.open(entry.Digest)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	text, err := io.ReadAll(io.NewSectionReader(b, 0, min(b.Size(), mlflow.MaxSize+1)))
	if err != nil {
		return nil, err
	}
	m, err := mlflow.Parse(text)
	if err != nil {
		return nil, inField(err, "entry")
	}
	return m.Signature(), nil
}

// variantsIn makes the variants of v in an environment.
func variantsIn(e atelier.Environment, v atelier.Variant) ([]atelier.Variant, error) {
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
			Kind: v.Kind, Entry: v.Entry, Files: v.Files,
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
