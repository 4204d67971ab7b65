package sqlstore

import (
	"context"
	"database/sql"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

// maxKey bounds, in bytes, whatever stands in an index: PostgreSQL refuses
// index entries above 2.7 kB.
const maxKey = 512

// maxPage is the largest page.
const maxPage = 1000

// tx is a store.Tx.
type tx struct {
	store   *Store
	ctx     context.Context
	sql     *sql.Tx
	by      store.By
	writes  bool
	changed bool  // an event was written
	ended   bool  // fn has returned
	failed  error // the first statement that the engine refused
}

func (t *tx) end() { t.ended = true }

// exec runs a statement that changes something, and returns how many rows it did.
func (t *tx) exec(doing, query string, args ...any) (int64, error) {
	if err := t.usable(); err != nil {
		return 0, err
	}
	if !t.writes {
		return 0, atelier.Errorf(atelier.Internal, "store: %s: a view cannot write", doing)
	}
	res, err := t.sql.ExecContext(t.ctx, query, args...)
	if err != nil {
		return 0, t.fail(doing, err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, t.fail(doing, err)
	}
	return n, nil
}

// query runs a query and calls row for each row, which must not use t.
func (t *tx) query(doing string, row func(scan func(...any) error) error, query string, args ...any) (err error) {
	if err := t.usable(); err != nil {
		return err
	}
	rows, err := t.sql.QueryContext(t.ctx, query, args...)
	if err != nil {
		return t.fail(doing, err)
	}
	defer func() {
		if cerr := rows.Close(); cerr != nil && err == nil {
			err = t.fail(doing, cerr)
		}
	}()
	for rows.Next() {
		if err := row(rows.Scan); err != nil {
			return t.fail(doing, err)
		}
	}
	if err := rows.Err(); err != nil {
		return t.fail(doing, err)
	}
	return nil
}

func (t *tx) usable() error {
	if t.ended {
		return atelier.Errorf(atelier.Internal, "store: a transaction is used after its function has returned")
	}
	return nil
}

func (t *tx) fail(doing string, err error) error {
	if t.failed == nil {
		t.failed = err
	}
	return t.store.fault(doing, err)
}

// now is the time in the store's resolution, so that what Insert returns is
// what Get returns later.
func (t *tx) now() time.Time { return fromMicros(t.store.engine.Now().UnixMicro()) }

func fromMicros(us int64) time.Time { return time.UnixMicro(us).UTC() }

func checkLimit(limit int) error {
	if limit < 1 || limit > maxPage {
		return atelier.Errorf(atelier.Invalid, "limit %d is not between 1 and %d", limit, maxPage).WithField("limit")
	}
	return nil
}
