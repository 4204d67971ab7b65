package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving"
	"github.com/atelier-edge/atelier/serving/onnxruntime"
)

// serverConfig says how several models are held in one process.
type serverConfig struct {
	socket, name string
	memory       int64
}

func (c *serverConfig) flags(flags *flag.FlagSet) {
	flags.StringVar(&c.socket, "server", "", "hold several ONNX models, which are loaded and unloaded by PUT and DELETE /models/ID on this Unix `SOCKET`; needs --runtime")
	flags.StringVar(&c.name, "server-name", "", "what the server is called in messages, a `NAME`")
	flags.Int64Var(&c.memory, "memory", 0, "with --server: refuse models that would take more memory than these `BYTES` together (0: no limit)")
}

func (c *serverConfig) check(all *config) error {
	switch {
	case all.model != "" || all.script.script != "" || all.predictor.given() || all.golden != "" || all.measure:
		return errors.New("--server came with a model; models are loaded by PUT /models/ID on its socket")
	case c.memory < 0:
		return errors.New("--memory must not be negative")
	}
	return nil
}

// maxArgs bounds what a request to load a model may say, in bytes.
const maxArgs = 64 << 10

// server holds models. Each is served by run, as if it had a process of its own: with its
// own socket, session, batches, health and drain. What they share is the runtime's
// library and the memory that there is.
type server struct {
	ctx     context.Context // ends when the server does
	config  config
	library *onnxruntime.Library
	room    room
	log     *slog.Logger
	loading chan struct{} // held by the one model that is being loaded

	mu   sync.Mutex
	held map[string]*held // by id
}

// held is a model in a server.
type held struct {
	args   []string
	config config
	stop   context.CancelFunc
	ready  chan struct{} // closed when it serves
	ended  chan struct{} // closed when run has returned, for the reason err
	err    error
	memory int64 // what it was measured to take
	size   int64 // of its file
}

// serves reports whether the model serves.
func (h *held) serves() bool {
	select {
	case <-h.ended:
		return false
	default:
	}
	select {
	case <-h.ready:
		return true
	default:
		return false
	}
}

// runServer holds models until ctx ends.
func runServer(ctx context.Context, c config, log *slog.Logger) error {
	library, err := onnxruntime.Load(c.runtime)
	if err != nil {
		return &exitError{exitRuntime, err}
	}
	listener, err := listen("unix:" + strings.TrimPrefix(c.server.socket, "unix:"))
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w", c.server.socket, err)
	}
	models, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	s := &server{ctx: models, config: c, library: library, log: log, loading: make(chan struct{}, 1), held: map[string]*held{}}
	s.room = room{limit: c.server.memory, base: memoryOf(os.Getpid()), name: c.server.name}
	control := &http.Server{
		Handler: s.handler(), ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ReadHeaderTimeout: 10 * time.Second,
	}
	served := make(chan error, 1)
	go func() { served <- control.Serve(listener) }()
	log.Info("ready", "server", c.server.name, "runtime", library.Version(), "memory", atelier.FormatBytes(c.server.memory), "listen", c.server.socket)
	select {
	case err = <-served:
		err = fmt.Errorf("stopped listening: %w", err)
	case <-ctx.Done():
		log.Info("stopping")
	}
	end()
	errs := []error{err, control.Close()}
	s.mu.Lock()
	all := s.held
	s.mu.Unlock()
	for _, h := range all {
		<-h.ended
		errs = append(errs, h.err)
	}
	return errors.Join(errs...)
}

// handler answers on the control socket, which is the agent's alone.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/health/ready", func(w http.ResponseWriter, _ *http.Request) {
		s.write(w, http.StatusOK, map[string]bool{"ready": true})
	})
	mux.HandleFunc("GET /models", func(w http.ResponseWriter, _ *http.Request) {
		s.write(w, http.StatusOK, map[string]any{"models": s.models(), "memory_bytes": memoryOf(os.Getpid()), "limit_bytes": s.room.limit, "base_bytes": s.room.base})
	})
	mux.HandleFunc("PUT /models/{id}", s.put)
	mux.HandleFunc("DELETE /models/{id}", s.delete)
	return mux
}

func (s *server) write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("the agent did not take its answer", "error", err)
	}
}

// put loads a model, which serves when the answer comes. One that serves already with the
// same arguments stays.
func (s *server) put(w http.ResponseWriter, r *http.Request) {
	var asked atelier.ModelLoad
	if err := json.NewDecoder(io.LimitReader(r.Body, maxArgs)).Decode(&asked); err != nil {
		s.write(w, http.StatusBadRequest, atelier.ModelFailure{Exit: exitUsage, Reason: "the request to load a model cannot be read: " + err.Error()})
		return
	}
	memory, err := s.load(r.Context(), r.PathValue("id"), asked.Args)
	if err != nil {
		code := exitFailed
		var exit *exitError
		if errors.As(err, &exit) {
			code = exit.code
		}
		s.log.Error("a model was not loaded", "id", r.PathValue("id"), "error", err)
		s.write(w, http.StatusUnprocessableEntity, atelier.ModelFailure{Exit: code, Reason: strings.ReplaceAll(err.Error(), "\n", " ")})
		return
	}
	s.write(w, http.StatusOK, atelier.ModuleHealth{Memory: memory})
}

