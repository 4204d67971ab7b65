package rest

import (
	"context"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/packages"
	"github.com/atelier-edge/atelier/hub/store"
)

type newPackage struct {
	Model       string                  `json:"model" maxLength:"63" doc:"Name or id of the model"`
	Version     string                  `json:"version,omitempty" maxLength:"26" doc:"Number of the version; the newest where it is left out"`
	Name        string                  `json:"name,omitempty" maxLength:"63" doc:"Of the package; the model's where it is left out"`
	Tag         string                  `json:"tag,omitempty" maxLength:"100" doc:"The version's number where it is left out"`
	Description string                  `json:"description,omitempty" maxLength:"4096"`
	Base        string                  `json:"base,omitempty" maxLength:"63" doc:"What the images stand on; the only base of the workspace where it is left out"`
	Arch        []string                `json:"arch,omitempty" maxItems:"4" doc:"Architectures; all that there are the parts for where it is left out"`
	Code        []atelier.File          `json:"code,omitempty" maxItems:"10000" doc:"Files of a scoring script that is not among the version's, uploaded before with POST …/blobs"`
	Script      string                  `json:"script,omitempty" maxLength:"512" doc:"Path of the scoring script among code"`
	Environment string                  `json:"environment,omitempty" maxLength:"80" doc:"What the script runs in: NAME, NAME:VERSION or id"`
	Serving     atelier.ServingSettings `json:"serving,omitempty" doc:"How the model server answers requests, as in deployments"`
}

type newBase struct {
	Name        string              `json:"name" maxLength:"63"`
	Description string              `json:"description,omitempty" maxLength:"4096"`
	Source      string              `json:"source,omitempty" maxLength:"1024" doc:"Where it came from, for people"`
	Images      []atelier.BaseImage `json:"images" minItems:"1" maxItems:"4" nullable:"false" doc:"One for each architecture; configurations and layers were uploaded before with POST …/blobs"`
}

// PackageParam is the part of an input that names a package.
type PackageParam struct {
	WorkspaceParam
	Package string `path:"package" maxLength:"170" doc:"NAME:TAG, or id"`
}

// BaseParam is the part of an input that names a base.
type BaseParam struct {
	WorkspaceParam
	Base string `path:"base" maxLength:"63" doc:"Name or id of the base"`
}

