// Package distribution serves the workspaces' container registries to container
// tools: OCI Distribution 1.1 below /v2/, where the repository NAME of the workspace
// WS is called WS/NAME.
//
// Callers show an access token as the password of Basic, or as a Bearer token; or they
// fetch a token that is good for a few minutes and for what they name (see token.go),
// as tools do that docker's login was made for. Whatever they show, every request asks
// access.Authorize before anything is read or changed. Errors have OCI's form. What a
// registry promises is told in package images; this one knows HTTP only.
package distribution

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/internal/patient"
)

// Config says what is served. Fields are required unless they say otherwise.
type Config struct {
	Images *images.Registry
	Access *access.Authority
	Log    *slog.Logger
	Now    func() time.Time // nil for time.Now
	Stall  time.Duration    // how long a transfer may stand still; 0 for patient.Stall
}

// API is an http.Handler of /v2/ and all below it.
type API struct {
	images *images.Registry
	access *access.Authority
	log    *slog.Logger
	now    func() time.Time
	stall  time.Duration
	key    [32]byte // seals tokens; another one with each start of the hub
}

// New returns the API.
func New(c Config) *API {
	a := &API{images: c.Images, access: c.Access, log: c.Log, now: c.Now, stall: c.Stall}
	if a.now == nil {
		a.now = time.Now
	}
	if a.stall == 0 {
		a.stall = patient.Stall
	}
	_, _ = rand.Read(a.key[:]) // never fails since Go 1.24; it ends the program itself
	return a
}

// request is a request on its way through the API.
type request struct {
	*http.Request
	w         http.ResponseWriter
	route     route
	caller    caller
	workspace atelier.Workspace
}

// repository is the repository's name within its workspace.
func (r *request) repository() string { return r.route.repository }

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if req.URL.Path == tokenPath {
		a.serveToken(w, req)
		return
	}
	r := &request{Request: req, w: w}
	if err := a.serve(r); err != nil {
		a.fail(r, err)
	}
}

func (a *API) serve(r *request) error {
	route, misnamed := parseRoute(r.URL.Path)
	r.route = route
	var err error
	if r.caller, err = a.authenticate(r.Context(), r.Request); err != nil {
		return err
	}
	if r.caller.principal.Kind == access.Anonymous {
		return atelier.Errorf(atelier.Unauthenticated, "this needs a token, and none came").
			WithRemedy("Log in with any user name and an access token of the hub as the password.")
	}
	r.Request = r.WithContext(access.WithPrincipal(r.Context(), r.caller.principal))
	if misnamed != nil {
		return misnamed
	}
	verbs, ok := routes[route.kind]
	if !ok {
		return atelier.Errorf(atelier.NotFound, "there is no %.200q here", r.URL.Path)
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	op, ok := verbs[method]
	if !ok {
		return errMethod{verbs}
	}
	if op.do == nil { // the base, which tells that the caller is known
		return answerJSON(r.w, http.StatusOK, struct{}{})
	}
	if !r.caller.may(route.name(), scopeOf(r.Method, route.kind)) {
		return errScope{}
	}
	if r.workspace, err = a.allow(r.Context(), op.verb, route.workspace, route.repository); err != nil {
		return err
	}
	if err := images.Elsewhere(r.workspace); err != nil {
		return err
	}
	return op.do(a, r)
}

// allow asks whether the caller may do verb to a repository. A workspace that is not
// there and one that the caller may not touch look the same.
func (a *API) allow(ctx context.Context, verb access.Verb, workspace, repository string) (atelier.Workspace, error) {
	w, err := a.images.Workspace(ctx, workspace)
	if err != nil {
		return w, err
	}
	err = a.access.Authorize(ctx, verb, access.Object{Workspace: w.ID, Kind: "repository", ID: repository})
	if p := access.PrincipalFrom(ctx); err != nil && p.Workspace != "" && p.Workspace != w.ID {
		err = images.ErrNoRepository(workspace)
	}
	return w, err
}

// operation is what a method does to a kind of thing.
type operation struct {
	verb access.Verb
	do   func(*API, *request) error
}

// routes are all that there is, by kind of thing and method; HEAD is GET.
var routes = map[kind]map[string]operation{
	kindBase: {http.MethodGet: {}},
	kindBlob: {
		http.MethodGet:    {access.ImageDownload, (*API).getBlob},
		http.MethodDelete: {access.ImageDelete, (*API).deleteBlob},
	},
	kindUploads: {http.MethodPost: {access.ImageUpload, (*API).beginUpload}},
	kindUpload: {
		http.MethodGet:    {access.ImageUpload, (*API).uploadStatus},
		http.MethodPatch:  {access.ImageUpload, (*API).appendUpload},
		http.MethodPut:    {access.ImageUpload, (*API).finishUpload},
		http.MethodDelete: {access.ImageUpload, (*API).cancelUpload},
	},
	kindManifest: {
		http.MethodGet:    {access.ImageShow, (*API).getManifest},
		http.MethodPut:    {access.ImagePush, (*API).putManifest},
		http.MethodDelete: {access.ImageDelete, (*API).deleteManifest},
	},
	kindTags:      {http.MethodGet: {access.ImageList, (*API).listTags}},
	kindReferrers: {http.MethodGet: {access.ImageShow, (*API).listReferrers}},
}

// errMethod says that a thing does not take the method.
type errMethod struct{ takes map[string]operation }

func (errMethod) Error() string { return "the method is not for this" }

// errScope says that the caller's token is not for this; another one may be.
type errScope struct{}

func (errScope) Error() string { return "the token was not fetched for this" }

// failure is an error in OCI's form.
type failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  string `json:"detail,omitempty"`
}

