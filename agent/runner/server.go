package runner

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/state"
	"github.com/atelier-edge/atelier/internal/collect"
	"github.com/atelier-edge/atelier/targets"
)

// Models of several deployments may run in one process, a server. Each keeps its own
// rollout, slot, socket and route; only what start and remove do of it is another: a model
// is loaded into the server, which is started for the first and stopped after the last.
// Servers hold no state of their own: which there must be follows from the slots.

// shared reports whether the module's model runs in a server.
func shared(m *atelier.Module) bool {
	return m.Serving.Server != "" && m.Model.Variant.Kind == atelier.VariantONNX && m.Runtime != nil
}

// serverPrefix begins the ids of servers' instances. No deployment's id begins so.
const serverPrefix = "server-"

// isServerID reports whether id is that of a server.
func isServerID(id string) bool {
	rest, ok := strings.CutPrefix(id, serverPrefix)
	return ok && len(rest) == 16
}

// serverID names the server of a module: modules share one that name the same server and
// need the same process for it.
func serverID(m *atelier.Module) string {
	b, err := json.Marshal(struct {
		Name, Target string
		Limits       atelier.Limits
		Runtime      atelier.ModuleRuntime
	}{m.Serving.Server, m.Target, m.Limits, *m.Runtime})
	if err != nil {
		b = []byte(m.Serving.Server) // numbers that are none; the hub sends no such limits
	}
	sum := sha256.Sum256(b)
	return serverPrefix + hex.EncodeToString(sum[:8])
}

func (r *Runner) serverDir(id string) string { return filepath.Join(r.opts.Modules, id) }

// serverSocket is where a server is told what to load.
func (r *Runner) serverSocket(id string) string { return filepath.Join(r.opts.Run, id+".sock") }

// servers lets the instances of each server take turns at starting and stopping it.
type servers struct {
	mu   sync.Mutex
	byID map[string]*serverTurn
}

// serverTurn is held by whoever starts or stops a server.
type serverTurn struct {
	mu sync.Mutex
	// left are the rollouts that have been unloaded and whose slots are still there.
	left map[string]bool
}

// turn takes the turn at a server; the caller gives it back.
func (s *servers) turn(id string) *serverTurn {
	s.mu.Lock()
	if s.byID == nil {
		s.byID = map[string]*serverTurn{}
	}
	t := s.byID[id]
	if t == nil {
		t = &serverTurn{left: map[string]bool{}}
		s.byID[id] = t
	}
	s.mu.Unlock()
	t.mu.Lock()
	return t
}

// startShared starts the module's server where it does not run, and lets it load the
// model.
func (i *instance) startShared(ctx context.Context) error {
	if err := i.startServer(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, i.runner.opts.Times.Load)
	defer cancel()
	err := i.runner.opts.Load(ctx, i.runner.serverSocket(i.id), i.module.Rollout, i.args())
	var failed *atelier.LoadError
	if errors.As(err, &failed) {
		return &exitError{exit: &targets.Exit{Code: failed.Exit, LastLine: failed.Reason}, limit: i.module.Limits.Memory, loading: true}
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	// It ended over this model, perhaps, or over another.
	if s, statusErr := i.target.Status(ctx, i.id); statusErr == nil && s.Phase == targets.Exited {
		return &exitError{exit: s.Exit, limit: i.module.Limits.Memory}
	}
	return err
}

// startServer returns when the module's server takes models.
func (i *instance) startServer(ctx context.Context) error {
	r := i.runner
	turn := r.servers.turn(i.id)
	defer turn.mu.Unlock()
	delete(turn.left, i.module.Rollout)
	if err := i.layOut(ctx, filepath.Join(r.serverDir(i.id), runtimeDir), i.module.Runtime.Files); err != nil {
		return err
	}
	if err := i.target.Start(ctx, i.serverSpec()); err != nil {
		return &startError{err}
	}
	for began := time.Now(); ; {
		_, err := r.opts.Ready(ctx, r.serverSocket(i.id))
		if err == nil {
			return nil
		}
		status, statusErr := i.target.Status(ctx, i.id)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case statusErr != nil:
			return statusErr
		case status.Phase == targets.Exited:
			return &exitError{exit: status.Exit, limit: i.module.Limits.Memory}
		case time.Since(began) > r.opts.Times.Patience:
			if err := i.target.Stop(ctx, i.id, r.opts.Times.Grace); err != nil {
				return err
			}
			return &probeError{err}
		}
		if !sleep(ctx, r.opts.Times.Poll/20+time.Since(began)/4) {
			return ctx.Err()
		}
	}
}

// serverSpec says how the module's server is run.
func (i *instance) serverSpec() targets.Spec {
	m, dir, socket := &i.module, i.runner.serverDir(i.id), i.runner.serverSocket(i.id)
	command := []string{
		i.runner.program(), "--server", socket, "--server-name", m.Serving.Server,
		"--runtime", filepath.Join(dir, runtimeDir, filepath.FromSlash(m.Runtime.Entry)),
	}
	if n := m.Limits.Memory; n > 0 {
		command = append(command, "--memory", strconv.FormatInt(n, 10))
	}
	return targets.Spec{ID: i.id, Command: command, Dir: dir, Socket: socket, Log: filepath.Join(dir, logFile), LogLimit: logLimit, Limits: m.Limits}
}

// unload takes the model out of its server.
func (i *instance) unload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*i.runner.opts.Times.Patience)
	defer cancel()
	return i.runner.opts.Unload(ctx, i.runner.serverSocket(i.id), i.module.Rollout)
}

// removeShared unloads the model, and stops and removes its server where no slot has
// another model in it.
func (i *instance) removeShared(ctx context.Context) error {
	r := i.runner
	s, err := i.target.Status(ctx, i.id)
	if err == nil && s.Phase == targets.Running {
		if err := i.unload(ctx); err != nil {
			return err
		}
	}
	turn := r.servers.turn(i.id)
	defer turn.mu.Unlock()
	turn.left[i.module.Rollout] = true
	if !r.wants(i.id, turn.left) {
		if err := end(ctx, i.target, i.id, r.opts.Times.Grace); err != nil {
			return err
		}
		if err := os.RemoveAll(r.serverDir(i.id)); err != nil {
			return err
		}
	}
	socket := r.socket(i.module.Rollout)
	for _, path := range []string{socket, socket + lendSuffix, socket + collect.Suffix} { // of a server that was killed
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// lendSuffix is serving/lending's, which this package may not import.
const lendSuffix = ".lend"

// wants reports whether a slot has a model in the server that has not left it. It forgets
// those that have left and have no slot any more.
func (r *Runner) wants(server string, left map[string]bool) (wanted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	held := map[string]bool{}
	for _, record := range r.slots.Modules {
		for _, slot := range append([]*state.Slot{record.Current, record.Candidate, record.Trial}, record.Leaving...) {
			if slot != nil && instanceID(&slot.Module) == server {
				held[slot.Module.Rollout] = true
				wanted = wanted || !left[slot.Module.Rollout]
			}
		}
	}
	maps.DeleteFunc(left, func(rollout string, _ bool) bool { return !held[rollout] })
	return wanted
}
