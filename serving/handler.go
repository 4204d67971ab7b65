package serving

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/collect"
	"github.com/atelier-edge/atelier/serving/grpc"
)

// DefaultMaxBody is the largest request body that a Handler takes when it is not
// told otherwise, in bytes.
const DefaultMaxBody = 64 << 20

// Handler answers HTTP for one model: Open Inference Protocol v2 over REST and gRPC,
// POST /score, and POST /invocations as MLflow's scoring server does.
// Until SetReady it is alive but not ready.
//
// Errors are {"error", "code", "field", "remedy"}; Open Inference Protocol asks for
// the first.
type Handler struct {
	name, version string // of the model
	program       string // version of this program
	maxBody       int64
	log           *slog.Logger
	mux           *http.ServeMux
	model         atomic.Pointer[Model]
	sampler       *collect.Sampler // nil where nothing is recorded
	index         func() []IndexEntry
}

// NewHandler returns a Handler for the model of the given name and version.
// maxBody bounds a request's body in bytes; 0 is DefaultMaxBody.
func NewHandler(name, version, program string, maxBody int64, log *slog.Logger) *Handler {
	if maxBody <= 0 {
		maxBody = DefaultMaxBody
	}
	h := &Handler{name: name, version: version, program: program, maxBody: maxBody, log: log, mux: http.NewServeMux()}
	h.mux.HandleFunc("GET /{$}", h.live)
	h.mux.HandleFunc("GET /v2", h.server)
	h.mux.HandleFunc("GET /v2/{$}", h.server)
	h.mux.HandleFunc("GET /v2/health/live", h.live)
	h.mux.HandleFunc("GET /v2/health/ready", h.ready)
	h.mux.HandleFunc("POST /v2/repository/index", h.repository)
	h.mux.HandleFunc("POST /score", h.score)
	h.mux.HandleFunc("POST /invocations", h.invocations)
	h.mux.HandleFunc("GET /ping", h.ping)
	h.mux.HandleFunc("GET /version", h.versionText)
	h.mux.HandleFunc(everythingElse, h.unknown)
	for _, base := range []string{"/v2/models/{model}", "/v2/models/{model}/versions/{version}"} {
		h.mux.HandleFunc("GET "+base, h.metadata)
		h.mux.HandleFunc("GET "+base+"/ready", h.modelReady)
		h.mux.HandleFunc("POST "+base+"/infer", h.infer)
	}
	return h
}

// SetReady says that m is loaded and warm.
func (h *Handler) SetReady(m *Model) { h.model.Store(m) }

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if grpc.Is(r) {
		if f := h.fallback(); f != "" {
			w.Header().Set(atelier.HeaderFallback, f)
		}
		h.serveGRPC(w, r)
		return
	}
	h.mux.ServeHTTP(w, r)
}

// everythingElse is the pattern of what nothing more specific answers.
const everythingElse = "/"

// unknown answers for paths and methods that there are none of.
func (h *Handler) unknown(w http.ResponseWriter, r *http.Request) {
	for _, other := range []string{http.MethodGet, http.MethodPost} {
		asked := r.Clone(r.Context())
		asked.Method = other
		if _, pattern := h.mux.Handler(asked); pattern != everythingElse && other != r.Method {
			w.Header().Set("Allow", other)
			h.write(w, http.StatusMethodNotAllowed, errorBody{Error: "method " + r.Method + " came, " + other + " was expected", Code: atelier.Invalid})
			return
		}
	}
	h.fail(w, r, atelier.Errorf(atelier.NotFound, "there is nothing at %.200s", r.URL.Path).
		WithRemedy("Use /v2, /v2/models/%s, /v2/models/%s/infer, /score or /invocations.", h.name, h.name))
}

// fail answers with an error.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	h.answer(w, h.failed(r.URL.Path, err))
}

func (h *Handler) answer(w http.ResponseWriter, a Answer) {
	if a.HeaderLength > 0 {
		w.Header().Set(HeaderLength, strconv.Itoa(a.HeaderLength))
	}
	if a.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(a.RetryAfter))
	}
	if a.Fallback != "" {
		w.Header().Set(atelier.HeaderFallback, a.Fallback)
	}
	h.send(w, a.Status, a.ContentType, a.Body)
}

func (h *Handler) write(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		h.log.Error("an answer cannot be encoded", "error", err)
		status, body = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be encoded","code":"internal"}`)
	}
	h.send(w, status, "application/json", body)
}

func (h *Handler) send(w http.ResponseWriter, status int, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		h.log.Debug("a client did not take its answer", "error", err)
	}
}

func (h *Handler) server(w http.ResponseWriter, _ *http.Request) {
	h.write(w, http.StatusOK, map[string]any{"name": "atelier-serve", "version": h.program, "extensions": []string{"binary_tensor_data", "model_repository"}})
}

func (h *Handler) live(w http.ResponseWriter, _ *http.Request) {
	h.write(w, http.StatusOK, map[string]any{"live": true, "status": "ok"})
}

