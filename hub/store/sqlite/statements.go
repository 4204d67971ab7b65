package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"

	sqlite "github.com/ncruces/go-sqlite3/driver"

	atelier "github.com/atelier-edge/atelier"
)

// The driver parses each statement anew each time that it is run, which for the
// hub's short ones takes longer than running them. Its connections are therefore
// wrapped in some that keep the statements that they have parsed.

// mostStatements bounds the statements that one connection keeps. The store has
// about forty; what comes beyond the bound is parsed each time.
const mostStatements = 96

// connector makes connections that keep their statements.
type connector struct{ driver.Connector }

func newConnector(name string) (driver.Connector, error) {
	c, err := (&sqlite.SQLite{}).OpenConnector(name)
	return connector{c}, err
}

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	made, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	inner, ok := made.(parsing)
	if !ok {
		return nil, errors.Join(atelier.Errorf(atelier.Internal, "a connection of the SQLite driver is a %T, which lacks methods that are needed", made), made.Close())
	}
	return &conn{parsing: inner, kept: map[string]*statement{}}, nil
}

// parsing is what database/sql uses of the driver's connections.
type parsing interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
}

// conn is a connection. Like all of database/sql's it has one user at a time.
type conn struct {
	parsing
	kept map[string]*statement
}

// prepared is what database/sql uses of the driver's statements.
type prepared interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
	driver.NamedValueChecker
}

// statement is one that is kept: whoever closes it gives it back.
type statement struct {
	prepared
	busy bool
}

func (s *statement) Close() error {
	s.busy = false // the driver resets it with the end of each execution
	return nil
}

// PrepareContext implements driver.ConnPrepareContext. Where a statement is being used
// already, as within a loop over its own rows, the second use has one of its own.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	s := c.kept[query]
	if s != nil && !s.busy {
		s.busy = true
		return s, nil
	}
	made, err := c.parsing.PrepareContext(ctx, query)
	if err != nil || s != nil || len(c.kept) >= mostStatements {
		return made, err
	}
	p, ok := made.(prepared)
	if !ok {
		return made, nil
	}
	s = &statement{prepared: p, busy: true}
	c.kept[query] = s
	return s, nil
}

// Close implements driver.Conn.
func (c *conn) Close() error {
	var errs []error
	for _, s := range c.kept {
		errs = append(errs, s.prepared.Close())
	}
	clear(c.kept)
	return errors.Join(append(errs, c.parsing.Close())...)
}
