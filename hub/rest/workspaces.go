package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/registry"
	"github.com/atelier-edge/atelier/hub/store"
)

type newWorkspace struct {
	Name        string            `json:"name" doc:"1 to 63 characters of a-z, 0-9, '-', '_' and '.'"`
	Description string            `json:"description,omitempty" maxLength:"4096"`
	Tags        map[string]string `json:"tags,omitempty"`
	Registry    string            `json:"registry,omitempty" maxLength:"512" doc:"Address of the user's own container registry, https://…, in place of the hub's"`
}

type workspaceChange struct {
	Name        *string            `json:"name,omitempty"`
	Description *string            `json:"description,omitempty" maxLength:"4096"`
	Tags        *map[string]string `json:"tags,omitempty" doc:"Replaces all tags"`

	Transfer *atelier.TransferChange `json:"transfer,omitempty" doc:"How fast, and when, content may be transferred to all of its devices together"`
	Registry *string                 `json:"registry,omitempty" maxLength:"512" doc:"Who keeps its images: builtin for the hub, or the address of the user's own container registry"`
}

func (s *server) registerWorkspaces(api huma.API) {
	const tag = "Workspaces"
	meta := catalog.Workspaces.Meta
	register(s, api, operation{
		ID: "list-workspaces", Method: http.MethodGet, Path: "/v1/workspaces", Tag: tag,
		Summary: "List workspaces", Description: "A caller that is bound to one workspace sees that one.",
		Verb: access.WorkspaceList, Kind: "workspace", Watch: true,
	}, func(ctx context.Context, in *struct{ Paging }) (*list[atelier.Workspace], error) {
		if own := access.PrincipalFrom(ctx).Workspace; own != "" {
			w, err := s.registry.Workspace(ctx, own)
			return &list[atelier.Workspace]{Body: listBody[atelier.Workspace]{Items: []atelier.Workspace{w}}}, err
		}
		return listOf(ctx, s, catalog.Workspaces, store.Query{}, in.Paging)
	})
	register(s, api, operation{
		ID: "create-workspace", Method: http.MethodPost, Path: "/v1/workspaces", Tag: tag, Status: http.StatusCreated,
		Summary:     "Create a workspace",
		Description: "Its blob storage, insights and vault are made with it; its container registry comes with the first image.",
		Verb:        access.WorkspaceCreate, Kind: "workspace", Errors: []atelier.Code{atelier.Exists},
	}, func(ctx context.Context, in *struct{ Body newWorkspace }) (*resource[atelier.Workspace], error) {
		w, err := s.registry.CreateWorkspace(ctx, atelier.Workspace{
			Meta: atelier.Meta{Name: in.Body.Name}, Description: in.Body.Description, Tags: in.Body.Tags,
		}, in.Body.Registry)
		return resourceOf(w, err, meta)
	})
	register(s, api, operation{
		ID: "get-workspace", Method: http.MethodGet, Path: inWorkspace, Tag: tag,
		Summary: "Show a workspace", Verb: access.WorkspaceShow, Kind: "workspace",
	}, func(ctx context.Context, in *struct{ WorkspaceParam }) (*resource[atelier.Workspace], error) {
		w, err := s.registry.Workspace(ctx, workspaceOf(ctx))
		return resourceOf(w, err, meta)
	})
	register(s, api, operation{
		ID: "update-workspace", Method: http.MethodPatch, Path: inWorkspace, Tag: tag,
		Summary: "Change a workspace", Verb: access.WorkspaceUpdate, Kind: "workspace", Errors: []atelier.Code{atelier.Stale, atelier.Exists, atelier.InUse},
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		IfMatch
		Body workspaceChange
	}) (*resource[atelier.Workspace], error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		w, err := s.registry.UpdateWorkspace(ctx, workspaceOf(ctx), revision, registry.WorkspaceChange(in.Body))
		return resourceOf(w, err, meta)
	})
	register(s, api, operation{
		ID: "delete-workspace", Method: http.MethodDelete, Path: inWorkspace, Tag: tag,
		Summary: "Delete a workspace", Description: "Refused while it holds models, devices or images.",
		Verb: access.WorkspaceDelete, Kind: "workspace", Errors: []atelier.Code{atelier.Stale, atelier.InUse},
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		IfMatchOptional
	}) (*empty, error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		if err := s.registry.DeleteWorkspace(ctx, workspaceOf(ctx), revision); err != nil || s.signing == nil {
			return nil, err
		}
		return nil, s.signing.Forget(ctx, workspaceOf(ctx))
	})
}
