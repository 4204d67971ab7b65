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

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/driver"
	"github.com/pressly/goose/v3"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/internal/sqlstore"
)

// readers bounds the connections that serve views; each holds a page cache of 2 MB.
const readers = 8

// Open opens the database file at path, makes it where it is missing (its
// directory must exist), and brings its schema up to date. Only the owner may
// read the file. One process opens a file at a time.
func Open(ctx context.Context, path string) (store.Store, error) {
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
	s, err := sqlstore.Open(ctx, sqlstore.Engine{
		Writer: writer, Reader: reader, View: sql.TxOptions{ReadOnly: true},
		Migrations: goose.DialectSQLite3, Fault: classify,
	})
	if err != nil {
		return nil, err
	}
	// The names of the new files must be on disk as well as what stands in them.
	if err := syncDir(filepath.Dir(path)); err != nil {
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
	db, err := driver.Open(u.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func classify(err error) sqlstore.Fault {
	var e *sqlite3.Error
	if !errors.As(err, &e) {
		return sqlstore.Broken
	}
	switch e.Code() {
	case sqlite3.FULL:
		return sqlstore.Full
	case sqlite3.BUSY, sqlite3.LOCKED:
		return sqlstore.Offline
	}
	return sqlstore.Broken
}

func fault(path string, err error) error {
	return atelier.Errorf(atelier.Unavailable, "store: open %s: %w", path, err).
		WithRemedy("Make %s a directory that the hub can write to.", filepath.Dir(path))
}
