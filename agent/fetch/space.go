package fetch

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
)

// Policy says what of the disk is used.
type Policy struct {
	Reserve int64 // bytes that stay free
	// Keep is how long content stays after nothing needed it any more, so that the
	// way back to it is short. A disk that is full does not wait for it.
	Keep time.Duration
	// KeepPrevious lets the version stay that each module ran before. Without it
	// that version is treated as content that nothing needs.
	KeepPrevious bool
}

// Holding is a version of a model that the device holds or shall hold.
type Holding struct {
	Model   string
	Version int
	Files   []atelier.File // those of its runtime included
	// Previous tells that nothing but the way back needs it.
	Previous bool
}

// needs returns which contents must stay under the policy, and the holdings that
// only the policy keeps.
func (f *Fetcher) needs(p Policy) (needed map[atelier.Digest]bool, previous []Holding) {
	needed = map[atelier.Digest]bool{}
	for _, h := range f.opts.Holdings() {
		if h.Previous {
			previous = append(previous, h)
		}
		if h.Previous && !p.KeepPrevious {
			continue
		}
		for _, file := range h.Files {
			needed[file.Digest] = true
		}
	}
	return needed, previous
}

// makeRoom checks that the disk can take files. Where it cannot, content that
// nothing needs goes at once.
func (f *Fetcher) makeRoom(ctx context.Context, files []atelier.File) error {
	short := f.room(files)
	if atelier.CodeOf(short) != atelier.NoSpace {
		return short
	}
	for range 2 { // the first pass condemns, the second removes
		if err := f.collect(ctx, 0); err != nil {
			return errors.Join(short, err)
		}
	}
	return f.room(files)
}

// room checks that the disk can take what is missing of files. What has come of
// them in an earlier attempt takes its space already.
func (f *Fetcher) room(files []atelier.File) error {
	var need int64
	for _, file := range files {
		arrived, err := f.store.Arrived(file.Digest, file.Size)
		if err != nil {
			return err
		}
		need += file.Size - arrived
	}
	free, err := f.store.Free()
	if err != nil {
		return err
	}
	room := atelier.Room{Need: need, Free: free, Reserve: f.opts.Policy().Reserve}
	if room.Short() > 0 {
		if err := f.giveUp(&room, files); err != nil {
			return err
		}
	}
	return room.Err()
}

// giveUp notes which versions the disk would gain something by if the device gave up
// the way back. What files or something else needs is not counted.
func (f *Fetcher) giveUp(room *atelier.Room, files []atelier.File) error {
	needed, previous := f.needs(Policy{KeepPrevious: false})
	for _, file := range files {
		needed[file.Digest] = true
	}
	for _, h := range previous {
		var gain int64
		for _, file := range h.Files {
			if needed[file.Digest] {
				continue
			}
			needed[file.Digest] = true // counted once
			has, err := f.store.Has(file.Digest)
			if err != nil {
				return err
			}
			if has {
				gain += file.Size
			}
		}
		if gain > 0 {
			room.GiveUp(h.Model, h.Version, gain)
		}
	}
	return nil
}

// Storage tells what content is on the disk and under which policy. The rate and the
// versions that are kept for the way back are not this package's to know.
func (f *Fetcher) Storage() (atelier.Storage, error) {
	policy := f.opts.Policy()
	s := atelier.Storage{Reserve: policy.Reserve, KeepsPrevious: policy.KeepPrevious, Content: []atelier.Stored{}}
	needed, _ := f.needs(policy)
	err := f.store.Walk(func(info content.Info) error {
		s.Content = append(s.Content, atelier.Stored{Digest: info.Digest, Size: info.Size, Unneeded: !needed[info.Digest]})
		return nil
	})
	slices.SortFunc(s.Content, func(a, b atelier.Stored) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.Digest, b.Digest))
	})
	if len(s.Content) > atelier.MaxStored {
		s.Content, s.More = s.Content[:atelier.MaxStored], true
	}
	return s, err
}

// Times of garbage collection.
const (
	collectEvery = time.Hour // at most; more often where content is kept for less
	// staleAfter is how long an unfinished fetch is kept to be resumed.
	staleAfter = 7 * 24 * time.Hour
)

// Collect removes content that nothing needs, now and then until ctx ends. It
// tells failed why a pass did not work; the next one tries again.
func (f *Fetcher) Collect(ctx context.Context, failed func(error)) {
	for {
		keep := f.opts.Policy().Keep
		timer := time.NewTimer(min(collectEvery, max(time.Second, keep/2)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			if err := f.collect(ctx, keep); err != nil && ctx.Err() == nil {
				failed(err)
			}
		}
	}
}

// collect makes one pass. What came of content that nothing needs any more goes
// as the content itself would.
func (f *Fetcher) collect(ctx context.Context, keep time.Duration) error {
	// Asked anew for each: a desired state may arrive meanwhile.
	needed := func(d atelier.Digest) bool {
		needed, _ := f.needs(f.opts.Policy())
		return needed[d]
	}
	if err := f.store.AbortStale(staleAfter); err != nil {
		return err
	}
	if err := f.store.AbortUnneeded(keep, needed); err != nil {
		return err
	}
	collected, err := f.store.Collect(ctx, keep, func(d atelier.Digest) (bool, error) { return needed(d), nil })
	if collected.Blobs > 0 && f.opts.Freed != nil {
		f.opts.Freed()
	}
	return err
}
