package fleet

import (
	"context"
	"slices"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// PlanDeployment tells what a deploy of spec would bring to each device that it
// selects, how, and whether that fits. The deployment of spec's name would be changed,
// or made where there is none. It is resolved as a deploy is, and ways are chosen as
// they are when content is sent; the errors are those of the deploy.
//
// Nothing is changed. Differences are made that the deploy would use; PlanDeployment
// waits for them for at most wait, and counts those that are not ready in Pending.
func (f *Fleet) PlanDeployment(ctx context.Context, workspace string, spec DeploymentSpec, wait time.Duration) (atelier.DeploymentPlan, error) {
	given := map[made]bool{} // differences that were waited for: what is not there then does not come
	over := f.clock.After(wait)
	for {
		result, pending, err := f.planOnce(ctx, workspace, spec, given)
		if err != nil || len(pending) == 0 || wait <= 0 {
			return result, err
		}
		for pair, ready := range pending {
			select {
			case <-ready:
				given[pair] = true
			case <-over:
				result, _, err = f.planOnce(ctx, workspace, spec, given)
				return result, err
			case <-ctx.Done():
				return result, ctx.Err()
			}
		}
	}
}

// made names a difference.
type made struct{ target, base atelier.Digest }

// planOnce makes a plan of what is there, and returns what it would pay to wait for,
// beside those that were given up.
func (f *Fleet) planOnce(ctx context.Context, workspace string, spec DeploymentSpec, given map[made]bool) (atelier.DeploymentPlan, map[made]<-chan struct{}, error) {
	pending := map[made]<-chan struct{}{}
	result := atelier.DeploymentPlan{Devices: []atelier.DevicePlan{}}
	d := draft{f: f, workspace: workspace, now: f.clock.Now()}
	err := f.store.View(ctx, func(tx store.Tx) (err error) {
		result.New, err = d.load(tx, spec)
		return err
	})
	if err != nil {
		return result, nil, err
	}
	result.Deployment, result.Model, result.Version = d.Name, d.Model, d.Version
	if spec.Prefetch {
		result.Model, result.Version = d.Staged.Model, d.Staged.Version
	}
	if spec.Trial != nil {
		result.Version = d.Trial.Version
	}
	for after, first := "", true; first || after != ""; first = false {
		var page []outlook
		if page, after, err = d.page(ctx, after); err != nil {
			return result, nil, err
		}
		for i := range page {
			device, waits := f.forecast(&page[i], given)
			result.Devices = append(result.Devices, device)
			for pair, ready := range waits {
				pending[pair] = ready
			}
		}
	}
	result.Pending = len(pending)
	d.total(&result)
	return result, pending, nil
}

// draft is a deployment as a deploy would make it, among the others of its workspace.
type draft struct {
	f         *Fleet
	workspace string
	now       time.Time
	policy    *atelier.TransferPolicy // the workspace's
	plan      plan
	atelier.Deployment
	part catalog.Part // that the plan is about
}

// load makes the draft, and reports whether the deployment is new.
func (d *draft) load(tx store.Tx, spec DeploymentSpec) (fresh bool, err error) {
	if spec.Name == nil {
		return false, atelier.Errorf(atelier.Invalid, "nothing says which deployment is meant").WithField("name").
			WithRemedy("Give the name of the one to change, or to make.")
	}
	switch {
	case spec.Prefetch:
		d.part = catalog.Held
	case spec.Trial != nil:
		d.part = catalog.Tried
	}
	old, err := catalog.Deployments.Resolve(tx, d.workspace, "", *spec.Name)
	switch {
	case isNotFound(err):
		fresh = true
		if spec, err = complete(spec); err == nil {
			d.Deployment, err = d.f.apply(tx, d.workspace, atelier.Deployment{Meta: atelier.Meta{ID: atelier.NewID()}}, spec)
		}
		if active(&d.Deployment) {
			d.Rollout = atelier.NewID()
		}
	case err == nil:
		spec.Name = nil
		d.Deployment, err = d.f.revise(tx, d.workspace, old, spec, atelier.NewID())
	}
	if err != nil {
		return fresh, err
	}
	w, err := catalog.Workspaces.Get(tx, "", d.workspace)
	if err != nil {
		return fresh, err
	}
	d.policy = w.Transfer
	if err := d.free(tx); err != nil {
		return fresh, err
	}
	if d.plan, err = loadPlan(tx, d.workspace); err != nil {
		return fresh, err
	}
	return fresh, d.plan.put(tx, d.workspace, d.Deployment)
}

// free checks that no other deployment has the endpoint.
func (d *draft) free(tx store.Tx) error {
	e, err := catalog.Endpoints.Find(tx, d.workspace, "", d.Endpoint)
	if isNotFound(err) || err == nil && e.Deployment == d.ID {
		return nil
	}
	if err != nil {
		return err
	}
	return taken(atelier.Errorf(atelier.Exists, "it is there"), "endpoint", d.Endpoint, "endpoint")
}

// outlook is what a deploy would make of a device.
type outlook struct {
	*draft
	device   atelier.Device
	old      catalog.DesiredState
	next     catalog.DesiredState // as the deploy would make it
	reported catalog.ReportedState
}

// page returns the outlooks on the devices after one, and the id of the last.
func (d *draft) page(ctx context.Context, after string) (page []outlook, next string, err error) {
	var devices []atelier.Device
	err = d.f.store.View(ctx, func(tx store.Tx) (err error) {
		devices, next, err = devicesWhere(tx, d.workspace, after, resolvePage, func(device *atelier.Device) bool {
			return device.Revoked == nil && d.Selector.Match(device)
		})
		return err
	})
	if err != nil || len(devices) == 0 {
		return nil, "", err
	}
	// Not within a transaction. It writes nothing: a workspace with devices has its key.
	signer, err := d.f.authority.StateSigner(d.workspace)
	if err != nil {
		return nil, "", err
	}
	err = d.f.store.View(ctx, func(tx store.Tx) error {
		page = nil
		for _, device := range devices {
			p, err := pictureOf(tx, d.workspace, device, d.now)
			if err != nil {
				return err
			}
			o := outlook{draft: d, device: device, old: p.desired, next: p.desired, reported: p.reported}
			// The epoch matters for the position only, which is nobody's here.
			changed, err := d.f.next(&d.plan, &device, d.workspace, p.desired, p.desired.Position.Epoch, signer)
			if err != nil {
				return err
			}
			if changed != nil {
				o.next = *changed
			}
			page = append(page, o)
		}
		return nil
	})
	return page, next, err
}

// total sums up a plan's devices, which share the budget of their workspace.
func (d *draft) total(p *atelier.DeploymentPlan) {
	receiving := int64(0)
	for i := range p.Devices {
		if p.Devices[i].Wire > 0 && p.Devices[i].Refusal == nil {
			receiving++
		}
	}
	for i := range p.Devices {
		one := &p.Devices[i]
		p.Estimate = p.Estimate || one.Estimate
		if one.Refusal != nil {
			p.Refused++
			continue
		}
		if limit := d.policy.Limit(); limit > 0 && one.Wire > 0 {
			if share := max(1, limit/receiving); share < one.Rate {
				one.Seconds += float64(one.Wire)/float64(share) - float64(one.Wire)/float64(one.Rate)
				one.Rate, one.RateFrom = share, atelier.RateBudget
			}
		}
		p.Wire += one.Wire
		p.Disk += one.Disk
		p.Seconds = max(p.Seconds, one.Seconds)
	}
}

// wanted returns the modules of the deployment that the device shall run and hold, and
// why there is none of those that the plan is about.
func (o *outlook) wanted() (run, hold []*atelier.Module, why *atelier.Why) {
	for i := range o.next.Unmet {
		if u := &o.next.Unmet[i]; u.Deployment == o.ID && (u.Part() == o.part || o.part == catalog.Tried && u.Part() == catalog.Served) {
			why = &u.Why
		}
	}
	of := func(list []atelier.Module) (modules []*atelier.Module) {
		for i := range list {
			if list[i].Deployment == o.ID {
				modules = append(modules, &list[i])
			}
		}
		return modules
	}
	return of(o.next.Running()), of(o.next.Staged), why
}

// settled reports whether the device says that it runs and holds these.
func (o *outlook) settled(run, hold []*atelier.Module) bool {
	if o.reported.State == nil {
		return false
	}
	all := func(modules []*atelier.Module, state atelier.ModuleState, slots func(*atelier.ModuleStatus) []*atelier.SlotStatus) bool {
		for _, m := range modules {
			if !slices.ContainsFunc(o.reported.State.Modules, func(s atelier.ModuleStatus) bool {
				return slices.ContainsFunc(slots(&s), func(is *atelier.SlotStatus) bool {
					return is != nil && is.Rollout == m.Rollout && is.State() == state
				})
			}) {
				return false
			}
		}
		return true
	}
	return all(run, atelier.Serving, func(s *atelier.ModuleStatus) []*atelier.SlotStatus { return []*atelier.SlotStatus{s.Current, s.Trial} }) &&
		all(hold, atelier.StagedState, func(s *atelier.ModuleStatus) []*atelier.SlotStatus { return []*atelier.SlotStatus{s.Staged} })
}
