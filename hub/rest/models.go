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

type newModel struct {
	Name        string            `json:"name" doc:"1 to 63 characters of a-z, 0-9, '-', '_' and '.'"`
	Description string            `json:"description,omitempty" maxLength:"4096"`
	Framework   string            `json:"framework,omitempty" maxLength:"256" doc:"What it was made with, such as onnx"`
	Tags        map[string]string `json:"tags,omitempty"`
}

type modelChange struct {
	Description *string            `json:"description,omitempty" maxLength:"4096"`
	Framework   *string            `json:"framework,omitempty" maxLength:"256"`
	Tags        *map[string]string `json:"tags,omitempty" doc:"Replaces all tags"`
}

// ModelParam is the part of an input that names a model.
type ModelParam struct {
	WorkspaceParam
	Model string `path:"model" maxLength:"63" doc:"Name or id of the model"`
}

func (s *server) registerModels(api huma.API) {
	const (
		tag    = "Models"
		models = inWorkspace + "/models"
	)
	kind, meta := catalog.Models.Kind, catalog.Models.Meta
	register(s, api, operation{
		ID: "list-models", Method: http.MethodGet, Path: models, Tag: tag, Summary: "List models",
		Verb: access.ModelList, Kind: kind, Watch: true,
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Paging
	}) (*list[atelier.Model], error) {
		return listOf(ctx, s, catalog.Models, store.Query{Workspace: workspaceOf(ctx)}, in.Paging)
	})
	register(s, api, operation{
		ID: "create-model", Method: http.MethodPost, Path: models, Tag: tag, Status: http.StatusCreated,
		Summary: "Create a model without versions", Description: "Registering a version makes its model by itself; this is for those who want to describe it first.",
		Verb: access.ModelRegister, Kind: kind, Errors: []atelier.Code{atelier.Exists},
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Body newModel
	}) (*resource[atelier.Model], error) {
		m, err := s.registry.CreateModel(ctx, workspaceOf(ctx), atelier.Model{
			Meta: atelier.Meta{Name: in.Body.Name}, Description: in.Body.Description, Framework: in.Body.Framework, Tags: in.Body.Tags,
		})
		return resourceOf(m, err, meta)
	})
	register(s, api, operation{
		ID: "get-model", Method: http.MethodGet, Path: models + "/{model}", Tag: tag, Summary: "Show a model",
		Verb: access.ModelShow, Kind: kind, Object: "model", Watch: true,
	}, func(ctx context.Context, in *struct {
		ModelParam
		WatchParams
	}) (*resource[atelier.Model], error) {
		m, err := s.registry.Model(ctx, workspaceOf(ctx), in.Model)
		return resourceOf(m, err, meta)
	})
	register(s, api, operation{
		ID: "update-model", Method: http.MethodPatch, Path: models + "/{model}", Tag: tag, Summary: "Change a model",
		Verb: access.ModelUpdate, Kind: kind, Object: "model", Errors: []atelier.Code{atelier.Stale},
	}, func(ctx context.Context, in *struct {
		ModelParam
		IfMatch
		Body modelChange
	}) (*resource[atelier.Model], error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		m, err := s.registry.UpdateModel(ctx, workspaceOf(ctx), in.Model, revision, registry.ModelChange(in.Body))
		return resourceOf(m, err, meta)
	})
	register(s, api, operation{
		ID: "delete-model", Method: http.MethodDelete, Path: models + "/{model}", Tag: tag,
		Summary: "Delete a model with its versions", Description: "Refused while one of them is deployed.",
		Verb: access.ModelDelete, Kind: kind, Object: "model", Errors: []atelier.Code{atelier.Stale, atelier.InUse},
	}, func(ctx context.Context, in *struct {
		ModelParam
		IfMatchOptional
	}) (*empty, error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		return nil, s.registry.DeleteModel(ctx, workspaceOf(ctx), in.Model, revision)
	})
}
