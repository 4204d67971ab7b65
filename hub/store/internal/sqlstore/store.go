// Package sqlstore implements store.Store once for all engines that speak SQL
// through database/sql. Engine is the whole seam between them; the statements
// and the schema are the same.
//
// Group commit: one goroutine owns the write transaction. It lets the waiting
// callers of Update run their functions one after another, each behind a
// savepoint of its own, and commits once for all of them. Under load one
// sync of the disk so serves many changes; a lone caller waits for nobody.
package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/pressly/goose/v3"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

// Engine is what differs between SQL engines.
type Engine struct {
	// Writer is used by one transaction at a time. Its transactions see what
	// earlier ones have committed, statement by statement.
	Writer *sql.DB
	// Reader serves views; it may be the same as Writer.
	Reader *sql.DB
	// View are the options with which a transaction sees one state and cannot write.
	View sql.TxOptions
	// Lock is the statement that a write transaction begins with, so that no
	// other process's can run beside it; "" where the engine sees to it.
	Lock string
	// Migrations names the engine for goose.
	Migrations goose.Dialect
	// Types replaces SQLite's column types in the schema; nil for none.
	Types *strings.Replacer
	// Place says where the database is, for people.
	Place string
	// Fault classifies an error of the driver.
	Fault func(error) Fault
	// Now is the clock that changes are stamped with; nil for time.Now.
	Now func() time.Time
}

// Fault is what an engine's error means for the transaction that met it.
type Fault int

// The classes of faults.
const (
	Broken  Fault = iota // a defect, or nothing known about it
	Rerun                // the transaction lost a race; run again it will pass
	Full                 // the disk is full
	Offline              // the engine cannot be reached, or is busy
)

// Store is a store.Store over an Engine.
type Store struct {
	engine  Engine
	writes  chan *write
	closing chan struct{} // closed by Close
	stopped chan struct{} // closed when the writer has ended

	mu       sync.Mutex
	closed   bool
	views    sync.WaitGroup
	watchers map[chan struct{}]struct{}
}

// Open migrates the engine's database and returns the store over it, a *Store.
// The store owns both pools from then on, and closes them also where Open fails;
// then it returns nil, which a nil *Store in the interface would not be.
func Open(ctx context.Context, e Engine) (store.Store, error) {
	if e.Now == nil {
		e.Now = time.Now
	}
	s := &Store{
		engine: e,
		writes: make(chan *write), closing: make(chan struct{}), stopped: make(chan struct{}),
		watchers: map[chan struct{}]struct{}{},
	}
	if err := migrate(ctx, e); err != nil {
		return nil, errors.Join(s.fault("bring the schema up to date", err), s.closePools())
	}
	go s.writer()
	return s, nil
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, fn func(store.Tx) error) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errClosed()
	}
	s.views.Add(1)
	s.mu.Unlock()
	defer s.views.Done()

	dbtx, err := s.engine.Reader.BeginTx(ctx, &s.engine.View)
	if err != nil {
		return s.fault("begin to read", err)
	}
	// A view changes nothing, so that nothing is lost where ending it fails;
	// database/sql drops a connection that has become unusable.
	defer func() { _ = dbtx.Rollback() }()
	t := &tx{store: s, ctx: ctx, sql: dbtx}
	defer t.end()
	return fn(t)
}

// Changes implements store.Store.
func (s *Store) Changes(ctx context.Context) <-chan struct{} {
	ch := make(chan struct{}, 1)
	s.mu.Lock()
	s.watchers[ch] = struct{}{}
	s.mu.Unlock()
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, ch)
		close(ch)
	})
	return ch
}

// announce wakes every watcher that has not been woken yet.
func (s *Store) announce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ch := range s.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if again {
		return nil
	}
	close(s.closing)
	<-s.stopped
	s.views.Wait()
	return s.closePools()
}

func (s *Store) closePools() error {
	err := s.engine.Reader.Close()
	if s.engine.Writer != s.engine.Reader {
		err = errors.Join(err, s.engine.Writer.Close())
	}
	if err != nil {
		return s.fault("close the database", err)
	}
	return nil
}

// fault turns an error of the engine into one with a code.
func (s *Store) fault(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case atelier.CodeOf(err) == atelier.Unsupported:
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return atelier.Errorf(atelier.Timeout, "store: %s: it took too long: %w", doing, err)
	case errors.Is(err, context.Canceled):
		return atelier.Errorf(atelier.Unavailable, "store: %s: the caller went away: %w", doing, err)
	}
	switch s.engine.Fault(err) {
	case Full:
		return atelier.Errorf(atelier.NoSpace, "the disk of the hub's database, %s, is full: %s: %w", s.engine.Place, doing, err).
			WithRemedy("Free disk space there; 'df -h' on the machine shows how much there is.")
	case Offline, Rerun:
		return atelier.Errorf(atelier.Unavailable, "store: %s: %w", doing, err).
			WithRemedy("Check that the hub's database is up and not held by another program, then try again.")
	}
	return atelier.Errorf(atelier.Internal, "store: %s: %w", doing, err)
}

func errClosed() error {
	return atelier.Errorf(atelier.Unavailable, "the store is closed").
		WithRemedy("Try again when the hub has started.")
}
