// Package sqlite opens the hub's metadata in one SQLite file: the default engine,
// which needs nothing installed. It promises that what Update returned nil for
// survives the end of the process and of the machine's power.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/pressly/goose/v3"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/internal/sqlstore"
	"github.com/atelier-edge/atelier/internal/durable"
)

// readers bounds the connections that serve views; each holds a page cache of 2 MB.
const readers = 8

// Option adjusts a store.
type Option func(*sqlstore.Engine)

// WithClock sets the clock that changes are stamped with.
func WithClock(now func() time.Time) Option { return func(e *sqlstore.Engine) { e.Now = now } }

// Open opens the database file at path, makes it where it is missing (its
// directory must exist), and brings its schema up to date. Only the owner may
// read the file. One process opens a file at a time.
func Open(ctx context.Context, path string, options ...Option) (store.Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fault(path, err)
	}
	// SQLite would make its files readable for all.
	for _, name := range []string{path, path + "-shm"} {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return nil, fault(path, err)
		}
	}
	writer, err := pool(path, 1, "journal_mode(wal)", "synchronous(full)")
	if err != nil {
		return nil, fault(path, err)
	}
	reader, err := pool(path, readers, "query_only(true)")
	if err != nil {
		return nil, errors.Join(fault(path, err), writer.Close())
	}
	engine := sqlstore.Engine{
		Writer: writer, Reader: reader, View: sql.TxOptions{ReadOnly: true},
		Migrations: goose.DialectSQLite3, Place: path,
		Fault: func(err error) sqlstore.Fault {
			return classify(err, func() (int64, error) { return durable.OS{}.Free(filepath.Dir(path)) })
		},
	}
	for _, option := range options {
		option(&engine)
	}
	s, err := sqlstore.Open(ctx, engine)
	if err != nil {
		return nil, err
	}
	// The names of the new files must be on disk as well as what stands in them.
	if err := (durable.OS{}).SyncDir(filepath.Dir(path)); err != nil {
		return nil, errors.Join(fault(path, err), s.Close())
	}
	return s, nil
}

// pool opens at most n connections that stay open.
func pool(path string, n int, pragmas ...string) (*sql.DB, error) {
	q := url.Values{
		"_pragma": append([]string{"busy_timeout(10000)"}, pragmas...),
		"modeof":  {path}, // the journal is as private as the file
	}
	// SQLite's URIs have %20 where forms have +.
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: strings.ReplaceAll(q.Encode(), "+", "%20")}
	c, err := newConnector(u.String())
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(c)
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db, nil
}

// lowSpace is how little space, in bytes, makes a failed write the disk's fault.
const lowSpace = 1 << 20

// classify says what the driver's error means. free tells the space left on the
// disk: the driver reports a full one as a write that failed, without the cause.
func classify(err error, free func() (int64, error)) sqlstore.Fault {
	switch {
	case errors.Is(err, sqlite3.FULL):
		return sqlstore.Full
	case errors.Is(err, sqlite3.BUSY), errors.Is(err, sqlite3.LOCKED):
		return sqlstore.Offline
	case errors.Is(err, sqlite3.IOERR):
		if left, err := free(); err == nil && left < lowSpace {
			return sqlstore.Full
		}
	}
	return sqlstore.Broken
}

func fault(path string, err error) error {
	return atelier.Errorf(atelier.Unavailable, "store: open %s: %w", path, err).
		WithRemedy("Make %s a directory that the hub can write to.", filepath.Dir(path))
}
