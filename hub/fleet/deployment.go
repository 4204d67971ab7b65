package fleet

import (
	"context"
	"crypto/rand"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// DeploymentSpec says what a deployment shall be. nil leaves a field as it is, or
// at its default for a new deployment.
type DeploymentSpec struct {
	Name        *string
	Description *string
	Model       *string // name or id
	Version     *string // a number, or "latest", which is resolved at once
	// Selector may name devices by name or id; ids are stored.
	Selector *atelier.Selector
	Endpoint *string // the deployment's name by default
	Target   *string
	Limits   *atelier.Limits
	// Collect replaces what is collected; sizes of 0 are the defaults.
	Collect *atelier.Collection
	Serving *atelier.ServingChange
	// Routes replace the routes as a whole.
	Routes *[]atelier.MessageRoute
	// Prefetch stages the version: devices fetch it and do not run it yet.
	Prefetch bool
	// Switch lets the devices run what is staged. A version or model that is given
	// with it must be the staged one.
	Switch bool
	// Trial lets the devices run the version beside the one that serves, or changes what the
	// one that does gets.
	Trial *TrialSpec
	// Promote makes the version that runs beside the one that serves the one that does,
	// Rollback ends it.
	Promote, Rollback bool
	// Image is the container image to run in place of a model.
	Image *ImageSpec
}

// Latest stands for the newest version that is not archived.
const Latest = "latest"

const (
	maxDescription = 4096 // bytes
	maxSelected    = 1000 // devices that a selector names one by one
)

// CreateDeployment makes a deployment with its endpoint and the endpoint's keys.
func (f *Fleet) CreateDeployment(ctx context.Context, workspace string, spec DeploymentSpec) (atelier.Deployment, error) {
	base := atelier.Deployment{Meta: atelier.Meta{ID: atelier.NewID()}}
	spec, err := complete(spec)
	if err != nil {
		return base, err
	}
	endpoint := atelier.Endpoint{Meta: atelier.Meta{ID: atelier.NewID()}, Deployment: base.ID}
	keys := newKeys()
	endpoint.Keys = keys.hashes()
	var d atelier.Deployment
	err = f.store.Update(ctx, access.By(ctx), func(tx store.Tx) (err error) {
		if d, err = f.apply(tx, workspace, base, spec); err != nil {
			return err
		}
		if err := checkServer(tx, workspace, &base, &d); err != nil {
			return err
		}
		if active(&d) {
			if err := f.newRollout(tx, workspace, &d, atelier.NewID(), access.PrincipalFrom(ctx).Actor()); err != nil {
				return err
			}
		}
		if d, err = catalog.Deployments.Insert(tx, workspace, "", d); err != nil {
			return taken(err, "deployment", d.Name, "name")
		}
		e := endpoint
		e.Name = d.Endpoint
		if _, err := catalog.Endpoints.Insert(tx, workspace, "", e); err != nil {
			return taken(err, "endpoint", e.Name, "endpoint")
		}
		return f.storeKeys(tx, workspace, e.ID, keys)
	})
	return d, err
}

// complete returns the spec of a new deployment with its defaults.
func complete(spec DeploymentSpec) (DeploymentSpec, error) {
	if spec.Name == nil || spec.Model == nil && spec.Image == nil || spec.Selector == nil {
		return spec, atelier.Errorf(atelier.Invalid, "a deployment needs a name, a model or an image, and a selector").
			WithRemedy("Say what to deploy and where: 'atelier deploy MODEL --to label=value'.")
	}
	if spec.Version == nil && spec.Image == nil {
		latest := Latest
		spec.Version = &latest
	}
	if spec.Endpoint == nil {
		spec.Endpoint = spec.Name
	}
	if spec.Switch && spec.Model != nil {
		return spec, errNothingStaged(*spec.Name, *spec.Model)
	}
	if spec.tries() && spec.Model != nil {
		return spec, errNothingServes(*spec.Name, *spec.Model)
	}
	return spec, nil
}

// UpdateDeployment changes a deployment; a revision of 0 whatever is there. A
// change of what is run, where, or how begins a new rollout.
func (f *Fleet) UpdateDeployment(ctx context.Context, workspace, ref string, revision int64, spec DeploymentSpec) (atelier.Deployment, error) {
	rollout := atelier.NewID()
	var d atelier.Deployment
	err := f.store.Update(ctx, access.By(ctx), func(tx store.Tx) error {
		old, err := catalog.Deployments.Resolve(tx, workspace, "", ref)
		if err != nil {
			return err
		}
		if revision != 0 && old.Revision != revision {
			return atelier.Errorf(atelier.Stale, "deployment %q has changed: it is at revision %d, not %d", old.Name, old.Revision, revision).
				WithRemedy("Read it again, and repeat the change on what it is now.")
		}
		if d, err = f.revise(tx, workspace, old, spec, rollout); err != nil {
			return err
		}
		if err := f.newRollouts(tx, workspace, &old, &d, access.PrincipalFrom(ctx).Actor()); err != nil {
			return err
		}
		if d, err = catalog.Deployments.Update(tx, workspace, d); err != nil {
			return taken(err, "deployment", d.Name, "name")
		}
		if old.Endpoint == d.Endpoint {
			return nil
		}
		e, err := catalog.Endpoints.Find(tx, workspace, "", old.Endpoint)
		if err != nil {
			return err
		}
		e.Name = d.Endpoint
		if _, err := catalog.Endpoints.Update(tx, workspace, e); err != nil {
			return taken(err, "endpoint", e.Name, "endpoint")
		}
		return nil
	})
	return d, err
}

// revise returns a deployment as spec wants it, checked, with the rollout that then
// begins: one that was staged, or rollout.
func (f *Fleet) revise(tx store.Tx, workspace string, old atelier.Deployment, spec DeploymentSpec, rollout string) (d atelier.Deployment, err error) {
	if old.Image != nil {
		if err := onlyImage(&old, spec); err != nil {
			return d, err
		}
	}
	if spec.Prefetch || spec.Switch {
		if err := checkStaging(spec); err != nil {
			return d, err
		}
	}
	if spec.tries() {
		if err := checkTrying(spec); err != nil {
			return d, err
		}
	}
	switch {
	case spec.Switch:
		spec, err = switched(&old, spec)
	case spec.Promote:
		spec, err = promoted(&old, spec)
	}
	if err != nil {
		return d, err
	}
	if d, err = f.apply(tx, workspace, old, spec); err != nil {
		return d, err
	}
	if err := checkServer(tx, workspace, &old, &d); err != nil {
		return d, err
	}
	if !sameContent(&old, &d) && active(&d) {
		d.Rollout = rollout
		if s := old.Staged; s != nil && d.VersionID != "" && s.VersionID == d.VersionID {
			d.Rollout = s.Rollout // the devices have it under this one
		}
		if t := old.Trial; t != nil && t.VersionID == d.VersionID && onlyVersion(&old, &d) {
			d.Rollout = t.Rollout // it runs under this one
		}
		if d.Trial != nil { // what it runs in has changed with the other
			renewed := *d.Trial
			renewed.Rollout = atelier.NewID()
			d.Trial = &renewed
		}
	}
	return d, nil
}

// DeleteDeployment takes a deployment off its devices and removes its endpoint
// with its keys. Its rollouts stay: they are history.
func (f *Fleet) DeleteDeployment(ctx context.Context, workspace, ref string, revision int64) error {
	return f.store.Update(ctx, access.By(ctx), func(tx store.Tx) error {
		d, err := catalog.Deployments.Resolve(tx, workspace, "", ref)
		if err != nil {
			return err
		}
		e, err := catalog.Endpoints.Find(tx, workspace, "", d.Endpoint)
		if err != nil {
			return err
		}
		if err := f.dropKeys(tx, workspace, e.ID); err != nil {
			return err
		}
		if err := catalog.Endpoints.Delete(tx, workspace, e.ID, 0); err != nil {
			return err
		}
		if err := dropTwins(tx, workspace, d.ID, ""); err != nil {
			return err
		}
		return catalog.Deployments.Delete(tx, workspace, d.ID, revision)
	})
}

// Deployment returns the deployment that ref, a name or an id, names.
func (f *Fleet) Deployment(ctx context.Context, workspace, ref string) (d atelier.Deployment, err error) {
	err = f.store.View(ctx, func(tx store.Tx) (err error) {
		d, err = catalog.Deployments.Resolve(tx, workspace, "", ref)
		return err
	})
	return d, err
}

// apply returns d as spec wants it, checked.
func (f *Fleet) apply(tx store.Tx, workspace string, d atelier.Deployment, spec DeploymentSpec) (atelier.Deployment, error) {
	set(&d.Name, spec.Name)
	set(&d.Description, spec.Description)
	set(&d.Endpoint, spec.Endpoint)
	set(&d.Target, spec.Target)
	set(&d.Limits, spec.Limits)
	d.Serving = spec.Serving.To(d.Serving)
	set(&d.Selector, spec.Selector)
	if err := check(&d); err != nil {
		return d, err
	}
	if spec.Selector != nil {
		if err := resolveSelector(tx, workspace, &d.Selector); err != nil {
			return d, err
		}
	}
	if spec.Collect != nil {
		c := spec.Collect.Complete()
		if d.Collect = &c; c.Check() != nil {
			return d, c.Check()
		}
	}
	if spec.Routes != nil {
		routes, err := checkRoutes(*spec.Routes)
		if err != nil {
			return d, err
		}
		d.Routes = routes
	}
	if spec.Image != nil {
		return f.applyImage(tx, workspace, d, spec)
	}
	if d.Image != nil {
		return d, onlyImage(&d, spec)
	}
	if spec.Rollback {
		if d.Trial == nil {
			return d, errNoTrial(&d)
		}
		d.Trial = nil
		return d, checkVersions(tx, workspace, &d)
	}
	if spec.Trial != nil {
		if err := f.try(tx, workspace, &d, spec); err != nil {
			return d, err
		}
		return d, checkVersions(tx, workspace, &d)
	}
	if spec.Model == nil && spec.Version == nil {
		return d, checkVersions(tx, workspace, &d)
	}
	model, version := d.Model, Latest
	if model == "" && d.Staged != nil {
		model = d.Staged.Model
	}
	set(&model, spec.Model)
	set(&version, spec.Version)
	v, err := findVersion(tx, workspace, model, version)
	if err != nil {
		return d, err
	}
	if err := checkVersion(&d, &v); err != nil {
		return d, err
	}
	if spec.Prefetch {
		return d, f.stage(&d, v)
	}
	d.Model, d.Version, d.VersionID, d.Staged, d.Trial = v.Model, v.Number, v.ID, nil, nil
	return d, nil
}

// checkRoutes returns routes in their normal form.
func checkRoutes(routes []atelier.MessageRoute) ([]atelier.MessageRoute, error) {
	if len(routes) > atelier.MaxMessageRoutes {
		return nil, atelier.Errorf(atelier.Invalid, "the deployment has %d routes, at most %d are taken", len(routes), atelier.MaxMessageRoutes).WithField("routes")
	}
	var all []atelier.MessageRoute
	for _, r := range routes {
		r, err := r.Normal()
		if err != nil {
			return nil, withField(err, "routes")
		}
		if i := slices.IndexFunc(all, func(other atelier.MessageRoute) bool { return other.Route == r.Route }); i >= 0 {
			all[i] = r
			continue
		}
		all = append(all, r)
	}
	return all, nil
}

// checkVersions checks what a deployment says of its modules against the versions that
// run, that wait to, and that run beside them.
func checkVersions(tx store.Tx, workspace string, d *atelier.Deployment) error {
	if d.Collect == nil && d.Serving.IsZero() {
		return nil
	}
	ids := []string{d.VersionID}
	if d.Staged != nil {
		ids = append(ids, d.Staged.VersionID)
	}
	if d.Trial != nil {
		ids = append(ids, d.Trial.VersionID)
	}
	for _, id := range ids {
		if id == "" {
			continue
		}
		v, err := catalog.Versions.Get(tx, workspace, id)
		if err != nil {
			return err
		}
		if err := checkVersion(d, &v); err != nil {
			return err
		}
	}
	return nil
}

// checkVersion checks that a version has a use for what the deployment sets, and holds
// what is masked. Of a script nobody knows what it takes.
func checkVersion(d *atelier.Deployment, v *atelier.Version) error {
	if err := d.Serving.CheckFor(v); err != nil {
		return err
	}
	if d.Collect == nil {
		return nil
	}
	for _, variant := range v.Variants {
		if variant.Signature == nil || variant.Kind != atelier.VariantONNX {
			continue
		}
		if err := d.Collect.CheckSignature(variant.Signature); err != nil {
			return err
		}
	}
	return nil
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func check(d *atelier.Deployment) error {
	if err := atelier.CheckName("deployment", d.Name); err != nil {
		return err
	}
	if err := atelier.CheckName("endpoint", d.Endpoint); err != nil {
		return withField(err, "endpoint")
	}
	if d.Target != "" {
		if err := atelier.CheckName("target", d.Target); err != nil {
			return withField(err, "target")
		}
	}
	if len(d.Description) > maxDescription || !utf8.ValidString(d.Description) {
		return atelier.Errorf(atelier.Invalid, "the description has %d bytes; at most %d of UTF-8 text are taken", len(d.Description), maxDescription).WithField("description")
	}
	if l := d.Limits; l.Memory < 0 || !(l.CPUs >= 0 && l.CPUs <= 4096) {
		return atelier.Errorf(atelier.Invalid, "the limits of %d bytes and %v CPUs are not possible", l.Memory, l.CPUs).WithField("limits").
			WithRemedy("Give sizes of 0 (no limit) or more.")
	}
	if err := d.Serving.Check(); err != nil {
		return err
	}
	s := d.Selector
	if !s.All && len(s.Labels) == 0 && len(s.Devices) == 0 {
		return atelier.Errorf(atelier.Invalid, "the selector selects no device").WithField("selector").
			WithRemedy("Name labels or devices, or say that all are meant.")
	}
	if len(s.Devices) > maxSelected {
		return atelier.Errorf(atelier.Invalid, "the selector names %d devices, at most %d are taken", len(s.Devices), maxSelected).WithField("selector.devices").
			WithRemedy("Give the devices a label and select by that.")
	}
	return withField(s.Labels.Check(), "selector.labels")
}

// withField names the field of an error that another check found.
func withField(err error, field string) error {
	if e, ok := err.(*atelier.Error); ok && e != nil { //nolint:errorlint // made just above, never wrapped
		return e.WithField(field)
	}
	return err
}

// resolveSelector replaces the names of devices by their ids.
func resolveSelector(tx store.Tx, workspace string, s *atelier.Selector) error {
	ids := make([]string, 0, len(s.Devices))
	for _, ref := range s.Devices {
		d, err := catalog.Devices.Resolve(tx, workspace, "", ref)
		if isNotFound(err) {
			return atelier.Errorf(atelier.NotFound, "there is no device %.80q in this workspace", ref).WithField("selector.devices").
				WithRemedy("'atelier device list' shows the devices.")
		}
		if err != nil {
			return err
		}
		if !slices.Contains(ids, d.ID) {
			ids = append(ids, d.ID)
		}
	}
	s.Devices = ids
	if len(ids) == 0 {
		s.Devices = nil
	}
	return nil
}

// findVersion returns the version of a model that can be deployed.
func findVersion(tx store.Tx, workspace, model, version string) (atelier.Version, error) {
	var v atelier.Version
	m, err := catalog.Models.Resolve(tx, workspace, "", model)
	if isNotFound(err) {
		return v, atelier.Errorf(atelier.NotFound, "there is no model %.80q in this workspace", model).WithField("model").
			WithRemedy("'atelier model list' shows the models.")
	}
	if err != nil {
		return v, err
	}
	number := m.Latest
	if version != Latest {
		if number, err = strconv.Atoi(version); err != nil || number < 1 {
			return v, atelier.Errorf(atelier.Invalid, "version %.80q is neither a number nor %q", version, Latest).WithField("version").
				WithRemedy("Give a version's number, such as 2, or %q.", Latest)
		}
	}
	if number == 0 {
		return v, atelier.Errorf(atelier.NotFound, "model %q has no version that could be deployed", m.Name).WithField("version").
			WithRemedy("Register one with 'atelier model register %s', or bring one back from the archive.", m.Name)
	}
	v, err = catalog.Versions.Find(tx, workspace, m.ID, strconv.Itoa(number))
	if isNotFound(err) {
		return v, atelier.Errorf(atelier.NotFound, "model %q has no version %d", m.Name, number).WithField("version").
			WithRemedy("'atelier model show %s' lists its versions.", m.Name)
	}
	if err == nil && v.Archived {
		return v, atelier.Errorf(atelier.Conflict, "version %d of %q is archived", number, m.Name).WithField("version").
			WithRemedy("Choose another version, or bring this one back with 'atelier model unarchive %s:%d'.", m.Name, number)
	}
	return v, err
}

// sameContent reports whether what devices run stays the same.
func sameContent(a, b *atelier.Deployment) bool {
	return a.VersionID == b.VersionID && a.Endpoint == b.Endpoint && a.Target == b.Target && a.Limits == b.Limits && a.Serving == b.Serving &&
		reflect.DeepEqual(a.Selector, b.Selector) && reflect.DeepEqual(a.Image, b.Image)
}

// newRollout records what the deployment asks for from now on.
func (f *Fleet) newRollout(tx store.Tx, workspace string, d *atelier.Deployment, id, by string) error {
	d.Rollout = id
	return f.recordRollout(tx, workspace, d, d.VersionID, id, by)
}

// newRollouts records the rollouts that a change of old to d begins.
func (f *Fleet) newRollouts(tx store.Tx, workspace string, old, d *atelier.Deployment, by string) error {
	known := map[string]bool{old.Rollout: true}
	if old.Trial != nil {
		known[old.Trial.Rollout] = true
	}
	if !known[d.Rollout] {
		if err := f.newRollout(tx, workspace, d, d.Rollout, by); err != nil {
			return err
		}
	}
	if d.Trial == nil || known[d.Trial.Rollout] {
		return nil
	}
	return f.recordRollout(tx, workspace, d, d.Trial.VersionID, d.Trial.Rollout, by)
}

// recordRollout writes down what a rollout of the deployment runs.
func (f *Fleet) recordRollout(tx store.Tx, workspace string, d *atelier.Deployment, version, id, by string) error {
	if version == "" && d.Image != nil {
		_, err := catalog.Rollouts.Insert(tx, workspace, "", atelier.Rollout{
			Meta: atelier.Meta{ID: id}, Deployment: d.ID, DeploymentName: d.Name, Endpoint: d.Endpoint,
			Model: d.Image.Reference, Digest: d.Image.Digest, Package: d.Image.Digest, By: by,
		})
		return err
	}
	v, err := catalog.Versions.Get(tx, workspace, version)
	if err != nil {
		return err
	}
	_, err = catalog.Rollouts.Insert(tx, workspace, "", atelier.Rollout{
		Meta: atelier.Meta{ID: id}, Deployment: d.ID, DeploymentName: d.Name, Endpoint: d.Endpoint,
		Model: v.Model, Version: v.Number, VersionID: v.ID, Digest: v.Digest, Package: v.Digest, By: by,
	})
	return err
}

// taken says which name is taken.
func taken(err error, kind, name, field string) error {
	if atelier.CodeOf(err) != atelier.Exists {
		return err
	}
	return atelier.Errorf(atelier.Exists, "there is %s %q in this workspace already", article(kind), name).WithField(field).
		WithRemedy("Choose another name, or change the one that is there.")
}

func article(kind string) string {
	if strings.ContainsRune("aeiou", rune(kind[0])) {
		return "an " + kind
	}
	return "a " + kind
}

// Trace returns what answered the request with an id that an endpoint gave out.
func (f *Fleet) Trace(ctx context.Context, workspace, request string) (r atelier.Rollout, err error) {
	id, random, ok := strings.Cut(request, "-")
	if !ok || random == "" || !atelier.IsID(id) {
		return r, atelier.Errorf(atelier.Invalid, "%.80q is not the id of a request to an endpoint", request).WithField("request").
			WithRemedy("Take it from the %s header of the endpoint's answer.", atelier.HeaderRequestID)
	}
	err = f.store.View(ctx, func(tx store.Tx) (err error) {
		r, err = catalog.Rollouts.Get(tx, workspace, id)
		return err
	})
	if isNotFound(err) {
		err = atelier.Errorf(atelier.NotFound, "no endpoint of this workspace gave out the request id %.80q", request)
	}
	return r, err
}

// newKey returns a fresh key of an endpoint.
func newKey() string { return "atk_" + strings.ToLower(rand.Text()) }
