package fetch

import (
	"context"
	"errors"
	"sync"
)

// turn is had by one module at a time. Those that are to run take it, in the order
// in which they come. Others borrow it while nobody wants it, and give it back when
// somebody does.
type turn struct {
	token chan struct{}

	mu     sync.Mutex
	takers int                     // that have the turn or wait for it
	calm   chan struct{}           // closed when there are none any more; nil while there are none
	recall context.CancelCauseFunc // ends the loan; nil while there is none
}

func newTurn() turn { return turn{token: make(chan struct{}, 1)} }

// errClaimed ends a loan.
var errClaimed = errors.New("a module that is to run fetches first")

// claimed reports whether a loan with the context ended because of a taker.
func claimed(lent context.Context) bool { return errors.Is(context.Cause(lent), errClaimed) }

// take waits for the turn. leave ends it.
func (t *turn) take(ctx context.Context) (leave func(), err error) {
	t.mu.Lock()
	if t.takers++; t.takers == 1 {
		t.calm = make(chan struct{})
	}
	if t.recall != nil {
		t.recall(errClaimed)
	}
	t.mu.Unlock()
	select {
	case t.token <- struct{}{}:
		return func() { <-t.token; t.forgo() }, nil
	case <-ctx.Done():
		t.forgo()
		return nil, ctx.Err()
	}
}

// forgo takes a taker off the books.
func (t *turn) forgo() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.takers--; t.takers == 0 {
		close(t.calm)
		t.calm = nil
	}
}

// borrow waits for a turn that nobody takes. The context that it returns ends when
// somebody comes to take it; leave gives it back.
func (t *turn) borrow(ctx context.Context) (lent context.Context, leave func(), err error) {
	for {
		t.mu.Lock()
		calm := t.calm
		t.mu.Unlock()
		if calm != nil {
			select {
			case <-calm:
				continue
			case <-ctx.Done():
				return nil, nil, ctx.Err()
			}
		}
		select {
		case t.token <- struct{}{}:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		t.mu.Lock()
		if t.takers > 0 { // it came while this one waited
			t.mu.Unlock()
			<-t.token
			continue
		}
		lent, t.recall = context.WithCancelCause(ctx)
		t.mu.Unlock()
		return lent, t.giveBack, nil
	}
}

func (t *turn) giveBack() {
	t.mu.Lock()
	t.recall(nil)
	t.recall = nil
	t.mu.Unlock()
	<-t.token
}
