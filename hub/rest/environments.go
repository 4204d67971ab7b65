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

type newEnvironment struct {
	Name         string   `json:"name" doc:"1 to 63 characters of a-z, 0-9, '-', '_' and '.'"`
	Description  string   `json:"description,omitempty" maxLength:"4096"`
	Python       string   `json:"python,omitempty" maxLength:"8" doc:"Version of the interpreter, such as 3.11"`
	Requirements string   `json:"requirements,omitempty" maxLength:"65536" doc:"Text of a requirements.txt"`
	Conda        string   `json:"conda,omitempty" maxLength:"65536" doc:"Text of a conda file, in place of requirements; its pip section is what is installed"`
	Arch         []string `json:"arch" minItems:"1" maxItems:"4" nullable:"false" doc:"Architectures to build it for: amd64, arm64"`
}

type buildClaim struct {
	Builder string `json:"builder" maxLength:"63" doc:"Name of the builder, for people to find its machine"`
}

type buildLease struct {
	Lease string `json:"lease" maxLength:"26" doc:"As the claim's answer has it"`
}

type buildResult struct {
	Lease      string        `json:"lease" maxLength:"26" doc:"As the claim's answer has it"`
	Artifact   *atelier.File `json:"artifact,omitempty" doc:"The environment as a tar file, uploaded before with POST …/blobs"`
	NeedsGlibc string        `json:"needs_glibc,omitempty" maxLength:"16" doc:"The oldest glibc that it runs with"`
	Packages   []string      `json:"packages,omitempty" maxItems:"5000" doc:"What was installed, as name==version"`
	Log        *atelier.File `json:"log,omitempty" doc:"The build's log, uploaded before"`
	Failure    string        `json:"failure,omitempty" maxLength:"2000" doc:"The line that matters, where there is no artifact"`
	Remedy     string        `json:"remedy,omitempty" maxLength:"2000" doc:"What to do about the failure"`
}

// EnvironmentParam is the part of an input that names a version of an environment.
type EnvironmentParam struct {
	WorkspaceParam
	Environment string `path:"environment" maxLength:"80" doc:"NAME, which stands for its newest version, NAME:VERSION, or id"`
}

// BuildParam is the part of an input that names a build.
type BuildParam struct {
	EnvironmentParam
	Arch string `path:"arch" maxLength:"16" doc:"The build's architecture"`
}

func (s *server) registerEnvironments(api huma.API) {
	const (
		tag          = "Environments"
		environments = inWorkspace + "/environments"
		one          = environments + "/{environment}"
	)
	kind, meta := catalog.Environments.Kind, catalog.Environments.Meta
	register(s, api, operation{
		ID: "list-environments", Method: http.MethodGet, Path: environments, Tag: tag, Summary: "List environments, version by version",
		Verb: access.EnvironmentList, Kind: kind, Watch: true,
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Paging
	}) (*list[atelier.Environment], error) {
		return listOf(ctx, s, catalog.Environments, store.Query{Workspace: workspaceOf(ctx)}, in.Paging)
	})
	register(s, api, operation{
		ID: "create-environment", Method: http.MethodPost, Path: environments, Tag: tag, Status: http.StatusCreated,
		Summary: "Define a version of an environment", Description: "The next version of the name. A builder makes it; what was built of the same " +
			"definition in the workspace before is taken at once.",
		Verb: access.EnvironmentCreate, Kind: kind,
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Body newEnvironment
	}) (*resource[atelier.Environment], error) {
		e, err := s.registry.CreateEnvironment(ctx, workspaceOf(ctx), registry.NewEnvironment(in.Body))
		return resourceOf(e, err, meta)
	})
	register(s, api, operation{
		ID: "get-environment", Method: http.MethodGet, Path: one, Tag: tag, Summary: "Show a version of an environment",
		Verb: access.EnvironmentShow, Kind: kind, Object: "environment",
	}, func(ctx context.Context, in *EnvironmentParam) (*resource[atelier.Environment], error) {
		e, err := s.registry.Environment(ctx, workspaceOf(ctx), in.Environment)
		return resourceOf(e, err, meta)
	})
	register(s, api, operation{
		ID: "delete-environment", Method: http.MethodDelete, Path: one, Tag: tag,
		Summary: "Delete a version of an environment", Description: "Refused while a version of a model runs in it.",
		Verb: access.EnvironmentDelete, Kind: kind, Object: "environment", Errors: []atelier.Code{atelier.Stale, atelier.InUse},
	}, func(ctx context.Context, in *struct {
		EnvironmentParam
		IfMatchOptional
	}) (*empty, error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		return nil, s.registry.DeleteEnvironment(ctx, workspaceOf(ctx), in.Environment, revision)
	})
	register(s, api, operation{
		ID: "get-build-log", Method: http.MethodGet, Path: one + "/log", Tag: tag,
		Summary: "Read the log of a build", Description: "It is there once the build is over, whatever came of it.", Reply: octets, Ranges: true,
		Verb: access.EnvironmentShow, Kind: kind, Object: "environment",
	}, func(ctx context.Context, in *struct {
		EnvironmentParam
		Arch string `query:"arch" maxLength:"16" doc:"The build's architecture; without it the one that failed, or the first"`
	}) (*stream, error) {
		b, err := s.registry.OpenBuildLog(ctx, workspaceOf(ctx), in.Environment, in.Arch)
		if err != nil {
			return nil, err
		}
		return s.serveBlob(b, "build.log"), nil
	})
	s.registerBuilds(api)
}

