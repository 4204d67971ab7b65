package rest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
)

// headerRequest carries a request's id, in the answer always and in the request
// where the caller has one already.
const headerRequest = "X-Request-Id"

type contextKey int

const (
	logKey contextKey = iota
	secretKey
	workspaceKey
)

func logFrom(ctx context.Context) *slog.Logger {
	if l, ok := ctx.Value(logKey).(*slog.Logger); ok {
		return l
	}
	return slog.Default()
}

// secretFrom returns the credential that the caller showed, "" for none.
func secretFrom(ctx context.Context) string {
	s, _ := ctx.Value(secretKey).(string)
	return s
}

// observe gives every request an id, logs it when it is answered, and turns a
// panic into an answer.
func (s *server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := s.now()
		id := r.Header.Get(headerRequest)
		if !plainID(id) {
			id = strings.ToLower(rand.Text())
		}
		ctx := access.WithRequest(context.WithValue(r.Context(), logKey, s.log), id)
		caller := &access.Principal{Kind: access.Anonymous}
		ctx = access.WithSeen(ctx, caller)
		rec := &statusWriter{ResponseWriter: w}
		rec.Header().Set(headerRequest, id)
		defer func() {
			if v := recover(); v != nil {
				if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(v) // a handler ends the connection on purpose
				}
				p := problemOf(ctx, fmt.Errorf("panic: %v\n%s", v, debug.Stack()))
				if rec.status != 0 {
					panic(http.ErrAbortHandler) // half an answer must not look whole
				}
				p.write(rec)
			}
			s.log.LogAttrs(ctx, slog.LevelInfo, "request",
				slog.String("request", id), slog.String("method", r.Method), slog.String("path", r.URL.Path),
				slog.Int("status", rec.status), slog.Int64("bytes", rec.bytes),
				slog.Duration("took", s.now().Sub(start).Round(time.Microsecond)),
				slog.String("actor", caller.Actor()), slog.String("remote", r.RemoteAddr))
		}()
		next.ServeHTTP(rec, r.WithContext(ctx))
	})
}

// plainID reports whether a caller's own request id may go into logs and headers.
func plainID(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// secure sets the headers that keep browsers from doing more with an answer
// than show it.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
		if r.TLS != nil {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		next.ServeHTTP(w, r)
	})
}

// authenticate finds out who calls. A credential that is not valid is refused at
// once; a caller without one goes on as Anonymous, for the few routes that allow it.
func (s *server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		secret, err := credential(r)
		if err == nil && secret != "" {
			var p access.Principal
			if p, err = s.access.Authenticate(ctx, secret); err == nil {
				ctx = context.WithValue(access.WithPrincipal(ctx, p), secretKey, secret)
			}
		}
		if err != nil {
			problemOf(ctx, err).write(w)
			return
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// credential returns the token of a request: "Authorization: Bearer TOKEN", or
// Basic with the token as the password, for clients that know nothing else.
func credential(r *http.Request) (string, error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return "", nil
	}
	if scheme, token, ok := strings.Cut(header, " "); ok && strings.EqualFold(scheme, "Bearer") && token != "" {
		return strings.TrimSpace(token), nil
	}
	if _, password, ok := r.BasicAuth(); ok && password != "" {
		return password, nil
	}
	return "", atelier.Errorf(atelier.Unauthenticated, "the Authorization header holds no token").
		WithRemedy("Send 'Authorization: Bearer TOKEN', or Basic with the token as the password.")
}

// sameOrigin refuses what another site's page makes a browser send.
func sameOrigin(next http.Handler) http.Handler {
	guard := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := guard.Check(r); err != nil {
			problemOf(r.Context(), atelier.Errorf(atelier.Forbidden, "a page of another site made this request").
				WithRemedy("Call the API from a program, or from a page of this hub.")).write(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// problems answers what no route takes, with a problem like any other: net/http's
// mux would answer in plain text.
func problems(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		probe := &headOnly{header: http.Header{}}
		h.ServeHTTP(probe, r)
		p := &Problem{Status: http.StatusNotFound, Code: atelier.NotFound, Detail: fmt.Sprintf("there is no %q here", r.URL.Path),
			Remedy: "See /docs or /openapi.json for what there is."}
		if allow := probe.header.Get("Allow"); allow != "" {
			w.Header().Set("Allow", allow)
			p = &Problem{Status: http.StatusMethodNotAllowed, Code: atelier.Unsupported,
				Detail: fmt.Sprintf("%q does not take %s", r.URL.Path, r.Method), Remedy: "Use one of " + allow + "."}
		}
		p.complete(r.Context()).write(w)
	})
}

// headOnly keeps the headers of an answer and drops the rest.
type headOnly struct{ header http.Header }

func (h *headOnly) Header() http.Header         { return h.header }
func (h *headOnly) Write(b []byte) (int, error) { return len(b), nil }
func (h *headOnly) WriteHeader(int)             {}

// statusWriter remembers what was answered, for the log.
type statusWriter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

// Unwrap lets http.ResponseController reach flushing and deadlines.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}
