// Package programming puts overlays and models on a device so that it always ends on
// something that is known: the new one, the last good one, or the golden image; or in
// quarantine, with the reason, when it takes none of them.
//
// The steps are those of Step. Until the intent is on the disk the device is not
// touched. Afterwards each failure goes back: to the last good package, then to the
// golden one, a bounded number of times each. An intent that a new process finds means
// that nobody knows what the device holds: back to the golden image.
package programming

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/artifact"
	"github.com/atelier-edge/atelier/fpga/driver"
	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/trust"
)

// Package is an overlay with a model for it, as they came.
type Package struct {
	Manifest []byte // artifact.Overlay, signed
	Image    []byte
	Model    []byte // artifact.Model, encoded
}

func (p Package) entry() entry {
	return entry{atelier.DigestOf(p.Manifest), atelier.DigestOf(p.Image), atelier.DigestOf(p.Model)}
}

// Limits bound what may take long. The zero value takes the defaults.
type Limits struct {
	Load     time.Duration // one loading of an image; default 30 s
	Call     time.Duration // anything else that is asked of the device; default 10 s
	Patience time.Duration // how long a driver that hangs is waited for, before going back; default 1 min
	Tries    int           // of each image that is gone back to; default 2
}

// Options are what a Programmer needs.
type Options struct {
	Dir    string     // its own; made where it is not there
	FS     durable.FS // nil is the operating system's
	Driver *driver.Guard
	Target artifact.Target
	// Keys are those that sign overlays for this device.
	Keys trust.KeySet
	// Golden is the package to go back to when nothing else works. It is checked like any other.
	Golden Package
	Limits Limits
	// Watch is called as each step begins, nil is nobody.
	Watch func(Step)
	Log   *slog.Logger
}

// Programmer programs one device, which it holds for itself until Close. Its methods are
// safe for concurrent use.
type Programmer struct {
	options Options
	disk    disk
	lock    *os.File

	golden *loaded
	turn   sync.Mutex // held while the device is programmed
	closed bool

	mu     sync.Mutex
	j      journal
	now    *loaded // nil while the device is programmed, or in quarantine
	status Status
}

// Status is what is known of the device. What is not known is absent.
type Status struct {
	On      Place          `json:"on,omitempty"`
	Image   atelier.Digest `json:"image,omitempty"`
	Overlay *artifact.UUID `json:"overlay,omitempty"`
	Model   atelier.Digest `json:"model,omitempty"`
	// Loads and Rollbacks count since the directory was made.
	Loads     int `json:"loads"`
	Rollbacks int `json:"rollbacks"`
	// Took are the times of the steps of the last programming, in nanoseconds.
	Took map[Step]time.Duration `json:"took,omitempty"`
	// Passed is when golden inputs passed last.
	Passed time.Time `json:"passed,omitzero"`
	// Cycles are those of the last inference.
	Cycles     int          `json:"cycles,omitempty"`
	Quarantine *atelier.Why `json:"quarantine,omitempty"`
}

// loaded is a package that was checked.
type loaded struct {
	Package
	overlay *artifact.Overlay
	model   *artifact.Model
}

// Open takes the device and brings it to a known state: what it ran last, where it still
// runs that or takes it again; its golden image otherwise. A device that another process
// holds gives the code InUse, and the driver stays the caller's. A device in quarantine gives no error: see Status.
func Open(ctx context.Context, o Options) (*Programmer, error) {
	if o.FS == nil {
		o.FS = durable.OS{}
	}
	l := &o.Limits
	l.Load, l.Call, l.Patience = either(l.Load, 30*time.Second), either(l.Call, 10*time.Second), either(l.Patience, time.Minute)
	l.Tries = either(l.Tries, 2)
	if o.Watch == nil {
		o.Watch = func(Step) {}
	}
	if err := durable.MkdirAll(o.FS, o.Dir, 0o700); err != nil {
		return nil, err
	}
	held, err := lock(o.Dir)
	if err != nil {
		return nil, err
	}
	p := &Programmer{options: o, disk: disk{o.FS, o.Dir}, lock: held}
	if err := p.begin(ctx); err != nil {
		_ = unlock(held) // what counts is why it could not begin
		return nil, err
	}
	return p, nil
}

