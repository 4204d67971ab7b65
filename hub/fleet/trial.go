package fleet

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// TrialSpec says what a version shall get that runs beside the one that serves. nil leaves
// a field as it is, or at its default for a new one.
type TrialSpec struct {
	Kind      atelier.TrialKind
	Weight    *float64 // of a canary, in percent; 0
	Sticky    *string  // see atelier.Split
	Sample    *float64 // of a shadow; 1
	Tolerance *atelier.Tolerance
}

// tries reports whether spec is about a version beside the one that serves.
func (s *DeploymentSpec) tries() bool { return s.Trial != nil || s.Promote || s.Rollback }

// checkTrying refuses a change that would do more than begin, change or end a trial.
func checkTrying(spec DeploymentSpec) error {
	words := []string{}
	for _, w := range []struct {
		word string
		is   bool
	}{
		{"prefetch", spec.Prefetch}, {"switch", spec.Switch}, {"promote", spec.Promote}, {"rollback", spec.Rollback}, {"trial", spec.Trial != nil},
	} {
		if w.is {
			words = append(words, w.word)
		}
	}
	if len(words) > 1 {
		return atelier.Errorf(atelier.Invalid, "%s and %s do not go together", words[0], words[1]).WithField(words[1]).
			WithRemedy("Do the one, and the other afterwards.")
	}
	for field, given := range map[string]bool{
		"selector": spec.Selector != nil, "endpoint": spec.Endpoint != nil, "target": spec.Target != nil, "limits": spec.Limits != nil, "name": spec.Name != nil,
	} {
		if given {
			return atelier.Errorf(atelier.Invalid, "%s changes nothing but which versions answer", words[0]).WithField(field).
				WithRemedy("Change the rest of the deployment by itself, before or after.")
		}
	}
	return nil
}

// try makes the version that spec names the one that runs beside the deployment's, or
// changes what the one that does gets.
func (f *Fleet) try(tx store.Tx, workspace string, d *atelier.Deployment, spec DeploymentSpec) error {
	if d.VersionID == "" {
		return errNothingServes(d.Name, d.Model)
	}
	if err := ofModel(tx, workspace, d, spec.Model); err != nil {
		return err
	}
	if d.Trial == nil && spec.Version == nil {
		return errNoTrial(d)
	}
	next := atelier.Trial{}
	if d.Trial != nil {
		next = *d.Trial
	}
	if spec.Version != nil {
		v, err := findVersion(tx, workspace, d.Model, *spec.Version)
		if err != nil {
			return err
		}
		if v.ID == d.VersionID {
			return atelier.Errorf(atelier.Conflict, "version %d of %s is the one that serves in deployment %q", v.Number, v.Model, d.Name).WithField("version").
				WithRemedy("Name another version to run beside it.")
		}
		if v.ID != next.VersionID {
			next = atelier.Trial{Version: v.Number, VersionID: v.ID, Rollout: atelier.NewID(), Since: f.clock.Now().UTC().Truncate(time.Millisecond)}
		}
		if s := d.Staged; s != nil && s.VersionID == v.ID {
			d.Staged = nil // the devices have its content by then
		}
	}
	next.Split = spec.Trial.split(next.Split)
	if err := next.Check(); err != nil {
		return withField(err, "trial")
	}
	d.Trial = &next
	return nil
}

// split returns what before becomes by the change.
func (s *TrialSpec) split(before atelier.Split) atelier.Split {
	if before.Kind != s.Kind {
		before = atelier.Split{Kind: s.Kind}
		if s.Kind == atelier.Shadow {
			before.Sample, before.Tolerance = 1, atelier.DefaultTolerance
		}
	}
	set(&before.Weight, s.Weight)
	set(&before.Sticky, s.Sticky)
	set(&before.Sample, s.Sample)
	set(&before.Tolerance, s.Tolerance)
	return before
}

// ofModel refuses another model than the deployment's: it would answer to other names.
func ofModel(tx store.Tx, workspace string, d *atelier.Deployment, model *string) error {
	if model == nil {
		return nil
	}
	m, err := catalog.Models.Resolve(tx, workspace, "", *model)
	if isNotFound(err) || err == nil && m.Name != d.Model {
		return atelier.Errorf(atelier.Conflict, "deployment %q serves %s, and %.80q is another model", d.Name, d.Model, *model).WithField("model").
			WithRemedy("Only another version of %s can run beside it.", d.Model)
	}
	return err
}

