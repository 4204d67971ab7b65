// Package serve is the driver's side of the protocol that package driver describes: it gives a
// Target to whoever asks on a socket.
package serve

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/targets"
	"github.com/atelier-edge/atelier/targets/driver"
)

// Options say what is served.
type Options struct {
	Target  targets.Target
	Version string
	Socket  string
	// Idle is how long nobody may ask anything until Run returns.
	Idle time.Duration
}

// patience bounds how long requests may take to end when Run returns.
const patience = 10 * time.Second

// Run serves the target until ctx ends, somebody asks for the end, or nobody has asked anything
// for a while. Another driver on the same socket is an error with the code InUse.
func Run(ctx context.Context, opts Options) error {
	if err := durable.MkdirAll(durable.OS{}, filepath.Dir(opts.Socket), 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(opts.Socket+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return durable.Explain(err, "lock "+opts.Socket)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return atelier.Errorf(atelier.InUse, "another driver serves %s", opts.Socket)
	}
	if err := os.Remove(opts.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return durable.Explain(err, "remove "+opts.Socket)
	}
	mask := syscall.Umask(0o177)
	l, err := net.Listen("unix", opts.Socket)
	syscall.Umask(mask)
	if err != nil {
		return durable.Explain(err, "listen on "+opts.Socket)
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	s := &server{opts: opts, end: end}
	s.last.Store(time.Now().UnixNano())
	h := http.Server{Handler: s.handler(), ReadHeaderTimeout: patience, BaseContext: func(net.Listener) context.Context { return ctx }}
	failed := make(chan error, 1)
	go func() { failed <- h.Serve(l) }() // until Shutdown
	s.awaitEnd(ctx)
	end()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	err = h.Shutdown(bounded)
	if served := <-failed; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

type server struct {
	opts   Options
	end    context.CancelFunc
	active atomic.Int64
	last   atomic.Int64 // when a request last ended, in nanoseconds since 1970
}

// awaitEnd returns when ctx ends, or nobody has asked anything for a while.
func (s *server) awaitEnd(ctx context.Context) {
	ticker := time.NewTicker(max(s.opts.Idle/4, 10*time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if s.active.Load() == 0 && time.Since(time.Unix(0, s.last.Load())) > s.opts.Idle {
				return
			}
		}
	}
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, do func(w http.ResponseWriter, r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			s.active.Add(1)
			defer func() {
				s.last.Store(time.Now().UnixNano())
				s.active.Add(-1)
			}()
			r.Body = http.MaxBytesReader(w, r.Body, driver.MaxBody)
			answer, err := do(w, r)
			if err != nil {
				fail(w, err)
			} else if answer != nil {
				write(w, http.StatusOK, answer)
			}
		})
	}
	t := s.opts.Target
	done := struct{}{}
	handle("GET /v1", func(http.ResponseWriter, *http.Request) (any, error) {
		return driver.Hello{Protocol: driver.Protocol, Kind: t.Kind(), Version: s.opts.Version}, nil
	})
	handle("POST /v1/end", func(http.ResponseWriter, *http.Request) (any, error) {
		s.end()
		return done, nil
	})
	handle("GET /v1/instances", func(_ http.ResponseWriter, r *http.Request) (any, error) { return t.List(r.Context()) })
	handle("PUT /v1/instances/{id}", func(_ http.ResponseWriter, r *http.Request) (any, error) {
		var spec targets.Spec
		if err := read(r, &spec); err != nil {
			return nil, err
		}
		if id := r.PathValue("id"); spec.ID != id {
			return nil, atelier.Errorf(atelier.Invalid, "the specification is of module %.80q, and module %.80q was asked for", spec.ID, id)
		}
		return done, t.Start(r.Context(), spec)
	})
	handle("GET /v1/instances/{id}", func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return t.Status(r.Context(), r.PathValue("id"))
	})
	handle("DELETE /v1/instances/{id}", func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return done, t.Remove(r.Context(), r.PathValue("id"))
	})
	handle("POST /v1/instances/{id}/stop", func(_ http.ResponseWriter, r *http.Request) (any, error) {
		grace, err := time.ParseDuration(r.URL.Query().Get("grace"))
		if err != nil {
			return nil, atelier.Errorf(atelier.Invalid, "the grace is no duration: %w", err)
		}
		return done, t.Stop(r.Context(), r.PathValue("id"), grace)
	})
	handle("GET /v1/instances/{id}/wait", func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return t.Wait(r.Context(), r.PathValue("id"))
	})
	handle("POST /v1/instances/{id}/probe", func(_ http.ResponseWriter, r *http.Request) (any, error) {
		p, ok := t.(targets.Prober)
		if !ok {
			return nil, atelier.Errorf(atelier.Unsupported, "target %s cannot run commands in modules", t.Kind())
		}
		var c driver.Command
		if err := read(r, &c); err != nil {
			return nil, err
		}
		if len(c.Command) == 0 {
			return nil, atelier.Errorf(atelier.Invalid, "the probe has no command")
		}
		return done, p.Probe(r.Context(), r.PathValue("id"), c.Command)
	})
	handle("GET /v1/instances/{id}/log", func(w http.ResponseWriter, r *http.Request) (any, error) {
		most, err := strconv.ParseInt(r.URL.Query().Get("max"), 10, 64)
		if err != nil {
			return nil, atelier.Errorf(atelier.Invalid, "the size is no number: %w", err)
		}
		log, err := t.Log(r.Context(), r.PathValue("id"), most)
		if err != nil {
			return nil, err
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, err = io.Copy(w, log)
		if err = errors.Join(err, log.Close()); err != nil {
			panic(http.ErrAbortHandler) // what was sent is not all of it, and the client must see that
		}
		return nil, nil
	})
	return mux
}

// read reads a request's body.
func read(r *http.Request, v any) error {
	if err := json.NewDecoder(r.Body).Decode(v); err != nil {
		return atelier.Errorf(atelier.Invalid, "the request cannot be read: %w", err)
	}
	return nil
}

// fail answers with an error.
func fail(w http.ResponseWriter, err error) {
	code := atelier.CodeOf(err)
	told := &atelier.Error{Code: code, Message: err.Error()}
	var known *atelier.Error
	if errors.As(err, &known) {
		told.Remedy, told.Field = known.Remedy, known.Field
	}
	write(w, code.HTTPStatus(), told)
}

func write(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"code":"internal","message":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // a client that has gone misses nothing
}
