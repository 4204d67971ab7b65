// Package runner makes a device run what its desired state says, and keeps it
// running.
//
// What it promises: a rollout takes traffic only when it is ready, and the one
// before it is stopped only when it has answered its last request; a rollout that
// fails leaves the one that serves alone and is tried again for ever, with growing
// pauses; nothing is done before it is written down; an agent that restarts, or a
// device, goes on from what was written, without the hub.
//
// A module's life on the device (the names are those of atelier.ModuleState):
//
//	Pending → Fetching → Preparing → Starting → Proving → Standby → Serving → Draining → Stopped
//	   ↑          ↓          ↓           ↓         ↓                    ↓
//	   └────────────────────────── BackOff ←───────────────────────────┘
//
// The steps up to Proving are idempotent. What is written down is only which
// rollout holds which slot (state.Slots); where a rollout stands is found out by
// doing its steps again, most of which then find that they are done.
//
// One goroutine decides (reconcile); each rollout has one goroutine that carries
// it through its steps (instance). The package knows no MQTT and no kind of target.
package runner

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/fetch"
	"github.com/atelier-edge/atelier/agent/state"
	"github.com/atelier-edge/atelier/targets"
)

// Store is what the runner needs of agent/state.
type Store interface {
	Desired() *atelier.DesiredState
	Slots() state.Slots
	SaveSlots(state.Slots) error
}

// Fetcher brings content onto the device; see agent/fetch.
type Fetcher interface {
	Fetch(ctx context.Context, files []atelier.File, progress func(done int64)) error
	// Prefetch gives way to Fetch.
	Prefetch(ctx context.Context, files []atelier.File, progress func(done int64)) error
}

// Gateway is the device's gateway; see agent/gateway.
type Gateway interface {
	// Apply returns when the table is saved and in force.
	Apply(ctx context.Context, table atelier.RouteTable) error
	Status(ctx context.Context) (atelier.GatewayStatus, error)
}

// Options say what a runner works with.
type Options struct {
	Device  string // id
	Name    string // the device's, for what people are told to do
	Store   Store
	Fetcher Fetcher
	// Link gives content a further name; see content.Store.Link.
	Link func(d atelier.Digest, path string) error
	// Linked tells whether path is such a name; see content.Store.Linked.
	Linked  func(d atelier.Digest, path string) (bool, error)
	Targets []targets.Target
	Gateway Gateway
	// Ready asks the module at socket whether it is ready, and what it says of itself: a
	// nil error means yes.
	Ready func(ctx context.Context, socket string) (atelier.ModuleHealth, error)
	// Load lets the server of several models at socket load one under an id, and returns
	// when it serves; Unload returns when it has answered its last request. A model that
	// cannot be loaded gives an *atelier.LoadError.
	Load   func(ctx context.Context, socket, id string, args []string) error
	Unload func(ctx context.Context, socket, id string) error
	// VerifyImage, where set, says why an image may not be run here.
	VerifyImage func(*atelier.ModuleImage) error
	// Memory returns how much memory is available on the device, in bytes; 0
	// where that is not known.
	Memory func() int64
	// Open opens content that is on the device.
	Open func(d atelier.Digest) (Blob, error)
	// Modules is the directory for modules' files, Environments the one for environments
	// that are unpacked, Run the one for sockets, Programs the one of atelier-serve.
	Modules, Environments, Run, Programs string
	// Env returns further environment variables of a module, "NAME=value"; nil for none.
	Env func(m *atelier.Module) []string
	// Changed is called whenever Status may have changed. It must not block.
	Changed func()
	// Progressed is called instead where only how far a fetch is has changed.
	Progressed func()
	Times      Times
	Log        *slog.Logger
}

// Times are the runner's patience in several respects.
type Times struct {
	// Patience is how long a replaced rollout may take to answer its last request.
	Patience time.Duration
	// Grace is how long a module may take to end when it is asked to.
	Grace time.Duration
	// Load is how long a module may take until it is ready.
	Load time.Duration
	// Probe is how often a serving module is asked for its health; it is ended
	// when it did not answer missedProbes times in a row.
	Probe time.Duration
	// Retry is the first pause after a failure, RetryMost the longest.
	Retry, RetryMost time.Duration
	// Space is the longest pause before a look at a disk that was too full: it costs
	// nothing, and whoever makes room waits for it.
	Space time.Duration
	// Settled is how long a module must run for its failures to be forgotten.
	Settled time.Duration
	// Poll is how often something is looked at that cannot be waited for.
	Poll time.Duration
}

