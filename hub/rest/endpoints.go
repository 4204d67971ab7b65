package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/fleet"
)

const (
	endpointsPath = inWorkspace + "/endpoints"
	endpointPath  = endpointsPath + "/{endpoint}"
)

// EndpointParam is the part of an input that names an endpoint.
type EndpointParam struct {
	WorkspaceParam
	Endpoint string `path:"endpoint" maxLength:"63" doc:"Name or id of the endpoint"`
}

func (s *server) registerEndpoints(api huma.API) {
	const tag = "Endpoints"
	kind := catalog.Endpoints.Kind
	register(s, api, operation{
		ID: "list-endpoints", Method: http.MethodGet, Path: endpointsPath, Tag: tag, Summary: "List endpoints",
		Verb: access.EndpointList, Kind: kind, Watch: true,
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Paging
	}) (*list[fleet.Endpoint], error) {
		return pageOf(ctx, s, kind, in.Paging, func(after string, limit int) ([]fleet.Endpoint, string, error) {
			page, err := s.fleet.Endpoints(ctx, workspaceOf(ctx), after, limit)
			next := ""
			if len(page) == limit {
				next = page[limit-1].ID
			}
			return page, next, err
		})
	})
	register(s, api, operation{
		ID: "get-endpoint", Method: http.MethodGet, Path: endpointPath, Tag: tag,
		Summary: "Show an endpoint", Description: "With the addresses on which devices answer it.",
		Verb: access.EndpointShow, Kind: kind, Object: "endpoint", Watch: true,
	}, func(ctx context.Context, in *struct {
		EndpointParam
		WatchParams
	}) (*resource[fleet.Endpoint], error) {
		e, err := s.fleet.Endpoint(ctx, workspaceOf(ctx), in.Endpoint)
		return resourceOf(e, err, func(e *fleet.Endpoint) *atelier.Meta { return &e.Meta })
	})
	register(s, api, operation{
		ID: "get-endpoint-keys", Method: http.MethodGet, Path: endpointPath + "/keys", Tag: tag, Summary: "Show the keys of an endpoint",
		Verb: access.EndpointKeys, Kind: kind, Object: "endpoint",
	}, func(ctx context.Context, in *EndpointParam) (*answer[fleet.Keys], error) {
		return answerOf(s.fleet.Keys(ctx, workspaceOf(ctx), in.Endpoint))
	})
	register(s, api, operation{
		ID: "rotate-endpoint-key", Method: http.MethodPost, Path: endpointPath + "/keys/{which}/rotate", Tag: tag,
		Summary: "Replace a key of an endpoint", Description: "The other key goes on working, so that callers can change over.",
		Verb: access.EndpointRotateKey, Kind: kind, Object: "endpoint",
	}, func(ctx context.Context, in *struct {
		EndpointParam
		Which string `path:"which" enum:"primary,secondary" doc:"Which of the two"`
	}) (*answer[fleet.Keys], error) {
		return answerOf(s.fleet.RotateKey(ctx, workspaceOf(ctx), in.Endpoint, in.Which))
	})
}
