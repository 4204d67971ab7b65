package fleet

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// defaultTarget is the kind of target of devices that name none.
const defaultTarget = "process"

// plan is everything that decides what the devices of a workspace shall run.
type plan struct {
	deployments []planned // in the order in which they were made
	runtimes    []atelier.Runtime
	twins       twins
}

// planned is a deployment with what it is made of. version is empty where nothing
// is to run.
type planned struct {
	atelier.Deployment
	version  atelier.Version
	staged   *atelier.Version // nil where nothing is staged
	trial    *atelier.Version // nil where nothing runs beside it
	endpoint atelier.Endpoint
}

// next returns the deployment as it will be once it is switched.
func (p *planned) next() *planned {
	n := *p
	n.Model, n.Version, n.VersionID, n.Rollout = p.Staged.Model, p.Staged.Version, p.Staged.VersionID, p.Staged.Rollout
	n.version = *p.staged
	return &n
}

// loadPlan reads the plan of a workspace.
func loadPlan(tx store.Tx, workspace string) (plan, error) {
	var p plan
	endpoints := map[string]atelier.Endpoint{}
	err := catalog.Endpoints.Each(tx, store.Query{Workspace: workspace}, func(e atelier.Endpoint) error {
		endpoints[e.Deployment] = e
		return nil
	})
	if err != nil {
		return p, err
	}
	err = catalog.Deployments.Each(tx, store.Query{Workspace: workspace}, func(d atelier.Deployment) error {
		one, err := loadPlanned(tx, workspace, d)
		one.endpoint = endpoints[d.ID]
		p.deployments = append(p.deployments, one)
		return err
	})
	if err != nil {
		return p, err
	}
	if p.twins, err = loadTwins(tx, workspace); err != nil {
		return p, err
	}
	return p, catalog.Runtimes.Each(tx, store.Query{}, func(r atelier.Runtime) error {
		p.runtimes = append(p.runtimes, r)
		return nil
	})
}

// loadPlanned reads what a deployment is made of, but for its endpoint.
func loadPlanned(tx store.Tx, workspace string, d atelier.Deployment) (one planned, err error) {
	one.Deployment = d
	if d.VersionID != "" {
		if one.version, err = catalog.Versions.Get(tx, workspace, d.VersionID); err != nil {
			return one, err
		}
	}
	if d.Trial != nil {
		v, err := catalog.Versions.Get(tx, workspace, d.Trial.VersionID)
		if err != nil {
			return one, err
		}
		one.trial = &v
	}
	if d.Staged == nil {
		return one, nil
	}
	v, err := catalog.Versions.Get(tx, workspace, d.Staged.VersionID)
	one.staged = &v
	return one, err
}

// put puts a deployment into the plan, in place of what it was.
func (p *plan) put(tx store.Tx, workspace string, d atelier.Deployment) error {
	one, err := loadPlanned(tx, workspace, d)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(p.deployments, func(was planned) bool { return was.ID == d.ID }); i >= 0 {
		one.endpoint = p.deployments[i].endpoint
		one.endpoint.Name = d.Endpoint
		p.deployments[i] = one
		return nil
	}
	one.endpoint.Name = d.Endpoint
	p.deployments = append(p.deployments, one)
	return nil
}

// wanted is what a device shall run and hold, and what of it it cannot.
type wanted struct {
	modules []atelier.Module
	trials  []atelier.TrialModule // each beside one of modules
	staged  []atelier.Module
	unmet   []catalog.Unmet
}

