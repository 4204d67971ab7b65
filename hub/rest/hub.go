package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/atelier-edge/atelier/hub/access"
)

type health struct {
	Status string `json:"status" doc:"ok"`
}

type hubInfo struct {
	Version     string     `json:"version" doc:"Version of the hub"`
	Fingerprint string     `json:"fingerprint" doc:"SHA-256 of the authority's certificate"`
	MQTT        string     `json:"mqtt" doc:"URL under which devices reach the broker"`
	Principal   callerInfo `json:"principal" doc:"Who asks"`
}

type callerInfo struct {
	Kind      access.PrincipalKind `json:"kind"`
	ID        string               `json:"id"`
	Name      string               `json:"name,omitempty"`
	Role      string               `json:"role,omitempty"`
	Workspace string               `json:"workspace,omitempty" doc:"Id of the only workspace that the caller may touch"`
}

func (s *server) registerHub(api huma.API) {
	register(s, api, operation{
		ID: "get-health", Method: http.MethodGet, Path: "/healthz", Tag: "Hub", Public: true,
		Summary: "Tell whether the hub works",
	}, func(ctx context.Context, _ *struct{}) (*answer[health], error) {
		return &answer[health]{health{"ok"}}, nil
	})
	register(s, api, operation{
		ID: "get-hub", Method: http.MethodGet, Path: "/v1", Tag: "Hub",
		Summary: "Describe the hub and the caller", Verb: access.HubShow, Kind: "hub",
	}, func(ctx context.Context, _ *struct{}) (*answer[hubInfo], error) {
		p := access.PrincipalFrom(ctx)
		return &answer[hubInfo]{hubInfo{
			Version: s.hub.Version, Fingerprint: s.hub.Fingerprint, MQTT: s.hub.MQTT,
			Principal: callerInfo{Kind: p.Kind, ID: p.ID, Name: p.Name, Role: p.Role, Workspace: p.Workspace},
		}}, nil
	})
	register(s, api, operation{
		ID: "get-authority", Method: http.MethodGet, Path: "/v1/ca", Tag: "Hub", Public: true,
		Summary: "Get the authority's certificate", Reply: "application/x-pem-file",
	}, func(ctx context.Context, _ *struct{}) (*stream, error) {
		return &stream{func(c huma.Context) {
			c.SetHeader("Content-Type", "application/x-pem-file")
			_, _ = c.BodyWriter().Write(s.hub.CA)
		}}, nil
	})
}
