// Package fetch brings content that a module needs onto the device and removes
// what no module needs any more.
//
// What it promises: Fetch returns without error only when every file is in the
// content store, verified and durable. What lay there when the agent started is
// read once, since a disk may lose what it held; what is damaged is fetched anew.
// It begins nothing for which the disk has no
// room, and says exactly how much is missing. A fetch that was cut goes on where it
// stopped. The package knows neither MQTT nor modules.
package fetch

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/content/transfer"
)

// Store is what fetch needs of the content store; *content.Store is one.
type Store interface {
	Has(atelier.Digest) (bool, error)
	Verify(context.Context, atelier.Digest) error
	Delete(atelier.Digest) error
	Free() (int64, error)
	Collect(ctx context.Context, wait time.Duration, referenced func(atelier.Digest) (bool, error)) (content.Collected, error)
	AbortStale(age time.Duration) error
	Abort(atelier.Digest) error
}

// Receiver pulls one content from the hub into the store, and returns when it is
// there. It waits while there is no connection. bases are sound contents that may
// resemble it. progress is told the bytes that have arrived, in the caller's
// goroutine. *transfer.Receiver is one.
type Receiver interface {
	Fetch(ctx context.Context, file atelier.File, bases []atelier.Digest, progress func(done int64)) (transfer.Arrival, error)
}

// Fetcher fetches content. Its methods are safe for concurrent use.
type Fetcher struct {
	store    Store
	receiver Receiver
	opts     Options
	turn     chan struct{} // holds one token: one module fetches at a time

	mu    sync.Mutex
	sound map[atelier.Digest]bool // seen to be what its digest says since the agent started
	// waiting has what ends a fetch whose content has come another way; see Import.
	waiting map[atelier.Digest][]*waiter
}

// Options say what of the disk is used.
type Options struct {
	Reserve int64 // bytes that stay free
	Log     *slog.Logger
	// Keep is how long content stays after nothing needed it any more, so that the
	// way back to it is short. A disk that is full does not wait for it.
	Keep time.Duration
	// Needed returns the digests that must stay. It is asked while Fetch and
	// Collect run.
	Needed func() map[atelier.Digest]bool
	// Bases returns contents that may resemble file, the most similar first; nil for none.
	Bases func(file atelier.File) []atelier.Digest
	// Arrived, where set, is told how a file came.
	Arrived func(file atelier.File, a transfer.Arrival)
}

// New returns a Fetcher.
func New(store Store, receiver Receiver, opts Options) *Fetcher {
	return &Fetcher{store: store, receiver: receiver, opts: opts, turn: make(chan struct{}, 1), sound: map[atelier.Digest]bool{}, waiting: map[atelier.Digest][]*waiter{}}
}

// Fetch returns when every file's content is in the store. Modules take turns,
// so that the first is complete as early as can be and each knows the room that it
// has; what is there already needs no turn. progress is told how many bytes of all
// files are there. Errors have the code NoSpace where the disk is too small,
// NotFound where the hub does not have the content, Corrupt where it sends
// something else, and those of the Receiver.
func (f *Fetcher) Fetch(ctx context.Context, files []atelier.File, progress func(done int64)) error {
	files = distinct(files)
	missing, here, err := f.missing(ctx, files)
	if err != nil {
		return err
	}
	progress(here)
	if len(missing) == 0 {
		return nil
	}
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	// Another module may have brought some of it meanwhile.
	if missing, here, err = f.missing(ctx, files); err != nil {
		return err
	}
	if err := f.makeRoom(ctx, missing); err != nil {
		return err
	}
	return f.receive(ctx, missing, here, progress)
}

// parallel is how many files of a module are fetched at once: enough that small
// ones do not wait for each other's round trips.
const parallel = 4

// receive fetches files, the largest part of which may be on its way at once. The
// first error ends the others.
func (f *Fetcher) receive(ctx context.Context, files []atelier.File, here int64, progress func(int64)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		mu    sync.Mutex
		group sync.WaitGroup
		first error
		queue = make(chan atelier.File)
	)
	arrived := func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		here += n
		progress(here)
	}
	one := func(file atelier.File) error {
		var counted int64
		ctx, came := f.wait(ctx, file.Digest)
		a, err := f.receiver.Fetch(ctx, file, f.bases(ctx, file), func(done int64) {
			arrived(done - counted)
			counted = done
		})
		imported := came() && err != nil
		if imported {
			err = f.store.Abort(file.Digest) // what came of it from the hub
		}
		if err == nil {
			f.markSound(file.Digest)
			arrived(file.Size - counted)
			if f.opts.Arrived != nil && !imported {
				f.opts.Arrived(file, a)
			}
		}
		return err
	}
	for range min(parallel, len(files)) {
		group.Go(func() {
			for file := range queue {
				if err := one(file); err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
					cancel(err)
				}
			}
		})
	}
	for _, file := range files {
		queue <- file // after an error each Fetch returns at once
	}
	close(queue)
	group.Wait()
	return first
}