// fail answers with an error.
func (a *API) fail(r *request, err error) {
	var method errMethod
	var scope errScope
	var e *atelier.Error
	request := slog.String("request", access.RequestFrom(r.Context()))
	switch {
	case errors.As(err, &method):
		for m := range method.takes {
			r.w.Header().Add("Allow", m)
		}
		a.answer(r, http.StatusMethodNotAllowed, failure{Code: "UNSUPPORTED", Message: r.Method + " is not for this"})
		return
	case errors.As(err, &scope):
		a.challenge(r, "insufficient_scope")
		a.answer(r, http.StatusUnauthorized, failure{Code: "UNAUTHORIZED", Message: err.Error()})
		return
	case !errors.As(err, &e) && r.Context().Err() != nil: // the caller has gone; nobody reads this
		e = atelier.Errorf(atelier.Timeout, "the request ended before it was answered")
	case !errors.As(err, &e):
		e = atelier.Errorf(atelier.Internal, "the hub failed to answer this request")
		a.log.LogAttrs(r.Context(), slog.LevelError, "request failed", request, slog.Any("error", err))
	case e.Code.HTTPStatus() >= 500:
		a.log.LogAttrs(r.Context(), slog.LevelError, "request failed", request, slog.Any("error", e))
	case e.Code != atelier.NotFound:
		a.log.LogAttrs(r.Context(), slog.LevelInfo, "request refused", request, slog.Any("error", e))
	}
	status, code := e.Code.HTTPStatus(), codeOf(e)
	switch {
	case e.Code == atelier.Unauthenticated:
		a.challenge(r, "")
	case e.Code == atelier.Internal:
		e = atelier.Errorf(atelier.Internal, "the hub failed to answer this request").
			WithRemedy("Look for the request's id, %s, in the hub's log.", access.RequestFrom(r.Context()))
	case e.Field == images.FieldRange:
		status = http.StatusRequestedRangeNotSatisfiable
	case e.Code == atelier.Conflict && (e.Field == "" || e.Field == images.FieldQuota): // the images are elsewhere, or too many
		status = http.StatusForbidden
	}
	a.answer(r, status, failure{Code: code, Message: e.Message, Detail: e.Remedy})
}

func (a *API) answer(r *request, status int, f failure) {
	r.w.Header().Del("ETag")
	if err := answerJSON(r.w, status, map[string][]failure{"errors": {f}}); err != nil {
		a.log.LogAttrs(r.Context(), slog.LevelError, "request failed", slog.Any("error", err))
	}
}

// codes are OCI's codes of what Field says.
var codes = map[atelier.Code]map[string]string{
	atelier.NotFound: {
		images.FieldName: "NAME_UNKNOWN", images.FieldBlob: "BLOB_UNKNOWN", images.FieldUpload: "BLOB_UPLOAD_UNKNOWN", images.FieldManifest: "MANIFEST_UNKNOWN",
	},
	atelier.Invalid: {
		images.FieldName: "NAME_INVALID", images.FieldDigest: "DIGEST_INVALID", images.FieldTag: "MANIFEST_INVALID", images.FieldManifest: "MANIFEST_INVALID",
		images.FieldParts: "MANIFEST_BLOB_UNKNOWN", images.FieldUpload: "BLOB_UPLOAD_INVALID", images.FieldRange: "BLOB_UPLOAD_INVALID", images.FieldSize: "SIZE_INVALID",
	},
	atelier.TooLarge: {images.FieldManifest: "MANIFEST_INVALID", images.FieldSize: "SIZE_INVALID"},
}

// codeOf returns OCI's code for an error.
func codeOf(e *atelier.Error) string {
	if code, ok := codes[e.Code][e.Field]; ok {
		return code
	}
	switch e.Code {
	case atelier.Unauthenticated:
		return "UNAUTHORIZED"
	case atelier.Forbidden, atelier.Conflict, atelier.InUse:
		return "DENIED"
	case atelier.NotFound:
		return "NAME_UNKNOWN"
	case atelier.Exhausted, atelier.Unavailable:
		return "TOOMANYREQUESTS"
	case atelier.Invalid, atelier.Unsupported, atelier.TooLarge:
		return "UNSUPPORTED"
	}
	return "UNKNOWN"
}

func answerJSON(w http.ResponseWriter, status int, v any) error {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	body, err := json.Marshal(v)
	if err != nil {
		return atelier.Errorf(atelier.Internal, "encode an answer: %w", err)
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // a caller that has gone is no failure of ours
	return nil
}
