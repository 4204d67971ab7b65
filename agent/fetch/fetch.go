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
	Walk(func(content.Info) error) error
	Collect(ctx context.Context, wait time.Duration, referenced func(atelier.Digest) (bool, error)) (content.Collected, error)
	Arrived(d atelier.Digest, size int64) (int64, error)
	AbortStale(age time.Duration) error
	AbortUnneeded(age time.Duration, needed func(atelier.Digest) bool) error
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
	turn     turn

	mu    sync.Mutex
	sound map[atelier.Digest]bool // seen to be what its digest says since the agent started
	// waiting has what ends a fetch whose content has come another way; see Import.
	waiting map[atelier.Digest][]*waiter
}

// Options say what a Fetcher works with.
type Options struct {
	// Bases returns contents that may resemble file, the most similar first; nil for none.
	Bases func(file atelier.File) []atelier.Digest
	// Arrived, where set, is told how a file came.
	Arrived func(file atelier.File, a transfer.Arrival)
	Log     *slog.Logger
	// Policy returns what of the disk is used, as the configuration has it now. nil
	// is the zero Policy.
	Policy func() Policy
	// Holdings returns the versions that the device holds or shall hold; the rest
	// may go. It is asked while Fetch and Collect run.
	Holdings func() []Holding
	// Freed, where set, is told that content was removed, so that Storage tells
	// something else.
	Freed func()
}

// New returns a Fetcher.
func New(store Store, receiver Receiver, opts Options) *Fetcher {
	if opts.Policy == nil {
		opts.Policy = func() Policy { return Policy{} }
	}
	return &Fetcher{store: store, receiver: receiver, opts: opts, turn: newTurn(), sound: map[atelier.Digest]bool{}, waiting: map[atelier.Digest][]*waiter{}}
}

// Fetch returns when every file's content is in the store. Modules take turns,
// so that the first is complete as early as can be and each knows the room that it
// has; what is there already needs no turn. progress is told how many bytes of all
// files are there. Errors have the code NoSpace where the disk is too small,
// NotFound where the hub does not have the content, Corrupt where it sends
// something else, and those of the Receiver.
func (f *Fetcher) Fetch(ctx context.Context, files []atelier.File, progress func(done int64)) error {
	files = distinct(files)
	if done, err := f.here(ctx, files, progress); done || err != nil {
		return err
	}
	leave, err := f.turn.take(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return f.bring(ctx, files, progress)
}

// Prefetch is Fetch for what is not needed yet: it lets go of its turn whenever
// somebody calls Fetch, and goes on afterwards.
func (f *Fetcher) Prefetch(ctx context.Context, files []atelier.File, progress func(done int64)) error {
	files = distinct(files)
	if done, err := f.here(ctx, files, progress); done || err != nil {
		return err
	}
	for {
		lent, leave, err := f.turn.borrow(ctx)
		if err != nil {
			return err
		}
		err = f.bring(lent, files, progress)
		leave()
		if err == nil || !claimed(lent) || ctx.Err() != nil {
			return err
		}
	}
}

// here reports whether all files are in the store.
func (f *Fetcher) here(ctx context.Context, files []atelier.File, progress func(int64)) (bool, error) {
	missing, here, err := f.missing(ctx, files)
	if err != nil {
		return false, err
	}
	progress(here)
	return len(missing) == 0, nil
}

// bring fetches what is missing of files. The caller has the turn.
func (f *Fetcher) bring(ctx context.Context, files []atelier.File, progress func(int64)) error {
	// Another module may have brought some of it meanwhile.
	missing, here, err := f.missing(ctx, files)
	if err != nil || len(missing) == 0 {
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