// load returns when the model serves, with what memory it takes.
func (s *server) load(ctx context.Context, id string, args []string) (int64, error) {
	args = append([]string{"--runtime", s.config.runtime}, args...)
	c, err := parse(args)
	if err != nil {
		return 0, err
	}
	if c.model == "" || c.measure || !strings.HasPrefix(c.listen, "unix:") {
		return 0, &exitError{exitUsage, errors.New("an ONNX model that listens on a Unix socket was expected")}
	}
	select {
	case s.loading <- struct{}{}:
		defer func() { <-s.loading }()
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-s.ctx.Done():
		return 0, errors.New("the server is stopping")
	}
	s.mu.Lock()
	h := s.held[id]
	s.mu.Unlock()
	if h != nil && h.serves() {
		if slices.Equal(h.args, args) {
			return h.memory, nil
		}
		return 0, &exitError{exitUsage, errors.New("it is loaded with other arguments already")}
	}
	if h != nil {
		s.unload(id) // it has ended
	}
	h = &held{args: args, config: c, ready: make(chan struct{}), ended: make(chan struct{})}
	if info, err := os.Stat(c.model); err == nil {
		h.size = info.Size()
	}
	if h.memory, err = s.admit(ctx, c.name+":"+c.version, h.size, args); err != nil {
		return 0, err
	}
	s.begin(id, h)
	select {
	case <-h.ready:
		return h.memory, nil
	case <-h.ended:
		s.unload(id)
		if h.err == nil {
			h.err = errors.New("it ended at once")
		}
		return 0, h.err
	case <-ctx.Done():
		s.unload(id) // whoever asked has gone
		return 0, ctx.Err()
	}
}

// admit returns what memory a model takes that there is room for.
func (s *server) admit(ctx context.Context, model string, size int64, args []string) (int64, error) {
	others := s.models()
	if err := s.room.fits(model, size, others, true); err != nil {
		return 0, err
	}
	// The process that tries it counts against the same limit while it runs. Above that the
	// whole group would be ended, so it ends a little before.
	most := int64(0)
	memory, err := measured(ctx, args, func(memory int64) bool {
		most = max(most, memory)
		return s.room.limit > 0 && memoryOf(os.Getpid())+memory > s.room.limit-s.room.limit/64
	})
	if errors.Is(err, errTooMuch) {
		free := s.room.free(others)
		return 0, &exitError{exitMemory, fmt.Errorf("%s takes more than the %s of memory that are left of the %s of server %s, its process at %s when it was ended: %s",
			model, atelier.FormatBytes(free), atelier.FormatBytes(s.room.limit), s.room.name, atelier.FormatBytes(most), s.room.taken(others))}
	}
	if err != nil {
		return 0, err
	}
	return memory, s.room.fits(model, memory, others, false)
}

// begin lets a model load and serve until it is unloaded or the server ends.
func (s *server) begin(id string, h *held) {
	ctx, cancel := context.WithCancel(s.ctx)
	h.stop = cancel
	c := h.config
	c.golden = "" // it has passed, by the same library on the same machine
	c.library, c.index = s.library, s.index
	c.memory = h.memory // in a process with others it cannot be told apart
	c.onReady = func() { close(h.ready) }
	s.mu.Lock()
	s.held[id] = h
	s.mu.Unlock()
	go func() {
		defer close(h.ended)
		h.err = run(ctx, c, s.log.With("model", c.name+":"+c.version))
		if h.err != nil {
			s.log.Error("a model has ended", "model", c.name, "version", c.version, "error", h.err)
		}
	}()
}

// unload ends a model and returns when its last request is answered.
func (s *server) unload(id string) {
	s.mu.Lock()
	h := s.held[id]
	s.mu.Unlock()
	if h == nil {
		return
	}
	h.stop()
	<-h.ended
	s.mu.Lock()
	if s.held[id] == h {
		delete(s.held, id)
	}
	s.mu.Unlock()
}

func (s *server) delete(w http.ResponseWriter, r *http.Request) {
	s.unload(r.PathValue("id"))
	w.WriteHeader(http.StatusNoContent)
}

// models returns what is loaded or being loaded.
func (s *server) models() []atelier.ServedModel {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]atelier.ServedModel, 0, len(s.held))
	for id, h := range s.held {
		list = append(list, atelier.ServedModel{ID: id, Name: h.config.name, Version: h.config.version, Ready: h.serves(), Memory: h.memory, Size: h.size})
	}
	slices.SortFunc(list, func(a, b atelier.ServedModel) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// index is what each model tells of those in the server.
func (s *server) index() []serving.IndexEntry {
	models := s.models()
	entries := make([]serving.IndexEntry, len(models))
	for i, m := range models {
		entries[i] = serving.NewIndexEntry(m.Name, m.Version, m.Ready, m.Memory)
	}
	return entries
}