func either[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// begin reads the journal and settles what it tells of.
func (p *Programmer) begin(ctx context.Context) error {
	var f *Failure
	if p.golden, f = p.check(p.options.Golden); f != nil {
		return f
	}
	j, err := p.disk.read()
	if atelier.CodeOf(err) == atelier.Corrupt {
		p.options.Log.Error("the FPGA's journal cannot be read; going back to its golden image", "error", err)
		j, err = journal{}, nil
	}
	if err != nil {
		return err
	}
	if j.Golden, err = p.disk.keep(p.options.Golden); err != nil {
		return err
	}
	p.j = j
	if err := p.disk.write(j); err != nil {
		return err
	}
	t := newTimes(func(Step) {}) // what watches programming is not told of going back
	if j.Intent == nil && j.Quarantine == nil && j.Current != nil {
		if was, err := p.kept(*j.Current); err == nil && (p.prove(ctx, was, t) == nil || p.apply(ctx, was, t) == nil) {
			place := LastGood
			if *j.Current == j.Golden {
				place = GoldenOnly
			}
			return p.settled(*j.Current, was, place, t)
		}
		p.options.Log.Warn("the FPGA does not run what it ran last; going back to its golden image")
	}
	_ = p.back(ctx, []candidate{{j.Golden, p.golden, GoldenOnly}}, t) // the status has it
	return nil
}

// kept returns a package of the disk, checked anew.
func (p *Programmer) kept(e entry) (*loaded, error) {
	pkg, err := p.disk.load(e)
	if err != nil {
		return nil, err
	}
	l, f := p.check(pkg)
	if f != nil {
		return nil, f
	}
	return l, nil
}

// Program puts a package on the device, drain having ended the requests that run. It
// returns nil where the device runs the package now; otherwise the error is a *Failure that
// says what it runs instead, or has the code InUse where it is being programmed already.
// Once the intent is on the disk, the end of ctx changes nothing any more.
func (p *Programmer) Program(ctx context.Context, pkg Package, drain func(context.Context) error) error {
	if !p.turn.TryLock() {
		return busy()
	}
	defer p.turn.Unlock()
	if q := p.Status().Quarantine; q != nil {
		return &Failure{Verify, atelier.ReasonQuarantined, Nowhere, atelier.Errorf(atelier.Unavailable, "%s", q.Message()).WithRemedy("%s", q.Remedy())}
	}
	t := newTimes(p.options.Watch)
	next, f := p.checkTimed(pkg, t)
	if f != nil {
		return f
	}
	unchanged := func(s Step, err error) error {
		return &Failure{s, atelier.ReasonProgrammingFailed, Unchanged, err}
	}
	t.begin(Drain)
	if drain != nil {
		if err := drain(ctx); err != nil {
			return unchanged(Drain, err)
		}
	}
	t.begin(Intend)
	e, err := p.disk.keep(pkg)
	if err != nil {
		return unchanged(Intend, err)
	}
	before := p.take()
	j := p.journal()
	j.Intent = &e
	if err := p.disk.write(j); err != nil {
		p.give(before) // what is on the disk is the old journal or the new one; the device is untouched
		return unchanged(Intend, err)
	}
	p.remember(j)
	ctx = context.WithoutCancel(ctx)
	if f = p.applyOver(ctx, before, next, t); f == nil {
		t.begin(Commit)
		if err = p.settled(e, next, New, t); err == nil {
			return nil
		}
		f = &Failure{Step: Commit, Reason: atelier.ReasonProgrammingFailed, Err: err}
	}
	p.options.Log.Warn("the FPGA was not programmed; going back", "step", f.Step, "error", f.Err)
	var candidates []candidate
	if j.LastGood != nil && *j.LastGood != e {
		was := before // what is in memory needs no disk
		if was == nil || was.entry() != *j.LastGood {
			was, err = p.kept(*j.LastGood)
		}
		if err == nil {
			candidates = append(candidates, candidate{*j.LastGood, was, LastGood})
		}
	}
	candidates = append(candidates, candidate{j.Golden, p.golden, GoldenOnly})
	if then := p.back(ctx, candidates, t); then != nil {
		f.On = Nowhere
		f.Err = atelier.Errorf(atelier.CodeOf(f.Err), "%w; and while going back: %w", f.Err, then.Err)
		return f
	}
	f.On = p.Status().On
	return f
}

// candidate is a package to go back to.
type candidate struct {
	entry
	*loaded
	place Place
}

// back tries the candidates in turn, and quarantines the device when it takes none.
func (p *Programmer) back(ctx context.Context, candidates []candidate, t *times) *Failure {
	last := &Failure{Step: Load, Reason: atelier.ReasonDriverDown}
	// A driver that still hangs is waited for once, not at each try.
	_, last.Err = driver.Within(ctx, p.options.Driver, "wait for the end of what hangs", p.options.Limits.Patience,
		func(context.Context, driver.Driver) (struct{}, error) { return struct{}{}, nil })
	if last.Err == nil {
		for _, c := range candidates {
			for range p.options.Limits.Tries {
				f := p.apply(ctx, c.loaded, t)
				if f == nil {
					if j := p.journal(); j.Current != nil || j.Intent != nil { // and it is not the first start
						j.Rollbacks++
						p.remember(j)
					}
					if err := p.settled(c.entry, c.loaded, c.place, t); err != nil {
						// The next process finds the intent, and goes back to the golden image.
						p.options.Log.Error("the disk does not take what the FPGA runs now", "place", c.place, "error", err)
					}
					return nil
				}
				p.options.Log.Warn("the FPGA did not take an image to go back to", "place", c.place, "step", f.Step, "error", f.Err)
				last = f
			}
		}
	}
	last.On = Nowhere
	why := atelier.BecauseOf(atelier.ReasonQuarantined, last.Err).WithRemedy("")
	if doc, ok := atelier.ReasonQuarantined.Doc(); ok {
		why = why.WithRemedy(doc.Remedy)
	}
	j := p.journal()
	j.Quarantine = &why
	p.mu.Lock()
	p.j, p.now = j, nil
	p.status = Status{On: Nowhere, Took: t.took, Cycles: p.status.Cycles}
	p.mu.Unlock()
	if err := p.disk.write(j); err != nil {
		// The intent is still on the disk, which says the same to the next process.
		p.options.Log.Error("the disk does not take that the FPGA is in quarantine", "error", err)
	}
	return last
}

// settled notes what the device runs now. A new package that the disk does not take is
// not settled; what was gone back to is, and the error tells of the disk only.
func (p *Programmer) settled(e entry, l *loaded, place Place, t *times) error {
	j := p.journal()
	j.Intent, j.Quarantine, j.Current, j.Passed = nil, nil, &e, time.Now()
	if place == New {
		j.LastGood = &e
	}
	written := p.disk.write(j)
	if written != nil && place == New {
		return written
	}
	t.end()
	p.mu.Lock()
	p.j, p.now = j, l
	uuid := l.overlay.UUID
	p.status = Status{On: place, Image: e.Image, Overlay: &uuid, Model: e.Model, Took: t.took, Cycles: p.status.Cycles}
	p.mu.Unlock()
	if written != nil {
		return written
	}
	if err := p.disk.forget(j); err != nil {
		p.options.Log.Warn("parts that are of no use any more stay on the disk", "error", err)
	}
	return nil
}

// take takes the device from those who infer.
func (p *Programmer) take() *loaded {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.now
	p.now = nil
	return l
}

func (p *Programmer) give(l *loaded) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = l
}

