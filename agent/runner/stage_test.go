package runner

import (
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/fetch"
)

// stages makes modules what runs and held what is staged.
func (d *device) stages(held []atelier.Module, modules ...atelier.Module) {
	d.Helper()
	d.staged = held
	d.desire(modules...)
}

func (d *device) holds(m atelier.Module) {
	d.Helper()
	d.eventually(m.Name+" is staged", func() bool {
		s := d.status(m).Staged
		return s != nil && s.Rollout == m.Rollout && s.State() == atelier.StagedState
	})
	for _, f := range m.Content() {
		if has, err := d.content.Has(f.Digest); err != nil || !has {
			d.Errorf("the content of %s is not there: %v", m.Name, err)
		}
	}
}

func TestWhatIsStagedIsHeldAndNotRun(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	one := d.module("digits", "one")
	two := d.next(one, "two")
	d.desire(one)
	d.serves(one)
	d.stages([]atelier.Module{two}, one)
	d.holds(two)
	d.serves(one) // and nothing else runs
	if s := d.status(one); s.Candidate != nil || s.Staged.Fetched == 0 {
		t.Errorf("while version 2 is staged, the status is %+v", s)
	}
	held := map[int]fetch.Holding{}
	for _, h := range d.runner.Holdings() {
		held[h.Version] = h
	}
	if len(held) != 2 || held[2].Previous {
		t.Errorf("the device holds %+v", held)
	}

	d.start() // the agent is restarted, without a word of the hub
	d.holds(two)
	d.serves(one)

	fetches := d.fetches(t)
	d.stages(nil, two) // the switch
	d.serves(two)
	if n := d.fetches(t); n != fetches {
		t.Errorf("the switch fetched %d contents", n-fetches)
	}
	if s := d.status(two); s.Staged != nil {
		t.Errorf("it is still staged: %+v", s.Staged)
	}
	back := one
	back.Rollout = atelier.NewID()
	d.desire(back) // the way back needs no transfer either
	d.serves(back)
	if n := d.fetches(t); n != fetches {
		t.Errorf("the way back fetched %d contents", n-fetches)
	}
}

// fetches returns how many contents were fetched so far.
func (d *device) fetches(t *testing.T) int {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fetched
}

func TestStagedAloneReplacedAndTakenBack(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	one := d.module("digits", "one")
	two := d.next(one, "two")
	d.stages([]atelier.Module{one})
	d.holds(one)
	d.serves()
	d.stages([]atelier.Module{two})
	d.holds(two)
	d.stages(nil)
	d.eventually("nothing is left of it", func() bool { return len(d.runner.Status()) == 0 && len(d.runner.Holdings()) == 0 })
}

func TestWhatCannotBeHeldSaysWhy(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.start()
	one := d.module("digits", "one")
	two := d.next(one, "two")
	d.desire(one)
	d.serves(one)
	d.mu.Lock()
	d.fetchErr = atelier.Errorf(atelier.NoSpace, "needs 3 bytes")
	d.mu.Unlock()
	d.stages([]atelier.Module{two}, one)
	d.eventually("it says why", func() bool {
		s := d.status(one).Staged
		return s != nil && s.State() == atelier.BackOff && s.Why().Reason() == atelier.ReasonNoSpace
	})
	d.serves(one)
	d.mu.Lock()
	d.fetchErr = nil
	d.mu.Unlock()
	d.holds(two)
	odd := d.next(one, "odd")
	odd.Target = "board"
	d.stages([]atelier.Module{odd}, one)
	d.eventually("it is refused", func() bool {
		s := d.status(one).Staged
		return s != nil && s.State() == atelier.Refused && s.Why().Reason() == atelier.ReasonUnsupportedFeature
	})
	d.stages(nil, one)
	d.eventually("it is forgotten", func() bool { return d.status(one).Staged == nil })
}
