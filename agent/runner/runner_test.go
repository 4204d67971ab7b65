package runner

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/agenttest"
	"github.com/atelier-edge/atelier/agent/state"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
	"github.com/atelier-edge/atelier/targets"
)

// times make a test quick.
var times = Times{
	Patience: 20 * time.Second, Grace: time.Second, Load: 20 * time.Second, Probe: 5 * time.Millisecond,
	Retry: time.Millisecond, RetryMost: 20 * time.Millisecond, Space: 5 * time.Millisecond, Settled: time.Hour, Poll: time.Millisecond,
}

// device is a device whose agent can be restarted at will.
type device struct {
	memory atomic.Int64 // available on the device; 0 is not known
	*testing.T
	hub     *agenttest.Authority
	id      string
	disk    *durabletest.Disk // holds the agent's state
	dir     string            // holds content and modules
	content *content.Store
	target  *agenttest.Target
	gateway *agenttest.Gateway
	times   Times

	mu       sync.Mutex
	contents map[atelier.Digest][]byte
	fetchErr error
	fetched  int // contents

	staged []atelier.Module      // of the desired states to come
	trials []atelier.TrialModule // likewise

	generation uint64
	store      *state.Store
	runner     *Runner
	stop       func()
}

func newDevice(t *testing.T) *device {
	t.Helper()
	d := &device{
		T: t, hub: agenttest.NewAuthority(t), id: atelier.NewID(), disk: durabletest.NewDisk(), dir: t.TempDir(),
		target: agenttest.NewTarget(), gateway: &agenttest.Gateway{}, times: times,
		contents: map[atelier.Digest][]byte{atelier.DigestOf([]byte("runtime")): []byte("runtime")},
		stop:     func() {},
	}
	store, err := content.Open(durable.OS{}, filepath.Join(d.dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	d.content = store
	t.Cleanup(func() { d.stop() })
	return d
}

// Fetch implements Fetcher: the hub has what the test registered.
func (d *device) Fetch(_ context.Context, files []atelier.File, progress func(int64)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fetchErr != nil {
		return d.fetchErr
	}
	for _, f := range files {
		if has, err := d.content.Has(f.Digest); err != nil || has {
			continue
		}
		w, err := d.content.Writer("")
		if err != nil {
			return err
		}
		if _, err := w.Write(d.contents[f.Digest]); err != nil {
			return err
		}
		if _, err := w.Commit(f.Digest, f.Size); err != nil {
			return err
		}
		d.fetched++
	}
	progress(1)
	return nil
}

// Prefetch implements Fetcher.
func (d *device) Prefetch(ctx context.Context, files []atelier.File, progress func(int64)) error {
	return d.Fetch(ctx, files, progress)
}

// start starts the agent on the device as it is.
func (d *device) start() {
	d.Helper()
	d.stop()
	store, err := state.Open(state.Options{
		FS: d.disk, Dir: "/state", Device: d.id, Workspace: d.hub.Workspace, Root: d.hub.Root(), Delegation: d.hub.Delegation(),
	})
	if err != nil {
		d.Fatal(err)
	}
	d.store = store
	d.runner = New(Options{
		Device: d.id, Name: "press", Memory: func() int64 { return d.memory.Load() }, Store: store, Fetcher: d, Link: d.content.Link, Linked: d.content.Linked, Targets: []targets.Target{d.target}, Gateway: d.gateway,
		Open:  func(digest atelier.Digest) (Blob, error) { return d.content.Open(digest) },
		Ready: d.target.Ready, Load: d.target.Load, Unload: d.target.Unload, Modules: filepath.Join(d.dir, "modules"), Environments: filepath.Join(d.dir, "environments"), Run: filepath.Join(d.dir, "run"), Programs: "/programs",
		Changed: func() {}, Progressed: func() {}, Times: d.times, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r := d.runner
	go func() { defer close(done); r.Run(ctx) }()
	d.stop = func() { cancel(); <-done }
}

// module returns a module whose content the hub has.
func (d *device) module(name, content string) atelier.Module {
	return d.register(agenttest.Module(name, []byte(content)), content)
}

func (d *device) next(m atelier.Module, content string) atelier.Module {
	return d.register(agenttest.Next(m, []byte(content)), content)
}

func (d *device) register(m atelier.Module, content string) atelier.Module {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.contents[m.Model.Digest] = []byte(content)
	return m
}

// desire makes modules the desired state.
func (d *device) desire(modules ...atelier.Module) {
	d.Helper()
	d.generation++
	raw := d.hub.Desired(d, atelier.DesiredState{Workspace: d.hub.Workspace, Device: d.id, Epoch: 1, Generation: d.generation, Modules: modules, Staged: d.staged, Trials: d.trials})
	_, payload, err := d.store.Verify(raw)
	if err != nil {
		d.Fatal(err)
	}
	if ack, _ := d.store.Receive(raw, payload); !ack.Saved {
		d.Fatalf("the desired state was refused: %s", ack.Why.Message())
	}
	d.runner.Wake()
}

// eventually waits until cond holds.
func (d *device) eventually(what string, cond func() bool) {
	d.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			d.Fatalf("never: %s\nstatus: %s\nrunning: %v\ntable: %+v", what, d.describe(), d.target.Running(), d.gateway.Table())
		}
		time.Sleep(time.Millisecond) // the pause of a poll
	}
}

func (d *device) describe() string {
	var b strings.Builder
	for _, m := range d.runner.Status() {
		for slot, s := range map[string]*atelier.SlotStatus{"current": m.Current, "candidate": m.Candidate, "trial": m.Trial} {
			if s != nil {
				b.WriteString("\n  " + m.Name + " " + slot + " " + s.Rollout + " " + string(s.State()) + " " + string(s.Why().Reason()) + ": " + s.Why().Message())
			}
		}
	}
	return b.String()
}

func (d *device) status(m atelier.Module) atelier.ModuleStatus {
	for _, s := range d.runner.Status() {
		if s.Deployment == m.Deployment {
			return s
		}
	}
	return atelier.ModuleStatus{}
}

// serves waits until m serves, is routed to, and nothing else of its deployment runs.
func (d *device) serves(modules ...atelier.Module) {
	d.Helper()
	for _, m := range modules {
		d.eventually(m.Name+" serves version "+m.Model.Name, func() bool {
			s := d.status(m)
			return s.Current != nil && s.Current.Rollout == m.Rollout && s.Current.State() == atelier.Serving && s.Candidate == nil &&
				d.gateway.Routed(m.Endpoint.Name) == m.Rollout
		})
	}
	d.eventually("exactly these run", func() bool {
		running := d.target.Running()
		if len(running) != len(modules) {
			return false
		}
		for _, m := range modules {
			if !contains(running, instanceID(&m)) {
				return false
			}
		}
		return true
	})
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func TestServesWhatIsDesired(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	one, two := d.module("digits", "one"), d.module("vad", "two")
	d.desire(one, two)
	d.serves(one, two)
	got, err := os.ReadFile(filepath.Join(d.dir, "modules", one.Deployment, one.Rollout, "model", "model.onnx"))
	if err != nil || string(got) != "one" {
		t.Errorf("the model's file holds %q, %v", got, err)
	}
	if s := d.status(one); s.Current.Fetched != s.Current.Size || s.Current.Size == 0 {
		t.Errorf("fetched %d of %d bytes", s.Current.Fetched, s.Current.Size)
	}
	d.desire(two)
	d.serves(two)
	d.eventually("the removed deployment is forgotten", func() bool { return len(d.runner.Status()) == 1 })
	if _, err := os.Stat(filepath.Join(d.dir, "modules", one.Deployment)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its files are still there: %v", err)
	}
}

func TestTheOldRolloutGoesWhenItsLastRequestIsAnswered(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	old := d.module("digits", "one")
	d.desire(old)
	d.serves(old)
	d.gateway.Busy(old.Rollout, 1)
	new := d.next(old, "two")
	d.desire(new)
	d.eventually("the new one is routed to", func() bool { return d.gateway.Routed("digits") == new.Rollout })
	// Let the runner look at the gateway many times.
	before := d.generation
	for range 50 {
		d.runner.Wake()
		time.Sleep(time.Millisecond)
	}
	if d.generation != before || !contains(d.target.Running(), instanceID(&old)) {
		t.Fatal("the old rollout was stopped while it answered a request")
	}
	d.gateway.Busy(old.Rollout, 0)
	d.serves(new)
}

// TestHoldings: what the device holds is what its slots and its desired state
// name, and the way back leads to the last other version.
func TestHoldings(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	one := d.module("digits", "one")
	two := d.next(one, "two")
	again := two
	again.Rollout, again.Limits.Memory = atelier.NewID(), 1<<30
	for _, m := range []atelier.Module{one, two, again} {
		d.desire(m)
		d.serves(m)
	}
	d.eventually("the rollouts before have left", func() bool { return len(d.store.Slots().Modules[one.Deployment].Leaving) == 0 })
	previous := map[int]bool{}
	for _, h := range d.runner.Holdings() {
		if len(h.Files) != 2 || h.Model != "digits" {
			t.Errorf("a holding is %+v", h)
		}
		previous[h.Version] = h.Previous
	}
	if want := map[int]bool{1: true, 2: false}; !maps.Equal(previous, want) {
		t.Errorf("the device holds %v, expected were %v", previous, want)
	}
}

func TestPatienceEnds(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.times.Patience = 20 * time.Millisecond
	d.start()
	old := d.module("digits", "one")
	d.desire(old)
	d.serves(old)
	d.gateway.Busy(old.Rollout, 1)
	new := d.next(old, "two")
	d.desire(new)
	d.serves(new)
}

func TestAFailingCandidateLeavesTheCurrentOneAlone(t *testing.T) {
	t.Parallel()
	exit := func(code int, line string) agenttest.Behaviour {
		return agenttest.Behaviour{Exit: &targets.Exit{Code: code, LastLine: line}}
	}
	oom := agenttest.Behaviour{Exit: &targets.Exit{Code: -1, Signal: "killed", OutOfMemory: true}}
	for name, c := range map[string]struct {
		behaviour agenttest.Behaviour
		fetch     error
		load      time.Duration
		memory    int64
		reason    atelier.Reason
		message   string
	}{
		"model":    {behaviour: exit(65, "no such operator"), reason: atelier.ReasonInitFailed, message: "no such operator"},
		"runtime":  {behaviour: exit(69, "libstdc++"), reason: atelier.ReasonRuntimeMissing, message: "libstdc++"},
		"script":   {behaviour: exit(76, "init() failed: KeyError: 'x'\u2028Traceback\u2028KeyError: 'x'"+strings.Repeat("!", 3000)), reason: atelier.ReasonScriptFailed, message: "script failed: init() failed: KeyError: 'x'\nTraceback\nKeyError: 'x'" + strings.Repeat("!", 3000)},
		"memory":   {behaviour: oom, reason: atelier.ReasonOutOfMemory},
		"too big":  {memory: 1, reason: atelier.ReasonMemoryShort, message: "1 B is available"},
		"loop":     {behaviour: exit(1, "boom"), reason: atelier.ReasonCrashLoop, message: "boom"},
		"start":    {behaviour: agenttest.Behaviour{StartError: atelier.Errorf(atelier.Invalid, "no such program")}, reason: atelier.ReasonStartFailed, message: "no such program"},
		"driver":   {behaviour: agenttest.Behaviour{StartError: atelier.Errorf(atelier.Unavailable, "no driver")}, reason: atelier.ReasonDriverDown},
		"unready":  {behaviour: agenttest.Behaviour{Unready: true}, load: time.Millisecond, reason: atelier.ReasonProbeFailed},
		"no space": {fetch: atelier.Errorf(atelier.NoSpace, "3 bytes too few"), reason: atelier.ReasonNoSpace, message: "3 bytes"},
		"gone":     {fetch: atelier.Errorf(atelier.NotFound, "gone"), reason: atelier.ReasonContentGone},
		"corrupt":  {fetch: atelier.Errorf(atelier.Corrupt, "bad"), reason: atelier.ReasonDigestMismatch},
		"hub away": {fetch: atelier.Errorf(atelier.Unavailable, "away"), reason: atelier.ReasonUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDevice(t)
			if c.load > 0 {
				d.times.Load = c.load
			}
			good := d.module("digits", "one")
			var bad atomic.Pointer[string] // the instance that misbehaves
			d.target.Behave = func(s targets.Spec) agenttest.Behaviour {
				if id := bad.Load(); id != nil && *id == s.ID {
					return c.behaviour
				}
				return agenttest.Behaviour{}
			}
			d.start()
			d.desire(good)
			d.serves(good)
			candidate := d.next(good, "two")
			id := instanceID(&candidate)
			bad.Store(&id)
			d.memory.Store(c.memory)
			d.mu.Lock()
			d.fetchErr = c.fetch
			d.mu.Unlock()
			d.desire(candidate)
			d.eventually("it says why", func() bool {
				s := d.status(candidate)
				return s.Candidate != nil && s.Candidate.State() == atelier.BackOff && s.Candidate.Why().Reason() == c.reason
			})
			if m := d.status(candidate).Candidate.Why().Message(); !strings.Contains(m, c.message) {
				t.Errorf("the message is %q, expected %q in it", m, c.message)
			}
			s := d.status(good)
			if s.Current == nil || s.Current.Rollout != good.Rollout || s.Current.State() != atelier.Serving || d.gateway.Routed("digits") != good.Rollout {
				t.Fatalf("the current rollout does not serve: %s", d.describe())
			}
			// It never gives up: once the fault is gone it comes up by itself.
			bad.Store(nil)
			d.memory.Store(0)
			d.mu.Lock()
			d.fetchErr = nil
			d.mu.Unlock()
			d.serves(candidate)
		})
	}
}

func TestRefusesWhatCannotRunHere(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	target, kind, runtime := d.module("a", "1"), d.module("b", "2"), d.module("c", "3")
	target.Target = "teleporter"
	kind.Model.Variant.Kind = "bitstream"
	runtime.Runtime = nil
	d.desire(target, kind, runtime)
	for m, reason := range map[*atelier.Module]atelier.Reason{
		&target: atelier.ReasonUnsupportedFeature, &kind: atelier.ReasonVariantMissing, &runtime: atelier.ReasonRuntimeMissing,
	} {
		d.eventually(string(reason), func() bool {
			s := d.status(*m).Candidate
			return s != nil && s.State() == atelier.Refused && s.Why().Reason() == reason
		})
	}
	d.desire()
	d.eventually("they go", func() bool { return len(d.runner.Status()) == 0 })
}

func TestRestartsWhatCrashes(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	m := d.module("digits", "one")
	d.desire(m)
	d.serves(m)
	for n := range 3 {
		d.target.Crash(instanceID(&m), targets.Exit{Code: 139, LastLine: "segfault"})
		d.eventually("it serves again", func() bool {
			s := d.status(m).Current
			// The restart is counted before the state says so: only what runs can crash anew.
			return s != nil && s.State() == atelier.Serving && s.Restarts == n+1 && len(d.target.Running()) == 1
		})
	}
	if d.gateway.Routed("digits") != m.Rollout {
		t.Error("its route is gone")
	}
}

func TestEndsAModuleThatHangs(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	var hangs atomic.Bool
	d.target.Behave = func(targets.Spec) agenttest.Behaviour { return agenttest.Behaviour{Unready: hangs.Load()} }
	d.start()
	m := d.module("digits", "one")
	d.desire(m)
	d.serves(m)
	hangs.Store(true)
	d.eventually("it is ended", func() bool { return d.status(m).Current.Restarts > 0 })
	hangs.Store(false)
	d.serves(m)
}

func TestAnAgentThatRestartsAdoptsWhatRuns(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	m := d.module("digits", "one")
	d.desire(m)
	d.serves(m)
	sequence := d.gateway.Table().Sequence
	d.stop()
	if len(d.target.Running()) != 1 {
		t.Fatal("the module went with the agent")
	}
	d.mu.Lock()
	d.fetchErr = atelier.Errorf(atelier.Unavailable, "the hub is away")
	d.mu.Unlock()
	d.start()
	d.serves(m)
	if n := d.target.Starts(instanceID(&m)); n != 1 {
		t.Errorf("it was started %d times", n)
	}
	if s := d.gateway.Table().Sequence; s != sequence {
		t.Errorf("the routes were written anew: %d, %d before", s, sequence)
	}
}

func TestAfterARebootModulesComeUpWithoutTheHub(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	one := d.module("digits", "one")
	d.desire(one)
	d.serves(one)
	d.stop()
	d.target.Crash("", targets.Exit{Code: -1, Signal: "killed"})
	if err := os.RemoveAll(filepath.Join(d.dir, "run")); err != nil {
		t.Fatal(err)
	}
	d.disk.Restart(nil)
	d.start()
	d.serves(one)
}

func TestEndsWhatNothingHereKnows(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	stray := d.module("stray", "x")
	if err := d.target.Start(t.Context(), targets.Spec{ID: instanceID(&stray)}); err != nil {
		t.Fatal(err)
	}
	if err := d.target.Start(t.Context(), targets.Spec{ID: "somebody-elses"}); err != nil {
		t.Fatal(err)
	}
	d.start()
	d.eventually("the stray is gone", func() bool { return len(d.target.Running()) == 1 })
	if !contains(d.target.Running(), "somebody-elses") {
		t.Error("it ended what is not its own")
	}
}

func TestAFullDiskChangesNothingUntilItHasRoom(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	old := d.module("digits", "one")
	d.desire(old)
	d.serves(old)
	new := d.next(old, "two")
	d.desire(new)
	d.disk.SetSpace(0)
	d.eventually("it waits", func() bool {
		c := d.status(new).Candidate
		return c != nil && c.State() == atelier.Standby && c.Why().Reason() == atelier.ReasonStateNotDurable || c == nil
	})
	if c := d.status(new).Current; c.Rollout == old.Rollout && d.gateway.Routed("digits") != old.Rollout {
		t.Error("it acts on what is not saved")
	}
	d.disk.SetSpace(1 << 20)
	d.serves(new)
}

func TestTheGatewayIsGivenItsRoutesAgain(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	m := d.module("digits", "one")
	d.desire(m)
	d.serves(m)
	d.gateway.Lose(atelier.RouteTable{})
	d.runner.GatewayRestarted()
	d.serves(m)
	d.gateway.Lose(atelier.RouteTable{Sequence: 1000}) // the agent's state is the older one
	d.runner.GatewayRestarted()
	d.serves(m)
	if s := d.gateway.Table().Sequence; s != 1001 {
		t.Errorf("the sequence is %d, want 1001", s)
	}
}

func TestNewKeysNeedNoNewRollout(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	m := d.module("digits", "one")
	d.desire(m)
	d.serves(m)
	m.Endpoint.Keys.Primary = "rotated"
	d.desire(m)
	d.eventually("the gateway has the key", func() bool {
		routes := d.gateway.Table().Routes
		return len(routes) == 1 && routes[0].Keys.Primary == "rotated"
	})
	d.serves(m)
	if n := d.target.Starts(instanceID(&m)); n != 1 {
		t.Errorf("it was started %d times", n)
	}
}

// A rollout that the gateway routes to goes on serving while newer routes are on
// their way, or do not get there; but not as desired.
func TestServesWhileNewRoutesAreOnTheirWay(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	var hold, broken atomic.Bool
	held, release := make(chan struct{}), make(chan struct{})
	d.gateway.Before = func(operation, _ string) error {
		if operation == "apply" && hold.CompareAndSwap(true, false) {
			close(held)
			<-release
		}
		if operation == "apply" && broken.Load() {
			return errors.New("connection refused")
		}
		return nil
	}
	d.start()
	m := d.module("digits", "one")
	d.desire(m)
	d.serves(m)
	broken.Store(true)
	hold.Store(true)
	m.Endpoint.Keys.Primary = "rotated"
	d.desire(m)
	<-held
	if s := d.status(m).Current; s.State() != atelier.Serving || s.Why().Reason() != atelier.ReasonWaiting {
		t.Errorf("on their way: %s, %s", s.State(), s.Why().Reason())
	}
	close(release)
	d.eventually("the gateway is said to be down", func() bool {
		s := d.status(m).Current
		return s.State() == atelier.Serving && s.Why().Reason() == atelier.ReasonGatewayDown
	})
	broken.Store(false)
	d.eventually("it serves as desired", func() bool { return d.status(m).Current.Why().Reason() == atelier.ReasonAsDesired })
}

func TestWantedAgainWhileItLeaves(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	m := d.module("digits", "one")
	d.desire(m)
	d.serves(m)
	d.gateway.Busy(m.Rollout, 1)
	d.desire()
	d.eventually("it drains", func() bool { s := d.status(m).Current; return s != nil && s.State() == atelier.Draining })
	d.desire(m)
	d.gateway.Busy(m.Rollout, 0)
	d.serves(m)
}

// errCut is what everything answers once the agent is to be cut.
var errCut = errors.New("cut")

// An agent that is cut at any step of a rollout, and comes back, finishes the
// rollout; and no step stops a module that the gateway sends requests to.
func TestTheAgentMayBeCutAtEveryStep(t *testing.T) {
	t.Parallel()
	for n := 1; ; n++ {
		d := newDevice(t)
		var armed atomic.Bool
		var steps atomic.Int64
		cut := make(chan struct{})
		var once sync.Once
		before := func(operation, id string) error {
			if operation == "stop" {
				for _, r := range d.gateway.Table().Routes {
					if id == r.Backend.Deployment+"-"+r.Backend.Rollout {
						t.Errorf("step %d: %s was stopped while it has traffic", n, id)
					}
				}
			}
			if !armed.Load() || steps.Add(1) < int64(n) {
				return nil
			}
			once.Do(func() { close(cut) })
			return errCut
		}
		d.target.Before, d.gateway.Before = before, before
		d.start()
		old := d.module("digits", "one")
		d.desire(old)
		d.serves(old)
		armed.Store(true)
		new := d.next(old, "two")
		d.desire(new)
		finished := false
		d.eventually("it is cut or done", func() bool {
			select {
			case <-cut:
				return true
			default:
			}
			s := d.status(new)
			finished = s.Current != nil && s.Current.Rollout == new.Rollout && len(d.target.Running()) == 1 && steps.Load() < int64(n)
			return finished
		})
		d.stop()
		armed.Store(false)
		d.disk.Restart(nil)
		d.start()
		d.serves(new)
		d.stop()
		if finished {
			if n < 5 {
				t.Errorf("a rollout took only %d steps", n)
			}
			return
		}
	}
}

// Likewise where the disk fails at any operation: what is desired comes about
// once the disk works again.
func TestTheDiskMayFailAtEveryOperation(t *testing.T) {
	t.Parallel()
	for n := 1; n < 40; n += 3 {
		d := newDevice(t)
		d.start()
		old := d.module("digits", "one")
		d.desire(old)
		d.serves(old)
		new := d.next(old, "two")
		d.desire(new)
		d.disk.FailAt(n, syscall.EIO)
		d.serves(new)
		d.stop()
		d.disk.Restart(nil)
		d.start()
		d.serves(new)
		d.stop()
	}
}

func TestBackoffGrowsAndEnds(t *testing.T) {
	t.Parallel()
	for n := 1; n < 100; n++ {
		pause := backoff(time.Second, time.Minute, n)
		if pause > time.Minute || pause < 750*time.Millisecond {
			t.Errorf("failure %d: pause of %v", n, pause)
		}
	}
	if backoff(time.Second, time.Minute, 40) < 45*time.Second {
		t.Error("the pause does not grow")
	}
}
