package runner

import (
	"sync"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/agenttest"
	"github.com/atelier-edge/atelier/agent/state"
	"github.com/atelier-edge/atelier/targets"
)

var tenth = atelier.Split{Kind: atelier.Canary, Weight: 10}

// tries makes m the module that runs, and beside it what the desired state tries.
func (d *device) tries(m, beside atelier.Module, split atelier.Split) {
	d.Helper()
	d.trials = []atelier.TrialModule{{Module: beside, Split: split}}
	d.desire(m)
}

// settles ends the trial and makes m what runs.
func (d *device) settles(m atelier.Module) {
	d.Helper()
	d.trials = nil
	d.desire(m)
}

// route returns the route in force of an endpoint.
func (d *device) route(endpoint string) (route atelier.Route) {
	for _, r := range d.gateway.Table().Routes {
		if r.Endpoint == endpoint {
			route = r
		}
	}
	return route
}

// splits waits until m serves and beside gets its share.
func (d *device) splits(m, beside atelier.Module, split atelier.Split) {
	d.Helper()
	d.eventually("requests are split", func() bool {
		s, r := d.status(m), d.route(m.Endpoint.Name)
		return s.Current != nil && s.Current.Rollout == m.Rollout && s.Current.State() == atelier.Serving && s.Candidate == nil &&
			s.Trial != nil && s.Trial.Rollout == beside.Rollout && s.Trial.State() == atelier.Serving && s.Trial.Split != nil && *s.Trial.Split == split &&
			r.Backend.Rollout == m.Rollout && r.Trial != nil && r.Trial.Backend.Rollout == beside.Rollout && r.Trial.Split == split
	})
}

// starts returns how often modules were started.
func (d *device) starts(modules ...atelier.Module) (n int) {
	for _, m := range modules {
		n += d.target.Starts(instanceID(&m))
	}
	return n
}

// behaviours are what instances do when they are started.
type behaviours struct{ sync.Map }

func (b *behaviours) set(id string, to agenttest.Behaviour) { b.Store(id, to) }

// behaves lets the test say how modules behave.
func (d *device) behaves() *behaviours {
	var b behaviours
	d.target.Behave = func(s targets.Spec) agenttest.Behaviour {
		if to, ok := b.Load(s.ID); ok {
			return to.(agenttest.Behaviour)
		}
		return agenttest.Behaviour{}
	}
	return &b
}

func TestTrialRunsBesideWhatServes(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	one := d.module("digits", "one")
	two := d.next(one, "two")
	d.settles(one)
	d.serves(one)
	d.tries(one, two, tenth)
	d.splits(one, two, tenth)
	held := map[int]bool{}
	for _, h := range d.runner.Holdings() {
		held[h.Version] = true
	}
	if !held[1] || !held[2] {
		t.Errorf("the device holds %v", held)
	}

	starts := d.starts(one, two)
	half := tenth
	half.Weight = 50
	d.tries(one, two, half)
	d.splits(one, two, half)

	d.start() // the agent is restarted, without a word of the hub
	d.splits(one, two, half)
	if n := d.starts(one, two); n != starts {
		t.Errorf("%d modules were started for another weight and by a restart of the agent", n-starts)
	}

	d.settles(two) // it is promoted
	d.serves(two)
	if n := d.starts(one, two); n != starts {
		t.Errorf("%d modules were started when it was promoted", n-starts)
	}
	if r := d.route("digits"); r.Trial != nil {
		t.Errorf("it is still a trial: %+v", r)
	}
	three := d.next(two, "three")
	d.tries(two, three, atelier.Split{Kind: atelier.Shadow, Sample: 0.5})
	d.splits(two, three, atelier.Split{Kind: atelier.Shadow, Sample: 0.5})
	d.settles(two) // it is given up
	d.serves(two)
	d.desire()
	d.eventually("nothing is left", func() bool { return len(d.runner.Status()) == 0 && len(d.target.Running()) == 0 })
}

// After a reboot everything is started again from what was written down.
func TestTrialComesBackAfterAReboot(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	one := d.module("digits", "one")
	two := d.next(one, "two")
	d.tries(one, two, tenth) // both at once: the first deploy of a device that was away
	d.splits(one, two, tenth)
	d.stop()
	d.target = agenttest.NewTarget() // nothing runs any more
	d.start()
	d.splits(one, two, tenth)
}

