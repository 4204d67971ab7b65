package runner

import (
	"slices"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/agenttest"
	"github.com/atelier-edge/atelier/targets"
)

// in puts a module into the server of that name.
func in(server string, m atelier.Module) atelier.Module {
	m.Serving.Server = server
	return m
}

// loads waits until the server of m has exactly the given modules in it.
func (d *device) loads(m atelier.Module, modules ...atelier.Module) {
	d.Helper()
	var want []string
	for _, o := range modules {
		want = append(want, o.Rollout)
	}
	slices.Sort(want)
	d.eventually("the server holds its models", func() bool { return slices.Equal(d.target.Loaded(serverID(&m)), want) })
}

// answers waits until m serves and its endpoint leads to it.
func (d *device) answers(m atelier.Module) {
	d.Helper()
	d.eventually("it serves", func() bool {
		s := d.status(m)
		return s.Current != nil && s.Current.Rollout == m.Rollout && s.Current.State() == atelier.Serving && s.Candidate == nil &&
			d.gateway.Routed(m.Endpoint.Name) == m.Rollout
	})
}

// Models that name the same server share a process, which is started for the first and
// stopped after the last; a new version comes up in it beside the one that serves.
func TestModelsShareAServer(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	digits, voice := in("edge", d.module("digits", "one")), in("edge", d.module("voice", "voice"))
	alone := d.module("alone", "alone")
	d.desire(digits, voice, alone)
	d.answers(digits)
	d.answers(voice)
	d.answers(alone)
	d.loads(digits, digits, voice)
	server := serverID(&digits)
	if ids := d.target.Running(); len(ids) != 2 || !slices.Contains(ids, server) || !slices.Contains(ids, instanceID(&alone)) {
		t.Errorf("%v run, one server and one module alone were expected", ids)
	}
	if r := d.route("digits"); r.Server != "edge" || r.Backend.Socket == d.route("voice").Backend.Socket {
		t.Errorf("the routes are %+v and %+v", r, d.route("voice"))
	}

	d.start() // the agent is restarted
	d.answers(digits)
	second := in("edge", d.next(digits, "two"))
	d.desire(second, voice)
	d.answers(second)
	d.loads(digits, second, voice)
	if n := d.target.Starts(server); n != 1 {
		t.Errorf("the server was started %d times", n)
	}

	d.desire(voice)
	d.loads(digits, voice)
	d.desire()
	d.eventually("the server is gone with its last model", func() bool { return len(d.target.Running()) == 0 })
	d.desire(in("edge", d.module("late", "late")))
	d.eventually("it is started again", func() bool { return slices.Contains(d.target.Running(), server) })
}

// Different limits are another process, though the name is the same.
func TestServersDifferByLimits(t *testing.T) {
	t.Parallel()
	a, b := in("edge", agenttest.Module("a", []byte("a"))), in("edge", agenttest.Module("b", []byte("b")))
	if serverID(&a) != serverID(&b) {
		t.Error("two models of one server are in two")
	}
	b.Limits.Memory = 1 << 30
	if serverID(&a) == serverID(&b) {
		t.Error("two limits are in one process")
	}
	if id := serverID(&a); !isServerID(id) || isServerID(instanceID(&atelier.Module{Deployment: "d", Rollout: "r"})) {
		t.Errorf("%s is not known for a server's", id)
	}
}

// A model that is refused tells why, and the others do not notice. When the server ends,
// all of them come back.
func TestServerRefusesAndEnds(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	digits, large := in("edge", d.module("digits", "one")), in("edge", d.module("large", "large"))
	digits.Limits.Memory, large.Limits.Memory = 1<<20, 1<<20
	d.target.OnLoad = func(id string) error {
		if id == large.Rollout {
			return &atelier.LoadError{ModelFailure: atelier.ModelFailure{Exit: exitMemory, Reason: "large:1 takes 2 MB of memory, and 1 MB are left"}}
		}
		return nil
	}
	d.start()
	d.desire(digits, large)
	d.answers(digits)
	d.eventually("the large one says why", func() bool {
		s := d.status(large)
		return s.Candidate != nil && s.Candidate.State() == atelier.BackOff && s.Candidate.Why().Reason() == atelier.ReasonMemoryShort &&
			s.Candidate.Why().Message() == "large:1 takes 2 MB of memory, and 1 MB are left" && strings.Contains(s.Candidate.Why().Remedy(), "server edge")
	})
	d.answers(digits)
	server := serverID(&digits)
	if n := d.target.Starts(server); n != 1 {
		t.Errorf("the server was started %d times over a model that was refused", n)
	}
	d.target.Crash(server, targets.Exit{Code: -1, Signal: "killed"})
	d.eventually("it is started again", func() bool { return d.target.Starts(server) == 2 })
	d.answers(digits)
	d.loads(digits, digits)
}