// resolve returns what device d shall run and hold, and what it cannot. held are the
// modules of its present state: a rollout that is under way keeps the variant and
// the runtime that it began with, since both are part of what was tried.
func (p *plan) resolve(d *atelier.Device, held []atelier.Module) (w wanted) {
	for i := range p.deployments {
		dep := &p.deployments[i]
		if !dep.Selector.Match(d) {
			continue
		}
		if active(&dep.Deployment) {
			if m, why := p.module(dep, d, held); why != nil {
				w.unmet = append(w.unmet, catalog.NewUnmet(dep.ID, dep.Name, catalog.Served, *why))
			} else {
				w.modules = append(w.modules, m)
				if c := dep.Collect; c != nil && c.Share > 0 && m.Collect == nil {
					w.unmet = append(w.unmet, catalog.NewUnmet(dep.ID, dep.Name, catalog.Collected, atelier.Because(atelier.ReasonUnsupportedFeature,
						fmt.Sprintf("Deployment %s collects data, and the agent on %s does not know how to; what it serves is not affected.", dep.Name, d.Name))))
				}
				if dep.trial != nil {
					p.addTrial(&w, dep, d, held)
				}
			}
		}
		if dep.staged != nil {
			if m, why := p.stage(dep.next(), d, held); why != nil {
				w.unmet = append(w.unmet, catalog.NewUnmet(dep.ID, dep.Name, catalog.Held, *why))
			} else {
				w.staged = append(w.staged, m)
			}
		}
	}
	return w
}

// addTrial adds what shall run beside the module of a deployment.
func (p *plan) addTrial(w *wanted, dep *planned, d *atelier.Device, held []atelier.Module) {
	if t, why := p.try(dep, d, held); why != nil {
		w.unmet = append(w.unmet, catalog.NewUnmet(dep.ID, dep.Name, catalog.Tried, *why))
	} else {
		w.trials = append(w.trials, t)
	}
}

// stage resolves what a device shall hold of a deployment.
func (p *plan) stage(dep *planned, d *atelier.Device, held []atelier.Module) (atelier.Module, *atelier.Why) {
	m, why := p.module(dep, d, held)
	if why == nil && !slices.Contains(d.Facts.Features, atelier.FeatureStage) {
		old := atelier.Because(atelier.ReasonUnsupportedFeature, fmt.Sprintf(
			"The agent on %s does not know how to prefetch; it fetches version %d of %s when the deployment is switched.", d.Name, dep.Version, dep.Model))
		return m, &old
	}
	return m, why
}

// module resolves one deployment for a device, or says why it cannot.
func (p *plan) module(dep *planned, d *atelier.Device, held []atelier.Module) (atelier.Module, *atelier.Why) {
	no := func(r atelier.Reason, format string, args ...any) (atelier.Module, *atelier.Why) {
		why := atelier.Because(r, fmt.Sprintf(format, args...))
		return atelier.Module{}, &why
	}
	if d.Facts.OS == "" {
		return no(atelier.ReasonNeverConnected, "Device %s has not said yet what it is; it is sent what it can run once it has connected.", d.Name)
	}
	if dep.Image != nil {
		return imageModule(dep, d)
	}
	target := cmpOr(dep.Target, d.Target, defaultTarget)
	if !slices.Contains(d.Facts.Targets, target) {
		m, why := no(atelier.ReasonUnsupportedFeature, "The agent on %s runs no modules on a target of kind %q; it knows %s.", d.Name, target, listed(d.Facts.Targets))
		*why = why.WithRemedy(fmt.Sprintf("Deploy to a kind that it knows, 'atelier deploy %s --name %s --target KIND', or choose other devices.", dep.Model, dep.Name))
		return m, why
	}
	m := atelier.Module{
		Deployment: dep.ID, Name: dep.Name, Rollout: dep.Rollout, Target: target, Package: dep.version.Digest,
		Model:    atelier.ModuleModel{Name: dep.Model, Version: dep.Version, Digest: dep.version.Digest},
		Limits:   dep.Limits,
		Serving:  dep.Serving,
		Endpoint: atelier.ModuleEndpoint{Name: dep.endpoint.Name, Keys: dep.endpoint.Keys},
	}
	if slices.Contains(d.Facts.Features, atelier.FeatureCollect) {
		m.Collect = dep.Collect
	}
	carries := slices.Contains(d.Facts.Features, atelier.FeatureMessages)
	if carries {
		m.Routes, m.Twin = dep.Routes, p.twins.of(dep.ID, d.ID)
	}
	if i := slices.IndexFunc(held, func(h atelier.Module) bool { return h.Rollout == dep.Rollout }); i >= 0 && fits(&held[i], d) {
		m.Model.Variant, m.Runtime = held[i].Model.Variant, held[i].Runtime
		return m, nil
	}
	variant, runtime, why := p.choose(&dep.version, d, dep.Serving.Providers)
	if why != nil {
		return m, why
	}
	proves := atelier.FeatureGolden
	if variant.Kind == atelier.VariantPython {
		proves = atelier.FeatureGoldenScripts
	}
	if variant.HasGolden() && !slices.Contains(d.Facts.Features, proves) {
		return no(atelier.ReasonUnsupportedFeature, "Version %d of %s has golden inputs, and the agent on %s does not know how to run them.", dep.Version, dep.Model, d.Name)
	}
	if !dep.Serving.IsZero() && !slices.Contains(d.Facts.Features, atelier.FeatureServing) {
		return no(atelier.ReasonUnsupportedFeature, "Deployment %s has settings for serving (%s), and the agent on %s does not know how to apply them.", dep.Name, dep.Serving, d.Name)
	}
	if !carries && (len(dep.Routes) > 0 || p.twins.of(dep.ID, d.ID) != nil) {
		return no(atelier.ReasonUnsupportedFeature, "Deployment %s has routes or a twin, and the agent on %s does not know how to carry messages.", dep.Name, d.Name)
	}
	if dep.Serving.Server != "" && !slices.Contains(d.Facts.Features, atelier.FeatureServer) {
		return no(atelier.ReasonUnsupportedFeature, "Deployment %s shares the model server %s with others, and the agent on %s does not know how to run several models in one.", dep.Name, dep.Serving.Server, d.Name)
	}
	// The signature is for those who call the model; the device reads its own
	// out of the model.
	variant.Signature = nil
	m.Model.Variant, m.Runtime = variant, runtime
	return m, nil
}

