package sqlite

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
)

// A connection keeps its statements, gives each use of one its own where they
// overlap, and sees a table as it is now, not as it was when it parsed them.
func TestStatementsAreKept(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db, err := pool(filepath.Join(t.TempDir(), "kept.db"), 1, "journal_mode(wal)")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	one, err := db.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = one.Close() }()
	exec := func(query string, args ...any) {
		t.Helper()
		if _, err := one.ExecContext(ctx, query, args...); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	kept := func() (n int) {
		t.Helper()
		if err := one.Raw(func(c any) error { n = len(c.(*conn).kept); return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	exec("CREATE TABLE t (a INTEGER, b TEXT)")
	before := kept()
	for i := range 10 {
		exec("INSERT INTO t (a, b) VALUES ($1, $2)", i, fmt.Sprint(i))
	}
	if got := kept(); got != before+1 {
		t.Errorf("after ten uses of one statement %d are kept, expected were %d", got, before+1)
	}

	// each calls fn with the numbers that a query brings, until it returns false.
	each := func(fn func(int) bool, query string, args ...any) {
		t.Helper()
		rows, err := one.QueryContext(ctx, query, args...)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			var a int
			if err := rows.Scan(&a); err != nil {
				t.Fatal(err)
			}
			if !fn(a) {
				break
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}

	// The same query within a loop over its rows.
	const query = "SELECT a FROM t WHERE a < $1 ORDER BY a"
	var pairs [][2]int
	each(func(a int) bool {
		each(func(b int) bool { pairs = append(pairs, [2]int{a, b}); return true }, query, 2)
		return true
	}, query, 3)
	if want := "[[0 0] [0 1] [1 0] [1 1] [2 0] [2 1]]"; fmt.Sprint(pairs) != want {
		t.Errorf("nested uses of a statement saw %v, expected was %s", pairs, want)
	}

	// A loop that is left early, and then another table under the same name.
	last := func() (last int) {
		t.Helper()
		each(func(a int) bool { last = a; return false }, "SELECT a FROM t ORDER BY a DESC")
		return last
	}
	if got := last(); got != 9 {
		t.Errorf("the last row is %d, expected was 9", got)
	}
	exec("DROP TABLE t")
	exec("CREATE TABLE t (x INTEGER, a INTEGER)")
	exec("INSERT INTO t (x, a) VALUES (1, 2)")
	if got := last(); got != 2 {
		t.Errorf("after the table was made anew the last row is %d, expected was 2", got)
	}

	for i := range 2 * mostStatements {
		exec(fmt.Sprintf("INSERT INTO t (x) VALUES ($1 + %d)", i), 1)
	}
	if got := kept(); got > mostStatements {
		t.Errorf("%d statements are kept, expected were at most %d", got, mostStatements)
	}
}
