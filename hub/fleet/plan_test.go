package fleet_test

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/content/delta"
	"github.com/atelier-edge/atelier/internal/content/transfer"
)

// making makes differences when it is let: Find tells to wait until then.
type making struct {
	h *hub

	mu     sync.Mutex
	let    chan struct{} // closed when differences are made
	useful func(target, base atelier.Digest) bool
	made   map[asked][]byte
}

func newMaking(h *hub) *making {
	m := &making{h: h, let: make(chan struct{}), made: map[asked][]byte{}, useful: func(_, base atelier.Digest) bool { return base != "" }}
	h.differences = m
	return m
}

func (m *making) Expect(atelier.Digest, atelier.Digest) (transfer.Expectation, bool) {
	return transfer.Expectation{}, false
}

func (m *making) Find(target, base atelier.Digest) (*transfer.Difference, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.let:
	default:
		return nil, m.let
	}
	if !m.useful(target, base) {
		return nil, nil
	}
	b, ok := m.made[asked{target, base}]
	if !ok {
		b = m.encode(target, base)
		m.made[asked{target, base}] = b
	}
	return &transfer.Difference{Blob: blob{bytes.NewReader(b)}, Digest: atelier.DigestOf(b), Bases: []atelier.Digest{base}}, nil
}

func (m *making) Prepare(atelier.Digest, atelier.Digest) {}

func (m *making) encode(target, base atelier.Digest) []byte {
	file := func(d atelier.Digest) delta.File {
		b, err := m.h.content.Open(d)
		if err != nil {
			m.h.t.Error(err)
			return delta.File{}
		}
		return delta.File{Digest: d, Size: b.Size(), Content: b}
	}
	var out bytes.Buffer
	var bases []delta.File
	if base != "" {
		bases = append(bases, file(base))
	}
	if _, err := delta.Encode(m.h.ctx, &out, file(target), bases, delta.Options{}); err != nil {
		m.h.t.Error(err)
	}
	return out.Bytes()
}

// tells makes a device tell what it has, as an agent does, and name bases.
func (d *device) tells(change func(*atelier.Storage)) {
	d.storage = func() *atelier.Storage {
		s := &atelier.Storage{}
		err := d.store.Walk(func(info content.Info) error {
			s.Content = append(s.Content, atelier.Stored{Digest: info.Digest, Size: info.Size})
			return nil
		})
		if err != nil {
			d.h.t.Error(err)
		}
		change(s)
		return s
	}
	ran := map[string]*atelier.Module{} // by deployment: what ran before
	d.bases = func(file atelier.File) (bases []atelier.Digest) {
		d.mu.Lock()
		defer d.mu.Unlock()
		var placed []atelier.Placed
		var staged []*atelier.Module
		for i := range d.saved.Modules {
			m := &d.saved.Modules[i]
			p := atelier.Placed{Current: ran[m.Deployment]}
			if p.Current != nil {
				p.All = append(p.All, p.Current)
			}
			if ran[m.Deployment] == nil || m.Has(file.Digest) {
				ran[m.Deployment] = m
			}
			p.All = append(p.All, m)
			placed = append(placed, p)
		}
		for i := range d.saved.Staged {
			staged = append(staged, &d.saved.Staged[i])
		}
		bases = []atelier.Digest{}
		for _, b := range atelier.Resembling(file, placed, staged) {
			if has, err := d.store.Has(b); err == nil && has {
				bases = append(bases, b)
			}
		}
		return bases
	}
}

// tell reports until the hub has stored a report that is as it should be.
func (d *device) tell(is func(*atelier.ReportedState) bool) {
	d.h.t.Helper()
	eventually(d.h.t, func() string {
		d.report(d.h.ctx)
		var stored catalog.ReportedState
		err := d.h.store.View(d.h.ctx, func(tx store.Tx) (err error) {
			stored, err = catalog.ReportedStates.Get(tx, d.ws, d.id)
			return err
		})
		if err != nil || stored.State == nil || !is(stored.State) {
			return fmt.Sprintf("%s said %+v, %v", d.name, stored.State, err)
		}
		return ""
	})
}

