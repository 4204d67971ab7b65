package rest

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/registry"
)

// inWorkspace begins the path of everything that belongs to a workspace.
const inWorkspace = "/v1/workspaces/{ws}"

const (
	maxBody      = 1 << 20          // bytes of a JSON body
	bodyPatience = 30 * time.Second // for a JSON body to arrive
)

// operation describes one route: what OpenAPI tells of it, and what register
// does before its handler runs.
type operation struct {
	ID          string // such as "list-models"; unique, and part of the API
	Method      string
	Path        string
	Tag         string // the heading under which /docs lists it
	Summary     string // one line in the imperative
	Description string // more, in Markdown; may be empty

	// Verb is what access.Authorize is asked before anything else.
	Verb access.Verb
	// Kind is the kind of the object, as package catalog calls it.
	Kind string
	// Object is the path parameter that names the object, "" for a collection;
	// "model/number" where it takes two.
	Object string
	// Public routes ask neither for a credential nor for permission. They have no Verb.
	Public bool

	Status int            // of success; 200, or 204 without a body, unless set
	Errors []atelier.Code // those that are particular to this route
	// Watch lets the route answer the events of its Kind with ?watch=true; those of
	// the one resource where Object names one.
	Watch bool
	// Stream routes read their body, of this media type, themselves as it comes;
	// see Raw.
	Stream string
	// Harmless routes change nothing, so that a POST needs no Idempotency-Key.
	Harmless bool
	// Reply is the media type of the answer where it is not JSON.
	Reply string
	// Ranges tells that parts of the answer can be asked for; see server.serveBlob.
	Ranges bool
}

// WorkspaceParam is the part of an input that names the workspace.
type WorkspaceParam struct {
	Workspace string `path:"ws" maxLength:"63" doc:"Name or id of the workspace"`
}

// workspaceOf returns the id of the workspace that the request is about, "" for
// the hub's own routes.
func workspaceOf(ctx context.Context) string {
	ws, _ := ctx.Value(workspaceKey).(atelier.Workspace)
	return ws.ID
}

// register adds a route. See the package comment for what it sees to.
func register[I, O any](s *server, api huma.API, op operation, handler func(context.Context, *I) (*O, error)) {
	h := huma.Operation{
		OperationID: op.ID, Method: op.Method, Path: op.Path, Summary: op.Summary, Description: op.Description,
		Tags: []string{op.Tag}, DefaultStatus: op.Status, Errors: op.statuses(),
		MaxBodyBytes: -1, BodyReadTimeout: -1, // readBody below has done both
		Security: []map[string][]string{{"bearer": {}}, {"basic": {}}},
	}
	if op.Public {
		h.Security = []map[string][]string{}
	} else {
		h.Middlewares = append(h.Middlewares, s.guard(op))
	}
	if op.Watch {
		h.Middlewares = append(h.Middlewares, s.watch(op))
	}
	if op.Stream != "" {
		h.RequestBody = &huma.RequestBody{Required: true, Content: bytesOf(op.Stream)}
	} else if op.Method != http.MethodGet && op.Method != http.MethodHead {
		h.Middlewares = append(h.Middlewares, s.readBody)
		if op.idempotent() {
			h.Middlewares = append(h.Middlewares, s.idempotent)
			h.Parameters = append(h.Parameters, idempotencyParam)
		}
	}
	op.describeReply(&h)
	huma.Register(api, h, func(ctx context.Context, in *I) (*O, error) {
		out, err := handler(ctx, in)
		if err != nil {
			return nil, problemOf(ctx, err)
		}
		return out, nil
	})
}

// idempotent reports whether the route honours Idempotency-Key: every POST does
// whose answer can be kept and whose caller is known.
func (op operation) idempotent() bool {
	return op.Method == http.MethodPost && !op.Public && op.Stream == "" && op.Reply == "" && !op.Harmless
}