// fits reports whether a device can still run what it was sent.
func fits(m *atelier.Module, d *atelier.Device) bool {
	r := m.Model.Variant.Requires
	if len(r.Arch) > 0 && !slices.Contains(r.Arch, d.Facts.Arch) {
		return false
	}
	_, ok := supports(d, r.Runtime)
	return r.Runtime == "" || ok
}

// choose returns the first variant that the device can run, with the newest
// runtime for it that brings what the deployment prefers to run on, or why there is none.
func (p *plan) choose(v *atelier.Version, d *atelier.Device, providers string) (atelier.Variant, *atelier.ModuleRuntime, *atelier.Why) {
	platform := d.Facts.OS + "/" + d.Facts.Arch
	why := atelier.Because(atelier.ReasonVariantMissing, fmt.Sprintf("Version %d of %s has no variant for %s.", v.Number, v.Model, platform))
	for _, variant := range v.Variants {
		r := variant.Requires
		if len(r.Arch) > 0 && !slices.Contains(r.Arch, d.Facts.Arch) {
			continue
		}
		if (variant.Kind == atelier.VariantMLflow || variant.Kind == atelier.VariantPickle) && !slices.Contains(d.Facts.Features, atelier.FeaturePredictors) {
			why = atelier.Because(atelier.ReasonUnsupportedFeature, fmt.Sprintf("The agent on %s does not know how to run models of the kind %s.", d.Name, variant.Kind))
			continue
		}
		if variant.Kind == atelier.VariantPython && !slices.Contains(d.Facts.Features, atelier.FeaturePython) {
			why = atelier.Because(atelier.ReasonUnsupportedFeature, fmt.Sprintf("The agent on %s does not know how to run scoring scripts.", d.Name))
			continue
		}
		if e := variant.Environment; e != nil && d.Facts.Glibc != "" && newer(e.NeedsGlibc, d.Facts.Glibc) {
			why = atelier.Because(atelier.ReasonRuntimeMissing, fmt.Sprintf("Device %s has glibc %s, and version %d of environment %s needs %s.", d.Name, d.Facts.Glibc, e.Number, e.Name, e.NeedsGlibc)).
				WithRemedy("Build the environment with an atelier-builder on an older Debian, or update the device.")
			continue
		}
		if r.Runtime == "" {
			return variant, nil, nil
		}
		if reason, ok := supports(d, r.Runtime); !ok {
			why = atelier.Because(atelier.ReasonRuntimeMissing, fmt.Sprintf("Device %s cannot run %s: %s", d.Name, r.Runtime, reason)).
				WithRemedy("Install what is missing on the device and restart its agent ('atelier-agent check' says whether it is enough), or choose another device.")
			continue
		}
		if rt := p.runtime(r.Runtime, d, providers); rt != nil {
			return variant, &atelier.ModuleRuntime{Name: rt.Name, Version: rt.Version, Entry: rt.Entry, Files: rt.Files}, nil
		}
		why = atelier.Because(atelier.ReasonRuntimeMissing, fmt.Sprintf("No %s is registered in the hub for %s, which %s is; %s.", r.Runtime, platform, d.Name, p.platforms(r.Runtime))).
			WithRemedy(fmt.Sprintf("Register it: 'atelier runtime register %s VERSION FILE --os %s --arch %s'.", r.Runtime, d.Facts.OS, d.Facts.Arch))
	}
	return atelier.Variant{}, nil, &why
}

