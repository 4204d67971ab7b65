package python

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/collect"
)

// requestID is where a gateway tells the id of a request.
const requestID = "X-Atelier-Request-Id"

// Azure's fields, and how long their values may be.
const (
	azureID       = "X-Request-Id"
	azureClientID = "X-Ms-Client-Request-Id"
	azureLegacyID = "X-Ms-Request-Id"
	maxID         = 100
)

// Handler answers HTTP for one scoring script as azureml-inference-server-http
// does: GET /, /score and /swagger.json. Besides it answers Open Inference
// Protocol's questions for health. Until SetReady it is alive but not ready.
//
// Errors are {"message"}, which Azure's clients read, with {"error", "code",
// "field", "remedy"}.
type Handler struct {
	name, version string // of the model
	program       string // version of this program
	script        string
	maxBody       int64
	log           *slog.Logger
	mux           *http.ServeMux
	served        atomic.Pointer[served]
	sampler       *collect.Sampler // nil where nothing is recorded
}

// served is a pool that is ready.
type served struct {
	pool    *Pool
	swagger swagger
}

// NewHandler returns a Handler for the script of the model of the given name and
// version. maxBody bounds a request's body in bytes.
func NewHandler(name, version, program, script string, maxBody int64, log *slog.Logger) *Handler {
	h := &Handler{name: name, version: version, program: program, script: script, maxBody: maxBody, log: log, mux: http.NewServeMux()}
	h.mux.HandleFunc("GET /{$}", h.healthy)
	h.mux.HandleFunc("GET /v2", h.server)
	h.mux.HandleFunc("GET /v2/{$}", h.server)
	h.mux.HandleFunc("GET /v2/health/live", h.live)
	h.mux.HandleFunc("GET /v2/health/ready", h.ready)
	h.mux.HandleFunc("GET /swagger.json", h.swagger)
	h.mux.HandleFunc("/score", h.score)
	h.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		h.fail(w, 0, atelier.Errorf(atelier.NotFound, "there is nothing at %.200s", r.URL.Path).
			WithRemedy("Model %s is a scoring script: use /score, or /swagger.json for what it takes.", h.name))
	})
	return h
}

// SetSampler lets s record requests; to be called before the first of them.
func (h *Handler) SetSampler(s *collect.Sampler) { h.sampler = s }

