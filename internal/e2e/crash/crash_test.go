//go:build linux

package crash

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	seeds = flag.Uint64("seeds", 12, "how many points of each kind")
	seed  = flag.Uint64("seed", 0, "run the point of this seed only, where it is not 0")
	side  = flag.String("side", "", "hub or agent; both where empty")
	how   = flag.String("how", "", "cut or kill; both where empty")
)

// root is the repository.
var root = func() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(dir)))
}()

// bin is where TestMain built the programs.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "atelier-crash-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		bin = dir
		cmd := exec.Command("go", "build", "-trimpath", "-o", bin+"/", "./cmd/...")
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// onnxRuntime is the library that `make runtime` fetched.
func onnxRuntime() (library, version string) {
	dir := filepath.Join(root, ".cache", "onnxruntime")
	found, err := filepath.Glob(filepath.Join(dir, "libonnxruntime.so*"))
	v, err2 := os.ReadFile(filepath.Join(dir, "VERSION"))
	if err := errors.Join(err, err2); err != nil || len(found) != 1 {
		panic("ONNX Runtime's library is not in " + dir + "; run 'make runtime'")
	}
	return found[0], strings.TrimSpace(string(v))
}

// point is where something strikes: at an operation of the disk in a phase.
type point struct {
	side, how string
	seed      uint64
	phase     string
	operation int // from the phase's begin
}

func (p point) String() string {
	return fmt.Sprintf("%s %s, seed %d: operation %d of phase %s", p.side, p.how, p.seed, p.operation, p.phase)
}

// again is the command that runs the point again.
func (p point) again() string {
	return fmt.Sprintf("make crash SIDE=%s HOW=%s SEED=%d", p.side, p.how, p.seed)
}

// counts are the operations of each phase on a side's disk.
type counts map[string]int

// choose chooses the point of a seed: the phases take turns, the operation is by
// chance. A run's operations are not exactly those of another, since programs
// wait for each other; a seed means the same place in the job, not the same bytes.
func (c counts) choose(side, how string, seed uint64) point {
	var names []string
	for _, ph := range phases {
		if c[ph.name] > 0 {
			names = append(names, ph.name)
		}
	}
	p := point{side: side, how: how, seed: seed, phase: names[seed%uint64(len(names))]}
	p.operation = 1 + rand.New(rand.NewPCG(seed, 1)).IntN(c[p.phase])
	return p
}

// TestCrash strikes hub and agent at seeded points. Each point is the whole
// main job once, with one interruption; what was acknowledged before it must be
// there after it, and the job must come to its end without any repair.
func TestCrash(t *testing.T) {
	for _, s := range []string{"hub", "agent"} {
		if *side != "" && *side != s {
			continue
		}
		t.Run(s, func(t *testing.T) {
			t.Parallel()
			c := count(t, s)
			t.Logf("operations of the %s's disk: %v", s, c)
			for _, h := range []string{"cut", "kill"} {
				if *how != "" && *how != h {
					continue
				}
				t.Run(h, func(t *testing.T) {
					t.Parallel()
					all(t, c, s, h)
				})
			}
		})
	}
}

// all runs the points of one side and one way to end.
func all(t *testing.T, c counts, side, how string) {
	first, last := uint64(1), *seeds
	if *seed != 0 {
		first, last = *seed, *seed
	}
	var mu sync.Mutex
	where := map[string]int{}
	t.Cleanup(func() {
		text := ""
		for _, ph := range phases {
			if where[ph.name] > 0 {
				text += fmt.Sprintf(" %s %d", ph.name, where[ph.name])
			}
		}
		t.Logf("%s %s, seeds %d to %d, struck in phase:%s; early enough to be by operation: %d", side, how, first, last, text, where["struck"])
	})
	for s := first; s <= last; s++ {
		p := c.choose(side, how, s)
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			t.Parallel()
			t.Log(p)
			byOperation := strike(t, p)
			t.Log("all is there:", p)
			mu.Lock()
			defer mu.Unlock()
			where[p.phase]++
			if byOperation {
				where["struck"]++
			}
		})
	}
}

// shortDir is a temporary directory with a path short enough for Unix sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cr-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// open makes the world of a point; it ends with the test.
func open(t *testing.T, p point) *world {
	t.Helper()
	w, err := newWorld(p, shortDir(t))
	if err != nil {
		if os.Getenv("CI") != "true" && os.Geteuid() != 0 {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("again with: %s\n%s", p.again(), w.logs())
		}
		if err := w.end(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return w
}

// count does the whole job undisturbed and counts operations.
func count(t *testing.T, side string) counts {
	t.Helper()
	w := open(t, point{side: side})
	c := counts{}
	for _, ph := range phases {
		begin := w.disk.Operations()
		if err := ph.run(w, t.Context()); err != nil {
			t.Fatalf("phase %s: %v", ph.name, err)
		}
		if strings.Contains(ph.sides, side) {
			c[ph.name] = w.disk.Operations() - begin
		}
	}
	if err := w.settled(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// strike does the job up to the point, strikes, recovers and does the rest.
// byOperation tells that the point's operation came; where it did not, the end of its
// phase was struck.
func strike(t *testing.T, p point) (byOperation bool) {
	t.Helper()
	w := open(t, p)
	at := slices.IndexFunc(phases, func(ph phase) bool { return ph.name == p.phase })
	for _, ph := range phases[:at] {
		if err := ph.run(w, t.Context()); err != nil {
			t.Fatalf("phase %s, undisturbed: %v", ph.name, err)
		}
	}
	if p.how == "cut" {
		w.disk.CutAt(p.operation, w.strike)
	} else {
		w.disk.CallAt(p.operation, w.strike)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-ctx.Done():
			return
		case <-w.struck:
		}
		select { // what was asked for may yet be answered
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
			cancel()
		}
	}()
	err := phases[at].run(w, ctx)
	cancel()
	<-ended
	select {
	case <-w.struck:
		byOperation = true
	default:
		if err != nil {
			t.Fatalf("phase %s, undisturbed so far: %v", p.phase, err)
		}
		w.disk.CutAt(0, nil)
		if p.how == "cut" {
			w.disk.Cut()
		}
		w.strike()
	}
	if err := w.fallen(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.recover(t.Context()); err != nil {
		t.Fatalf("after the %s: %v", p.how, err)
	}
	for _, ph := range phases[at:] {
		if err := ph.run(w, t.Context()); err != nil {
			t.Fatalf("phase %s, after the %s: %v", ph.name, p.how, err)
		}
	}
	if err := w.settled(t.Context()); err != nil {
		t.Fatalf("at the end: %v", err)
	}
	return byOperation
}