// supports reports whether the device says that it can run a runtime, and why not.
func supports(d *atelier.Device, runtime string) (why string, ok bool) {
	for _, s := range d.Facts.Runtimes {
		if s.Name == runtime {
			return s.Why, s.OK
		}
	}
	return "its agent does not say that it can.", false
}

// runtime returns the newest runtime with the name for the device's platform: of those that
// bring the provider that is preferred most, where any brings one of them.
func (p *plan) runtime(name string, d *atelier.Device, providers string) *atelier.Runtime {
	newest := func(has func(*atelier.Runtime) bool) (best *atelier.Runtime) {
		for i := range p.runtimes {
			r := &p.runtimes[i]
			if r.Name == name && r.OS == d.Facts.OS && r.Arch == d.Facts.Arch && has(r) && (best == nil || newer(r.Version, best.Version)) {
				best = r
			}
		}
		return best
	}
	for _, provider := range strings.Split(providers, ",") {
		if !slices.Contains(providersInFiles, provider) {
			break // every runtime may bring it
		}
		if r := newest(func(r *atelier.Runtime) bool { return brings(r, provider) }); r != nil {
			return r
		}
	}
	return newest(func(*atelier.Runtime) bool { return true })
}

// providersInFiles are execution providers that come in a file of their own.
var providersInFiles = []string{"cuda", "tensorrt", "openvino"}

// brings reports whether a runtime has the file of such a provider, by the name that ONNX
// Runtime loads it by.
func brings(r *atelier.Runtime, provider string) bool {
	return slices.ContainsFunc(r.Files, func(f atelier.File) bool {
		return strings.HasPrefix(path.Base(f.Path), "libonnxruntime_providers_"+provider+".")
	})
}

// platforms says what platforms a runtime is registered for.
func (p *plan) platforms(name string) string {
	var all []string
	for _, r := range p.runtimes {
		if platform := r.OS + "/" + r.Arch; r.Name == name && !slices.Contains(all, platform) {
			all = append(all, platform)
		}
	}
	if len(all) == 0 {
		return "there is none for any other platform"
	}
	slices.Sort(all)
	return "there is one for " + strings.Join(all, ", ")
}

// newer compares versions of runtimes, "1.20.1", number by number.
func newer(a, b string) bool {
	for a != "" || b != "" {
		var x, y string
		x, a, _ = strings.Cut(a, ".")
		y, b, _ = strings.Cut(b, ".")
		m, errX := strconv.Atoi(x)
		n, errY := strconv.Atoi(y)
		switch {
		case errX == nil && errY == nil && m != n:
			return m > n
		case (errX != nil || errY != nil) && x != y:
			return x > y
		}
	}
	return false
}

func cmpOr(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func listed(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}
