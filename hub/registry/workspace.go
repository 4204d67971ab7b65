package registry

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// WorkspaceChange says what to change of a workspace; nil leaves a field as it is.
type WorkspaceChange struct {
	Name        *string
	Description *string
	Tags        *map[string]string
	Transfer    *atelier.TransferChange
	// Registry says who keeps the workspace's images: "builtin" for the hub, or the
	// address of the user's own container registry.
	Registry *string
}

// CreateWorkspace adds a workspace with the name, description and tags of w. Its
// associated resources are recorded with it: blob storage, insights and vault are
// there at once, the container registry comes with the first image, unless
// containers is the address of one that the user brings. Exists where the name is
// taken.
func (r *Registry) CreateWorkspace(ctx context.Context, w atelier.Workspace, containers string) (atelier.Workspace, error) {
	if err := checkWorkspace(&w); err != nil {
		return w, err
	}
	w.Meta = atelier.Meta{ID: atelier.NewID(), Name: w.Name}
	w.Resources = []atelier.AssociatedResource{
		{Kind: atelier.ResourceBlobStorage, Provider: "builtin", Address: "/v1/workspaces/" + w.ID + "/blobs", Made: true},
		{Kind: atelier.ResourceInsights, Provider: "builtin", Address: "/w/" + w.ID + "/prometheus", Made: true},
		{Kind: atelier.ResourceVault, Provider: "builtin", Made: true},
		{Kind: atelier.ResourceRegistry, Provider: "builtin", Made: false},
	}
	made := w
	err := r.update(ctx, func(tx store.Tx) (err error) {
		if containers != "" {
			if err := chooseRegistry(tx, &w, containers); err != nil {
				return err
			}
		}
		made, err = catalog.Workspaces.Insert(tx, "", "", w)
		return err
	})
	return made, err
}

// Workspace returns the workspace that ref, a name or an id, names.
func (r *Registry) Workspace(ctx context.Context, ref string) (w atelier.Workspace, err error) {
	err = r.store.View(ctx, func(tx store.Tx) error {
		w, err = catalog.Workspaces.Resolve(tx, "", "", ref)
		if atelier.CodeOf(err) == atelier.NotFound {
			return ErrNoWorkspace(ref)
		}
		return err
	})
	return w, err
}

// ErrNoWorkspace is the NotFound error for a workspace that is not there, or not
// there for the caller: the two must not be told apart.
func ErrNoWorkspace(ref string) error {
	return atelier.Errorf(atelier.NotFound, "there is no workspace %.80q", ref).
		WithRemedy("See 'atelier workspace list' for those that you may use.")
}

// UpdateWorkspace changes a workspace whose revision is the given one, 0 for any.
func (r *Registry) UpdateWorkspace(ctx context.Context, id string, revision int64, c WorkspaceChange) (atelier.Workspace, error) {
	return change(ctx, r, catalog.Workspaces, "", revision,
		func(tx store.Tx) (atelier.Workspace, error) { return catalog.Workspaces.Get(tx, "", id) },
		func(tx store.Tx, w *atelier.Workspace) error {
			set(&w.Name, c.Name)
			set(&w.Description, c.Description)
			set(&w.Tags, c.Tags)
			if c.Registry != nil {
				if err := chooseRegistry(tx, w, *c.Registry); err != nil {
					return err
				}
			}
			if c.Transfer != nil {
				var err error
				if w.Transfer, err = c.Transfer.Apply(w.Transfer); err != nil {
					return err
				}
			}
			return checkWorkspace(w)
		})
}

