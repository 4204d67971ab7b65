package registry

import (
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

// TestRegisterModelsInPython registers models that need no script: MLflow's, whose
// signature the hub reads, and pickles, into which it does not look.
func TestRegisterModelsInPython(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	e := f.environment(NewEnvironment{Name: "a"})
	if _, err := f.FinishBuild(ctx, f.ws, e.ID, "amd64", f.claim(e, "one"), f.ready("tar")); err != nil {
		t.Fatal(err)
	}
	mlmodel := "flavors: {python_function: {}}\nsignature:\n  inputs: '[{\"type\": \"double\", \"name\": \"x\"}]'\n  outputs: '[{\"type\": \"long\"}]'\n"
	pickle := f.file(f.ws, "model.pkl", []byte("cos\nsystem\n(S'false'\ntR.")) // it would run a program
	flow := []atelier.File{f.file(f.ws, "MLmodel", []byte(mlmodel)), pickle}
	v, err := f.Register(ctx, f.ws, "flow", NewVersion{Kind: atelier.VariantMLflow, Environment: "a", Files: flow})
	if err != nil {
		t.Fatal(err)
	}
	variant := v.Variants[0]
	if variant.Kind != atelier.VariantMLflow || variant.Entry != "MLmodel" || variant.Environment == nil || variant.Signature == nil ||
		variant.Signature.Inputs[0].Type != "FP64" || variant.Signature.Outputs[0].Name != "predictions" {
		t.Errorf("%+v, %+v", variant, variant.Signature)
	}
	if v, err = f.Register(ctx, f.ws, "pickled", NewVersion{Kind: atelier.VariantPickle, Entry: "model.pkl", Environment: "a", Files: flow[1:]}); err != nil {
		t.Fatal(err)
	}
	if variant := v.Variants[0]; variant.Kind != atelier.VariantPickle || variant.Signature != nil || len(variant.Content()) != 2 {
		t.Errorf("%+v", variant)
	}
	spark := []atelier.File{f.file(f.ws, "MLmodel", []byte("flavors: {spark: {}}\n"))}
	golden := append([]atelier.File{f.file(f.ws, atelier.GoldenPath, []byte("{}"))}, flow...)
	for name, n := range map[string]NewVersion{
		"no environment":     {Kind: atelier.VariantMLflow, Files: flow},
		"no MLmodel":         {Kind: atelier.VariantMLflow, Environment: "a", Files: flow[1:]},
		"another entry":      {Kind: atelier.VariantMLflow, Environment: "a", Entry: "model.pkl", Files: flow},
		"no Python function": {Kind: atelier.VariantMLflow, Environment: "a", Files: spark},
		"broken golden":      {Kind: atelier.VariantMLflow, Environment: "a", Files: golden},
		"no entry":           {Kind: atelier.VariantPickle, Environment: "a", Files: flow},
	} {
		_, err := f.Register(ctx, f.ws, "m", n)
		wants(t, name, err, atelier.Invalid)
	}
}
