package vault_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/sqlite"
	"github.com/atelier-edge/atelier/hub/vault"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

const keyPath = "/vault.key"

func open(t *testing.T, fsys durable.FS, path string) *vault.Vault {
	t.Helper()
	v, err := vault.Open(fsys, path)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func newStore(t *testing.T) (store.Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hub.db")
	s, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, path
}

func update(t *testing.T, s store.Store, fn func(store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), store.By{Actor: "hub"}, fn); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s store.Store, v *vault.Vault, workspace, name string) (plain []byte, err error) {
	t.Helper()
	_ = s.View(t.Context(), func(tx store.Tx) error { // the error is fn's own
		plain, err = v.Get(tx, workspace, name)
		return nil
	})
	return plain, err
}

func TestPutGetDelete(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	v := open(t, disk, keyPath)
	s, path := newStore(t)
	secret := []byte("correct horse battery staple")
	update(t, s, func(tx store.Tx) error {
		if err := v.Put(tx, "w1", "endpoint.primary", []byte("first")); err != nil {
			return err
		}
		return v.Put(tx, "w1", "endpoint.primary", secret)
	})
	if got, err := get(t, s, v, "w1", "endpoint.primary"); err != nil || !bytes.Equal(got, secret) {
		t.Fatalf("Get = %q, %v; want what was put last", got, err)
	}
	if _, err := get(t, s, v, "w2", "endpoint.primary"); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("another workspace gets %v, want not_found", err)
	}

	// Nothing of it stands in the clear, neither in the files nor in the events.
	for _, name := range []string{path, path + "-wal"} {
		if b, err := os.ReadFile(name); err != nil || bytes.Contains(b, secret) {
			t.Errorf("%s holds the secret in the clear, or cannot be read (%v)", name, err)
		}
	}
	update(t, s, func(tx store.Tx) error {
		events, err := tx.Events(store.EventQuery{AnyWorkspace: true, Limit: 10})
		if err != nil || len(events) != 2 {
			t.Errorf("%d events, %v; want 2", len(events), err)
		}
		for _, e := range events {
			if e.Resource != nil {
				t.Errorf("an event carries %s", e.Resource)
			}
		}
		return v.Delete(tx, "w1", "endpoint.primary")
	})
	if _, err := get(t, s, v, "w1", "endpoint.primary"); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("after Delete: %v, want not_found", err)
	}
}

// A secret that somebody moved to another name or workspace within the database
// does not open there.
func TestSecretIsBoundToItsPlace(t *testing.T) {
	t.Parallel()
	v := open(t, durabletest.NewDisk(), keyPath)
	s, _ := newStore(t)
	update(t, s, func(tx store.Tx) error { return v.Put(tx, "w1", "a", []byte("x")) })
	update(t, s, func(tx store.Tx) error {
		r, err := tx.Find("secret", "w1", "", "a")
		if err != nil {
			return err
		}
		copied := store.Resource{Kind: "secret", Workspace: "w2", Name: "a", Doc: r.Doc}
		if _, err := tx.Insert(copied); err != nil {
			return err
		}
		copied.Workspace, copied.Name = "w1", "b"
		_, err = tx.Insert(copied)
		return err
	})
	for _, at := range [][2]string{{"w2", "a"}, {"w1", "b"}} {
		if got, err := get(t, s, v, at[0], at[1]); atelier.CodeOf(err) != atelier.Corrupt {
			t.Errorf("%v: a moved secret opens: %q, %v", at, got, err)
		}
	}
}

func TestAnotherMasterKeySaysSo(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	one, other := open(t, durabletest.NewDisk(), keyPath), open(t, durabletest.NewDisk(), keyPath)
	update(t, s, func(tx store.Tx) error { return one.Put(tx, "w", "a", []byte("x")) })
	if _, err := get(t, s, other, "w", "a"); atelier.CodeOf(err) != atelier.Corrupt || !strings.Contains(err.Error(), "another master key") {
		t.Errorf("Get with another key: %v", err)
	}
}

func TestMasterKeySurvivesAPowerCut(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	s, _ := newStore(t)
	v := open(t, disk, keyPath)
	update(t, s, func(tx store.Tx) error { return v.Put(tx, "w", "a", []byte("x")) })
	disk.Restart(rand.New(rand.NewPCG(1, 2)))
	if got, err := get(t, s, open(t, disk, keyPath), "w", "a"); err != nil || string(got) != "x" {
		t.Errorf("after a power cut: %q, %v", got, err)
	}
}

func TestMasterKeyFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "vault.key")
	open(t, durable.OS{}, path)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the master key has mode %v, %v; want 0600", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := vault.Open(durable.OS{}, path); atelier.CodeOf(err) != atelier.Conflict {
		t.Errorf("a key that others can read is taken: %v", err)
	}
	for _, content := range []string{"", "00", strings.Repeat("g", 64), strings.Repeat("0", 66)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := vault.Open(durable.OS{}, path); atelier.CodeOf(err) != atelier.Corrupt {
			t.Errorf("the key %q is taken: %v", content, err)
		}
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	v := open(t, durabletest.NewDisk(), keyPath)
	s, _ := newStore(t)
	update(t, s, func(tx store.Tx) error {
		if err := v.Put(tx, "w", "a", make([]byte, vault.MaxSecret+1)); atelier.CodeOf(err) != atelier.TooLarge {
			t.Errorf("an over-long secret: %v", err)
		}
		if err := v.Put(tx, "w", "", nil); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("a secret without a name: %v", err)
		}
		return v.Put(tx, "w", "empty", nil)
	})
	if got, err := get(t, s, v, "w", "empty"); err != nil || len(got) != 0 {
		t.Errorf("an empty secret: %q, %v", got, err)
	}
}