// registerBuilds adds what builders use.
func (s *server) registerBuilds(api huma.API) {
	const (
		tag   = "Environments"
		build = inWorkspace + "/environments/{environment}/builds/{arch}"
	)
	kind, meta := catalog.Environments.Kind, catalog.Environments.Meta
	register(s, api, operation{
		ID: "list-builds", Method: http.MethodGet, Path: inWorkspace + "/builds", Tag: tag, Summary: "List environments that wait for a builder",
		Description: "At most 100, the oldest first. Those whose builder was not heard of again are among them.",
		Verb:        access.EnvironmentList, Kind: kind,
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Arch string `query:"arch" required:"true" maxLength:"16" doc:"The builder's architecture"`
	}) (*answer[listBody[atelier.Environment]], error) {
		waiting, err := s.registry.Builds(ctx, workspaceOf(ctx), in.Arch)
		return &answer[listBody[atelier.Environment]]{listBody[atelier.Environment]{Items: waiting}}, err
	})
	register(s, api, operation{
		ID: "claim-build", Method: http.MethodPost, Path: build + "/claim", Tag: tag, Summary: "Claim a build",
		Description: "The claim ends by itself after 90 seconds unless it is renewed; then another builder may have the build. The answer's " +
			"build says Building where it is the caller's.",
		Verb: access.EnvironmentBuild, Kind: kind, Object: "environment",
	}, func(ctx context.Context, in *struct {
		BuildParam
		Body buildClaim
	}) (*resource[atelier.Environment], error) {
		e, err := s.registry.ClaimBuild(ctx, workspaceOf(ctx), in.Environment, in.Arch, in.Body.Builder)
		return resourceOf(e, err, meta)
	})
	register(s, api, operation{
		ID: "renew-build", Method: http.MethodPut, Path: build + "/lease", Tag: tag, Summary: "Keep a claimed build",
		Verb: access.EnvironmentHold, Kind: kind, Object: "environment", Errors: []atelier.Code{atelier.Stale},
	}, func(ctx context.Context, in *struct {
		BuildParam
		Body buildLease
	}) (*empty, error) {
		return nil, s.registry.RenewBuild(ctx, workspaceOf(ctx), in.Environment, in.Arch, in.Body.Lease)
	})
	register(s, api, operation{
		ID: "finish-build", Method: http.MethodPost, Path: build + "/result", Tag: tag, Summary: "Say what came of a build",
		Verb: access.EnvironmentBuild, Kind: kind, Object: "environment", Errors: []atelier.Code{atelier.Stale},
	}, func(ctx context.Context, in *struct {
		BuildParam
		Body buildResult
	}) (*resource[atelier.Environment], error) {
		b := in.Body
		e, err := s.registry.FinishBuild(ctx, workspaceOf(ctx), in.Environment, in.Arch, b.Lease, registry.BuildResult{
			Artifact: b.Artifact, NeedsGlibc: b.NeedsGlibc, Packages: b.Packages, Log: b.Log, Failure: b.Failure, Remedy: b.Remedy,
		})
		return resourceOf(e, err, meta)
	})
}