// DefaultTimes are those of the agent.
var DefaultTimes = Times{
	Patience: 30 * time.Second, Grace: 10 * time.Second, Load: 15 * time.Minute, Probe: 20 * time.Second,
	Retry: time.Second, RetryMost: 5 * time.Minute, Space: 15 * time.Second, Settled: 10 * time.Minute, Poll: 200 * time.Millisecond,
}

// logLimit is the size in bytes at which a module's log begins anew.
const logLimit = 1 << 20

// Runner runs modules. Its methods are safe for concurrent use.
type Runner struct {
	opts    Options
	targets map[string]targets.Target
	wake    chan struct{}
	// leave ends when the agent goes; modules stay.
	leave context.Context
	group sync.WaitGroup
	// unpacking is held while environments are unpacked or removed.
	unpacking sync.Mutex
	servers   servers

	mu        sync.Mutex
	slots     state.Slots
	instances map[string]*instance // by rollout
	staged    map[string]*instance // by rollout: those that only fetch
	inForce   atelier.RouteTable   // the newest that the gateway is known to have
	untaken   error                // why the gateway did not take the newest one the last time
	unsaved   error                // why the slots could not be saved the last time
}

// New returns a runner that goes on from what the store holds; Run starts it.
func New(opts Options) *Runner {
	r := &Runner{
		opts: opts, targets: map[string]targets.Target{}, wake: make(chan struct{}, 1),
		slots: opts.Store.Slots(), instances: map[string]*instance{}, staged: map[string]*instance{},
	}
	for _, t := range opts.Targets {
		r.targets[t.Kind()] = t
	}
	return r
}

// Run makes the device as desired until ctx ends. Then it returns, and leaves
// modules running.
func (r *Runner) Run(ctx context.Context) {
	r.leave = ctx
	r.sweep(ctx)
	r.group.Go(func() { r.keepEnvironments(ctx) })
	again := time.NewTimer(0)
	defer again.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-again.C:
		}
		if ctx.Err() == nil && !r.reconcile(ctx) {
			again.Reset(5 * r.opts.Times.Poll)
		}
	}
	r.group.Wait()
}

// Wake makes the runner look at the desired state, and at the gateway, again.
func (r *Runner) Wake() {
	select {
	case r.wake <- struct{}{}:
	default: // it is going to look anyway
	}
}

// GatewayRestarted tells that the gateway's table may not be the one it was given.
func (r *Runner) GatewayRestarted() {
	r.mu.Lock()
	r.inForce = atelier.RouteTable{}
	r.mu.Unlock()
	r.Wake()
}

// reconcile makes one pass. It returns false where something did not work that
// no event will tell of: the caller tries again soon.
func (r *Runner) reconcile(ctx context.Context) bool {
	ok := r.decide()
	if !r.route(ctx) {
		ok = false
	}
	r.opts.Changed()
	return ok
}

// decide works out which rollout shall hold which slot, writes it down, and only
// then lets the instances follow.
func (r *Runner) decide() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	ready := func(rollout string) bool { i := r.instances[rollout]; return i != nil && i.isReady() }
	next := assign(r.slots, r.opts.Store.Desired(), situation{
		ready: ready,
		gone:  func(rollout string) bool { i := r.instances[rollout]; return i != nil && i.isGone() },
	})
	next.RouteTable = routes(next, r.opts.Device, r.socket, ready)
	err := r.opts.Store.SaveSlots(next)
	if err != nil {
		if r.unsaved == nil {
			r.opts.Log.Error("cannot save which rollouts run; nothing changes until that works", "why", atelier.BecauseOf(atelier.ReasonStateNotDurable, err))
		}
		next = r.slots
	}
	r.unsaved, r.slots = err, next
	r.follow()
	r.stage()
	return err == nil
}

