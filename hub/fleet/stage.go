package fleet

import (
	"strconv"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// stage makes v the version that the deployment's devices prefetch, in place of
// another one.
func (f *Fleet) stage(d *atelier.Deployment, v atelier.Version) error {
	if v.ID == d.VersionID {
		return atelier.Errorf(atelier.Conflict, "deployment %q runs version %d of %s already", d.Name, v.Number, v.Model).WithField("version").
			WithRemedy("Choose another version to prefetch. 'atelier deploy %s:%d --name %s' takes a prefetch back.", v.Model, v.Number, d.Name)
	}
	if t := d.Trial; t != nil && t.VersionID == v.ID {
		return atelier.Errorf(atelier.Conflict, "version %d of %s runs in deployment %q already, beside the one that serves", v.Number, v.Model, d.Name).WithField("version").
			WithRemedy("Its content is there; 'atelier deploy %s --name %s --promote' makes it the one that serves.", v.Model, d.Name)
	}
	if d.Staged != nil && d.Staged.VersionID == v.ID {
		return nil
	}
	d.Staged = &atelier.Staged{
		Model: v.Model, Version: v.Number, VersionID: v.ID, Rollout: atelier.NewID(), Since: f.clock.Now().UTC().Truncate(time.Millisecond),
	}
	return nil
}

// checkStaging refuses a change that would do more than prefetch or switch: what
// the devices run, and where, must not change with the one, and nothing that was not
// prefetched with the other.
func checkStaging(spec DeploymentSpec) error {
	word := "prefetch"
	if spec.Switch {
		word = "switch"
	}
	refuse := func(field, text string) error {
		return atelier.Errorf(atelier.Invalid, "%s changes %s only", word, text).WithField(field).
			WithRemedy("Change the rest of the deployment by itself, before or after.")
	}
	const version = "the version"
	switch {
	case spec.Prefetch && spec.Switch:
		return atelier.Errorf(atelier.Invalid, "a version is either prefetched or switched to").WithField("switch").
			WithRemedy("Prefetch it first, and switch when the devices are ready.")
	case spec.Selector != nil:
		return refuse("selector", version)
	case spec.Endpoint != nil:
		return refuse("endpoint", version)
	case spec.Target != nil:
		return refuse("target", version)
	case spec.Limits != nil:
		return refuse("limits", version)
	case spec.Serving != nil:
		return refuse("serving", version)
	case spec.Name != nil:
		return refuse("name", version)
	case spec.Prefetch && spec.Version == nil && spec.Model == nil:
		return atelier.Errorf(atelier.Invalid, "nothing says which version to prefetch").WithField("version").
			WithRemedy("Give a version's number, or %q.", Latest)
	}
	return nil
}

// switched returns the change that makes the staged version the one that runs.
func switched(d *atelier.Deployment, spec DeploymentSpec) (DeploymentSpec, error) {
	s := d.Staged
	if s == nil {
		model := d.Model
		set(&model, spec.Model)
		return spec, errNothingStaged(d.Name, model)
	}
	number := strconv.Itoa(s.Version)
	if spec.Model != nil && *spec.Model != s.Model || spec.Version != nil && *spec.Version != number {
		return spec, atelier.Errorf(atelier.Conflict, "deployment %q has version %d of %s staged, and no other", d.Name, s.Version, s.Model).WithField("version").
			WithRemedy("Switch to that one, or deploy the other without prefetching it: 'atelier deploy MODEL:VERSION --name %s'.", d.Name)
	}
	return DeploymentSpec{Description: spec.Description, Model: &s.Model, Version: &number}, nil
}

func errNothingStaged(deployment, model string) error {
	return atelier.Errorf(atelier.Conflict, "deployment %q has nothing staged that its devices could switch to", deployment).WithField("switch").
		WithRemedy("Prefetch a version first: 'atelier deploy %s:VERSION --name %s --prefetch'.", model, deployment)
}