// missing returns the files whose content is not in the store, and the size of
// what is.
func (f *Fetcher) missing(ctx context.Context, files []atelier.File) (missing []atelier.File, here int64, err error) {
	for _, file := range files {
		has, err := f.has(ctx, file.Digest)
		if err != nil {
			return nil, 0, err
		}
		if has {
			here += file.Size
		} else {
			missing = append(missing, file)
		}
	}
	return missing, here, nil
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

// has reports whether content is in the store and what its digest says. A
// damaged one is removed.
func (f *Fetcher) has(ctx context.Context, d atelier.Digest) (bool, error) {
	has, err := f.store.Has(d)
	if err != nil || !has {
		return has, err
	}
	f.mu.Lock()
	sound := f.sound[d]
	f.mu.Unlock()
	if sound {
		return true, nil
	}
	switch err := f.store.Verify(ctx, d); atelier.CodeOf(err) {
	case "":
		f.markSound(d)
		return true, nil
	case atelier.Corrupt:
		f.opts.Log.Warn("content on this device's disk is damaged, and is fetched anew", "why", atelier.BecauseOf(atelier.ReasonDigestMismatch, err))
		return false, f.store.Delete(d)
	default:
		return false, err
	}
}

// mostRead is how many bases are read for a fetch to see that they are sound.
const mostRead = 2

// bases returns the contents in the store that may resemble file and are sound. It
// is never nil: compressed content is welcome in any case.
func (f *Fetcher) bases(ctx context.Context, file atelier.File) []atelier.Digest {
	sound := []atelier.Digest{}
	if f.opts.Bases == nil {
		return sound
	}
	read := 0
	for _, d := range f.opts.Bases(file) {
		if has, err := f.store.Has(d); err != nil || !has {
			continue
		}
		f.mu.Lock()
		known := f.sound[d]
		f.mu.Unlock()
		if !known {
			if read == mostRead {
				continue
			}
			read++
			if err := f.store.Verify(ctx, d); err != nil {
				continue // it is of no use here; whoever needs it finds out and says so
			}
			f.markSound(d)
		}
		sound = append(sound, d)
	}
	return sound
}

func (f *Fetcher) markSound(d atelier.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sound[d] = true
}

// room checks that the disk can take files. Content that has arrived in part is
// counted in full: it is at most a little too careful.
func (f *Fetcher) room(files []atelier.File) error {
	var need int64
	for _, file := range files {
		need += file.Size
	}
	free, err := f.store.Free()
	if err != nil {
		return err
	}
	if short := need + f.opts.Reserve - free; short > 0 {
		return atelier.Errorf(atelier.NoSpace, "%s are to be fetched, %s are free on the disk and %s of them stay in reserve (disk.reserve_bytes): %s too few",
			atelier.FormatBytes(need), atelier.FormatBytes(free), atelier.FormatBytes(f.opts.Reserve), atelier.FormatBytes(short)).
			WithRemedy("Free at least %s on the device, or remove a deployment from it.", atelier.FormatBytes(short))
	}
	return nil
}

// distinct returns files without those whose content was there before.
func distinct(files []atelier.File) []atelier.File {
	seen := make(map[atelier.Digest]bool, len(files))
	var out []atelier.File
	for _, file := range files {
		if !seen[file.Digest] {
			seen[file.Digest] = true
			out = append(out, file)
		}
	}
	return out
}

// Size returns the bytes that files take in the store: each content once.
func Size(files []atelier.File) int64 {
	var sum int64
	for _, file := range distinct(files) {
		sum += file.Size
	}
	return sum
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
	ticker := time.NewTicker(min(collectEvery, max(time.Second, f.opts.Keep/2)))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := f.collect(ctx, f.opts.Keep); err != nil && ctx.Err() == nil {
				failed(err)
			}
		}
	}
}

// collect makes one pass.
func (f *Fetcher) collect(ctx context.Context, keep time.Duration) error {
	if err := f.store.AbortStale(staleAfter); err != nil {
		return err
	}
	// Asked anew for each blob: a desired state may arrive meanwhile.
	_, err := f.store.Collect(ctx, keep, func(d atelier.Digest) (bool, error) { return f.opts.Needed()[d], nil })
	return err
}
