// Package postgres opens the hub's metadata in a PostgreSQL database, for hubs
// whose metadata shall live on a database server. The schema, the statements and
// the promises are those of package sqlite.
//
// Writers take one advisory lock for the length of their transaction, so that
// they run one after another whichever process they come from, and the order of
// events is the order of commits. Changes only wakes watchers of this process.
package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/internal/sqlstore"
)

// readers bounds the connections that serve views; the writer has one of its own.
const readers = 15

// writerLock is the advisory lock that writers hold: "atelier" in ASCII.
const writerLock = "SELECT pg_advisory_xact_lock(x'6174656c696572'::bigint)"

// Open opens the database that dsn names, a URL or a keyword/value string as
// libpq has them, and brings its schema up to date. The database must exist.
func Open(ctx context.Context, dsn string) (store.Store, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		// The error may quote the string, and with it a password.
		return nil, atelier.Errorf(atelier.Invalid, "store: the address of the PostgreSQL database is malformed").
			WithRemedy("Write it as postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full.")
	}
	return sqlstore.Open(ctx, sqlstore.Engine{
		// At "read committed" each statement sees what is committed when it begins, so
		// that a writer sees the work of the one that it waited for. A snapshot of
		// the whole transaction would be taken before the lock is granted.
		Writer: pool(config, 1), Lock: writerLock,
		Reader: pool(config, readers), View: sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true},
		Migrations: goose.DialectPostgres, Place: "a PostgreSQL server",
		// Ids sort byte by byte, whatever the database's locale.
		Types: strings.NewReplacer(" TEXT ", ` TEXT COLLATE "C" `, " BLOB ", " BYTEA "),
		Fault: classify,
	})
}

// pool opens at most n connections that stay open.
func pool(config *pgx.ConnConfig, n int) *sql.DB {
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db
}

// classify goes by SQLSTATE, as PostgreSQL's appendix A lists it.
func classify(err error) sqlstore.Fault {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		var connect *pgconn.ConnectError
		var network net.Error
		if errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, driver.ErrBadConn) ||
			errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return sqlstore.Offline
		}
		return sqlstore.Broken
	}
	switch {
	case e.Code == "40001", e.Code == "40P01": // serialization failure, deadlock
		return sqlstore.Rerun
	case e.Code == "53100": // disk full
		return sqlstore.Full
	case strings.HasPrefix(e.Code, "08"), strings.HasPrefix(e.Code, "53"), strings.HasPrefix(e.Code, "57P"):
		return sqlstore.Offline // connection lost, too many of them, server shuts down
	}
	return sqlstore.Broken
}
