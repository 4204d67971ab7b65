package fetch

import (
	"context"
	"errors"
	"slices"

	atelier "github.com/atelier-edge/atelier"
)

// Import is Fetch with content that does not come from the hub: bring puts one
// file's content into the store, verified and durable. It takes no turn, since who
// has it may be waiting for the hub; whatever waits for the same content goes on
// with it. It returns how many bytes were brought.
func (f *Fetcher) Import(ctx context.Context, files []atelier.File, bring func(context.Context, atelier.File) error) (brought int64, err error) {
	missing, _, err := f.missing(ctx, distinct(files))
	if err != nil || len(missing) == 0 {
		return 0, err
	}
	if err := f.makeRoom(ctx, missing); err != nil {
		return 0, err
	}
	for _, file := range missing {
		if err := bring(ctx, file); err != nil {
			return brought, err
		}
		brought += file.Size
		f.markSound(file.Digest)
		f.arrived(file.Digest)
	}
	return brought, nil
}

// waiter is one fetch that waits for content from the hub.
type waiter struct{ end context.CancelCauseFunc }

// errCame ends a fetch whose content is in the store.
var errCame = errors.New("the content came another way")

// wait returns a context that ends when the content of d has come another way. came
// ends the waiting, and reports whether it has; it must be called.
func (f *Fetcher) wait(ctx context.Context, d atelier.Digest) (_ context.Context, came func() bool) {
	ctx, end := context.WithCancelCause(ctx)
	w := &waiter{end}
	f.mu.Lock()
	f.waiting[d] = append(f.waiting[d], w)
	f.mu.Unlock()
	return ctx, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.waiting[d] = slices.DeleteFunc(f.waiting[d], func(other *waiter) bool { return other == w }); len(f.waiting[d]) == 0 {
			delete(f.waiting, d)
		}
		defer end(nil)
		return errors.Is(context.Cause(ctx), errCame)
	}
}

// arrived ends the fetches that wait for d.
func (f *Fetcher) arrived(d atelier.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.waiting[d] {
		w.end(errCame)
	}
}
