package rest

import (
	"crypto/rand"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/collect"
	"github.com/atelier-edge/atelier/hub/enrol"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/hub/messages"
	"github.com/atelier-edge/atelier/hub/packages"
	"github.com/atelier-edge/atelier/hub/registry"
	"github.com/atelier-edge/atelier/hub/signing"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/patient"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Config says what the API serves. Every field is required unless it says otherwise.
type Config struct {
	Store    store.Store
	Access   *access.Authority
	Registry *registry.Registry
	Enrol    *enrol.Service
	Fleet    *fleet.Fleet
	// Telemetry answers PromQL; see prometheus.go.
	Telemetry Telemetry
	Images    *images.Registry
	Packages  *packages.Packages
	Signing   *signing.Service
	// Distribution serves the container registries below /v2/, authenticating its
	// callers itself; nil for none.
	Distribution http.Handler
	Data         *collect.Store // recorded requests
	Messages     *messages.Store
	// Metrics answers the hub's own figures in Prometheus' text form.
	Metrics http.Handler
	Hub     Hub
	Log     *slog.Logger
	Now     func() time.Time // nil for time.Now
	// Heartbeat is the time between signs of life on a watch; 0 for 15 seconds.
	Heartbeat time.Duration
}

// Hub is what the hub tells of itself.
type Hub struct {
	Version     string // of the program
	Fingerprint string // SHA-256 of the authority's certificate, for agents to pin
	MQTT        string // URL under which devices reach the broker
	CA          []byte // the authority's certificate, PEM
}

type server struct {
	store        store.Store
	access       *access.Authority
	registry     *registry.Registry
	images       *images.Registry
	packages     *packages.Packages
	signing      *signing.Service
	enrol        *enrol.Service
	fleet        *fleet.Fleet
	telemetry    Telemetry
	data         *collect.Store
	messages     *messages.Store
	metrics      http.Handler
	hub          Hub
	log          *slog.Logger
	now          func() time.Time
	heartbeat    time.Duration
	stall        time.Duration // how long a transfer may stand still
	mux          *http.ServeMux
	api          huma.API
	boot         string // names this run of the hub
	reservations atomic.Int64
}

// New returns the API's handler. The http.Server that it is given to should
// end its base context when it shuts down, since watches last as long as their
// requests; and should set no WriteTimeout, which would cut long downloads.
func New(c Config) http.Handler {
	h, _ := build(c)
	return h
}

func build(c Config) (http.Handler, *server) {
	useProblems()
	s := &server{
		store: c.Store, access: c.Access, registry: c.Registry, images: c.Images, packages: c.Packages, signing: c.Signing, enrol: c.Enrol, fleet: c.Fleet, telemetry: c.Telemetry, data: c.Data, messages: c.Messages, metrics: c.Metrics, hub: c.Hub, log: c.Log,
		now: c.Now, heartbeat: c.Heartbeat, stall: patient.Stall, mux: http.NewServeMux(), boot: rand.Text(),
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.heartbeat == 0 {
		s.heartbeat = 15 * time.Second
	}
	s.api = humago.New(pathMux{s.mux}, openAPI(c.Hub.Version))
	s.routes(s.api)
	return s.observe(secure(sameOrigin(s.split(c.Distribution, s.authenticate(problems(s.mux)))))), s
}

// split hands what is below /v2/ to the container registries, and the rest to the API.
func (s *server) split(distribution, api http.Handler) http.Handler {
	if distribution == nil {
		return api
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2" || strings.HasPrefix(r.URL.Path, "/v2/") {
			distribution.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}

// routes lists every part of the API: one line each.
func (s *server) routes(api huma.API) {
	s.registerHub(api)
	s.registerTokens(api)
	s.registerWorkspaces(api)
	s.registerBlobs(api)
	s.registerModels(api)
	s.registerVersions(api)
	s.registerEnvironments(api)
	s.registerImages(api)
	s.registerPackages(api)
	s.registerBases(api)
	s.registerSigning(api)
	s.registerRuntimes(api)
	s.registerEnrol(api)
	s.registerFleet(api)
	s.registerBundles(api)
	s.registerMessages(api)
	s.registerEvents(api)
	s.registerPrometheus()
	s.registerDocs(api)
}

// pathMux lets a last parameter {path} take all that remains of a path, which
// net/http writes {path...} and OpenAPI has no word for.
type pathMux struct{ *http.ServeMux }

func (m pathMux) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	if head, ok := strings.CutSuffix(pattern, "/{path}"); ok {
		pattern = head + "/{path...}"
	}
	m.ServeMux.HandleFunc(pattern, h)
}

// openAPI is the document that register adds operations to.
func openAPI(version string) huma.Config {
	schemas := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	schemas.RegisterTypeAlias(reflect.TypeFor[atelier.Why](), reflect.TypeFor[Why]())
	schemas.RegisterTypeAlias(reflect.TypeFor[atelier.Condition](), reflect.TypeFor[Condition]())
	schemas.RegisterTypeAlias(reflect.TypeFor[atelier.SlotStatus](), reflect.TypeFor[SlotStatus]())
	schemas.RegisterTypeAlias(reflect.TypeFor[atelier.DeviceStatus](), reflect.TypeFor[DeviceStatus]())
	schemas.RegisterTypeAlias(reflect.TypeFor[wire.Raw](), reflect.TypeFor[Envelope]())
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Atelier hub", Version: version,
				Description: "Workspaces, their model registry, their devices and what runs on them. Lists are paged by cursor; " +
					"a change names the revision it changes by If-Match; a POST may be repeated under an Idempotency-Key; errors are " +
					"problem details (RFC 9457) with a code to branch on and a remedy.",
				License: &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Components: &huma.Components{
				Schemas: schemas,
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"bearer": {Type: "http", Scheme: "bearer", Description: "An access token"},
					"basic":  {Type: "http", Scheme: "basic", Description: "An access token as the password; the user name is not looked at"},
				},
			},
		},
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
	}
}

// Why is the form that atelier.Why has in JSON.
type Why struct {
	Reason  atelier.Reason `json:"reason" doc:"A stable word to branch on"`
	Message string         `json:"message,omitempty" doc:"The particulars"`
	Remedy  string         `json:"remedy,omitempty" doc:"What to do about it"`
}

// Condition is the form that atelier.Condition has in JSON.
type Condition struct {
	Type  string    `json:"type" doc:"Which aspect of the device it is about"`
	True  bool      `json:"true" doc:"Whether it is as it should be"`
	Why   Why       `json:"why"`
	Since time.Time `json:"since"`
}

// Standing is the form that atelier.Standing has within its owner's JSON.
type Standing struct {
	State atelier.ModuleState `json:"state"`
	Why   Why                 `json:"why"`
}

// SlotStatus is the form that atelier.SlotStatus has in JSON.
type SlotStatus struct {
	atelier.SlotStatus
	Standing
}

// DeviceStatus is the form that atelier.DeviceStatus has in JSON.
type DeviceStatus struct {
	atelier.DeviceStatus
	Standing
}