func (d *device) received(files ...atelier.File) (sum int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, file := range files {
		sum += d.came[file.Digest].Received
	}
	return sum
}

// plan plans what a deploy of a model's version would bring, and checks that nothing
// was changed by it.
func (h *hub) plan(workspace string, spec fleet.DeploymentSpec, wait time.Duration) atelier.DeploymentPlan {
	h.t.Helper()
	before := h.all(workspace)
	p, err := h.fleet.PlanDeployment(h.ctx, workspace, spec, wait)
	if err != nil {
		h.t.Fatal(err)
	}
	if after := h.all(workspace); !reflect.DeepEqual(before, after) {
		h.t.Errorf("the plan changed something:\n%+v\n%+v", before, after)
	}
	return p
}

// all is everything that a plan must not change.
func (h *hub) all(workspace string) (all []any) {
	h.t.Helper()
	err := h.store.View(h.ctx, func(tx store.Tx) error {
		last, err := tx.LastEvent()
		if err != nil {
			return err
		}
		all = []any{last}
		q := store.Query{Workspace: workspace}
		if err := catalog.Deployments.Each(tx, q, func(d atelier.Deployment) error { all = append(all, d); return nil }); err != nil {
			return err
		}
		if err := catalog.Endpoints.Each(tx, q, func(e atelier.Endpoint) error { all = append(all, e); return nil }); err != nil {
			return err
		}
		if err := catalog.Rollouts.Each(tx, q, func(r atelier.Rollout) error { all = append(all, r.ID); return nil }); err != nil {
			return err
		}
		return catalog.DesiredStates.Each(tx, q, func(s catalog.DesiredState) error { all = append(all, s); return nil })
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return all
}

// only returns the plan of the only device.
func only(t *testing.T, p atelier.DeploymentPlan) atelier.DevicePlan {
	t.Helper()
	if len(p.Devices) != 1 {
		t.Fatalf("there are %d devices in %+v", len(p.Devices), p)
	}
	d := p.Devices[0]
	if d.Refusal == nil && (p.Wire != d.Wire || p.Disk != d.Disk || p.Seconds != d.Seconds) {
		t.Errorf("the sums of %+v are not those of its device", p)
	}
	return d
}

// What is planned is what comes: as it is, as a difference, prefetched, and not at all.
func TestPlanIsWhatComes(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	making := newMaking(h)
	ws := h.workspace("lab")
	runtime := h.runtime("1.20.1")
	var files []atelier.File
	first := noise(t, 300_000)
	version := func() {
		next := slices.Clone(first)
		copy(next[100_000:], noise(t, 2000))
		files = append(files, h.model(ws, "digits", next).Variants[0].Files[0])
	}
	version()
	d := h.join(ws, "kiosk", edge)
	d.facts.DiskFree = 1 << 40
	d.tells(func(s *atelier.Storage) {
		if len(s.Content) > 0 {
			s.Rate = 20 << 20 // it came too quickly to be measured
		}
	})
	h.start()
	d.connect()
	d.tell(func(r *atelier.ReportedState) bool { return r.Storage != nil })

	spec := fleet.DeploymentSpec{Name: ptr("digits"), Model: ptr("digits"), Selector: &atelier.Selector{Labels: edge}}
	p := h.plan(ws, spec, 0)
	one := only(t, p)
	if !p.New || one.Way != atelier.WayWhole || one.RateFrom != atelier.RateAssumed || one.Disk != files[0].Size+runtime.Size || one.Estimate || len(one.Files) != 2 {
		t.Errorf("the first plan is %+v", p)
	}
	dep := h.deploy(ws, "digits", "digits", edge)
	d.serves(dep)
	if got := d.received(files[0], runtime); got != one.Wire || got == 0 {
		t.Errorf("%d bytes came, %d were planned", got, one.Wire)
	}
	version()
	version()

	at := func(number string) fleet.DeploymentSpec {
		return fleet.DeploymentSpec{Name: ptr("digits"), Version: ptr(number)}
	}
	eventually(t, func() string {
		if one = only(t, h.plan(ws, at("1"), 0)); one.Way != atelier.WayNone || one.Wire != 0 {
			return fmt.Sprintf("to deploy what runs is planned as %+v", one)
		}
		return ""
	})
	// Until the difference is made it is not known what comes.
	p = h.plan(ws, at("2"), 0)
	one = only(t, p)
	if p.Pending != 1 || !p.Estimate || one.Way != atelier.WayWhole || one.Why != "a difference to version 1 is being made; it comes as it is until then" {
		t.Errorf("before the difference is made, the plan is %+v", p)
	}
	time.AfterFunc(50*time.Millisecond, func() { close(making.let) })
	p = h.plan(ws, at("2"), time.Hour)
	one = only(t, p)
	if p.Pending != 0 || p.Estimate || one.Way != atelier.WayDifference || one.Files[0].Base != "version 1" || one.Disk != files[1].Size || one.Wire > 5000 || one.RateFrom != atelier.RateMeasured {
		t.Errorf("with the difference, the plan is %+v", p)
	}
	d.serves(h.change(ws, "digits", fleet.DeploymentSpec{Version: ptr("2")}))
	if got := d.received(files[1]); got != one.Wire {
		t.Errorf("%d bytes came, %d were planned", got, one.Wire)
	}
	// What is still there needs not come again.
	eventually(t, func() string {
		if one = only(t, h.plan(ws, at("1"), 0)); one.Way != atelier.WayThere || one.Wire != 0 || one.Disk != 0 || one.Seconds != 0 {
			return fmt.Sprintf("the way back is planned as %+v", one)
		}
		return ""
	})

	stage := at("3")
	stage.Prefetch = true
	p = h.plan(ws, stage, 0)
	one = only(t, p)
	if p.Version != 3 || one.Way != atelier.WayDifference || one.Why != "version 2 is on the device" {
		t.Errorf("the prefetch is planned as %+v", p)
	}
	d.on(h.prefetch(ws, "digits", "3"), "ready to switch", func(s atelier.DeviceStatus) bool { return s.ReadyToSwitch() })
	if got := d.received(files[2]); got != one.Wire {
		t.Errorf("%d bytes came of the prefetch, %d were planned", got, one.Wire)
	}
	one = only(t, h.plan(ws, fleet.DeploymentSpec{Name: ptr("digits"), Switch: true}, 0))
	if one.Way != atelier.WayThere || one.Wire != 0 {
		t.Errorf("the switch is planned as %+v", one)
	}
}

// A plan refuses what the deploy would refuse.
func TestPlanOfWhatCannotBe(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.start()
	h.model(ws, "digits", noise(t, 10))
	h.deploy(ws, "digits", "digits", edge)
	all := &atelier.Selector{All: true}
	for name, c := range map[string]struct {
		spec fleet.DeploymentSpec
		code atelier.Code
	}{
		"no name":          {fleet.DeploymentSpec{Model: ptr("digits"), Selector: all}, atelier.Invalid},
		"nobody selected":  {fleet.DeploymentSpec{Name: ptr("new"), Model: ptr("digits")}, atelier.Invalid},
		"no such version":  {fleet.DeploymentSpec{Name: ptr("digits"), Version: ptr("9")}, atelier.NotFound},
		"no such model":    {fleet.DeploymentSpec{Name: ptr("new"), Model: ptr("speech"), Selector: all}, atelier.NotFound},
		"endpoint taken":   {fleet.DeploymentSpec{Name: ptr("new"), Model: ptr("digits"), Selector: all, Endpoint: ptr("digits")}, atelier.Exists},
		"nothing staged":   {fleet.DeploymentSpec{Name: ptr("digits"), Switch: true}, atelier.Conflict},
		"it runs already":  {fleet.DeploymentSpec{Name: ptr("digits"), Version: ptr("1"), Prefetch: true}, atelier.Conflict},
		"switch of a new":  {fleet.DeploymentSpec{Name: ptr("new"), Model: ptr("digits"), Selector: all, Switch: true}, atelier.Conflict},
		"more than staged": {fleet.DeploymentSpec{Name: ptr("digits"), Version: ptr("1"), Prefetch: true, Selector: all}, atelier.Invalid},
	} {
		if _, err := h.fleet.PlanDeployment(h.ctx, ws, c.spec, 0); atelier.CodeOf(err) != c.code {
			t.Errorf("%s: %v, expected code %s", name, err, c.code)
		}
	}
	if p := h.plan(ws, fleet.DeploymentSpec{Name: ptr("digits")}, 0); len(p.Devices) != 0 || p.New {
		t.Errorf("without devices the plan is %+v", p)
	}
}

// Devices that cannot take it say why, in the words of their agents, and those of
// which little is known are told apart.
func TestPlanOfDevicesThatDiffer(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	one, two := h.model(ws, "digits", noise(t, 40_000)), h.model(ws, "digits", noise(t, 50_000))
	full, spare, old := h.join(ws, "full", edge), h.join(ws, "spare", edge), h.join(ws, "old", edge)
	slow, strange := h.join(ws, "slow", edge), h.join(ws, "strange", edge)
	h.join(ws, "gone", edge)
	kept := atelier.Kept{Deployment: "d", Model: "digits", Version: 1, Entry: "model.onnx", Files: one.Variants[0].Files}
	holds := func(s *atelier.Storage, unneeded bool) {
		s.Content = append(s.Content, atelier.Stored{Digest: one.Variants[0].Files[0].Digest, Size: 40_000, Unneeded: unneeded})
		s.Reserve, s.Rate = 10_000, 1_000_000
	}
	full.tells(func(s *atelier.Storage) { holds(s, false); s.KeepsPrevious, s.Kept = true, []atelier.Kept{kept} })
	spare.tells(func(s *atelier.Storage) { holds(s, true) })
	slow.tells(func(s *atelier.Storage) { holds(s, false) })
	strange.tells(func(s *atelier.Storage) {
		s.Content = []atelier.Stored{{Digest: "x", Size: -1}, {Digest: two.Digest, Size: 1 << 62}, {Digest: one.Digest, Size: 1 << 62}}
		s.Reserve, s.Rate = -1, -1
	})
	full.facts.DiskFree, spare.facts.DiskFree, slow.facts.DiskFree = 30_000, 30_000, 1<<40
	h.start()
	for _, d := range []*device{full, spare, old, slow, strange} {
		d.connect()
		d.tell(func(r *atelier.ReportedState) bool { return (r.Storage != nil) == (d.storage != nil) })
	}
	if _, err := h.fleet.UpdateDevice(h.ctx, ws, "slow", 0, fleet.DeviceChange{Transfer: &atelier.TransferChange{Bandwidth: ptr(int64(1000))}}); err != nil {
		t.Fatal(err)
	}

	p := h.plan(ws, fleet.DeploymentSpec{Name: ptr("digits"), Model: ptr("digits"), Version: ptr("2"), Selector: &atelier.Selector{Labels: edge}}, 0)
	by := map[string]atelier.DevicePlan{}
	for _, d := range p.Devices {
		by[d.DeviceName] = d
	}
	if len(by) != 6 || p.Refused != 3 || !p.Estimate {
		t.Errorf("the plan is %+v", p)
	}
	refused := func(name string, reason atelier.Reason, words string) {
		t.Helper()
		if r := by[name].Refusal; r == nil || r.Reason() != reason || !strings.Contains(r.Message(), words) || by[name].Way != "" {
			t.Errorf("%s: %+v", name, by[name])
		}
	}
	refused("full", atelier.ReasonNoSpace, "needs 48.8 KiB, 29.3 KiB free (9.8 KiB of it kept in reserve), 39.1 KiB can be freed by removing version 1 of digits, kept for the way back")
	refused("gone", atelier.ReasonNeverConnected, "has not said yet what it is")
	refused("strange", atelier.ReasonNoSpace, "needs 48.8 KiB, 0 B free")
	if d := by["spare"]; d.Refusal != nil || d.Way != atelier.WayWhole || d.Estimate || d.Why != "this hub makes no differences" {
		t.Errorf("where old content makes room: %+v", d)
	}
	if d := by["old"]; !d.Estimate || d.RateFrom != atelier.RateAssumed || len(d.Unknown) != 1 || d.Wire == 0 {
		t.Errorf("an agent of before: %+v", d)
	}
	if d := by["slow"]; d.RateFrom != atelier.RateBudget || d.Rate != 1000 || d.Seconds < 50 || d.Seconds > 55 {
		t.Errorf("a device with a budget: %+v", d)
	}
	if p.Seconds != by["slow"].Seconds {
		t.Errorf("in all it takes %v s", p.Seconds)
	}
}

// On slow lines content comes compressed, where it has no base; a difference needs room
// beside the content.
func TestPlanOfOtherWays(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	making := newMaking(h)
	making.useful = func(atelier.Digest, atelier.Digest) bool { return true }
	close(making.let)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	const size = 60_000
	h.model(ws, "digits", make([]byte, size))
	slow, quick, tight := h.join(ws, "slow", edge), h.join(ws, "quick", edge), h.join(ws, "tight", edge)
	h.start()
	for d, rate := range map[*device]int64{slow: 100_000, quick: 100 << 20, tight: 100_000} {
		d.facts.DiskFree = 1 << 40
		d.tells(func(s *atelier.Storage) { s.Rate = rate })
	}
	tight.facts.DiskFree = size + 18 // with the runtime
	for _, d := range []*device{slow, quick, tight} {
		d.connect()
		d.tell(func(r *atelier.ReportedState) bool { return (r.Storage != nil) == (d.storage != nil) })
	}
	p := h.plan(ws, fleet.DeploymentSpec{Name: ptr("digits"), Model: ptr("digits"), Selector: &atelier.Selector{Labels: edge}}, 0)
	want := map[string][2]string{
		"slow":  {atelier.WayCompressed, "at 97.7 KiB/s it is there sooner when it is compressed"},
		"quick": {atelier.WayWhole, "at 100.0 MiB/s it is not there sooner"},
		"tight": {atelier.WayWhole, "no room for a difference and what is made of it at once"},
	}
	for _, d := range p.Devices {
		if w := want[d.DeviceName]; d.Way != w[0] || !strings.Contains(d.Why, w[1]) || (d.Way == atelier.WayCompressed) != (d.Wire < size/2) {
			t.Errorf("%s: %+v", d.DeviceName, d)
		}
	}
}

// What a device said of its content stands while it is at work, and goes with its agent.
func TestStorageStandsUntilItIsSaidAnew(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.runtime("1.20.1")
	file := h.model(ws, "digits", noise(t, 1000)).Variants[0].Files[0]
	d := h.join(ws, "kiosk", edge)
	d.facts.DiskFree = 1 << 40
	h.start()
	d.connect()
	spec := fleet.DeploymentSpec{Name: ptr("digits"), Model: ptr("digits"), Selector: &atelier.Selector{Labels: edge}}
	says := func(s *atelier.Storage, state atelier.ModuleState) atelier.DevicePlan {
		t.Helper()
		d.mu.Lock()
		d.storage = func() *atelier.Storage { return s }
		d.mu.Unlock()
		d.tell(func(r *atelier.ReportedState) bool {
			d.mu.Lock()
			defer d.mu.Unlock()
			slot := &atelier.SlotStatus{Rollout: "r", Standing: atelier.Stand(state, atelier.Because(atelier.ReasonInProgress, ""))}
			d.modules = []atelier.ModuleStatus{{Deployment: "other", Staged: slot}}
			return len(r.Modules) == 1 && r.Modules[0].Staged != nil && r.Modules[0].Staged.State() == state && (s == nil || len(r.Storage.Content) == len(s.Content))
		})
		return only(t, h.plan(ws, spec, 0))
	}
	has := &atelier.Storage{Content: []atelier.Stored{{Digest: file.Digest, Size: file.Size}}}
	if p := says(has, atelier.StagedState); p.Estimate || p.Disk >= 1000 || p.Files[0].Way != atelier.WayThere {
		t.Errorf("what is there: %+v", p)
	}
	if p := says(nil, atelier.Fetching); !p.Estimate || p.Files[0].Way != atelier.WayThere {
		t.Errorf("while it is at work: %+v", p)
	}
	if p := says(&atelier.Storage{}, atelier.StagedState); p.Estimate || p.Files[0].Way != atelier.WayWhole {
		t.Errorf("once it is said anew: %+v", p)
	}
}