// statuses lists the HTTP statuses of the failures that the route may answer.
func (op operation) statuses() []int {
	codes := append([]atelier.Code{atelier.Invalid, atelier.Internal}, op.Errors...)
	if !op.Public {
		codes = append(codes, atelier.Unauthenticated, atelier.Forbidden, atelier.NotFound)
	}
	if op.Method != http.MethodGet && op.Method != http.MethodHead {
		codes = append(codes, atelier.TooLarge)
	}
	if op.idempotent() {
		codes = append(codes, atelier.Conflict)
	}
	var all []int
	for _, c := range codes {
		all = append(all, c.HTTPStatus())
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// describeReply tells OpenAPI of an answer that is not, or not only, JSON.
func (op operation) describeReply(h *huma.Operation) {
	var content map[string]*huma.MediaType
	switch {
	case op.Reply != "":
		content = bytesOf(op.Reply)
	case op.Watch:
		content = map[string]*huma.MediaType{
			"application/json": {}, // huma fills in the schema
			sseType:            {Schema: &huma.Schema{Type: huma.TypeString, Description: "Events, one JSON object after each data:"}},
		}
	default:
		return
	}
	status := max(op.Status, http.StatusOK)
	h.Responses = map[string]*huma.Response{strconv.Itoa(status): {Description: http.StatusText(status), Content: content}}
	if op.Ranges {
		h.Responses["206"] = &huma.Response{Description: "The part that the Range header asks for", Content: content}
		h.Responses["416"] = &huma.Response{Description: "There is no such part"}
	}
}

// bytesOf is the content of a body or an answer that is no JSON.
func bytesOf(mediaType string) map[string]*huma.MediaType {
	return map[string]*huma.MediaType{mediaType: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}}
}

// guard asks access before anything else happens.
func (s *server) guard(op operation) func(huma.Context, func(huma.Context)) {
	return func(c huma.Context, next func(huma.Context)) {
		object := access.Object{Kind: op.Kind}
		if op.Object != "" {
			params := strings.Split(op.Object, "/")
			for i, p := range params {
				params[i] = c.Param(p)
			}
			object.ID = strings.Join(params, "/")
		}
		ctx, err := s.allow(c.Context(), op.Verb, c.Param("ws"), object)
		if err != nil {
			fail(c, err)
			return
		}
		next(huma.WithContext(c, ctx))
	}
}

// allow asks whether the caller may do verb to object in the workspace that ws
// names ("" for the hub's own), and returns a context that carries the
// workspace. Anonymous callers are refused before the database is asked. A
// workspace that is not there and one that the caller may not touch look the same.
func (s *server) allow(ctx context.Context, verb access.Verb, ws string, object access.Object) (context.Context, error) {
	p := access.PrincipalFrom(ctx)
	if p.Kind == access.Anonymous {
		return ctx, atelier.Errorf(atelier.Unauthenticated, "this needs a token, and none came").
			WithRemedy("Send 'Authorization: Bearer TOKEN'; 'atelier login' stores one for the command line.")
	}
	if ws == "" {
		return ctx, s.access.Authorize(ctx, verb, object)
	}
	w, err := s.registry.Workspace(ctx, ws)
	if err != nil {
		return ctx, err
	}
	object.Workspace = w.ID
	if object.Kind == "workspace" {
		object.ID = w.ID
	}
	err = s.access.Authorize(ctx, verb, object)
	if err != nil && p.Workspace != "" && p.Workspace != w.ID {
		err = registry.ErrNoWorkspace(ws)
	}
	return context.WithValue(ctx, workspaceKey, w), err
}

// readBody reads a JSON body whole, within bounds of size and time. Then it lifts
// the deadline: left in place it would end a request that works for long. Where it
// refuses the body the deadline stays, since net/http goes on reading.
func (s *server) readBody(c huma.Context, next func(huma.Context)) {
	_ = c.SetReadDeadline(time.Now().Add(bodyPatience)) // not every transport has deadlines
	body, err := io.ReadAll(io.LimitReader(c.BodyReader(), maxBody+1))
	switch {
	case err != nil:
		fail(c, atelier.Errorf(atelier.Timeout, "the body of the request did not arrive whole: %w", err))
	case len(body) > maxBody:
		fail(c, atelier.Errorf(atelier.TooLarge, "the body has more than %d bytes", maxBody).
			WithRemedy("Send content to …/blobs, and name it by its digest here."))
	default:
		_ = c.SetReadDeadline(time.Time{})
		next(&bodyContext{humaContext: c, body: body})
	}
}

// humaContext lets the contexts of this package embed huma's under another name
// than that of its method Context.
type humaContext huma.Context

// bodyContext is a request whose body has been read.
type bodyContext struct {
	humaContext
	body []byte
}

func (c *bodyContext) BodyReader() io.Reader { return bytes.NewReader(c.body) }

// Unwrap lets humago find its own context.
func (c *bodyContext) Unwrap() huma.Context { return c.humaContext }

// bodyOf returns the body that readBody read.
func bodyOf(c huma.Context) []byte {
	for {
		switch v := c.(type) {
		case *bodyContext:
			return v.body
		case interface{ Unwrap() huma.Context }:
			c = v.Unwrap()
		default:
			return nil
		}
	}
}

// fail answers a request from within huma's middleware.
func fail(c huma.Context, err error) {
	_, w := humago.Unwrap(c)
	problemOf(c.Context(), err).write(w)
}

// mount adds a plain handler under a pattern of net/http that may hold {ws}.
// It is guarded like any route: verb is asked on an object of kind.
func (s *server) mount(pattern string, verb access.Verb, kind string, h http.Handler) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		ctx, err := s.allow(r.Context(), verb, r.PathValue("ws"), access.Object{Kind: kind})
		if err != nil {
			problemOf(ctx, err).write(w)
			return
		}
		h.ServeHTTP(w, r.WithContext(ctx))
	})
}
