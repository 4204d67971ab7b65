package postgres_test

import (
	"os"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/postgres"
	"github.com/atelier-edge/atelier/hub/store/storetest"
	"github.com/atelier-edge/atelier/internal/postgrestest"
)

func TestMain(m *testing.M) { os.Exit(postgrestest.Main(m)) }

func open(t testing.TB, dsn string) store.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, postgrestest.Database(t)) })
}

// TestTwoProcesses: two stores on one database stand for two processes. Their
// writers take turns, and neither overwrites what the other did.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	dsn := postgrestest.Database(t)
	storetest.RunShared(t, open(t, dsn), open(t, dsn))
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	s, err := postgres.Open(t.Context(), "postgres://user:hunter2@host:port/db")
	if s != nil {
		t.Errorf("a malformed address: a store came with the error: %T", s)
	}
	if atelier.CodeOf(err) != atelier.Invalid || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a malformed address: %v", err)
	}
	s, err = postgres.Open(t.Context(), "postgres:///db?user=u&password=hunter2&host="+t.TempDir())
	if s != nil {
		t.Errorf("a server that is not there: a store came with the error: %T", s)
	}
	if atelier.CodeOf(err) != atelier.Unavailable || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a server that is not there: %v", err)
	}
}

func BenchmarkUpdate(b *testing.B) { storetest.BenchmarkUpdate(b, open(b, postgrestest.Database(b))) }
