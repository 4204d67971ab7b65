package fleet

import (
	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// checkServer checks that a change of old to d gives no model server and no endpoint the
// same name: both are the first segment of paths on a device.
func checkServer(tx store.Tx, workspace string, old, d *atelier.Deployment) error {
	if s := d.Serving.Server; s != "" && s != old.Serving.Server || s != "" && s == d.Endpoint {
		_, err := catalog.Endpoints.Find(tx, workspace, "", s)
		if err == nil || s == d.Endpoint {
			return atelier.Errorf(atelier.Conflict, "the model server %q has the name of an endpoint, and both are reached by their names", s).
				WithField("serving.server").WithRemedy("Give the server another name with --server.")
		}
		if !isNotFound(err) {
			return err
		}
	}
	if d.Endpoint == old.Endpoint {
		return nil
	}
	return catalog.Deployments.Each(tx, store.Query{Workspace: workspace}, func(other atelier.Deployment) error {
		if other.Serving.Server != d.Endpoint {
			return nil
		}
		return atelier.Errorf(atelier.Conflict, "the endpoint %q has the name of the model server of deployment %s, and both are reached by their names", d.Endpoint, other.Name).
			WithField("endpoint").WithRemedy("Give the endpoint another name with --endpoint.")
	})
}
