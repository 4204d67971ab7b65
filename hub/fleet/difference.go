package fleet

import (
	"context"
	"slices"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/content/transfer"
)

// Differences make and keep differences between contents; hub/difference has them.
type Differences interface {
	// Find returns the difference that brings target to whoever has base ("" for
	// nothing), or what is closed when it is made; neither where it is not worth it.
	Find(target, base atelier.Digest) (*transfer.Difference, <-chan struct{})
	// Prepare begins to make one that will be looked for.
	Prepare(target, base atelier.Digest)
	// Expect says about how the one that is being made will come out; false where it is
	// not being made now.
	Expect(target, base atelier.Digest) (transfer.Expectation, bool)
}

const (
	// triedBases is how many of a device's bases are looked at, so that devices with
	// the same past share their differences.
	triedBases = 2
	// A device waits for an estimate for one part in estimateShare of the time that
	// content takes as it is, and at most for estimateTime.
	estimateShare = 100
	estimateTime  = time.Second
	// assumedRate is that of devices that have not said theirs, in bytes a second.
	assumedRate = 10 << 20
	// mostCompressed is the rate in bytes a second above which compressed content is
	// slower than content as it is: devices decode 10 MB/s at best, and save a fifth of
	// the content, or a half at 1 MB/s. Making it takes the hub about as long.
	mostCompressed = 2 << 20
	// worth is how much later than as it is content may be there, for the bytes that a
	// difference saves.
	worth = time.Minute
	// maxEarlierContent is how many contents are remembered that a device was to have before.
	maxEarlierContent = 64
)

// choice is the way in which content is to come to a device: as difference says, or
// whole, because of verdict.
type choice struct {
	difference *transfer.Difference // nil for whole; whoever asked closes its Blob
	base       atelier.Digest       // that was looked at last, "" for none
	verdict    verdict
	pending    *transfer.Pending // a difference that is being made; nil for none
}

// verdict says why content comes as it is.
type verdict int

const (
	smaller     verdict = iota // it does not
	unmade                     // a difference is being made
	useless                    // a difference would save too little, or cannot be made
	slower                     // a difference would take the device longer than it saves
	fastLine                   // compressed content would
	unavailable                // this hub makes none
)

// difference looks for a difference to what the device has, for a content that it may
// have. Where it is being made, the device waits as long as it is expected to have the
// content earlier by waiting, and else gets it as it is.
func (f *Fleet) difference(ctx context.Context, device string, o transfer.Offer) (*transfer.Difference, *transfer.Pending) {
	bases, err := f.basesOf(ctx, device, o.Bases)
	if err != nil {
		f.log.Warn("no difference is looked for; content is sent as it is", "device", device, "error", err)
		return nil, nil
	}
	c := f.choose(o, bases)
	return c.difference, c.pending
}

// choose picks the way for a device that has bases. It does not wait.
func (f *Fleet) choose(o transfer.Offer, bases []atelier.Digest) choice {
	if len(bases) == 0 {
		if rateOf(o) > mostCompressed {
			return choice{verdict: fastLine}
		}
		d, ready := f.differences.Find(o.Target, "")
		if ready == nil {
			return f.worthwhile(o, d, "", 0)
		}
		// Compressed content is not worth waiting for.
		return choice{verdict: unmade, pending: &transfer.Pending{Ready: ready}}
	}
	c := choice{verdict: useless}
	for _, base := range bases[:min(len(bases), triedBases)] {
		d, ready := f.differences.Find(o.Target, base)
		if d != nil {
			return f.worthwhile(o, d, base, worth)
		}
		if ready != nil {
			return choice{base: base, verdict: unmade, pending: &transfer.Pending{Ready: ready, Wait: f.patience(o, base)}}
		}
		if c.base == "" {
			c.base = base
		}
	}
	return c
}

// worthwhile chooses d, if there is one, unless it is not worth its time.
func (f *Fleet) worthwhile(o transfer.Offer, d *transfer.Difference, base atelier.Digest, most time.Duration) choice {
	c := choice{base: base, difference: f.ifWorth(o, d, most)}
	switch {
	case d == nil:
		c.verdict = useless
	case c.difference == nil:
		c.verdict = slower
	}
	return c
}

// patience returns how long it pays to wait for the difference to base that is being
// made. It ends at a time that is the same whenever the device asks, so that a cut
// begins no new wait.
func (f *Fleet) patience(o transfer.Offer, base atelier.Digest) time.Duration {
	e, making := f.differences.Expect(o.Target, base)
	if !making {
		return 0
	}
	plain := float64(o.Missing) / rateOf(o)
	if !e.Known {
		return max(min(seconds(plain/estimateShare), estimateTime)-e.For, 0)
	}
	gain := seconds(plain-float64(e.Size)/rateOf(o)) - e.Decoding
	if e.Rest < 0 || e.Rest > gain {
		return 0
	}
	return e.Rest
}