func (s *server) registerPackages(api huma.API) {
	const (
		tag  = "Packages"
		all  = inWorkspace + "/packages"
		one  = all + "/{package}"
		kind = "package"
	)
	meta := catalog.Packages.Meta
	register(s, api, operation{
		ID: "list-packages", Method: http.MethodGet, Path: all, Tag: tag, Summary: "List packages",
		Verb: access.PackageList, Kind: kind, Watch: true,
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Paging
		Name string `query:"name" maxLength:"63" doc:"Only those of this name"`
	}) (*list[atelier.Package], error) {
		return listOf(ctx, s, catalog.Packages, store.Query{Workspace: workspaceOf(ctx), Parent: in.Name}, in.Paging)
	})
	register(s, api, operation{
		ID: "build-package", Method: http.MethodPost, Path: all, Tag: tag, Status: http.StatusCreated,
		Summary: "Make a version of a model into images", Description: "The answer comes at once, and tells by state how far the build is. A package of " +
			"the same name, tag and inputs is answered as it is. Its images come into the workspace's container registry as NAME:TAG, its ModelPack " +
			"artifact as NAME:TAG-modelpack, unless the workspace has a registry of its own.",
		Verb: access.PackageBuild, Kind: kind, Errors: []atelier.Code{atelier.Exists, atelier.Conflict},
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Body newPackage
	}) (*resource[atelier.Package], error) {
		b := in.Body
		p, err := s.packages.Create(ctx, workspaceOf(ctx), packages.Definition{
			Model: b.Model, Version: b.Version, Name: b.Name, Tag: b.Tag, Description: b.Description, Base: b.Base, Arch: b.Arch,
			Code: b.Code, Script: b.Script, Environment: b.Environment, Serving: b.Serving,
		})
		return resourceOf(p, err, meta)
	})
	register(s, api, operation{
		ID: "get-package", Method: http.MethodGet, Path: one, Tag: tag, Summary: "Show a package",
		Verb: access.PackageShow, Kind: kind, Object: "package",
	}, func(ctx context.Context, in *PackageParam) (*resource[atelier.Package], error) {
		p, err := s.packages.Package(ctx, workspaceOf(ctx), in.Package)
		return resourceOf(p, err, meta)
	})
	register(s, api, operation{
		ID: "delete-package", Method: http.MethodDelete, Path: one, Tag: tag,
		Summary: "Delete a package", Description: "With its images in the workspace's registry, where no other tag names them.",
		Verb: access.PackageDelete, Kind: kind, Object: "package", Errors: []atelier.Code{atelier.Stale},
	}, func(ctx context.Context, in *struct {
		PackageParam
		IfMatchOptional
	}) (*empty, error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		return nil, s.packages.Delete(ctx, workspaceOf(ctx), in.Package, revision)
	})
	register(s, api, operation{
		ID: "get-package-content", Method: http.MethodGet, Path: one + "/content/{digest}", Tag: tag,
		Summary: "Download content of a package", Description: "A manifest, a configuration, a layer or a file that the package names.", Reply: octets, Ranges: true,
		Verb: access.PackageDownload, Kind: kind, Object: "package",
	}, func(ctx context.Context, in *struct {
		PackageParam
		Digest string `path:"digest" maxLength:"71" doc:"Digest of the content"`
	}) (*stream, error) {
		b, err := s.packages.OpenContent(ctx, workspaceOf(ctx), in.Package, atelier.Digest(in.Digest))
		if err != nil {
			return nil, err
		}
		return s.serveBlob(b, strings.ReplaceAll(in.Digest, ":", "-")), nil
	})
}

func (s *server) registerBases(api huma.API) {
	const (
		tag  = "Packages"
		all  = inWorkspace + "/bases"
		one  = all + "/{base}"
		kind = "base"
	)
	meta := catalog.Bases.Meta
	register(s, api, operation{
		ID: "list-bases", Method: http.MethodGet, Path: all, Tag: tag, Summary: "List what packages may stand on",
		Verb: access.BaseList, Kind: kind, Watch: true,
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Paging
	}) (*list[atelier.Base], error) {
		return listOf(ctx, s, catalog.Bases, store.Query{Workspace: workspaceOf(ctx)}, in.Paging)
	})
	register(s, api, operation{
		ID: "add-base", Method: http.MethodPost, Path: all, Tag: tag, Status: http.StatusCreated, Summary: "Add a base",
		Description: "The same base under the same name is answered as it is.",
		Verb:        access.BaseAdd, Kind: kind, Errors: []atelier.Code{atelier.Exists, atelier.Unsupported},
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Body newBase
	}) (*resource[atelier.Base], error) {
		b, err := s.packages.AddBase(ctx, workspaceOf(ctx), packages.NewBase(in.Body))
		return resourceOf(b, err, meta)
	})
	register(s, api, operation{
		ID: "get-base", Method: http.MethodGet, Path: one, Tag: tag, Summary: "Show a base",
		Verb: access.BaseShow, Kind: kind, Object: "base",
	}, func(ctx context.Context, in *BaseParam) (*resource[atelier.Base], error) {
		b, err := s.packages.Base(ctx, workspaceOf(ctx), in.Base)
		return resourceOf(b, err, meta)
	})
	register(s, api, operation{
		ID: "delete-base", Method: http.MethodDelete, Path: one, Tag: tag,
		Summary: "Delete a base", Description: "Refused while a package stands on it.",
		Verb: access.BaseDelete, Kind: kind, Object: "base", Errors: []atelier.Code{atelier.Stale, atelier.InUse},
	}, func(ctx context.Context, in *struct {
		BaseParam
		IfMatchOptional
	}) (*empty, error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		return nil, s.packages.DeleteBase(ctx, workspaceOf(ctx), in.Base, revision)
	})
}
