package agenttest

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/targets"
)

// Behaviour is what an instance does once it is started.
type Behaviour struct {
	StartError error         // Start fails
	Exit       *targets.Exit // it ends at once
	Unready    bool          // it runs and never gets ready
	Health     atelier.ModuleHealth
}

// Target is a targets.Target whose instances are entries in a map. It outlives
// the runner that uses it, as real instances do.
type Target struct {
	// Behave says what an instance does; nil means that it works.
	Behave func(targets.Spec) Behaviour
	// Before is called before each operation; an error makes it fail.
	Before func(operation, id string) error
	// OnLoad says whether a model can be loaded into an instance that holds several.
	OnLoad func(id string) error
	// Listen makes instances answer health probes on their sockets.
	Listen bool

	mu        sync.Mutex
	instances map[string]*held
	starts    map[string]int
}

type held struct {
	spec   targets.Spec
	status targets.Status
	ended  chan struct{}
	server *http.Server
	models map[string]string // the sockets of models that were loaded into it, by id
}

var _ targets.Target = (*Target)(nil)

// NewTarget returns a target without instances.
func NewTarget() *Target {
	return &Target{instances: map[string]*held{}, starts: map[string]int{}}
}

// Kind implements targets.Target.
func (t *Target) Kind() string { return "process" }

func (t *Target) before(operation, id string) error {
	if t.Before == nil {
		return nil
	}
	return t.Before(operation, id)
}

// Start implements targets.Target.
func (t *Target) Start(_ context.Context, spec targets.Spec) error {
	if err := t.before("start", spec.ID); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.instances[spec.ID]; h != nil && h.status.Phase == targets.Running {
		return nil
	}
	var b Behaviour
	if t.Behave != nil {
		b = t.Behave(spec)
	}
	if b.StartError != nil {
		return b.StartError
	}
	t.starts[spec.ID]++
	h := &held{spec: spec, ended: make(chan struct{}), status: targets.Status{ID: spec.ID, Phase: targets.Running, Started: time.Now()}}
	t.instances[spec.ID] = h
	if b.Exit != nil {
		h.exit(*b.Exit)
		return nil
	}
	if t.Listen {
		return h.listen()
	}
	return nil
}

// listen answers everything on the instance's socket with 200.
func (h *held) listen() error {
	if err := os.RemoveAll(h.spec.Socket); err != nil {
		return err
	}
	l, err := net.Listen("unix", h.spec.Socket)
	if err != nil {
		return err
	}
	h.server = &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	go func() { _ = h.server.Serve(l) }() // exit closes it
	return nil
}

func (h *held) exit(e targets.Exit) {
	if h.status.Phase == targets.Running {
		h.status.Phase, h.status.Exit, h.models = targets.Exited, &e, nil
		close(h.ended)
		if h.server != nil {
			_ = h.server.Close() // nothing answers any more
		}
	}
}

// Ready tells whether the running instance that listens on socket is ready, and what
// it says of itself.
func (t *Target) Ready(_ context.Context, socket string) (atelier.ModuleHealth, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.instances {
		if h.status.Phase != targets.Running {
			continue
		}
		for _, path := range h.models {
			if path == socket {
				return atelier.ModuleHealth{}, nil
			}
		}
		if h.spec.Socket != socket {
			continue
		}
		var b Behaviour
		if t.Behave != nil {
			b = t.Behave(h.spec)
		}
		if !b.Unready {
			return b.Health, nil
		}
	}
	return atelier.ModuleHealth{}, errors.New("not ready")
}

// Load lets the instance that listens on socket load a model; OnLoad says how that goes.
func (t *Target) Load(_ context.Context, socket, id string, args []string) error {
	if t.OnLoad != nil {
		if err := t.OnLoad(id); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.instances {
		if h.spec.Socket != socket || h.status.Phase != targets.Running {
			continue
		}
		if h.models == nil {
			h.models = map[string]string{}
		}
		at := slices.Index(args, "--listen")
		h.models[id] = strings.TrimPrefix(args[at+1], "unix:")
		return nil
	}
	return errors.New("no server answers")
}

// Unload takes a model out of the instance that listens on socket.
func (t *Target) Unload(_ context.Context, socket, id string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.instances {
		if h.spec.Socket == socket && h.status.Phase == targets.Running {
			delete(h.models, id)
			return nil
		}
	}
	return errors.New("no server answers")
}

// Loaded returns the ids of the models in an instance.
func (t *Target) Loaded(instance string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.instances[instance]; h != nil {
		return slices.Sorted(maps.Keys(h.models))
	}
	return nil
}

// Crash ends an instance; an empty id ends all, as a reboot does.
func (t *Target) Crash(id string, e targets.Exit) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for have, h := range t.instances {
		if id == "" || id == have {
			h.exit(e)
		}
	}
}

