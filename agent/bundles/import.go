// Package bundles brings desired states and content onto a device that does not
// reach its hub: from bundles (internal/bundle) that somebody puts into a directory.
//
// What it promises: nothing of a bundle counts before it was verified, the
// signature first; a state from a bundle goes through the same checks as one that
// came over MQTT, and is saved only when all that it needs is in the content
// store; an import that was cut, by a power cut even, is done again and goes on
// where it was. A bundle that is still being copied is left alone. Memory does not
// grow with the bundle's size.
//
// The package knows no MQTT and no modules.
package bundles

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/state"
	"github.com/atelier-edge/atelier/internal/bundle"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/content/delta"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Fetcher makes room for content and tells who waits for it; *fetch.Fetcher is one.
type Fetcher interface {
	Import(ctx context.Context, files []atelier.File, bring func(context.Context, atelier.File) error) (brought int64, err error)
}

// Options say what an Importer works with.
type Options struct {
	Device, Workspace string // ids
	State             *state.Store
	Content           *content.Store
	Fetcher           Fetcher
	// Desired is called when a new desired state was saved.
	Desired func()
	// Directory is watched; Keep says that what was imported stays in its
	// directory done.
	Directory string
	Keep      bool
	Log       *slog.Logger
}

// Importer imports bundles, one at a time. Its methods are safe for concurrent use.
type Importer struct {
	opts Options
	turn chan struct{}

	seen map[string]seen // what Watch has judged, by name; its own

	mu       sync.Mutex
	needed   map[atelier.Digest]bool // by the state that is being imported
	outcomes []Outcome
}

// New returns an Importer.
func New(opts Options) *Importer {
	return &Importer{opts: opts, turn: make(chan struct{}, 1), seen: map[string]seen{}}
}

// Imported tells what an import did.
type Imported struct {
	Bundle   atelier.Digest   `json:"bundle"`   // of its manifest
	Position atelier.Position `json:"position"` // of the device's desired state
	New      bool             `json:"new"`      // the state was not held before
	Bytes    int64            `json:"bytes"`    // of content that was not here before
}

// Import imports the bundle at path. After an error, whose reason is in
// bundle.WhyOf, the device's state is as before; content that was complete stays
// until it is collected. What became of it is in the log and in Outcomes.
func (i *Importer) Import(ctx context.Context, path string) (Imported, error) {
	select {
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	case <-ctx.Done():
		return Imported{}, ctx.Err()
	}
	done, err := i.open(ctx, path)
	if ctx.Err() == nil || err == nil {
		i.note(outcome(filepath.Base(path), done, err))
	}
	return done, err
}

func (i *Importer) open(ctx context.Context, path string) (Imported, error) {
	b, err := bundle.Open(path)
	if err != nil {
		return Imported{}, err
	}
	defer func() { _ = b.Close() }() // it was open for reading only
	if err := b.Complete(); err != nil {
		return Imported{}, err
	}
	if err := i.verify(b); err != nil {
		return Imported{}, err
	}
	return i.take(ctx, b)
}

// verify checks who made the bundle. What it holds of newer trust is applied
// before: it proves itself, and the bundle may be signed by a key that the device
// does not know yet.
func (i *Importer) verify(b *bundle.Bundle) error {
	c := b.Config()
	_, refused := i.opts.State.ApplyTrust(c.Trust)
	err := b.Verify(i.opts.State.Verify)
	switch {
	case err == nil && refused != nil:
		i.opts.Log.Warn("the bundle holds trust metadata that was refused", "error", refused)
	case err != nil && c.Workspace != i.opts.Workspace:
		// Only what it says of itself, but that is why nothing here knows its key.
		return bundle.Refuse(atelier.ReasonNotForDevice, atelier.Forbidden, "the bundle is for workspace %.80q, this device belongs to another", c.WorkspaceName)
	case atelier.CodeOf(refused) == atelier.NoSpace:
		return refused
	}
	return err
}

// take brings what the bundle has for this device.
func (i *Importer) take(ctx context.Context, b *bundle.Bundle) (Imported, error) {
	raw, payload, err := i.state(b)
	if err != nil {
		return Imported{}, err
	}
	desired, ack := i.opts.State.Consider(payload)
	if !ack.Saved {
		return Imported{}, refusal(ack)
	}
	var files []atelier.File
	seen, needed := map[atelier.Digest]bool{}, map[atelier.Digest]bool{}
	for _, module := range desired.Running() {
		for _, f := range module.Content() {
			if seen[f.Digest] {
				continue
			}
			seen[f.Digest], needed[f.Digest] = true, true
			files = append(files, f)
			if d := b.Difference(f.Digest); d != nil {
				for _, base := range d.Bases {
					needed[base] = true
				}
			}
		}
	}
	i.need(needed)
	defer i.need(nil)
	if err := i.enough(b, files); err != nil {
		return Imported{}, err
	}
	brought, err := i.opts.Fetcher.Import(ctx, files, func(ctx context.Context, f atelier.File) error { return i.bring(ctx, b, f) })
	if err != nil {
		return Imported{}, err
	}
	ack, changed := i.opts.State.Receive(raw, payload)
	if !ack.Saved {
		return Imported{}, refusal(ack)
	}
	if changed {
		i.opts.Desired()
	}
	return Imported{Bundle: b.Digest(), Position: ack.Position, New: changed, Bytes: brought}, nil
}