// follow starts an instance for each slot that has none, and tells those that
// are leaving. The caller holds r.mu.
func (r *Runner) follow() {
	held := map[string]bool{}
	for _, record := range r.slots.Modules {
		for _, slot := range []*state.Slot{record.Current, record.Candidate, record.Trial} {
			if slot != nil {
				held[slot.Module.Rollout] = true
				r.ensure(slot, false)
			}
		}
		for _, slot := range record.Leaving {
			held[slot.Module.Rollout] = true
			r.ensure(slot, true)
		}
	}
	for rollout, i := range r.instances {
		if !held[rollout] {
			delete(r.instances, rollout) // it is gone: assign dropped its slot for that
			r.release(i)
		}
	}
}

// ensure makes the slot's instance and starts it where there is none, and tells
// it when it shall leave.
func (r *Runner) ensure(slot *state.Slot, leaving bool) {
	i := r.instances[slot.Module.Rollout]
	if i == nil || !leaving && i.isGone() { // it left, and is wanted again
		i = newInstance(r, slot.Module)
		r.instances[slot.Module.Rollout] = i
		defer r.group.Go(func() { i.live(r.leave) })
	}
	if leaving {
		i.retire()
	}
}

// route brings the newest route table into force. False means that it did not work.
func (r *Runner) route(ctx context.Context) bool {
	r.mu.Lock()
	table, inForce := r.slots.RouteTable, r.inForce.Sequence
	r.mu.Unlock()
	if table.Sequence == 0 || table.Sequence == inForce {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, gatewayTimeout)
	defer cancel()
	status, err := r.opts.Gateway.Status(ctx)
	if err != nil {
		return r.unrouted(err)
	}
	if status.Sequence > table.Sequence {
		return r.overtake(status.Sequence)
	}
	if status.Sequence < table.Sequence {
		if err := r.opts.Gateway.Apply(ctx, table); err != nil {
			return r.unrouted(err)
		}
		r.opts.Log.Info("the gateway has new routes", "sequence", table.Sequence, "routes", len(table.Routes))
	}
	r.mu.Lock()
	r.inForce, r.untaken = table, nil
	r.mu.Unlock()
	return true
}

// gatewayTimeout bounds one attempt to hand over a route table.
const gatewayTimeout = 10 * time.Second

func (r *Runner) unrouted(err error) bool {
	r.opts.Log.Debug("the gateway did not take the routes", "error", err)
	r.mu.Lock()
	r.untaken = err
	r.mu.Unlock()
	return false
}

// overtake makes the table newer than one that the gateway has: the agent's
// state is older than the gateway's, restored from a copy perhaps.
func (r *Runner) overtake(sequence uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.slots
	next.RouteTable.Sequence = sequence + 1
	if err := r.opts.Store.SaveSlots(next); err != nil {
		r.opts.Log.Error("cannot save the route table", "error", err)
		return false
	}
	r.slots = next
	r.Wake()
	return true
}

// Holdings returns the versions that the device's slots and its desired state
// name; all other content may be collected.
func (r *Runner) Holdings() []fetch.Holding {
	r.mu.Lock()
	slots := r.slots
	r.mu.Unlock()
	var all []fetch.Holding
	add := func(m *atelier.Module, previous bool) {
		all = append(all, fetch.Holding{Model: m.Model.Name, Version: m.Model.Version, Files: m.Content(), Previous: previous})
	}
	for _, record := range slots.Modules {
		for _, slot := range append([]*state.Slot{record.Current, record.Candidate, record.Trial}, record.Leaving...) {
			if slot != nil {
				add(&slot.Module, false)
			}
		}
		if p := record.Previous; p != nil {
			add(&p.Module, true)
		}
	}
	if d := r.opts.Store.Desired(); d != nil {
		for _, m := range append(slices.Clone(d.Modules), d.Staged...) {
			add(&m, false)
		}
		for i := range d.Trials {
			add(&d.Trials[i].Module, false)
		}
	}
	return all
}