// ifWorth returns d, unless the content would be there later by more than most than it
// is without d.
func (f *Fleet) ifWorth(o transfer.Offer, d *transfer.Difference, most time.Duration) *transfer.Difference {
	if d == nil {
		return nil
	}
	saved := float64(o.Missing-d.Blob.Size()) / rateOf(o)
	if d.Decoding.Seconds() <= saved+most.Seconds() {
		return d
	}
	if err := d.Blob.Close(); err != nil {
		f.log.Warn("a difference could not be closed", "digest", d.Digest, "error", err)
	}
	return nil
}

func rateOf(o transfer.Offer) float64 {
	if o.Rate == 0 {
		return assumedRate
	}
	return float64(o.Rate)
}

// basesOf returns those of the contents that the device was to have, now or before.
// A difference tells of its base to whoever knows the target, so that a device could
// otherwise learn what it was never given, by naming it.
func (f *Fleet) basesOf(ctx context.Context, device string, offered []atelier.Digest) ([]atelier.Digest, error) {
	p, err := f.peer(ctx, device)
	if err != nil {
		return nil, err
	}
	var desired catalog.DesiredState
	err = f.store.View(ctx, func(tx store.Tx) (err error) {
		desired, err = catalog.DesiredStates.Get(tx, p.workspace, device)
		return err
	})
	if err != nil {
		return nil, err
	}
	return f.own(&desired, offered)
}

// own returns those of offered that a device with a desired state was to have, now or
// before, and the hub has.
func (f *Fleet) own(desired *catalog.DesiredState, offered []atelier.Digest) (bases []atelier.Digest, err error) {
	for _, d := range offered {
		if !reaches(desired.All(), d) && !slices.Contains(desired.Earlier, d) {
			continue
		}
		has, err := f.content.Has(d)
		if err != nil {
			return nil, err
		}
		if has {
			bases = append(bases, d)
		}
	}
	return bases, nil
}

// earlier returns what the device was to have before modules, the newest first.
func earlier(old catalog.DesiredState, modules []atelier.Module) []atelier.Digest {
	var all []atelier.Digest
	add := func(d atelier.Digest) {
		if !reaches(modules, d) && !slices.Contains(all, d) && len(all) < maxEarlierContent {
			all = append(all, d)
		}
	}
	for _, m := range old.All() {
		for _, file := range m.Content() {
			add(file.Digest)
		}
	}
	for _, d := range old.Earlier {
		add(d)
	}
	return all
}

// prepare gets ready for devices that pull a new version, as they are likely to soon:
// it begins to plan the transfer of its files, and to make the differences from what
// is deployed of the model.
func (f *Fleet) prepare(ctx context.Context, workspace, id string) error {
	return f.store.View(ctx, func(tx store.Tx) error {
		v, err := catalog.Versions.Get(tx, workspace, id)
		if isNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, variant := range v.Variants {
			for _, file := range variant.Files {
				f.prepareFile(file.Digest)
			}
		}
		if f.differences == nil {
			return nil
		}
		return catalog.Deployments.Each(tx, store.Query{Workspace: workspace}, func(d atelier.Deployment) error {
			if d.Model != v.Model || d.VersionID == v.ID {
				return nil
			}
			deployed, err := catalog.Versions.Get(tx, workspace, d.VersionID)
			if isNotFound(err) {
				return nil
			}
			if err == nil {
				f.preparePair(v, deployed)
			}
			return err
		})
	})
}

func (f *Fleet) prepareFile(d atelier.Digest) {
	blob, err := f.content.Open(d)
	if err == nil {
		err = f.sender.Prepare(d, blob)
	}
	if err != nil {
		f.log.Warn("the transfer of a new file is not planned yet", "digest", d, "error", err)
	}
}

// preparePair begins to make differences for files that have the same path or are what the engine loads,
// as devices do when they look for bases.
func (f *Fleet) preparePair(v, deployed atelier.Version) {
	const entry = "\x00" // no path
	old := map[string]atelier.Digest{}
	for _, variant := range deployed.Variants {
		for _, file := range variant.Files {
			old[variant.Kind+" "+file.Path] = file.Digest
			if file.Path == variant.Entry {
				old[variant.Kind+entry] = file.Digest
			}
		}
	}
	for _, variant := range v.Variants {
		for _, file := range variant.Files {
			base, ok := old[variant.Kind+" "+file.Path]
			if !ok && file.Path == variant.Entry {
				base, ok = old[variant.Kind+entry]
			}
			if ok && base != file.Digest {
				f.differences.Prepare(file.Digest, base)
			}
		}
	}
}