// state returns the envelope of the device's desired state, verified, and what is in it.
func (i *Importer) state(b *bundle.Bundle) (raw, payload []byte, err error) {
	for _, d := range b.Config().Devices {
		if d.ID != i.opts.Device {
			continue
		}
		if raw, err = b.Read(d.State, maxState); err != nil {
			return nil, nil, err
		}
		payloadType, payload, err := i.opts.State.Verify(raw)
		if err == nil && payloadType != wire.TypeDesired {
			err = bundle.Refuse(atelier.ReasonBundleInvalid, atelier.Invalid, "the bundle has %.80q for this device, expected %s", payloadType, wire.TypeDesired)
		}
		return raw, payload, err
	}
	return nil, nil, bundle.Refuse(atelier.ReasonNotForDevice, atelier.Forbidden, "the bundle is for %s, this is device %s", names(b.Config().Devices), i.opts.Device)
}

// maxState bounds the envelope of a desired state; hubs make none of more than wire.MaxPacket.
const maxState = 1 << 20

// names lists a few devices.
func names(devices []bundle.Device) string {
	const few = 5
	text := ""
	for n, d := range devices {
		if n == few {
			return text + " and others"
		}
		if n > 0 {
			text += ", "
		}
		text += clip(d.Name)
	}
	if text == "" {
		return "no device"
	}
	return text
}

func clip(s string) string { return s[:min(len(s), 80)] }

func refusal(ack wire.DesiredAck) error {
	code := atelier.Conflict
	switch ack.Why.Reason() {
	case atelier.ReasonReplayed:
		code = atelier.Stale
	case atelier.ReasonUnsupportedFeature:
		code = atelier.Unsupported
	case atelier.ReasonStateNotDurable:
		code = atelier.NoSpace
	}
	e := bundle.Refuse(ack.Why.Reason(), code, "%s", ack.Why.Message())
	e.Err = e.Err.WithRemedy("%s", ack.Why.Remedy())
	return e
}

