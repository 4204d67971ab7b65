package sqlite_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/sqlite"
)

// writerEnv names the database that this binary, run again as a child, writes to
// until it is killed.
const writerEnv = "ATELIER_SQLITE_TEST_WRITER"

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		fmt.Fprintln(os.Stderr, writeForever(path))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// writeForever inserts on several goroutines at once, so that they share commits,
// and prints each id when Update has returned nil for it.
func writeForever(path string) error {
	ctx := context.Background()
	s, err := sqlite.Open(ctx, path)
	if err != nil {
		return err
	}
	failed := make(chan error)
	var out sync.Mutex
	for range 8 {
		go func() {
			for {
				var r store.Resource
				err := s.Update(ctx, store.By{Actor: "hub"}, func(tx store.Tx) (err error) {
					r, err = tx.Insert(store.Resource{Kind: "thing", Workspace: "w", Doc: json.RawMessage(`{}`)})
					return err
				})
				if err != nil {
					failed <- err
					return
				}
				out.Lock()
				fmt.Println(r.ID)
				out.Unlock()
			}
		}()
	}
	return <-failed
}

// TestKill: what Update returned nil for is there after kill -9, with its event,
// and nothing is there by half.
func TestKill(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "hub.db")
	var acknowledged []string
	for range 3 { // each life takes over what the last one left
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), writerEnv+"="+path)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			acknowledged = append(acknowledged, lines.Text())
			if n == 300 {
				if err := child.Process.Kill(); err != nil { // SIGKILL; what it printed until then still comes
					t.Fatal(err)
				}
			}
		}
		if err := child.Wait(); err == nil || child.ProcessState.ExitCode() != -1 {
			t.Fatalf("the child was not killed: %v", err)
		}
	}

	s := open(t, path)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	there, events := map[string]bool{}, map[string]bool{}
	err := s.View(t.Context(), func(tx store.Tx) error {
		for q := (store.Query{Kind: "thing", Workspace: "w", Limit: 1000}); ; {
			rs, err := tx.List(q)
			for _, r := range rs {
				there[r.ID], q.After = true, r.ID
			}
			if err != nil || len(rs) < q.Limit {
				if err != nil {
					return err
				}
				break
			}
		}
		for q := (store.EventQuery{Workspace: "w", Limit: 1000}); ; {
			es, err := tx.Events(q)
			for _, e := range es {
				events[e.ID], q.After = true, e.Sequence
			}
			if err != nil || len(es) < q.Limit {
				return err
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(acknowledged) < 900 {
		t.Errorf("only %d changes were acknowledged", len(acknowledged))
	}
	for _, id := range acknowledged {
		if !there[id] {
			t.Errorf("%s was acknowledged and is lost", id)
		}
	}
	for id := range there {
		if !events[id] {
			t.Errorf("%s has no event", id)
		}
	}
	if len(events) != len(there) {
		t.Errorf("%d events for %d resources", len(events), len(there))
	}
}
