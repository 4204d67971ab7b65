package rest

import (
	"net/http"
	"strings"

	"github.com/atelier-edge/atelier/hub/access"
)

// Telemetry is what this package needs of telemetry.Store.
type Telemetry interface {
	// Handler returns the Prometheus API of the workspace with the id, with paths
	// from "/api/v1/…" on. Its caller has been authorized.
	Handler(workspace string) http.Handler
}

// registerPrometheus mounts Prometheus' HTTP API for each workspace, and what the
// hub tells of itself. Its answers
// and errors are Prometheus' own, so that dashboards take the hub for one; only
// a refusal before that is a problem as on every other route.
func (s *server) registerPrometheus() {
	s.mount("/w/{ws}/prometheus/", access.TelemetryQuery, "telemetry", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inner := r.Clone(r.Context())
		inner.URL.Path = strings.TrimPrefix(r.URL.Path, "/w/"+r.PathValue("ws")+"/prometheus")
		inner.URL.RawPath = ""
		s.telemetry.Handler(workspaceOf(r.Context())).ServeHTTP(w, inner)
	}))
	// The hub's own figures concern no workspace, so that whoever is bound to one is refused.
	s.mount("GET /metrics", access.TelemetryQuery, "telemetry", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.metrics.ServeHTTP(w, r)
	}))
}