// promoted returns the change that makes the version that runs beside the one that serves
// the one that does.
func promoted(d *atelier.Deployment, spec DeploymentSpec) (DeploymentSpec, error) {
	if d.Trial == nil {
		return spec, errNoTrial(d)
	}
	number := strconv.Itoa(d.Trial.Version)
	if spec.Model != nil && *spec.Model != d.Model || spec.Version != nil && *spec.Version != number {
		return spec, atelier.Errorf(atelier.Conflict, "in deployment %q version %d of %s runs beside the one that serves, and no other", d.Name, d.Trial.Version, d.Model).
			WithField("version").WithRemedy("Promote that one: 'atelier deploy %s --name %s --promote'.", d.Model, d.Name)
	}
	return DeploymentSpec{Description: spec.Description, Model: &d.Model, Version: &number}, nil
}

// onlyVersion reports whether a and b differ in their version at most.
func onlyVersion(a, b *atelier.Deployment) bool {
	same := *a
	same.VersionID = b.VersionID
	return sameContent(&same, b)
}

func errNothingServes(deployment, model string) error {
	return atelier.Errorf(atelier.Conflict, "deployment %q serves nothing yet that a version could run beside", deployment).WithField("trial").
		WithRemedy("Deploy the version that shall serve first: 'atelier deploy %s:VERSION --name %s'.", model, deployment)
}

func errNoTrial(d *atelier.Deployment) error {
	return atelier.Errorf(atelier.Conflict, "in deployment %q no version runs beside the one that serves", d.Name).WithField("trial").
		WithRemedy("Begin with one: 'atelier deploy %s:VERSION --name %s --canary 10', or --shadow. To go back to a version that served before, deploy it.", d.Model, d.Name)
}

// tried returns the deployment as it would be if what runs beside the version that serves
// did.
func (p *planned) tried() *planned {
	n := *p
	n.Version, n.VersionID, n.Rollout, n.version = p.Trial.Version, p.Trial.VersionID, p.Trial.Rollout, *p.trial
	return &n
}

// try resolves what a device shall run beside what serves.
func (p *plan) try(dep *planned, d *atelier.Device, held []atelier.Module) (atelier.TrialModule, *atelier.Why) {
	m, why := p.module(dep.tried(), d, held)
	if why == nil && !slices.Contains(d.Facts.Features, atelier.FeatureTrial) {
		old := atelier.Because(atelier.ReasonUnsupportedFeature, fmt.Sprintf(
			"The agent on %s does not know how to run two versions side by side; version %d of %s answers all requests there.", d.Name, dep.Version, dep.Model))
		why = &old
	}
	return atelier.TrialModule{Module: m, Split: dep.Trial.Split}, why
}

// trial returns how far the device is with what runs beside the version that serves, nil
// where that is nothing.
func (p *picture) trial(dep *atelier.Deployment) *atelier.SlotStatus {
	if dep.Trial == nil {
		return nil
	}
	s := &atelier.SlotStatus{Rollout: dep.Trial.Rollout, Model: dep.Model, Version: dep.Trial.Version, Since: dep.Trial.Since}
	if standing, unmet := p.unmet(dep.ID, catalog.Tried); unmet {
		s.Standing = standing
		return s
	}
	for i := range p.desired.Trials {
		if m := &p.desired.Trials[i]; m.Rollout == dep.Trial.Rollout {
			return p.beside(&m.Module)
		}
	}
	if standing, unmet := p.unmet(dep.ID, catalog.Served); unmet {
		s.Standing = standing
		return s
	}
	if s.Standing = atelier.Stand(atelier.Pending, workingOut); p.device.Revoked != nil {
		s.Standing = p.expected()
	}
	return s
}

// beside returns how far the device is with a module that it shall run beside another.
func (p *picture) beside(m *atelier.Module) *atelier.SlotStatus {
	return p.told(m, func(s *atelier.ModuleStatus) *atelier.SlotStatus { return s.Trial })
}

// trialWhy says why a version that runs beside another does not get what it shall.
func trialWhy(m *atelier.TrialModule, s *atelier.SlotStatus) atelier.Why {
	why := s.Why()
	if r := why.Reason(); r == atelier.ReasonInProgress || r == atelier.ReasonWaiting {
		return why
	}
	return atelier.Because(why.Reason(), fmt.Sprintf("Version %d gets no requests, and the version beside it answers all of them: %s", m.Model.Version, why.Message())).
		WithRemedy(why.Remedy())
}
