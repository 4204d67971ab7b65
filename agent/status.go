package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/bundles"
	"github.com/atelier-edge/atelier/agent/enrol"
	"github.com/atelier-edge/atelier/agent/state"
	"github.com/atelier-edge/atelier/agent/telemetry"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Status is what the agent tells on its own device.
type Status struct {
	Running       bool                   `json:"running"` // an agent answered; without one this is what lies on disk
	Version       string                 `json:"version,omitempty"`
	Device        string                 `json:"device"`
	Name          string                 `json:"name"`
	Workspace     string                 `json:"workspace"`
	WorkspaceName string                 `json:"workspace_name"`
	Hub           string                 `json:"hub"`
	Revoked       *wire.Revoked          `json:"revoked,omitempty"`
	CertificateTo time.Time              `json:"certificate_until"`
	Position      atelier.Position       `json:"position"`
	Gateway       string                 `json:"gateway,omitempty"`
	Modules       []atelier.ModuleStatus `json:"modules"`
	Conditions    []atelier.Condition    `json:"conditions"`
	Bundles       []bundles.Outcome      `json:"bundles,omitempty"` // the last ones since the agent started
	Router        *atelier.RouterStatus  `json:"router,omitempty"`
}

// snapshot is the device's reported state.
func (a *agent) snapshot() atelier.ReportedState {
	clock := telemetry.ReadClock()
	modules := a.gateway.WithShadows(a.runner.Status())
	return atelier.ReportedState{
		Device: a.identity.Device, BootID: clock.BootID, Position: a.store.Position(), Agent: a.opts.Version,
		Time: clock.Wall.UTC(), Facts: a.currentFacts(), Modules: modules, Conditions: a.conditions(modules), Storage: a.storage(modules),
	}
}

// storage is what the device says of the content on its disk, nil where it cannot
// tell, and while a module is on its way: then reports are frequent, and what they say
// of it is out of date at once.
func (a *agent) storage(modules []atelier.ModuleStatus) *atelier.Storage {
	if slices.ContainsFunc(modules, func(m atelier.ModuleStatus) bool { return m.Moving() }) {
		return nil
	}
	s, err := a.fetcher.Storage()
	if err != nil {
		a.log.Debug("what is on the disk is not reported", "error", err)
		return nil
	}
	s.Rate = a.receiver.Rate()
	room := atelier.MaxStored
	for _, k := range a.runner.Kept() {
		if room -= len(k.Files); room < 0 {
			s.More = true
			break
		}
		s.Kept = append(s.Kept, k)
	}
	return &s
}

// currentFacts are the device's facts with those that change.
func (a *agent) currentFacts() atelier.Facts {
	f := a.facts
	f.Gateway = a.gateway.Address()
	if free, err := a.content.Free(); err == nil {
		f.DiskFree = free
	}
	return f
}

func (a *agent) conditions(modules []atelier.ModuleStatus) []atelier.Condition {
	sync := inSync(a.store.Desired(), modules)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inSync = sync.Following(a.inSync, time.Now())
	all := []atelier.Condition{a.inSync, a.store.Durable(), a.renewer.Condition(), a.identity.ClockCondition(), a.gateway.Condition(), a.telemetry.Condition(), a.configured}
	if messages, any := a.router.Condition(); any {
		all = append(all, messages)
	}
	return all
}

// inSync says whether modules are what is desired.
func inSync(desired *atelier.DesiredState, modules []atelier.ModuleStatus) atelier.Condition {
	no := func(why atelier.Why) atelier.Condition {
		return atelier.Fails(atelier.ConditionInSync, why)
	}
	if desired == nil {
		return no(atelier.Because(atelier.ReasonWaiting, "the hub has not sent a desired state yet"))
	}
	have := make(map[string]atelier.ModuleStatus, len(modules))
	staged := make(map[string]*atelier.SlotStatus, len(modules)) // by rollout
	trials := make(map[string]*atelier.SlotStatus, len(modules)) // likewise
	for _, m := range modules {
		if m.Current != nil || m.Candidate != nil {
			have[m.Deployment] = m
		}
		if m.Staged != nil {
			staged[m.Staged.Rollout] = m.Staged
		}
		if m.Trial != nil {
			trials[m.Trial.Rollout] = m.Trial
		}
	}
	for i := range desired.Modules {
		want := &desired.Modules[i]
		m := have[want.Deployment]
		switch {
		case m.Current != nil && m.Current.Rollout == want.Rollout && m.Current.State() == atelier.Serving && m.Current.Why().Reason() == atelier.ReasonAsDesired:
		case m.Candidate != nil:
			return no(m.Candidate.Why())
		case m.Current != nil:
			return no(m.Current.Why())
		default:
			return no(atelier.Because(atelier.ReasonInProgress, ""))
		}
		delete(have, want.Deployment)
	}
	if len(have) > 0 {
		return no(atelier.Because(atelier.ReasonInProgress, "modules that are no longer desired are being removed"))
	}
	for i := range desired.Staged {
		switch s := staged[desired.Staged[i].Rollout]; {
		case s == nil:
			return no(atelier.Because(atelier.ReasonInProgress, ""))
		case s.State() != atelier.StagedState:
			return no(s.Why())
		}
	}
	for i := range desired.Trials {
		switch t := trials[desired.Trials[i].Rollout]; {
		case t == nil:
			return no(atelier.Because(atelier.ReasonInProgress, ""))
		case t.State() != atelier.Serving || t.Why().Reason() != atelier.ReasonAsDesired:
			return no(t.Why())
		}
		delete(trials, desired.Trials[i].Rollout)
	}
	if len(trials) > 0 {
		return no(atelier.Because(atelier.ReasonInProgress, "modules that are no longer desired are being removed"))
	}
	return atelier.Holds(atelier.ConditionInSync, atelier.Because(atelier.ReasonAsDesired, ""))
}

