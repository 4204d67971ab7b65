package programming

import (
	"context"
	"errors"
	"slices"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/artifact"
	"github.com/atelier-edge/atelier/fpga/driver"
	"github.com/atelier-edge/atelier/internal/trust"
)

// pollEvery is how often the state of a device is asked for that is not yet operating.
const pollEvery = 5 * time.Millisecond

// times measures steps, and tells of them.
type times struct {
	watch func(Step)
	step  Step
	began time.Time
	took  map[Step]time.Duration
}

func newTimes(watch func(Step)) *times { return &times{watch: watch, took: map[Step]time.Duration{}} }

func (t *times) begin(s Step) {
	t.end()
	t.step, t.began = s, time.Now()
	t.watch(s)
}

func (t *times) end() {
	if t.step != "" {
		t.took[t.step] += time.Since(t.began)
	}
	t.step = ""
}

func (p *Programmer) check(pkg Package) (*loaded, *Failure) {
	return p.checkTimed(pkg, newTimes(func(Step) {}))
}

// checkTimed is what needs no device: the signature before anything else, then the digest,
// and only then is anything parsed.
func (p *Programmer) checkTimed(pkg Package, t *times) (*loaded, *Failure) {
	fail := func(s Step, r atelier.Reason, err error) (*loaded, *Failure) {
		return nil, &Failure{s, r, Unchanged, err}
	}
	t.begin(Verify)
	o, err := artifact.Open(pkg.Manifest, p.options.Keys)
	if err != nil {
		reason := atelier.ReasonImageInvalid
		var untrusted *trust.Error
		if errors.As(err, &untrusted) {
			reason = untrusted.Reason
		}
		return fail(Verify, reason, err)
	}
	if err := o.CheckDigest(pkg.Image); err != nil {
		return fail(Verify, atelier.ReasonDigestMismatch, err)
	}
	t.begin(Check)
	if err := o.CheckImage(pkg.Image); err != nil {
		return fail(Check, atelier.ReasonImageInvalid, err)
	}
	if err := o.CheckTarget(p.options.Target); err != nil {
		return fail(Check, atelier.ReasonDeviceMismatch, err)
	}
	m, err := artifact.ParseModel(pkg.Model)
	if err != nil {
		return fail(Check, atelier.ReasonImageInvalid, err)
	}
	if m.Overlay != o.UUID || m.Program.Geometry != o.Geometry {
		return fail(Check, atelier.ReasonDeviceMismatch, atelier.Errorf(atelier.Conflict, "the model is for the overlay %s, the package has %s", m.Overlay, o.UUID).
			WithRemedy("Compile the model for this overlay."))
	}
	return &loaded{pkg, o, m}, nil
}

// ask asks the device something, in time.
func (p *Programmer) ask(ctx context.Context, doing string, fn func(context.Context, driver.Driver) error) error {
	_, err := driver.Within(ctx, p.options.Driver, doing, p.options.Limits.Call, func(ctx context.Context, d driver.Driver) (struct{}, error) {
		return struct{}{}, fn(ctx, d)
	})
	return err
}

// applyOver puts a package on a device that runs before: where the image is the same, only
// the model is written.
func (p *Programmer) applyOver(ctx context.Context, before, next *loaded, t *times) *Failure {
	if before != nil && before.overlay.Digest == next.overlay.Digest && p.prove(ctx, next, t) == nil {
		return nil
	}
	return p.apply(ctx, next, t)
}

// apply loads the image, and proves what came of it.
func (p *Programmer) apply(ctx context.Context, l *loaded, t *times) *Failure {
	t.begin(Load)
	j := p.journal()
	j.Loads++
	p.remember(j)
	_, err := driver.Within(ctx, p.options.Driver, "load an image", p.options.Limits.Load, func(ctx context.Context, d driver.Driver) (struct{}, error) {
		return struct{}{}, d.Load(ctx, l.Image)
	})
	if err != nil {
		return failed(Load, err)
	}
	t.begin(Settle)
	if err := p.ask(ctx, "become operating", settle); err != nil {
		return failed(Settle, err)
	}
	return p.prove(ctx, l, t)
}

// settle polls the state until it is operating.
func settle(ctx context.Context, d driver.Driver) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		s, err := d.State(ctx)
		if err != nil {
			return err
		}
		switch s.Phase {
		case driver.Operating, driver.Unknown: // what cannot tell is proven by its overlay
			return nil
		case driver.Failed:
			return atelier.Errorf(atelier.Unavailable, "the device says %q after it was loaded", s.Detail)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return atelier.Errorf(atelier.Timeout, "the device still says %q after it was loaded", s.Detail)
		}
	}
}

// prove sees that the overlay is the right one, writes the model, reads it back, and runs
// the golden inputs.
func (p *Programmer) prove(ctx context.Context, l *loaded, t *times) *Failure {
	t.begin(Identify)
	err := p.ask(ctx, "read the overlay's identity", func(_ context.Context, d driver.Driver) error {
		id, err := driver.Identity(d.Overlay())
		if err != nil {
			return err
		}
		return l.overlay.CheckIdentity(id)
	})
	if err != nil {
		return failed(Identify, err)
	}
	t.begin(Weights)
	if err := p.ask(ctx, "take the model", func(_ context.Context, d driver.Driver) error { return l.model.Program.Load(d.Overlay()) }); err != nil {
		return failed(Weights, err)
	}
	t.begin(Golden)
	if err := p.ask(ctx, "run the golden inputs", func(_ context.Context, d driver.Driver) error { return golden(l.model, d) }); err != nil {
		return failed(Golden, err)
	}
	return nil
}

func golden(m *artifact.Model, d driver.Driver) error {
	for i, g := range m.Golden {
		got, err := m.Program.Infer(d.Overlay(), g.Input)
		if err != nil {
			return err
		}
		if !slices.Equal(got.Outputs, g.Output) || got.ArgMax != g.ArgMax {
			return atelier.Errorf(atelier.Conflict, "golden input %d gives %v with the largest at %d, expected were %v and %d", i, got.Outputs, got.ArgMax, g.Output, g.ArgMax)
		}
		if got.Cycles != m.Cycles {
			return atelier.Errorf(atelier.Conflict, "golden input %d takes %d cycles, predicted were %d", i, got.Cycles, m.Cycles)
		}
	}
	return nil
}

// failed names the reason of a failure on the device.
func failed(s Step, err error) *Failure {
	reason := atelier.ReasonProgrammingFailed
	switch {
	case atelier.CodeOf(err) == atelier.Timeout:
		reason = atelier.ReasonDriverDown
	case s == Golden:
		reason = atelier.ReasonGoldenFailed
	}
	return &Failure{Step: s, Reason: reason, Err: err}
}