// chooseRegistry changes who keeps a workspace's images. InUse where the hub keeps some.
func chooseRegistry(tx store.Tx, w *atelier.Workspace, choice string) error {
	chosen := atelier.AssociatedResource{Kind: atelier.ResourceRegistry, Provider: atelier.ProviderBuiltin}
	if choice != atelier.ProviderBuiltin {
		if err := checkRegistry(choice); err != nil {
			return err
		}
		chosen = atelier.AssociatedResource{Kind: atelier.ResourceRegistry, Provider: atelier.ProviderUser, Address: choice, Made: true}
	}
	i := slices.IndexFunc(w.Resources, func(r atelier.AssociatedResource) bool { return r.Kind == atelier.ResourceRegistry })
	if i < 0 {
		w.Resources = append(w.Resources, chosen)
		return nil
	}
	if chosen.Provider == atelier.ProviderBuiltin && w.Resources[i].Provider == atelier.ProviderBuiltin {
		return nil
	}
	if w.ID != "" {
		images, err := catalog.Images.List(tx, store.Query{Workspace: w.ID, Limit: 1})
		if err != nil {
			return err
		}
		if len(images) > 0 {
			return atelier.Errorf(atelier.InUse, "the hub keeps images of workspace %s, such as %s", w.Name, images[0].Repository).
				WithField("registry").WithRemedy("Copy them to the other registry and delete them here first: 'atelier image delete %s'.", images[0].Repository)
		}
	}
	w.Resources[i] = chosen
	return nil
}

// checkRegistry checks the address of a container registry of the user's own.
func checkRegistry(address string) error {
	u, err := url.Parse(address)
	if err != nil || len(address) > 512 || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return atelier.Errorf(atelier.Invalid, "%.120q is no address of a container registry", address).WithField("registry").
			WithRemedy("Write it as https://HOST[:PORT][/PATH], without a user, or as 'builtin' for the hub's own.")
	}
	return nil
}

// DeleteWorkspace removes a workspace that holds no models, devices or images, and
// with it what is left in it: claims on uploaded content, and join tokens.
// InUse tells what it still holds.
func (r *Registry) DeleteWorkspace(ctx context.Context, id string, revision int64) error {
	return r.update(ctx, func(tx store.Tx) error {
		w, err := catalog.Workspaces.Get(tx, "", id)
		if err != nil {
			return err
		}
		if err := checkRevision(catalog.Workspaces, &w, revision); err != nil {
			return err
		}
		if err := checkEmpty(tx, w); err != nil {
			return err
		}
		if err := deleteAll(tx, catalog.Blobs, id); err != nil {
			return err
		}
		if err := errors.Join(deleteAll(tx, catalog.Packages, id), deleteAll(tx, catalog.Bases, id)); err != nil {
			return err
		}
		if err := deleteAll(tx, catalog.DataFiles, id); err != nil {
			return err
		}
		if err := deleteAll(tx, catalog.DataStreams, id); err != nil {
			return err
		}
		if err := deleteAll(tx, catalog.JoinTokens, id); err != nil {
			return err
		}
		if err := errors.Join(deleteAll(tx, catalog.Layers, id), deleteAll(tx, catalog.Repositories, id)); err != nil {
			return err
		}
		return catalog.Workspaces.Delete(tx, "", id, revision)
	})
}

func checkEmpty(tx store.Tx, w atelier.Workspace) error {
	one := store.Query{Workspace: w.ID, Limit: 1}
	models, err := catalog.Models.List(tx, one)
	if err != nil {
		return err
	}
	devices, err := catalog.Devices.List(tx, one)
	if err != nil {
		return err
	}
	images, err := catalog.Images.List(tx, one)
	if err != nil {
		return err
	}
	var held []string
	if len(images) > 0 {
		held = append(held, fmt.Sprintf("images (such as %q)", images[0].Repository))
	}
	if len(models) > 0 {
		held = append(held, fmt.Sprintf("models (such as %q)", models[0].Name))
	}
	if len(devices) > 0 {
		held = append(held, fmt.Sprintf("devices (such as %q)", devices[0].Name))
	}
	if len(held) == 0 {
		return nil
	}
	return atelier.Errorf(atelier.InUse, "workspace %q still holds %s", w.Name, strings.Join(held, " and ")).
		WithRemedy("Delete them first: 'atelier model delete', 'atelier device delete', 'atelier image delete'.")
}

// deleteAll removes every resource of a kind from a workspace.
func deleteAll[T any](tx store.Tx, c store.Collection[T], workspace string) error {
	return c.Each(tx, store.Query{Workspace: workspace}, func(v T) error {
		return c.Delete(tx, workspace, c.Meta(&v).ID, 0)
	})
}

func checkWorkspace(w *atelier.Workspace) error {
	if err := atelier.CheckName("workspace", w.Name); err != nil {
		return err
	}
	return checkTexts(w.Description, w.Tags)
}