// A trial that cannot start, or that ends, gets nothing; the other serves on, and it says
// why.
func TestTrialThatFailsLosesItsShare(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	behave := d.behaves()
	d.start()
	one := d.module("digits", "one")
	two := d.next(one, "two")
	d.settles(one)
	d.serves(one)
	behave.set(instanceID(&two), agenttest.Behaviour{Exit: &targets.Exit{Code: exitGolden, LastLine: "case three"}})
	d.tries(one, two, tenth)
	d.eventually("it says why", func() bool {
		s := d.status(one)
		return s.Trial != nil && s.Trial.State() == atelier.BackOff && s.Trial.Why().Reason() == atelier.ReasonGoldenFailed && s.Current.State() == atelier.Serving
	})
	if r := d.route("digits"); r.Trial != nil || r.Backend.Rollout != one.Rollout {
		t.Errorf("the route is %+v", r)
	}
	if _, id, ok := d.runner.Find(one.Deployment); !ok || id != instanceID(&two) {
		t.Errorf("the log that people want is that of %s", id)
	}
	behave.set(instanceID(&two), agenttest.Behaviour{})
	d.splits(one, two, tenth)
	restarts := d.status(one).Trial.Restarts
	behave.set(instanceID(&two), agenttest.Behaviour{Exit: &targets.Exit{Code: 1, LastLine: "boom"}})
	d.target.Crash(instanceID(&two), targets.Exit{Code: 1, LastLine: "boom"})
	d.eventually("its share goes back", func() bool {
		s, r := d.status(one), d.route("digits")
		return r.Trial == nil && r.Backend.Rollout == one.Rollout && s.Trial.Restarts > restarts && s.Trial.State() == atelier.BackOff && s.Current.State() == atelier.Serving
	})
	behave.set(instanceID(&two), agenttest.Behaviour{})
	d.splits(one, two, tenth)
	if s := d.status(one).Current; s.Restarts != 0 {
		t.Errorf("what serves was restarted %d times", s.Restarts)
	}
}

// One that is promoted before it is ready takes the traffic when it is.
func TestTrialPromotedBeforeItIsReady(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	behave := d.behaves()
	d.start()
	one := d.module("digits", "one")
	two := d.next(one, "two")
	d.settles(one)
	d.serves(one)
	behave.set(instanceID(&two), agenttest.Behaviour{Exit: &targets.Exit{Code: 1}})
	d.tries(one, two, tenth)
	d.eventually("it fails", func() bool { s := d.status(one).Trial; return s != nil && s.State() == atelier.BackOff })
	d.settles(two)
	d.eventually("it is the candidate", func() bool {
		s := d.status(one)
		return s.Trial == nil && s.Candidate != nil && s.Candidate.Rollout == two.Rollout && s.Current.Rollout == one.Rollout
	})
	behave.set(instanceID(&two), agenttest.Behaviour{})
	d.serves(two)
}

// The decision alone: what was the current rollout can become a trial only when it is gone.
func TestAssignOfTrials(t *testing.T) {
	t.Parallel()
	one := agenttest.Module("digits", []byte("one"))
	two := agenttest.Next(one, []byte("two"))
	now := state.Slots{Modules: map[string]*state.Record{one.Deployment: {Current: &state.Slot{Module: two}}}}
	desired := &atelier.DesiredState{Modules: []atelier.Module{one}, Trials: []atelier.TrialModule{{Module: two, Split: tenth}}}
	all := func(string) bool { return true }
	none := func(string) bool { return false }
	now = assign(now, desired, situation{ready: all, gone: none})
	r := now.Modules[one.Deployment]
	if r.Current.Module.Rollout != one.Rollout || r.Trial != nil || len(r.Leaving) != 1 {
		t.Fatalf("at first it is %+v", r)
	}
	now = assign(now, desired, situation{ready: all, gone: none})
	if r = now.Modules[one.Deployment]; r.Trial != nil || len(r.Leaving) != 1 {
		t.Fatalf("then it is %+v", r)
	}
	now = assign(now, desired, situation{ready: all, gone: all})
	if r = now.Modules[one.Deployment]; r.Trial == nil || r.Trial.Module.Rollout != two.Rollout || r.Split != tenth || len(r.Leaving) != 0 {
		t.Fatalf("in the end it is %+v", r)
	}
	if again := assign(now, nil, situation{ready: all, gone: none}); again.Modules[one.Deployment].Trial == nil {
		t.Error("without a desired state it ends")
	}
}
