package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
)

const problemType = "application/problem+json"

// Problem is an error as callers see it: problem details of RFC 9457 with four
// members of ours, which are code, remedy, field and request.
type Problem struct {
	Type    string       `json:"type" doc:"Always about:blank: the code tells problems apart"`
	Title   string       `json:"title" doc:"The words of the HTTP status"`
	Status  int          `json:"status" doc:"The HTTP status"`
	Detail  string       `json:"detail" doc:"What came and what was expected"`
	Code    atelier.Code `json:"code" doc:"A stable word to branch on" enum:"invalid,unauthenticated,forbidden,not_found,exists,conflict,stale,in_use,too_large,unsupported,exhausted,no_space,unavailable,timeout,corrupt,internal"`
	Remedy  string       `json:"remedy,omitempty" doc:"What to do about it"`
	Field   string       `json:"field,omitempty" doc:"The part of the request that is wrong"`
	Request string       `json:"request,omitempty" doc:"Id of the request; the hub's log carries it too"`
}

// Error returns the detail; with GetStatus it makes Problem a huma.StatusError.
func (p *Problem) Error() string { return p.Detail }

// GetStatus returns the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType says under which media type huma writes a problem.
func (p *Problem) ContentType(string) string { return problemType }

// problemOf turns any error into what the caller of ctx may know of it. What is
// no *atelier.Error is logged with the request's id and told without detail.
func problemOf(ctx context.Context, err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		p.Request = access.RequestFrom(ctx)
		return p
	}
	var e *atelier.Error
	if !errors.As(err, &e) {
		if ctx.Err() != nil { // the caller has gone; nobody reads this
			e = atelier.Errorf(atelier.Timeout, "the request ended before it was answered")
		} else {
			e = atelier.Errorf(atelier.Internal, "the hub failed to answer this request")
			e.Err = err
		}
	}
	p = &Problem{Status: e.Code.HTTPStatus(), Code: e.Code, Detail: e.Message, Remedy: e.Remedy, Field: e.Field}
	request := slog.String("request", access.RequestFrom(ctx))
	switch {
	case e.Code == atelier.Internal:
		logFrom(ctx).LogAttrs(ctx, slog.LevelError, "request failed",
			request, slog.Any("error", errors.Join(errors.New(e.Message), e.Err)))
		p.Detail = "the hub failed to answer this request"
		p.Remedy = "Look for the request's id in the hub's log, and report it if the cause is not yours to mend."
	case p.Status >= 500:
		logFrom(ctx).LogAttrs(ctx, slog.LevelError, "request failed", request, slog.Any("error", e))
	case e.Code != atelier.NotFound: // which everybody asks for before they make something
		logFrom(ctx).LogAttrs(ctx, slog.LevelInfo, "request refused", request, slog.Any("error", e))
	}
	return p.complete(ctx)
}

func (p *Problem) complete(ctx context.Context) *Problem {
	p.Type, p.Title, p.Request = "about:blank", http.StatusText(p.Status), access.RequestFrom(ctx)
	return p
}

// write sends p as the answer.
func (p *Problem) write(w http.ResponseWriter) {
	body, err := json.Marshal(p)
	if err != nil { // strings and numbers always encode
		body = []byte(`{"type":"about:blank","status":500,"code":"internal"}`)
	}
	w.Header().Set("Content-Type", problemType)
	w.Header().Del("ETag")
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="atelier"`)
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // a caller that has gone is no failure of ours
}

// codeOf maps the statuses with which huma and net/http refuse a request.
func codeOf(status int) atelier.Code {
	switch status {
	case http.StatusUnauthorized:
		return atelier.Unauthenticated
	case http.StatusForbidden:
		return atelier.Forbidden
	case http.StatusNotFound:
		return atelier.NotFound
	case http.StatusRequestEntityTooLarge:
		return atelier.TooLarge
	case http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusUnsupportedMediaType:
		return atelier.Unsupported
	case http.StatusRequestTimeout:
		return atelier.Timeout
	}
	if status >= 500 {
		return atelier.Internal
	}
	return atelier.Invalid
}

// useProblems makes huma build every error as a Problem. huma keeps its maker of
// errors in a package variable; this package is its only user in the program.
var useProblems = sync.OnceFunc(func() {
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		return humaProblem(context.Background(), status, msg, errs)
	}
	huma.NewErrorWithContext = func(c huma.Context, status int, msg string, errs ...error) huma.StatusError {
		return humaProblem(c.Context(), status, msg, errs)
	}
})

// humaProblem is called for what handlers return and for what huma itself finds
// wrong with a request.
func humaProblem(ctx context.Context, status int, msg string, errs []error) *Problem {
	var details []*huma.ErrorDetail
	for _, err := range errs {
		var d huma.ErrorDetailer
		var e *atelier.Error
		switch {
		case errors.As(err, &e):
			return problemOf(ctx, e)
		case errors.As(err, &d):
			details = append(details, d.ErrorDetail())
		case status == http.StatusInternalServerError:
			return problemOf(ctx, err)
		}
	}
	if status == http.StatusUnprocessableEntity {
		status = http.StatusBadRequest // a malformed request is Invalid, whatever is malformed
	}
	p := &Problem{Status: status, Code: codeOf(status), Detail: msg}
	if len(details) > 0 {
		p.describe(details)
	}
	switch p.Code {
	case atelier.Unsupported:
		p.Remedy = "Send and accept application/json."
	case atelier.Invalid:
		p.Remedy = "Compare the request with /openapi.json."
	}
	return p.complete(ctx)
}

// describe tells the first few faults that huma found in a request, and names
// the field of the first.
func (p *Problem) describe(details []*huma.ErrorDetail) {
	const most = 5
	var all []string
	for i, d := range details {
		place, field := d.Location, d.Location
		for _, prefix := range []string{"body.", "query.", "header.", "path."} {
			field = strings.TrimPrefix(field, prefix)
		}
		message := d.Message
		var missing string
		if n, _ := fmt.Sscanf(message, "expected required property %s to be present", &missing); n == 1 {
			field = strings.TrimPrefix(strings.TrimPrefix(place+"."+missing, "body."), ".")
			message = "is required"
		} else if message == "unexpected property" {
			message = "is not known here"
		}
		if i == 0 {
			p.Field = field
		}
		if i == most {
			all = append(all, fmt.Sprintf("and %d more", len(details)-most))
			break
		}
		all = append(all, strings.TrimSpace(field+" "+message))
	}
	p.Detail = strings.Join(all, "; ")
}
