package fleet

import (
	"context"
	"slices"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// The two keys of an endpoint.
const (
	PrimaryKey   = "primary"
	SecondaryKey = "secondary"
)

// Keys are an endpoint's keys in clear.
type Keys struct {
	Primary   string `json:"primary"`
	Secondary string `json:"secondary"`
}

func newKeys() Keys { return Keys{newKey(), newKey()} }

func (k Keys) hashes() atelier.EndpointKeys {
	return atelier.EndpointKeys{Primary: hashKey(k.Primary), Secondary: hashKey(k.Secondary)}
}

func hashKey(key string) string { return atelier.DigestOf([]byte(key)).Hex() }

// Address is where one device answers an endpoint.
type Address struct {
	Device string              `json:"device"` // name
	URL    string              `json:"url"`
	State  atelier.ModuleState `json:"state"`
	// Version is the one that serves, and Trial tells of the one that runs beside it.
	Version int                 `json:"version,omitempty"`
	Trial   *atelier.SlotStatus `json:"trial,omitempty"`
}

// Endpoint is an endpoint with the addresses on which devices answer it.
type Endpoint struct {
	atelier.Endpoint
	// Model and Version are what the deployment wants to serve, Trial what beside it.
	Model     string         `json:"model,omitempty"`
	Version   int            `json:"version,omitempty"`
	Trial     *atelier.Trial `json:"trial,omitempty"`
	Addresses []Address      `json:"addresses"`
}

// Endpoint returns the endpoint that ref, a name or an id, names.
func (f *Fleet) Endpoint(ctx context.Context, workspace, ref string) (e Endpoint, err error) {
	err = f.store.View(ctx, func(tx store.Tx) error {
		found, err := catalog.Endpoints.Resolve(tx, workspace, "", ref)
		if err != nil {
			return err
		}
		e, err = withAddresses(tx, workspace, found, f.clock.Now())
		return err
	})
	return e, err
}

// Endpoints returns a page of the workspace's endpoints, those after the id.
func (f *Fleet) Endpoints(ctx context.Context, workspace, after string, limit int) (page []Endpoint, err error) {
	err = f.store.View(ctx, func(tx store.Tx) error {
		found, err := catalog.Endpoints.List(tx, store.Query{Workspace: workspace, After: after, Limit: limit})
		if err != nil {
			return err
		}
		page = make([]Endpoint, len(found))
		for i := range found {
			if page[i], err = withAddresses(tx, workspace, found[i], f.clock.Now()); err != nil {
				return err
			}
		}
		return nil
	})
	return page, err
}

// maxAddresses bounds the addresses that are told of one endpoint.
const maxAddresses = 1000

func withAddresses(tx store.Tx, workspace string, e atelier.Endpoint, now time.Time) (Endpoint, error) {
	out := Endpoint{Endpoint: e, Addresses: []Address{}}
	d, err := catalog.Deployments.Get(tx, workspace, e.Deployment)
	if err != nil {
		return out, err
	}
	out.Model, out.Version, out.Trial = d.Model, d.Version, d.Trial
	statuses, _, err := statusesIn(tx, workspace, d, "", maxAddresses, now)
	for _, s := range statuses {
		if s.Address != "" {
			out.Addresses = append(out.Addresses, Address{Device: s.DeviceName, URL: s.Address, State: s.State(), Version: s.Version, Trial: s.Trial})
		}
	}
	return out, err
}

// Keys returns the keys of an endpoint.
func (f *Fleet) Keys(ctx context.Context, workspace, ref string) (k Keys, err error) {
	err = f.store.View(ctx, func(tx store.Tx) error {
		e, err := catalog.Endpoints.Resolve(tx, workspace, "", ref)
		if err != nil {
			return err
		}
		k, err = f.keysOf(tx, workspace, e.ID)
		return err
	})
	return k, err
}

// RotateKey replaces the primary or the secondary key of an endpoint. The other
// one goes on working, so that callers can change over.
func (f *Fleet) RotateKey(ctx context.Context, workspace, ref, which string) (k Keys, err error) {
	if !slices.Contains([]string{PrimaryKey, SecondaryKey}, which) {
		return k, atelier.Errorf(atelier.Invalid, "there is no key %.80q, only %s and %s", which, PrimaryKey, SecondaryKey)
	}
	fresh := newKey()
	err = f.store.Update(ctx, access.By(ctx), func(tx store.Tx) error {
		e, err := catalog.Endpoints.Resolve(tx, workspace, "", ref)
		if err != nil {
			return err
		}
		if k, err = f.keysOf(tx, workspace, e.ID); err != nil {
			return err
		}
		if which == PrimaryKey {
			k.Primary = fresh
		} else {
			k.Secondary = fresh
		}
		e.Keys = k.hashes()
		if err := f.storeKeys(tx, workspace, e.ID, k); err != nil {
			return err
		}
		_, err = catalog.Endpoints.Update(tx, workspace, e)
		return err
	})
	return k, err
}

// secretOf names an endpoint's key in the workspace's vault.
func secretOf(endpoint, which string) string { return "endpoint/" + endpoint + "/" + which }

func (f *Fleet) storeKeys(tx store.Tx, workspace, endpoint string, k Keys) error {
	if err := f.vault.Put(tx, workspace, secretOf(endpoint, PrimaryKey), []byte(k.Primary)); err != nil {
		return err
	}
	return f.vault.Put(tx, workspace, secretOf(endpoint, SecondaryKey), []byte(k.Secondary))
}

func (f *Fleet) keysOf(tx store.Tx, workspace, endpoint string) (k Keys, err error) {
	primary, err := f.vault.Get(tx, workspace, secretOf(endpoint, PrimaryKey))
	if err != nil {
		return k, err
	}
	secondary, err := f.vault.Get(tx, workspace, secretOf(endpoint, SecondaryKey))
	return Keys{string(primary), string(secondary)}, err
}

func (f *Fleet) dropKeys(tx store.Tx, workspace, endpoint string) error {
	for _, which := range []string{PrimaryKey, SecondaryKey} {
		if err := f.vault.Delete(tx, workspace, secretOf(endpoint, which)); err != nil && !isNotFound(err) {
			return err
		}
	}
	return nil
}
