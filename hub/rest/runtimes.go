package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

type newRuntime struct {
	Name       string         `json:"name" doc:"Such as onnxruntime"`
	Version    string         `json:"version" maxLength:"63" doc:"Such as 1.22.0"`
	OS         string         `json:"os" maxLength:"63" doc:"Such as linux"`
	Arch       string         `json:"arch" maxLength:"63" doc:"Such as amd64 or arm64"`
	Files      []atelier.File `json:"files" minItems:"1" maxItems:"2000" nullable:"false" doc:"Uploaded before, with POST /v1/blobs"`
	Entry      string         `json:"entry" maxLength:"512" doc:"Path of the file that is loaded or started"`
	NeedsGlibc string         `json:"needs_glibc,omitempty" maxLength:"16" doc:"The oldest glibc that it runs with, such as 2.28"`
}

// RuntimeParam is the part of an input that names a runtime.
type RuntimeParam struct {
	ID string `path:"id" maxLength:"26" doc:"Id of the runtime"`
}

func (s *server) registerRuntimes(api huma.API) {
	const tag = "Runtimes"
	kind, meta := catalog.Runtimes.Kind, catalog.Runtimes.Meta
	register(s, api, operation{
		ID: "list-runtimes", Method: http.MethodGet, Path: "/v1/runtimes", Tag: tag, Summary: "List runtimes",
		Verb: access.RuntimeList, Kind: kind, Watch: true,
	}, func(ctx context.Context, in *struct{ Paging }) (*list[atelier.Runtime], error) {
		return listOf(ctx, s, catalog.Runtimes, store.Query{}, in.Paging)
	})
	register(s, api, operation{
		ID: "register-runtime", Method: http.MethodPost, Path: "/v1/runtimes", Tag: tag, Status: http.StatusCreated,
		Summary: "Register a runtime", Description: "A library or program that variants need and that devices pull like a model.",
		Verb: access.RuntimeRegister, Kind: kind, Errors: []atelier.Code{atelier.Exists},
	}, func(ctx context.Context, in *struct{ Body newRuntime }) (*resource[atelier.Runtime], error) {
		b := in.Body
		rt, err := s.registry.RegisterRuntime(ctx, atelier.Runtime{
			Meta: atelier.Meta{Name: b.Name}, Version: b.Version, OS: b.OS, Arch: b.Arch, Files: b.Files, Entry: b.Entry, NeedsGlibc: b.NeedsGlibc,
		})
		return resourceOf(rt, err, meta)
	})
	register(s, api, operation{
		ID: "get-runtime", Method: http.MethodGet, Path: "/v1/runtimes/{id}", Tag: tag, Summary: "Show a runtime",
		Verb: access.RuntimeShow, Kind: kind, Object: "id",
	}, func(ctx context.Context, in *RuntimeParam) (*resource[atelier.Runtime], error) {
		rt, err := s.registry.Runtime(ctx, in.ID)
		return resourceOf(rt, err, meta)
	})
	register(s, api, operation{
		ID: "delete-runtime", Method: http.MethodDelete, Path: "/v1/runtimes/{id}", Tag: tag,
		Summary: "Delete a runtime", Description: "Devices keep the copy that they have.",
		Verb: access.RuntimeDelete, Kind: kind, Object: "id", Errors: []atelier.Code{atelier.Stale},
	}, func(ctx context.Context, in *struct {
		RuntimeParam
		IfMatchOptional
	}) (*empty, error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		return nil, s.registry.DeleteRuntime(ctx, in.ID, revision)
	})
}