// SetReady says that init() has returned in p.
func (h *Handler) SetReady(p *Pool) error {
	docs, err := newSwagger(h.name, h.version, h.script, p.about.Schema)
	if err != nil {
		return err
	}
	h.served.Store(&served{p, docs})
	return nil
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

func (h *Handler) server(w http.ResponseWriter, _ *http.Request) {
	h.write(w, http.StatusOK, map[string]any{"name": "atelier-serve", "version": h.program, "extensions": []string{}})
}

func (h *Handler) live(w http.ResponseWriter, _ *http.Request) {
	h.write(w, http.StatusOK, map[string]any{"live": true, "status": "ok"})
}

func (h *Handler) ready(w http.ResponseWriter, _ *http.Request) {
	status, ready := http.StatusOK, h.served.Load() != nil
	if !ready {
		status = http.StatusServiceUnavailable
	}
	h.write(w, status, map[string]any{"ready": ready})
}

func (h *Handler) healthy(w http.ResponseWriter, _ *http.Request) {
	if _, err := h.loaded(); err != nil {
		h.fail(w, 0, err)
		return
	}
	h.send(w, http.StatusOK, "text/html; charset=utf-8", []byte("Healthy"))
}

func (h *Handler) loaded() (*served, error) {
	s := h.served.Load()
	if s == nil {
		return nil, atelier.Errorf(atelier.Unavailable, "init() of the scoring script of model %q has not returned yet", h.name).WithRemedy("Try again in a moment.")
	}
	return s, nil
}

func (h *Handler) swagger(w http.ResponseWriter, r *http.Request) {
	s, err := h.loaded()
	if err == nil {
		var doc []byte
		if doc, err = s.swagger.get(r.URL.Query().Get("version")); err == nil {
			w.Header().Set("X-Ms-Run-Function-Failed", "False")
			h.send(w, http.StatusOK, "application/json", doc)
			return
		}
	}
	h.fail(w, 0, err)
}

func (h *Handler) score(w http.ResponseWriter, r *http.Request) {
	id, err := identify(w, r)
	if err != nil {
		h.fail(w, http.StatusRequestHeaderFieldsTooLarge, err)
		return
	}
	s, err := h.loaded()
	if err != nil {
		h.fail(w, 0, err)
		return
	}
	switch m := r.Method; {
	case m == http.MethodGet, m == http.MethodPost:
	case (m == http.MethodOptions || m == http.MethodHead) && s.pool.about.Raw:
	case m == http.MethodOptions:
		w.Header().Set("X-Ms-Run-Function-Failed", "False")
		h.send(w, http.StatusOK, "text/html; charset=utf-8", nil)
		return
	default:
		w.Header().Set("Allow", "GET, OPTIONS, POST")
		h.fail(w, http.StatusMethodNotAllowed, atelier.Errorf(atelier.Invalid, "method %.20s came, GET or POST was expected", m))
		return
	}
	body, err := h.body(w, r)
	if err != nil {
		h.fail(w, 0, err)
		return
	}
	x := h.sampler.Begin(collect.DialectScript, id)
	if r.Method == http.MethodGet {
		x.InputText([]byte(r.URL.RawQuery))
	} else {
		x.InputText(body)
	}
	a, err := s.pool.Do(r.Context(), &Request{
		ID: id, Method: r.Method, Query: r.URL.RawQuery, Type: r.Header.Get("Content-Type"), Headers: func() [][2]string { return fields(r) }, Body: body,
	})
	if err != nil {
		x.End(statusOf(err))
		h.failed(w, id, err)
		return
	}
	if !a.Failed && a.Message == "" {
		x.OutputText(a.Body)
	}
	x.End(a.Status)
	h.answer(w, id, a)
}

// identify returns the request's id, and answers Azure's fields as Azure's server
// does.
func identify(w http.ResponseWriter, r *http.Request) (string, error) {
	id := r.Header.Get(requestID)
	azure, client, legacy := r.Header.Get(azureID), r.Header.Get(azureClientID), r.Header.Get(azureLegacyID)
	for name, value := range map[string]string{azureID: azure, azureClientID: client, azureLegacyID: legacy} {
		if len(value) > maxID {
			return "", atelier.Errorf(atelier.Invalid, "%s must not exceed %d characters", strings.ToLower(name), maxID).WithField(name)
		}
	}
	if id == "" || len(id) > 4*maxID {
		if id = azure; id == "" {
			id = rand.Text()
		}
	}
	if azure == "" {
		azure = id
	}
	switch {
	case legacy == "" && client == "":
		legacy = azure
	case legacy == "":
		legacy = client
	case client == "":
		client = legacy
	}
	w.Header().Set(azureID, azure)
	w.Header().Set(azureLegacyID, legacy)
	if client != "" {
		w.Header().Set(azureClientID, client)
	}
	if trace := r.Header.Get("TraceId"); trace != "" {
		w.Header().Set("TraceId", trace)
	}
	return id, nil
}

// fields returns a request's header fields in the form that WSGI gives them:
// several of one name are one, with commas.
func fields(r *http.Request) [][2]string {
	pairs := make([][2]string, 0, len(r.Header)+1)
	pairs = append(pairs, [2]string{"Host", r.Host})
	for name, values := range r.Header {
		pairs = append(pairs, [2]string{name, strings.Join(values, ",")})
	}
	slices.SortFunc(pairs, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return pairs
}

// body reads the request's body.
func (h *Handler) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	tooLarge := atelier.Errorf(atelier.TooLarge, "the body is larger than %d bytes", h.maxBody).
		WithRemedy("Send less at a time, or raise --max-body of the model server.")
	if r.ContentLength > h.maxBody {
		return nil, tooLarge
	}
	// A length is a claim: room is made as the bytes come.
	const first = 64 << 10
	var b bytes.Buffer
	b.Grow(int(min(max(r.ContentLength, 0), first)) + bytes.MinRead)
	_, err := b.ReadFrom(http.MaxBytesReader(w, r.Body, h.maxBody))
	var large *http.MaxBytesError
	switch {
	case err == nil:
		return b.Bytes(), nil
	case errors.As(err, &large):
		return nil, tooLarge
	}
	return nil, atelier.Errorf(atelier.Invalid, "the request's body broke off: %w", err)
}

// notForwarded are fields of an answer that are the connection's.
var notForwarded = []string{"Connection", "Content-Length", "Keep-Alive", "Trailer", "Transfer-Encoding", "Upgrade"}

// answer sends what the script answered.
func (h *Handler) answer(w http.ResponseWriter, id string, a *Answer) {
	switch {
	case a.Message != "":
		h.fail(w, a.Status, atelier.Errorf(codeFor(a.Status), "%s", a.Message))
		return
	case a.Failed:
		what, function := "returned a "+a.Returned+", which is no JSON", "False" // as Azure's server has it
		if a.Raised != "" {
			what, function = "raised "+a.Raised, "True"
		}
		h.log.Error("run() failed", "request", id, "error", a.Error)
		for line := range strings.Lines(a.Traceback) {
			h.log.Error(strings.TrimRight(line, "\n"), "request", id)
		}
		w.Header().Set("X-Ms-Run-Function-Failed", function)
		h.write(w, http.StatusInternalServerError, errorBody{
			Message: "An unexpected error occurred in scoring script. Check the logs for more info.",
			Error:   "run() of the scoring script " + what, Code: atelier.Internal,
			Remedy: "Its log has the traceback, under the request id " + id + ".",
		})
		return
	case a.Status < 200 || a.Status > 599:
		h.fail(w, http.StatusInternalServerError, atelier.Errorf(atelier.Internal, "the scoring script answered with status %d, 200 to 599 was expected", a.Status))
		return
	}
	header := w.Header()
	header.Set("X-Ms-Run-Function-Failed", "False")
	replaced := map[string]bool{}
	for _, f := range a.Headers {
		name := http.CanonicalHeaderKey(f[0])
		if slices.Contains(notForwarded, name) {
			continue
		}
		if !replaced[name] {
			header.Del(name)
			replaced[name] = true
		}
		header.Add(name, f[1])
	}
	if a.Headers != nil && a.Status >= 500 {
		header.Set("X-Ms-Run-Function-Failed", "True")
	}
	header.Set("X-Ms-Run-Fn-Exec-Ms", strconv.FormatFloat(a.Took, 'f', 3, 64))
	if a.Headers == nil {
		h.send(w, a.Status, "application/json", a.Body)
		return
	}
	if header["Content-Type"] == nil {
		header["Content-Type"] = nil // none is guessed
	}
	h.send(w, a.Status, "", a.Body)
}

// codeFor is the code of a refusal that comes from the worker.
func codeFor(status int) atelier.Code {
	if status == http.StatusUnsupportedMediaType {
		return atelier.Unsupported
	}
	return atelier.Invalid
}

// statusOf is the status that failed answers with.
func statusOf(err error) int {
	var died *DiedError
	if errors.As(err, &died) {
		return http.StatusBadGateway
	}
	return atelier.CodeOf(err).HTTPStatus()
}

// failed tells of a request that no worker answered.
func (h *Handler) failed(w http.ResponseWriter, id string, err error) {
	var died *DiedError
	if errors.As(err, &died) {
		h.log.Error("a request failed", "request", id, "error", err)
		w.Header().Set("X-Ms-Run-Function-Failed", "True")
		h.write(w, http.StatusBadGateway, errorBody{
			Message: err.Error(), Error: err.Error(), Code: atelier.Unavailable,
			Remedy: "Its log tells more, under the request id " + id + "; a new worker takes its place.",
		})
		return
	}
	if atelier.CodeOf(err) == atelier.Timeout {
		h.log.Warn("a request failed", "request", id, "error", err)
		w.Header().Set("X-Ms-Run-Function-Failed", "True")
	}
	h.fail(w, 0, err)
}

type errorBody struct {
	Message string       `json:"message"`
	Error   string       `json:"error"`
	Code    atelier.Code `json:"code"`
	Field   string       `json:"field,omitempty"`
	Remedy  string       `json:"remedy,omitempty"`
}

// fail answers with an error; status 0 is that of its code.
func (h *Handler) fail(w http.ResponseWriter, status int, err error) {
	code := atelier.CodeOf(err)
	body := errorBody{Message: err.Error(), Error: err.Error(), Code: code}
	var e *atelier.Error
	if errors.As(err, &e) {
		body.Field, body.Remedy = e.Field, e.Remedy
	}
	if status == 0 {
		status = code.HTTPStatus()
	}
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	if w.Header().Get("X-Ms-Run-Function-Failed") == "" {
		w.Header().Set("X-Ms-Run-Function-Failed", "False")
	}
	h.write(w, status, body)
}

func (h *Handler) write(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil { // of strings and truth values: it does not happen
		status, body = http.StatusInternalServerError, []byte(`{"message":"the answer cannot be encoded"}`)
	}
	h.send(w, status, "application/json", body)
}

// send sends an answer. contentType "" leaves the field as it is.
func (h *Handler) send(w http.ResponseWriter, status int, contentType string, body []byte) {
	if contentType != "" {
		w.Header().Set("Content-Type", contentType)
	}
	if status >= http.StatusOK && status != http.StatusNoContent && status != http.StatusNotModified {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		h.log.Debug("a client did not take its answer", "error", err)
	}
}