// enough checks, before anything is written, that what the bundle leaves out is here.
func (i *Importer) enough(b *bundle.Bundle, files []atelier.File) error {
	for _, f := range files {
		size, there := b.Has(f.Digest)
		switch {
		case there && size != f.Size:
			return bundle.Refuse(atelier.ReasonBundleInvalid, atelier.Invalid, "the bundle has %d bytes of %q, its desired state says %d", size, f.Path, f.Size)
		case there:
			continue
		}
		has, err := i.opts.Content.Has(f.Digest)
		if err == nil && !has {
			err = i.base(b, f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// base checks that the bundle has a difference that brings f to what the device holds.
func (i *Importer) base(b *bundle.Bundle, f atelier.File) error {
	d := b.Difference(f.Digest)
	if d == nil {
		return missing(f)
	}
	for _, base := range d.Bases {
		if has, err := i.opts.Content.Has(base); err != nil {
			return err
		} else if !has {
			return bundle.Refuse(atelier.ReasonContentMissing, atelier.NotFound,
				"the bundle brings %q as a difference to %s, which the device does not hold", f.Path, base.Short())
		}
	}
	return nil
}

func missing(f atelier.File) error {
	return bundle.Refuse(atelier.ReasonContentMissing, atelier.NotFound, "neither the bundle nor the device holds %q (%s, %s)", f.Path, f.Digest.Short(), atelier.FormatBytes(f.Size))
}

// bring streams one content into the store, where it is verified before it counts.
// What an import that was cut had written is not copied again.
func (i *Importer) bring(ctx context.Context, b *bundle.Bundle, f atelier.File) (err error) {
	if _, there := b.Has(f.Digest); !there {
		if err := i.base(b, f); err != nil {
			return err // what was here is damaged
		}
		return i.decode(ctx, b, b.Difference(f.Digest), f)
	}
	from, err := b.Layer(f.Digest)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }() // it was open for reading only
	w, err := i.opts.Content.Writer(f.Digest.Hex())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if _, err := from.Seek(min(w.Offset(), f.Size), io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(writer{w}, reader{ctx, from, f.Path}); err != nil {
		return err
	}
	_, err = w.Commit(f.Digest, f.Size)
	return err
}

// decode makes a content of a difference to what the device holds. One that was cut
// begins anew.
func (i *Importer) decode(ctx context.Context, b *bundle.Bundle, d *bundle.Difference, f atelier.File) (err error) {
	for _, base := range d.Bases {
		if err := i.opts.Content.Verify(ctx, base); err != nil {
			return err // otherwise the bundle would be blamed
		}
	}
	from, err := b.Layer(d.Digest)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }() // it was open for reading only
	w, err := i.opts.Content.Writer("")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	err = delta.Decode(ctx, w, reader{ctx, from, f.Path}, f.Size, func(base atelier.Digest) (io.ReaderAt, int64, error) {
		if !slices.Contains(d.Bases, base) {
			return nil, 0, atelier.Errorf(atelier.Corrupt, "the difference needs %s, which the bundle does not name", base)
		}
		blob, err := i.opts.Content.Open(base)
		if err != nil {
			return nil, 0, err
		}
		return blob, blob.Size(), nil
	})
	if err != nil {
		return err
	}
	_, err = w.Commit(f.Digest, f.Size)
	return err
}

// writer hides all but Write, so that io.Copy uses a buffer of its own.
type writer struct{ io.Writer }

// reader ends with its context, and says that it was the bundle that failed.
type reader struct {
	ctx  context.Context
	from io.Reader
	path string
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = bundle.Refuse(atelier.ReasonBundleUnreadable, atelier.Unavailable, "%q cannot be read from the bundle: %w", r.path, err)
	}
	return n, err
}

func (i *Importer) need(digests map[atelier.Digest]bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.needed = digests
}

// Needed adds to needed the content that an import under way must not lose.
func (i *Importer) Needed(needed map[atelier.Digest]bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for d := range i.needed {
		needed[d] = true
	}
}

// The states of a bundle.
const (
	StateImported   = "imported"
	StateRefused    = "refused"
	StateIncomplete = "incomplete"
	StateWaiting    = "waiting" // it could not be imported for now; the agent tries again
)

// Outcome is what became of a bundle.
type Outcome struct {
	Name     string      `json:"name"`
	State    string      `json:"state"`
	Why      atelier.Why `json:"why"`
	Time     time.Time   `json:"time"`
	Imported *Imported   `json:"imported,omitempty"`
}

// outcome judges the result of an import.
func outcome(name string, done Imported, err error) Outcome {
	now := time.Now().UTC()
	if err == nil {
		return Outcome{Name: name, State: StateImported, Why: atelier.Because(atelier.ReasonAsDesired, done.String()), Time: now, Imported: &done}
	}
	why, state := bundle.WhyOf(err), StateRefused
	switch why.Reason() {
	case atelier.ReasonBundleIncomplete:
		state = StateIncomplete
	case atelier.ReasonNoSpace, atelier.ReasonStateNotDurable, atelier.ReasonBundleUnreadable:
		state = StateWaiting
	}
	return Outcome{Name: name, State: state, Why: why, Time: now}
}

// String tells the import in half a sentence.
func (d Imported) String() string {
	what := "was held already"
	if d.New {
		what = "is saved"
	}
	return fmt.Sprintf("the desired state of generation %d of epoch %d %s, %s of content are new", d.Position.Generation, d.Position.Epoch, what, atelier.FormatBytes(d.Bytes))
}

// maxOutcomes bounds what Outcomes returns.
const maxOutcomes = 16

// Outcomes returns what became of the last bundles, the newest last.
func (i *Importer) Outcomes() []Outcome {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]Outcome{}, i.outcomes...)
}

// note keeps an outcome in place of an earlier one of the same name, and logs it
// where it is another one: what waits is tried again every minute.
func (i *Importer) note(o Outcome) {
	i.mu.Lock()
	known := slices.ContainsFunc(i.outcomes, func(other Outcome) bool {
		return other.Name == o.Name && other.State == o.State && other.Why == o.Why
	})
	kept := slices.DeleteFunc(slices.Clone(i.outcomes), func(other Outcome) bool { return other.Name == o.Name })
	kept = append(kept, o)
	i.outcomes = kept[max(0, len(kept)-maxOutcomes):]
	i.mu.Unlock()
	switch {
	case o.State == StateImported:
		i.opts.Log.Info("imported a bundle", "bundle", o.Name, "what", o.Why.Message())
	case known:
	case o.State == StateRefused:
		i.opts.Log.Error("refused a bundle", "bundle", o.Name, "why", o.Why)
	default:
		i.opts.Log.Warn("a bundle waits", "bundle", o.Name, "state", o.State, "why", o.Why)
	}
}