// Running returns the ids of the instances that run.
func (t *Target) Running() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ids []string
	for id, h := range t.instances {
		if h.status.Phase == targets.Running {
			ids = append(ids, id)
		}
	}
	return ids
}

// Starts returns how often the instance was started.
func (t *Target) Starts(id string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.starts[id]
}

// Stop implements targets.Target.
func (t *Target) Stop(_ context.Context, id string, _ time.Duration) error {
	if err := t.before("stop", id); err != nil {
		return err
	}
	h, err := t.find(id)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	h.exit(targets.Exit{Time: time.Now(), Code: -1, Signal: "terminated"})
	return nil
}

// Remove implements targets.Target.
func (t *Target) Remove(_ context.Context, id string) error {
	if err := t.before("remove", id); err != nil {
		return err
	}
	if _, err := t.find(id); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.instances, id)
	return nil
}

func (t *Target) find(id string) (*held, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.instances[id]; h != nil {
		return h, nil
	}
	return nil, atelier.Errorf(atelier.NotFound, "there is no instance %s", id)
}

// Status implements targets.Target.
func (t *Target) Status(_ context.Context, id string) (targets.Status, error) {
	h, err := t.find(id)
	if err != nil {
		return targets.Status{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return h.status, nil
}

// List implements targets.Target.
func (t *Target) List(context.Context) ([]targets.Status, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []targets.Status
	for _, h := range t.instances {
		list = append(list, h.status)
	}
	return list, nil
}

// Wait implements targets.Target.
func (t *Target) Wait(ctx context.Context, id string) (targets.Status, error) {
	h, err := t.find(id)
	if err != nil {
		return targets.Status{}, err
	}
	select {
	case <-h.ended:
	case <-ctx.Done():
		return targets.Status{}, ctx.Err()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return h.status, nil
}

// Log implements targets.Target.
func (t *Target) Log(_ context.Context, id string, _ int64) (io.ReadCloser, error) {
	if _, err := t.find(id); err != nil {
		return nil, err
	}
	return io.NopCloser(strings.NewReader("log of " + id)), nil
}

// Gateway is a gateway that only remembers.
type Gateway struct {
	// Before is called before each operation; an error makes it fail.
	Before func(operation, id string) error

	mu       sync.Mutex
	table    atelier.RouteTable
	inFlight map[string]int64
}

// Apply implements runner.Gateway.
func (g *Gateway) Apply(_ context.Context, table atelier.RouteTable) error {
	if g.Before != nil {
		if err := g.Before("apply", ""); err != nil {
			return err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if table.Sequence < g.table.Sequence {
		return atelier.Errorf(atelier.Stale, "table %d came, %d is in force", table.Sequence, g.table.Sequence)
	}
	g.table = table
	return nil
}

// Status implements runner.Gateway.
func (g *Gateway) Status(context.Context) (atelier.GatewayStatus, error) {
	if g.Before != nil {
		if err := g.Before("status", ""); err != nil {
			return atelier.GatewayStatus{}, err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s := atelier.GatewayStatus{PID: 1, Sequence: g.table.Sequence, Listen: "127.0.0.1:8600"}
	for rollout, n := range g.inFlight {
		s.Counters = append(s.Counters, atelier.EndpointCounters{Rollout: rollout, InFlight: n})
	}
	return s, nil
}

// Busy sets how many requests a rollout is answering.
func (g *Gateway) Busy(rollout string, n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inFlight == nil {
		g.inFlight = map[string]int64{}
	}
	g.inFlight[rollout] = n
}

// Table returns the table in force.
func (g *Gateway) Table() atelier.RouteTable {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.table
}

// Routed returns the rollout that an endpoint's requests go to, "" for none.
func (g *Gateway) Routed(endpoint string) string {
	for _, r := range g.Table().Routes {
		if r.Endpoint == endpoint {
			return r.Backend.Rollout
		}
	}
	return ""
}

// Lose makes the gateway forget its table, as one with an empty directory does.
func (g *Gateway) Lose(table atelier.RouteTable) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.table = table
}