func (h *Handler) ready(w http.ResponseWriter, _ *http.Request) {
	m := h.model.Load()
	if m == nil {
		h.write(w, http.StatusServiceUnavailable, map[string]any{"ready": false})
		return
	}
	h.write(w, http.StatusOK, struct {
		Ready bool `json:"ready"`
		atelier.ModuleHealth
	}{true, m.health()})
}

// fallback is the provider that answers in the place of another, "" where none does.
func (h *Handler) fallback() string {
	if m := h.model.Load(); m != nil {
		if s, ok := m.Engine.(Standby); ok {
			if health := s.Health(); health.Fallback != "" {
				return health.Provider
			}
		}
	}
	return ""
}

// named returns the model that the path names, if it is this one and ready.
func (h *Handler) named(r *http.Request) (*Model, error) {
	if err := h.isThis(r.PathValue("model"), r.PathValue("version")); err != nil {
		return nil, err
	}
	return h.loaded()
}

// isThis checks that the model that is asked for, and its version where one is
// named, is the one that is served here.
func (h *Handler) isThis(name, version string) error {
	if name != h.name {
		return atelier.Errorf(atelier.NotFound, "model %.80q is not served here, %q is", name, h.name)
	}
	if version != "" && version != h.version {
		return atelier.Errorf(atelier.NotFound, "version %.80q of model %q is not served here, %s is", version, h.name, h.version)
	}
	return nil
}

func (h *Handler) loaded() (*Model, error) {
	m := h.model.Load()
	if m == nil {
		return nil, atelier.Errorf(atelier.Unavailable, "model %q is not loaded yet", h.name).WithRemedy("Try again in a moment.")
	}
	return m, nil
}

func (h *Handler) modelReady(w http.ResponseWriter, r *http.Request) {
	if _, err := h.named(r); err != nil {
		h.fail(w, r, err)
		return
	}
	h.write(w, http.StatusOK, map[string]any{"name": h.name, "ready": true})
}

func (h *Handler) metadata(w http.ResponseWriter, r *http.Request) {
	m, err := h.named(r)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	s := m.Engine.Signature()
	h.write(w, http.StatusOK, map[string]any{
		"name": m.Name, "versions": []string{m.Version}, "platform": m.Engine.Platform(), "inputs": s.Inputs, "outputs": s.Outputs,
	})
}

func (h *Handler) infer(w http.ResponseWriter, r *http.Request) {
	if _, err := h.named(r); err != nil {
		h.fail(w, r, err)
		return
	}
	h.withBody(w, r, collect.DialectV2, func(ctx context.Context, body []byte) Answer {
		return h.Infer(ctx, r.Header.Get(HeaderLength), body)
	})
}

func (h *Handler) score(w http.ResponseWriter, r *http.Request) {
	h.withBody(w, r, collect.DialectScore, h.Score)
}

// withBody answers what answer makes of the body of a request in a dialect.
func (h *Handler) withBody(w http.ResponseWriter, r *http.Request, dialect string, answer func(ctx context.Context, body []byte) Answer) {
	body, free, err := h.body(w, r)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	defer free()
	h.answer(w, h.Sampled(r.Context(), dialect, r.Header.Get(atelier.HeaderRequestID), func(ctx context.Context) Answer {
		return answer(ctx, body)
	}))
}

// bodies are buffers that requests share one after the other. Larger ones than
// keepBody are left to the collector.
var bodies = sync.Pool{New: func() any { return new([]byte) }}

const keepBody = 4 << 20

// body reads the request's body; free gives its buffer back. Nothing of the
// body may be used after that: engines copy what they are given.
func (h *Handler) body(w http.ResponseWriter, r *http.Request) (body []byte, free func(), err error) {
	if e := r.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, nil, atelier.Errorf(atelier.Unsupported, "Content-Encoding is %.40q, an uncompressed body was expected", e).WithField("Content-Encoding")
	}
	tooLarge := atelier.Errorf(atelier.TooLarge, "the body is larger than %d bytes", h.maxBody).
		WithRemedy("Send a smaller batch, or raise --max-body of the model server.")
	if r.ContentLength > h.maxBody {
		return nil, nil, tooLarge
	}
	buffer := bodies.Get().(*[]byte)
	b := (*buffer)[:0]
	if n := int(r.ContentLength); n > cap(b) {
		b = make([]byte, 0, n+1) // one more, so that the end is seen without growing
	}
	limited := http.MaxBytesReader(w, r.Body, h.maxBody)
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := limited.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			var large *http.MaxBytesError
			if errors.As(err, &large) {
				return nil, nil, tooLarge
			}
			return nil, nil, atelier.Errorf(atelier.Invalid, "the body broke off after %d bytes: %w", len(b), err)
		}
	}
	return b, func() {
		if cap(b) <= keepBody {
			*buffer = b
			bodies.Put(buffer)
		}
	}, nil
}
