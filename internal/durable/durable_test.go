package durable_test

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

const path = "/var/state/desired.json"

var (
	before = []byte("the content as it was before")
	after  = make([]byte, 3000) // several blocks, so that a torn write shows
)

func init() {
	for i := range after {
		after[i] = byte('a' + i%26)
	}
}

// prepared returns a disk that holds before at path, durably.
func prepared(t *testing.T) *durabletest.Disk {
	t.Helper()
	disk := durabletest.NewDisk()
	if err := durable.MkdirAll(disk, filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(disk, path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	return disk
}

func steps(t *testing.T) int {
	t.Helper()
	disk := prepared(t)
	n := disk.Operations()
	if err := durable.WriteFile(disk, path, after, 0o600); err != nil {
		t.Fatal(err)
	}
	return disk.Operations() - n
}

func TestWriteFileSurvivesAPowerCutAtEveryStep(t *testing.T) {
	t.Parallel()
	for n := 1; n <= steps(t)+1; n++ {
		for seed := range uint64(20) {
			disk := prepared(t)
			disk.CutAt(n)
			wrote := durable.WriteFile(disk, path, after, 0o600)
			var rng *rand.Rand
			if seed > 0 {
				rng = rand.New(rand.NewPCG(seed, uint64(n)))
			}
			disk.Restart(rng)
			got, err := durable.ReadFile(disk, path)
			if err != nil {
				t.Fatalf("cut at step %d, seed %d: %v", n, seed, err)
			}
			switch string(got) {
			case string(after):
			case string(before):
				if wrote == nil {
					t.Fatalf("cut at step %d, seed %d: WriteFile said it was done, and it was lost", n, seed)
				}
			default:
				t.Fatalf("cut at step %d, seed %d: the file holds a mixture: %.60q", n, seed, got)
			}
			if err := durable.WriteFile(disk, path, after, 0o600); err != nil {
				t.Fatalf("cut at step %d, seed %d: cannot write again: %v", n, seed, err)
			}
		}
	}
}

func TestWriteFileReportsAFullDiskAndKeepsTheOldContent(t *testing.T) {
	t.Parallel()
	disk := prepared(t)
	disk.SetSpace(int64(len(before)) + 100)
	err := durable.WriteFile(disk, path, after, 0o600)
	if atelier.CodeOf(err) != atelier.NoSpace {
		t.Fatalf("got %v, want code %s", err, atelier.NoSpace)
	}
	if got, err := durable.ReadFile(disk, path); err != nil || string(got) != string(before) {
		t.Fatalf("got %q, %v; want the old content", got, err)
	}
	list, err := disk.ReadDir(filepath.Dir(path))
	if err != nil || len(list) != 1 {
		t.Fatalf("the failed write left something behind: %v, %v", list, err)
	}
}

func TestWriteFileFailsAtEveryStep(t *testing.T) {
	t.Parallel()
	for n := 1; n <= steps(t); n++ {
		disk := prepared(t)
		disk.FailAt(n, syscall.EIO)
		if err := durable.WriteFile(disk, path, after, 0o600); !errors.Is(err, syscall.EIO) {
			t.Fatalf("step %d failed and WriteFile returned %v", n, err)
		}
		got, err := durable.ReadFile(disk, path)
		if err != nil || string(got) != string(before) && string(got) != string(after) {
			t.Fatalf("step %d: got %.60q, %v", n, got, err)
		}
	}
}

func TestMkdirAllIsDurableAtEveryStep(t *testing.T) {
	t.Parallel()
	const dir = "/a/b/c"
	for n := 1; ; n++ {
		disk := durabletest.NewDisk()
		disk.CutAt(n)
		err := durable.MkdirAll(disk, dir, 0o700)
		disk.Restart(nil)
		if err != nil {
			if err := durable.MkdirAll(disk, dir, 0o700); err != nil {
				t.Fatalf("after a cut at step %d: %v", n, err)
			}
			disk.Restart(nil)
		}
		if _, statErr := disk.Stat(dir); statErr != nil {
			t.Fatalf("step %d: MkdirAll said it was done: %v", n, statErr)
		}
		if err == nil {
			return
		}
	}
}

// A program that was killed between making a directory and syncing its name
// leaves a name that looks durable and is not.
func TestMkdirAllSyncsWhatAKilledProgramMade(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	if err := disk.Mkdir("/state", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.MkdirAll(disk, "/state", 0o700); err != nil {
		t.Fatal(err)
	}
	disk.Restart(nil)
	if _, err := disk.Stat("/state"); err != nil {
		t.Fatal(err)
	}
}

func TestRemoveIsDurable(t *testing.T) {
	t.Parallel()
	disk := prepared(t)
	for range 2 { // the second finds nothing, and that is fine
		if err := durable.Remove(disk, path); err != nil {
			t.Fatal(err)
		}
	}
	disk.Restart(nil)
	_, err := durable.ReadFile(disk, path)
	if atelier.CodeOf(err) != atelier.NotFound || !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("got %v, want a NotFound that matches fs.ErrNotExist", err)
	}
}

func TestOnTheRealFileSystem(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	name := filepath.Join(dir, "key")
	if err := durable.MkdirAll(durable.OS{}, dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name+".tmp", []byte("left behind"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two"} {
		if err := durable.WriteFile(durable.OS{}, name, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := durable.ReadFile(durable.OS{}, name)
		if err != nil || string(got) != want {
			t.Fatalf("got %q, %v; want %q", got, err, want)
		}
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if free, err := (durable.OS{}).Free(dir); err != nil || free <= 0 {
		t.Fatalf("free space %d, %v", free, err)
	}
	if err := durable.MkdirAll(durable.OS{}, name, 0o700); err == nil {
		t.Fatal("a file passed as a directory")
	}
	if err := durable.Remove(durable.OS{}, name); err != nil {
		t.Fatal(err)
	}
}