// Status returns the state of every module, ordered by deployment.
func (r *Runner) Status() []atelier.ModuleStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := []atelier.ModuleStatus{}
	for deployment, record := range r.slots.Modules {
		s := atelier.ModuleStatus{Deployment: deployment}
		s.Current, s.Name = r.slotStatus(record.Current, true), record.All()[0].Module.Name
		s.Candidate = r.slotStatus(record.Candidate, false)
		s.Trial = r.trialStatus(record)
		if record.Current == nil && record.Candidate == nil && len(record.Leaving) > 0 {
			s.Current = r.slotStatus(record.Leaving[0], false)
		}
		list = append(list, s)
	}
	list = r.withStaged(list)
	slices.SortFunc(list, func(a, b atelier.ModuleStatus) int {
		if a.Deployment < b.Deployment {
			return -1
		}
		return 1
	})
	return list
}

// slotStatus returns the status of a slot. A ready rollout serves when the
// gateway has a table with it; as desired only when that is the newest one. The
// caller holds r.mu.
func (r *Runner) slotStatus(slot *state.Slot, routed bool) *atelier.SlotStatus {
	if slot == nil {
		return nil
	}
	i := r.instances[slot.Module.Rollout]
	if i == nil { // before the first pass
		s := blank(&slot.Module)
		return &s
	}
	s := i.snapshot()
	if s.State() != atelier.Standby {
		return &s
	}
	switch {
	case routed && routesTo(r.inForce, slot.Module.Rollout):
		why := r.taken()
		if f := i.fellBack(); f != "" && why.Reason() == atelier.ReasonAsDesired {
			why = atelier.Because(atelier.ReasonProviderFallback, f)
		}
		s.Standing = atelier.Stand(atelier.Serving, why)
	case routed:
		s.Standing = atelier.Stand(atelier.Standby, r.taken())
	case r.unsaved != nil:
		s.Standing = atelier.Stand(atelier.Standby, atelier.BecauseOf(atelier.ReasonStateNotDurable, r.unsaved))
	}
	return &s
}

// trialStatus returns the status of what runs beside the record's current rollout. The
// caller holds r.mu.
func (r *Runner) trialStatus(record *state.Record) *atelier.SlotStatus {
	s := r.slotStatus(record.Trial, true)
	switch {
	case s == nil:
	case s.State() == atelier.Standby && record.Current == nil:
		s.Standing = atelier.Stand(atelier.Standby, atelier.Because(atelier.ReasonWaiting, "it is ready and waits for the version beside it"))
	case s.State() == atelier.Serving:
		for _, route := range r.inForce.Routes {
			if route.Trial != nil && route.Trial.Backend.Rollout == s.Rollout {
				split := route.Trial.Split
				s.Split = &split
			}
		}
	}
	return s
}

// taken tells how far the gateway is with the newest table. The caller holds r.mu.
func (r *Runner) taken() atelier.Why {
	switch {
	case r.inForce.Sequence == r.slots.RouteTable.Sequence:
		return atelier.Because(atelier.ReasonAsDesired, "")
	case r.untaken != nil:
		return atelier.Because(atelier.ReasonGatewayDown, "the gateway has not taken the newest routes: "+r.untaken.Error())
	}
	return atelier.Because(atelier.ReasonWaiting, "the gateway is about to take the newest routes")
}

func routesTo(table atelier.RouteTable, rollout string) bool {
	return slices.ContainsFunc(table.Routes, func(route atelier.Route) bool {
		return route.Backend.Rollout == rollout || route.Trial != nil && route.Trial.Backend.Rollout == rollout
	})
}

// Find returns the target and the instance's id of a deployment's present
// rollout: the one that comes up where there is one that does not run well, then the
// one beside it where that does not, otherwise the one that serves.
func (r *Runner) Find(deployment string) (targets.Target, string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	record := r.slots.Modules[deployment]
	if record == nil {
		return nil, "", false
	}
	slot := record.Candidate
	if t := record.Trial; slot == nil && t != nil {
		if i := r.instances[t.Module.Rollout]; i == nil || !i.isReady() {
			slot = t
		}
	}
	if slot == nil {
		slot = record.Current
	}
	if slot == nil {
		return nil, "", false
	}
	t := r.targets[slot.Module.Target]
	return t, instanceID(&slot.Module), t != nil
}
