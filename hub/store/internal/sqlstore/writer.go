package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/atelier-edge/atelier/hub/store"
)

const (
	// maxBatch bounds how many writes share one commit, and with it how long
	// the first of them waits for the others.
	maxBatch = 64
	// maxAttempts bounds how often a batch that lost a race is run.
	maxAttempts = 8
)

// write is one call of Update on its way through the writer. The caller's own
// goroutine runs fn, so that a panic or a runtime.Goexit in it stays there.
type write struct {
	ctx    context.Context
	by     store.By
	fn     func(store.Tx) error
	turn   chan *tx   // says to the caller: run fn now
	ran    chan error // the caller's answer
	result chan error // the end of the call; buffered, for the caller may be gone after a panic
	err    error      // how fn ended in the present attempt
	gone   bool       // fn panicked: there is nobody left to run it
}

// errGone stands for what fn did not live to return.
var errGone = errors.New("the function did not return")

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, by store.By, fn func(store.Tx) error) error {
	w := &write{
		ctx: ctx, by: by, fn: fn,
		turn: make(chan *tx), ran: make(chan error), result: make(chan error, 1),
	}
	// The caller may leave until the writer takes w. After that it stays to the
	// end, since an error must mean that nothing was written.
	select {
	case s.writes <- w:
	case <-ctx.Done():
		return s.fault("wait for the turn to write", ctx.Err())
	case <-s.closing:
		return errClosed()
	}
	for {
		select {
		case t := <-w.turn:
			w.run(t)
		case err := <-w.result:
			return err
		}
	}
}

func (w *write) run(t *tx) {
	err := errGone
	defer func() { w.ran <- err }()
	err = w.fn(t)
}

// writer takes writes until the store closes.
func (s *Store) writer() {
	defer close(s.stopped)
	for {
		select {
		case w := <-s.writes:
			s.commit(w)
		case <-s.closing:
			return
		}
	}
}

// commit runs w, and whatever else waits by then, until a transaction with it is
// on disk or cannot be.
func (s *Store) commit(w *write) {
	batch := []*write{w}
	for attempt := 1; ; attempt++ {
		changed, err := s.attempt(&batch)
		if err != nil && s.engine.Fault(err) == Rerun && attempt < maxAttempts {
			time.Sleep(time.Duration(attempt) * time.Millisecond) // let the other writer finish
			continue
		}
		if err == nil && changed {
			s.announce()
		}
		for _, w := range batch {
			if err != nil {
				w.err = s.fault("write", err)
			}
			w.result <- w.err
		}
		return
	}
}

// attempt runs the batch in one transaction, and adds to it the writes that wait
// meanwhile. An error means that nothing at all was written. changed tells
// whether an event was.
func (s *Store) attempt(batch *[]*write) (changed bool, err error) {
	ctx := context.Background() // one caller's end must not tear down the others' transaction
	dbtx, err := s.engine.Writer.BeginTx(ctx, nil)
	if err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	// After a commit this does nothing; otherwise the connection is dropped
	// where even this fails, and the engine rolls back by itself.
	defer func() { _ = dbtx.Rollback() }()
	if s.engine.Lock != "" {
		if _, err := dbtx.ExecContext(ctx, s.engine.Lock); err != nil {
			return false, fmt.Errorf("lock: %w", err)
		}
	}
	kept := false
	for i := 0; i < len(*batch) || s.another(batch); i++ {
		w := (*batch)[i]
		t := &tx{store: s, ctx: ctx, sql: dbtx, by: w.by, writes: true}
		if err := s.runOne(dbtx, w, t); err != nil {
			return false, err
		}
		kept = kept || w.err == nil
		changed = changed || w.err == nil && t.changed
	}
	if !kept {
		return false, nil
	}
	if err := dbtx.Commit(); err != nil {
		return false, fmt.Errorf("commit: %w", err)
	}
	return changed, nil
}

// another appends a waiting write to the batch, where there is one and room for it.
func (s *Store) another(batch *[]*write) bool {
	if len(*batch) >= maxBatch {
		return false
	}
	select {
	case w := <-s.writes:
		*batch = append(*batch, w)
		return true
	default:
		return false
	}
}

// runOne lets w's caller run its function in t, and undoes what it did where it
// failed. The error is one of the whole transaction.
func (s *Store) runOne(dbtx *sql.Tx, w *write, t *tx) error {
	if w.gone {
		return nil
	}
	if err := w.ctx.Err(); err != nil {
		w.err = s.fault("write", err)
		return nil
	}
	if _, err := dbtx.ExecContext(t.ctx, "SAVEPOINT one"); err != nil {
		return fmt.Errorf("set a savepoint: %w", err)
	}
	w.turn <- t
	w.err = <-w.ran
	w.gone = errors.Is(w.err, errGone)
	t.end()
	if t.failed != nil {
		// A statement failed. Whatever fn made of it, it must not be committed.
		if s.engine.Fault(t.failed) == Rerun {
			return t.failed
		}
		if w.err == nil {
			w.err = s.fault("write", t.failed)
		}
	}
	if w.err != nil {
		if _, err := dbtx.ExecContext(t.ctx, "ROLLBACK TO SAVEPOINT one"); err != nil {
			return errors.Join(t.failed, fmt.Errorf("roll back: %w", err))
		}
	}
	if _, err := dbtx.ExecContext(t.ctx, "RELEASE SAVEPOINT one"); err != nil {
		return fmt.Errorf("release a savepoint: %w", err)
	}
	return nil
}
