//go:build linux

package powerfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/atelier-edge/atelier/internal/durable"
)

func mounted(t *testing.T) (*Disk, string) {
	t.Helper()
	dir := t.TempDir()
	d, err := Mount(dir)
	if err != nil {
		if os.Getenv("CI") != "true" && (os.Geteuid() != 0 || errors.Is(err, syscall.ENOENT)) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d, dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestOnlyWhatWasSyncedSurvives checks each promise of the package by itself.
func TestOnlyWhatWasSyncedSurvives(t *testing.T) {
	t.Parallel()
	d, dir := mounted(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	restart := func() {
		t.Helper()
		must(t, d.Restart(nil))
	}
	reads := func(name, want string) {
		t.Helper()
		if got, err := os.ReadFile(at(name)); err != nil || string(got) != want {
			t.Errorf("%s holds %.40q (%v), expected %.40q", name, got, err, want)
		}
	}
	gone := func(name string) {
		t.Helper()
		if _, err := os.Stat(at(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v, expected it to be gone", name, err)
		}
	}

	must(t, durable.WriteFile(durable.OS{}, at("whole"), []byte("first"), 0o600))
	must(t, os.WriteFile(at("plain"), []byte("never synced"), 0o600))
	f, err := os.Create(at("nameless"))
	must(t, err)
	_, err = f.WriteString("synced, under no synced name")
	must(t, errors.Join(err, f.Sync(), f.Close()))
	restart()
	reads("whole", "first")
	gone("plain")
	gone("nameless")

	// A name is synced before its bytes: it survives empty.
	must(t, os.WriteFile(at("empty"), []byte("x"), 0o600))
	must(t, durable.OS{}.SyncDir(dir))
	must(t, os.WriteFile(at("whole"), []byte("second"), 0o600)) // truncates, and syncs nothing
	restart()
	reads("empty", "")
	reads("whole", "first")

	// Names that were removed or moved come back.
	must(t, os.Remove(at("whole")))
	must(t, os.Rename(at("empty"), at("moved")))
	restart()
	reads("whole", "first")
	reads("empty", "")
	gone("moved")

	// The old end of a file that became shorter comes back, and growing finds no rests of it.
	must(t, os.Truncate(at("whole"), 1))
	must(t, os.Truncate(at("whole"), 4))
	reads("whole", "f\x00\x00\x00")
	restart()
	reads("whole", "first")
}

// TestTornFilesAreOfBothTimes tears a file whose every block has changed.
func TestTornFilesAreOfBothTimes(t *testing.T) {
	t.Parallel()
	d, dir := mounted(t)
	path := filepath.Join(dir, "f")
	before, after := bytes.Repeat([]byte{1}, 20*block), bytes.Repeat([]byte{2}, 40*block)
	kinds := map[string]int{}
	for seed := range uint64(8) {
		must(t, durable.WriteFile(durable.OS{}, path, before, 0o600))
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		must(t, err)
		_, err = f.Write(after)
		must(t, errors.Join(err, f.Close(), d.Restart(rand.New(rand.NewPCG(seed, 0)))))
		got, err := os.ReadFile(path)
		must(t, err)
		if len(got) != len(before) && len(got) != len(after) {
			t.Fatalf("the file has %d bytes, which it never had", len(got))
		}
		for at := 0; at < len(got); at += block {
			b := got[at : at+block]
			if !bytes.Equal(b, bytes.Repeat(b[:1], block)) || b[0] == 1 && at >= len(before) || b[0] == 0 && at < len(before) {
				t.Fatalf("block %d is %v…", at/block, b[:4])
			}
			kinds[string('0'+rune(b[0]))]++
		}
	}
	for _, kind := range []string{"0", "1", "2"} { // lost, as before, as after
		if kinds[kind] == 0 {
			t.Errorf("no block is of kind %s: %v", kind, kinds)
		}
	}
}

// TestCutStopsTheProgram cuts at each operation of a durable write.
func TestCutStopsTheProgram(t *testing.T) {
	t.Parallel()
	d, dir := mounted(t)
	path := filepath.Join(dir, "f")
	must(t, durable.WriteFile(durable.OS{}, path, []byte("old"), 0o600))
	begin := d.Operations()
	must(t, durable.WriteFile(durable.OS{}, path, []byte("old"), 0o600))
	total := d.Operations() - begin
	if total < 4 { // create, write, sync, rename, sync the directory
		t.Fatalf("a durable write is %d operations", total)
	}
	for n := 1; n <= total; n++ {
		var struck atomic.Int32
		d.CutAt(n, func() { struck.Add(1) })
		if err := durable.WriteFile(durable.OS{}, path, []byte("new"), 0o600); !errors.Is(err, syscall.EIO) || struck.Load() != 1 {
			t.Fatalf("cut at %d: %v, struck %d times", n, err, struck.Load())
		}
		must(t, d.Restart(rand.New(rand.NewPCG(uint64(n), 0))))
		if got, err := os.ReadFile(path); err != nil || string(got) != "old" && string(got) != "new" {
			t.Fatalf("cut at %d: %q, %v", n, got, err)
		}
	}
}

// TestSharedMapsAreKeptOnlyWhenSynced writes through shared memory, as SQLite does:
// in another process, since one that waits for a page of its own file system may
// hold what serving the page needs.
func TestSharedMapsAreKeptOnlyWhenSynced(t *testing.T) {
	t.Parallel()
	d, dir := mounted(t)
	path := filepath.Join(dir, "f")
	must(t, durable.WriteFile(durable.OS{}, path, make([]byte, 4096), 0o600))
	for _, synced := range []bool{true, false} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMapperProcess$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s", mapVariable, path), fmt.Sprintf("%s=%t", syncVariable, synced))
		hold, err := cmd.StdinPipe()
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != written {
			t.Fatalf("the process that maps the file says %q, %v", line, err)
		}
		if !synced {
			d.Cut()
		}
		_ = hold.Close()
		_ = cmd.Wait() // may fail with the power off
		must(t, d.Restart(nil))
		if got, err := os.ReadFile(path); err != nil || string(got) != strings.Repeat("a", 4096) {
			t.Fatalf("synced %t: %.8q, %v", synced, got, err)
		}
	}
}

// What TestSharedMapsAreKeptOnlyWhenSynced and its process say to each other.
const (
	mapVariable  = "POWERFS_TEST_MAP"
	syncVariable = "POWERFS_TEST_SYNC"
	written      = "written\n"
)

// TestMapperProcess is no test but the process of TestSharedMapsAreKeptOnlyWhenSynced.
func TestMapperProcess(t *testing.T) {
	path := os.Getenv(mapVariable)
	if path == "" {
		return
	}
	synced := os.Getenv(syncVariable) == "true"
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	m, err := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	must(t, err)
	copy(m, strings.Repeat(map[bool]string{true: "a", false: "b"}[synced], 4096))
	if synced {
		must(t, f.Sync())
	}
	fmt.Print(written)
	_, _ = io.Copy(io.Discard, os.Stdin) // until the power is off
	_, _ = syscall.Munmap(m), f.Close()
}

// TestProgramsInheritNothing starts a program beside a disk: it must not get the
// descriptor that keeps the file system alive.
func TestProgramsInheritNothing(t *testing.T) {
	t.Parallel()
	mounted(t)
	out, err := exec.CommandContext(t.Context(), "ls", "-l", "/proc/self/fd").CombinedOutput()
	if err != nil || strings.Contains(string(out), "/dev/fuse") {
		t.Errorf("%v\n%s", err, out)
	}
}
