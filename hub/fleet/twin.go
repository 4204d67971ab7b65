package fleet

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// twinOfAll is the name of a deployment's own desired properties among those of devices.
const twinOfAll = "all"

// Twin returns the twin of a deployment's modules, or of the one on a device where device,
// a name or an id, is not "". Its revision is what UpdateTwin asks for.
func (f *Fleet) Twin(ctx context.Context, workspace, deployment, device string) (t atelier.Twin, revision int64, err error) {
	err = f.store.View(ctx, func(tx store.Tx) error {
		dep, dev, err := twinOf(tx, workspace, deployment, device)
		if err != nil {
			return err
		}
		t, revision, err = readTwin(tx, workspace, &dep, dev)
		return err
	})
	return t, revision, err
}

// UpdateTwin merges a patch into the desired properties of a deployment's modules, or of
// the one on a device; a revision below 0 whatever is there, 0 where nothing is there, and Stale where another is there.
func (f *Fleet) UpdateTwin(ctx context.Context, workspace, deployment, device string, revision int64, patch json.RawMessage) (t atelier.Twin, now int64, err error) {
	err = f.store.Update(ctx, access.By(ctx), func(tx store.Tx) error {
		dep, dev, err := twinOf(tx, workspace, deployment, device)
		if err != nil {
			return err
		}
		name := twinOfAll
		if dev != nil {
			name = dev.ID
		}
		stored, err := catalog.Twins.Find(tx, workspace, dep.ID, name)
		fresh := isNotFound(err)
		if err != nil && !fresh {
			return err
		}
		if revision >= 0 && stored.Revision != revision {
			return atelier.Errorf(atelier.Stale, "the twin has changed: it is at revision %d, not %d", stored.Revision, revision).
				WithRemedy("Read it again, and repeat the change on what it is now.")
		}
		merged, err := atelier.MergePatch(stored.Properties, patch)
		if err != nil {
			return err
		}
		if err := checkTwin(merged); err != nil {
			return err
		}
		stored.Properties = merged
		if fresh {
			stored.Name, stored.Deployment = name, dep.ID
			_, err = catalog.Twins.Insert(tx, workspace, dep.ID, stored)
		} else {
			_, err = catalog.Twins.Update(tx, workspace, stored)
		}
		if err != nil {
			return err
		}
		t, now, err = readTwin(tx, workspace, &dep, dev)
		return err
	})
	return t, now, err
}

// checkTwin checks that a twin has no property whose name is taken.
func checkTwin(properties json.RawMessage) error {
	var names map[string]json.RawMessage
	if err := json.Unmarshal(properties, &names); err != nil {
		return atelier.Errorf(atelier.Invalid, "the properties are no JSON object: %w", err)
	}
	for name := range names {
		if strings.HasPrefix(name, "$") {
			return atelier.Errorf(atelier.Invalid, "the property %.80q begins with $, which is for names like $version", name)
		}
	}
	return nil
}

// twinOf returns the deployment, and the device where one is named, which must be selected.
func twinOf(tx store.Tx, workspace, deployment, device string) (dep atelier.Deployment, dev *atelier.Device, err error) {
	if dep, err = catalog.Deployments.Resolve(tx, workspace, "", deployment); err != nil || device == "" {
		return dep, nil, err
	}
	d, err := catalog.Devices.Resolve(tx, workspace, "", device)
	if err != nil {
		return dep, nil, err
	}
	if !dep.Selector.Match(&d) {
		return dep, nil, atelier.Errorf(atelier.NotFound, "deployment %q does not select device %q: there is no module of that name on it", dep.Name, d.Name).
			WithRemedy("'atelier deployment show %s' lists the devices.", dep.Name)
	}
	return dep, &d, nil
}

func readTwin(tx store.Tx, workspace string, dep *atelier.Deployment, dev *atelier.Device) (t atelier.Twin, revision int64, err error) {
	t.Deployment = dep.Name
	all, err := catalog.Twins.Find(tx, workspace, dep.ID, twinOfAll)
	if err != nil && !isNotFound(err) {
		return t, 0, err
	}
	if dev == nil {
		t.Version, t.Desired, t.Updated = all.Revision, orEmpty(all.Properties), all.Updated
		return t, all.Revision, nil
	}
	t.Device = dev.Name
	own, err := catalog.Twins.Find(tx, workspace, dep.ID, dev.ID)
	if err != nil && !isNotFound(err) {
		return t, 0, err
	}
	both, err := mergeTwins(&all, &own)
	if err != nil {
		return t, 0, err
	}
	t.Version, t.Desired, t.Updated = both.Version, both.Properties, later(all.Updated, own.Updated)
	reported, err := catalog.ReportedTwins.Find(tx, workspace, dep.ID, dev.ID)
	if err == nil {
		t.Reported = &reported.Reported
	}
	if isNotFound(err) {
		err = nil
	}
	return t, own.Revision, err
}

func orEmpty(properties json.RawMessage) json.RawMessage {
	if len(properties) == 0 {
		return json.RawMessage("{}")
	}
	return properties
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// mergeTwins returns what a device gets: the deployment's properties with its own merged
// in. Both revisions only grow, and so does their sum.
func mergeTwins(all, own *catalog.Twin) (*atelier.DesiredTwin, error) {
	properties, err := atelier.MergePatch(all.Properties, orEmpty(own.Properties))
	if err != nil {
		return nil, err
	}
	return &atelier.DesiredTwin{Version: all.Revision + own.Revision, Properties: properties}, nil
}

// twins are the desired properties of a workspace's modules, by deployment and name.
type twins map[string]map[string]catalog.Twin

func loadTwins(tx store.Tx, workspace string) (twins, error) {
	all := twins{}
	return all, catalog.Twins.Each(tx, store.Query{Workspace: workspace}, func(t catalog.Twin) error {
		if all[t.Deployment] == nil {
			all[t.Deployment] = map[string]catalog.Twin{}
		}
		all[t.Deployment][t.Name] = t
		return nil
	})
}

// of returns the desired properties of a deployment's module on a device, nil where there
// are none. Properties that grew too large together stay those of the deployment.
func (ts twins) of(deployment, device string) *atelier.DesiredTwin {
	all, some := ts[deployment][twinOfAll]
	own, any := ts[deployment][device]
	if !some && !any {
		return nil
	}
	both, err := mergeTwins(&all, &own)
	if err != nil {
		return &atelier.DesiredTwin{Version: all.Revision + own.Revision, Properties: orEmpty(all.Properties)}
	}
	return both
}

// dropTwins removes the twins of a deployment, or those of one device.
func dropTwins(tx store.Tx, workspace, deployment, device string) error {
	var ids, reported []string
	err := catalog.Twins.Each(tx, store.Query{Workspace: workspace, Parent: deployment}, func(t catalog.Twin) error {
		if device == "" || t.Name == device {
			ids = append(ids, t.ID)
		}
		return nil
	})
	if err == nil {
		err = catalog.ReportedTwins.Each(tx, store.Query{Workspace: workspace, Parent: deployment}, func(t catalog.ReportedTwin) error {
			if device == "" || t.Name == device {
				reported = append(reported, t.ID)
			}
			return nil
		})
	}
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := catalog.Twins.Delete(tx, workspace, id, 0); err != nil {
			return err
		}
	}
	for _, id := range reported {
		if err := catalog.ReportedTwins.Delete(tx, workspace, id, 0); err != nil {
			return err
		}
	}
	return nil
}
