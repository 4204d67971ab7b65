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

type newVersion struct {
	Files       []atelier.File    `json:"files" minItems:"1" maxItems:"2000" nullable:"false" doc:"Uploaded before, with POST …/blobs"`
	Kind        string            `json:"kind,omitempty" doc:"Kind of the variant: onnx, which it is without it, python, mlflow or pickle"`
	Entry       string            `json:"entry,omitempty" maxLength:"512" doc:"Path of the file that the engine loads; not needed where only one can be it"`
	Environment string            `json:"environment,omitempty" maxLength:"80" doc:"Of the kind python: the environment that the entry, a scoring script, runs in; NAME, NAME:VERSION or id"`
	Description string            `json:"description,omitempty" maxLength:"4096"`
	Tags        map[string]string `json:"tags,omitempty"`
}

type versionChange struct {
	Description *string            `json:"description,omitempty" maxLength:"4096"`
	Tags        *map[string]string `json:"tags,omitempty" doc:"Replaces all tags"`
	Archived    *bool              `json:"archived,omitempty" doc:"Out of use: latest no more"`
}

// VersionParam is the part of an input that names a version.
type VersionParam struct {
	ModelParam
	Number string `path:"number" maxLength:"26" doc:"Number or id of the version, or latest"`
}

const (
	versionsPath = inWorkspace + "/models/{model}/versions"
	versionPath  = versionsPath + "/{number}"
)

func (s *server) registerVersions(api huma.API) {
	const tag = "Models"
	kind, meta := catalog.Versions.Kind, catalog.Versions.Meta
	register(s, api, operation{
		ID: "list-versions", Method: http.MethodGet, Path: versionsPath, Tag: tag, Summary: "List the versions of a model",
		Description: "With watch, the events of all versions in the workspace come.",
		Verb:        access.ModelList, Kind: kind, Watch: true,
	}, func(ctx context.Context, in *struct {
		ModelParam
		Paging
	}) (*list[atelier.Version], error) {
		m, err := s.registry.Model(ctx, workspaceOf(ctx), in.Model)
		if err != nil {
			return nil, err
		}
		return listOf(ctx, s, catalog.Versions, store.Query{Workspace: workspaceOf(ctx), Parent: m.ID}, in.Paging)
	})
	register(s, api, operation{
		ID: "register-version", Method: http.MethodPost, Path: versionsPath, Tag: tag, Status: http.StatusCreated,
		Summary: "Register a version of a model",
		Description: "Makes the model where it is new. The signature is read out of the model's file. The same files registered again " +
			"are a new version all the same, with the same digest.",
		Verb: access.ModelRegister, Kind: kind, Object: "model", Errors: []atelier.Code{atelier.Unsupported},
	}, func(ctx context.Context, in *struct {
		ModelParam
		Body newVersion
	}) (*resource[atelier.Version], error) {
		v, err := s.registry.Register(ctx, workspaceOf(ctx), in.Model, registry.NewVersion(in.Body))
		return resourceOf(v, err, meta)
	})
	register(s, api, operation{
		ID: "get-version", Method: http.MethodGet, Path: versionPath, Tag: tag, Summary: "Show a version",
		Verb: access.ModelShow, Kind: kind, Object: "model/number", Watch: true,
	}, func(ctx context.Context, in *struct {
		VersionParam
		WatchParams
	}) (*resource[atelier.Version], error) {
		v, err := s.registry.Version(ctx, workspaceOf(ctx), in.Model, in.Number)
		return resourceOf(v, err, meta)
	})
	register(s, api, operation{
		ID: "update-version", Method: http.MethodPatch, Path: versionPath, Tag: tag,
		Summary: "Describe, tag or archive a version", Description: "What runs never changes: its files, signature, number and digest.",
		Verb: access.ModelUpdate, Kind: kind, Object: "model/number", Errors: []atelier.Code{atelier.Stale},
	}, func(ctx context.Context, in *struct {
		VersionParam
		IfMatch
		Body versionChange
	}) (*resource[atelier.Version], error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		if in.Body.Archived != nil {
			object := access.Object{Workspace: workspaceOf(ctx), Kind: kind, ID: in.Model + "/" + in.Number}
			if err := s.access.Authorize(ctx, access.ModelArchive, object); err != nil {
				return nil, err
			}
		}
		v, err := s.registry.UpdateVersion(ctx, workspaceOf(ctx), in.Model, in.Number, revision, registry.VersionChange(in.Body))
		return resourceOf(v, err, meta)
	})
	register(s, api, operation{
		ID: "delete-version", Method: http.MethodDelete, Path: versionPath, Tag: tag,
		Summary: "Delete a version", Description: "Refused while it is deployed. Its number is not used again.",
		Verb: access.ModelDelete, Kind: kind, Object: "model/number", Errors: []atelier.Code{atelier.Stale, atelier.InUse},
	}, func(ctx context.Context, in *struct {
		VersionParam
		IfMatchOptional
	}) (*empty, error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		return nil, s.registry.DeleteVersion(ctx, workspaceOf(ctx), in.Model, in.Number, revision)
	})
	register(s, api, operation{
		ID: "download-file", Method: http.MethodGet, Path: versionPath + "/files/{path}", Tag: tag,
		Summary: "Download a file of a version", Reply: octets, Ranges: true,
		Verb: access.ModelDownload, Kind: kind, Object: "model/number",
	}, func(ctx context.Context, in *struct {
		VersionParam
		Path    string `path:"path" maxLength:"512" doc:"Path of the file within the version"`
		Variant string `query:"variant" maxLength:"63" doc:"Kind of the variant; without it the first that has the file"`
	}) (*stream, error) {
		f, b, err := s.registry.OpenFile(ctx, workspaceOf(ctx), in.Model, in.Number, in.Variant, in.Path)
		if err != nil {
			return nil, err
		}
		return s.serveBlob(b, f.Path), nil
	})
}