func (a *agent) status() Status {
	modules := a.gateway.WithShadows(a.runner.Status())
	s := offline(a.identity)
	s.Running, s.Version, s.Position, s.Gateway = true, a.opts.Version, a.store.Position(), a.gateway.Address()
	s.Bundles, s.Router = a.bundles.Outcomes(), a.router.Status()
	reported := a.conditions(modules)
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Modules, s.Revoked = modules, a.revoked
	s.Conditions = append([]atelier.Condition{a.connected}, reported...)
	return s
}

// offline is what an identity tells of its device.
func offline(id *enrol.Identity) Status {
	return Status{
		Device: id.Device, Name: id.Name, Workspace: id.Workspace, WorkspaceName: id.WorkspaceName, Hub: id.Hub,
		CertificateTo: id.Certificate().NotAfter, Modules: []atelier.ModuleStatus{}, Conditions: []atelier.Condition{},
	}
}

// listen opens one of the agent's sockets. The state directory's lock is held: a
// socket that is there is a dead agent's.
func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, durable.Explain(err, "remove the old socket "+path)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "open the socket %s: %w", path, err).
			WithRemedy("Give the agent a run directory with a short path that it may write to.")
	}
	// The directory is the agent's alone, so that nobody comes before this.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(durable.Explain(err, "protect the socket"), l.Close())
	}
	return l, nil
}

// tellTime bounds one answer on a socket.
const tellTime = 5 * time.Second

// serve writes an answer on each connection, as JSON, and closes it.
func (a *agent) serve(ctx context.Context, l net.Listener, answer func(context.Context, net.Conn) (any, error)) {
	var telling sync.WaitGroup
	defer telling.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // ends Accept, below
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		telling.Go(func() {
			defer func() { _ = c.Close() }() // a reader that went away needs nothing
			v, err := answer(ctx, c)
			if err == nil {
				var b []byte
				if b, err = json.Marshal(v); err == nil && c.SetDeadline(time.Now().Add(tellTime)) == nil {
					_, err = c.Write(b)
				}
			}
			if err != nil {
				a.log.Debug("a socket was not answered", "error", err)
			}
		})
	}
}

// tell answers with the status.
func (a *agent) tell(context.Context, net.Conn) (any, error) { return a.status(), nil }

// maxStatus bounds a status in bytes.
const maxStatus = 16 << 20

// ReadStatus asks the agent that uses the places for its status. Where none
// runs it tells what lies on disk.
func ReadStatus(ctx context.Context, p Places) (Status, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", p.socket())
	if err != nil {
		return readOffline(p)
	}
	defer func() { _ = c.Close() }() // it was only read
	b, err := io.ReadAll(io.LimitReader(c, maxStatus))
	if err != nil {
		return Status{}, atelier.Errorf(atelier.Unavailable, "the agent's answer broke off: %w", err)
	}
	var s Status
	if err := json.Unmarshal(b, &s); err != nil {
		return Status{}, atelier.Errorf(atelier.Internal, "the agent's answer cannot be read: %w", err).
			WithRemedy("Use the atelier-agent of the version that runs.")
	}
	return s, nil
}

func readOffline(p Places) (Status, error) {
	id, err := enrol.Load(enrol.Options{StateDir: p.State})
	if err != nil {
		return Status{}, err
	}
	s := offline(id)
	store, err := state.Open(state.Options{
		FS: durable.OS{}, Dir: p.saved(), Device: id.Device, Workspace: id.Workspace, Root: id.Root, Delegation: id.Delegation,
	})
	if err != nil {
		return Status{}, err
	}
	s.Position = store.Position()
	if s.Revoked, err = store.Revoked(); err != nil {
		return s, err
	}
	if s.Revoked != nil {
		s.Conditions = append(s.Conditions, disconnected(s.Revoked))
		return s, nil
	}
	s.Conditions = append(s.Conditions, atelier.Fails(atelier.ConditionConnected,
		atelier.Because(atelier.ReasonAgentDown, "No agent runs with the state directory "+p.State+".")))
	return s, nil
}