func (p *Programmer) journal() journal {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.j
}

func (p *Programmer) remember(j journal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.j = j
}

// Status returns what is known of the device.
func (p *Programmer) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.status
	s.Loads, s.Rollbacks, s.Passed, s.Quarantine = p.j.Loads, p.j.Rollbacks, p.j.Passed, p.j.Quarantine
	return s
}

// Model returns the model that the device runs, nil while it runs none.
func (p *Programmer) Model() *artifact.Model {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now == nil {
		return nil
	}
	return p.now.model
}

// Infer runs one inference of the model. A device that is being programmed or is in
// quarantine gives the code Unavailable.
func (p *Programmer) Infer(ctx context.Context, model *artifact.Model, x []int8) (program.Result, error) {
	r, err := driver.Within(ctx, p.options.Driver, "infer", p.options.Limits.Call, func(_ context.Context, d driver.Driver) (program.Result, error) {
		if p.Model() != model || model == nil {
			return program.Result{}, atelier.Errorf(atelier.Unavailable, "the FPGA does not run this model now").
				WithRemedy("Try again when the device is programmed.")
		}
		return model.Program.Infer(d.Overlay(), x)
	})
	if err == nil {
		p.mu.Lock()
		p.status.Cycles = r.Cycles
		p.mu.Unlock()
	}
	return r, err
}

// Close gives the device back; it goes on with its configuration. A driver that hangs longer
// than ctx keeps it until the process ends. Closing again does nothing.
func (p *Programmer) Close(ctx context.Context) error {
	p.turn.Lock()
	defer p.turn.Unlock()
	if p.closed {
		return nil
	}
	p.take()
	if err := p.options.Driver.Close(ctx); err != nil {
		return err
	}
	p.closed = true
	return unlock(p.lock)
}
