package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// patchTool is a program that people send new versions of files with.
type patchTool struct {
	name    string
	program string
	// arguments make out of older and newer; window is the logarithm of a length that
	// holds either.
	arguments func(older, newer, out string, window int) []string
	version   string
}

// mostPatching bounds a tool's work on one pair: bsdiff takes minutes for a hundred
// megabytes.
const mostPatching = 3 * time.Minute

var patchTools = []patchTool{
	{name: "zstd -19", program: "zstd", arguments: func(_, newer, out string, _ int) []string {
		return []string{"-19", "-q", "-f", newer, "-o", out}
	}},
	{name: "zstd --patch-from", program: "zstd", arguments: func(older, newer, out string, window int) []string {
		return []string{"-19", fmt.Sprintf("--long=%d", window), "-q", "-f", "--patch-from=" + older, newer, "-o", out}
	}},
	{name: "xdelta3 -9", program: "xdelta3", arguments: func(older, newer, out string, window int) []string {
		return []string{"-e", "-9", "-q", "-f", "-B", fmt.Sprint(1 << window), "-s", older, newer, out}
	}},
	{name: "bsdiff", program: "bsdiff", arguments: func(older, newer, out string, _ int) []string {
		return []string{older, newer, out}
	}},
}

func (t patchTool) usage() string {
	return t.program + " " + strings.Join(t.arguments("OLD", "NEW", "OUT", 27), " ")
}

// findPatchTools returns those that are installed, with their versions, and the
// names of the others.
func findPatchTools(ctx context.Context) (found []patchTool, missing []string) {
	for _, t := range patchTools {
		if _, err := exec.LookPath(t.program); err != nil {
			missing = append(missing, t.name)
			continue
		}
		t.version = "of unknown version"
		// bsdiff says nothing of itself, Debian does.
		if out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Version}", t.program).Output(); err == nil {
			t.version = string(out)
		}
		found = append(found, t)
	}
	return found, missing
}

// patch is what a tool made of a pair: its size, or -1 where it took too long.
type patch struct {
	tool string
	size int64
}

func (p patch) String() string {
	if p.size < 0 {
		return "took too long"
	}
	return strconv.FormatInt(p.size, 10)
}

// order sorts what took too long behind all else.
func (p patch) order() int64 {
	if p.size < 0 {
		return math.MaxInt64
	}
	return p.size
}

// patching is how many tools work at once. What they make does not depend on it, and
// what is timed was done before.
const patching = 2

// patchAll lets all tools work on all pairs, the largest first: they take longest.
func patchAll(ctx context.Context, w *world, tools []patchTool, pairs []pair, made [][]patch) error {
	type task struct{ pair, tool int }
	var tasks []task
	for i := range pairs {
		made[i] = make([]patch, len(tools))
		for j := range tools {
			tasks = append(tasks, task{i, j})
		}
	}
	slices.SortStableFunc(tasks, func(a, b task) int { return cmp.Compare(pairs[b.pair].size, pairs[a.pair].size) })
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan task)
	var working sync.WaitGroup
	for range patching {
		working.Go(func() {
			for t := range queue {
				p, tool := pairs[t.pair], tools[t.tool]
				of, err := tool.patchPair(ctx, w.dir, p)
				if err != nil {
					cancel(fmt.Errorf("%s: %w", p.name, err)) // the others end with it
					continue
				}
				made[t.pair][t.tool] = of
			}
		})
	}
	for _, t := range tasks {
		queue <- t
	}
	close(queue)
	working.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	for i, p := range pairs {
		fmt.Fprintf(w.out, "  %s: by other tools %v\n", p.name, made[i])
	}
	return nil
}

// patchPair is patch with a window that holds either file.
func (t patchTool) patchPair(ctx context.Context, dir string, p pair) (patch, error) {
	info, err := os.Stat(p.older)
	if err != nil {
		return patch{}, err
	}
	return t.patch(ctx, dir, p.older, p.newer, max(bits.Len64(uint64(max(p.size, info.Size()))), 20))
}

func (t patchTool) patch(ctx context.Context, dir, older, newer string, window int) (patch, error) {
	ctx, cancel := context.WithTimeout(ctx, mostPatching)
	defer cancel()
	f, err := os.CreateTemp(dir, "patch-*")
	if err != nil {
		return patch{}, err
	}
	out := f.Name()
	if err := f.Close(); err != nil {
		return patch{}, err
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, t.program, t.arguments(older, newer, out, window)...)
	cmd.Stderr = &said
	err = cmd.Run()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return patch{t.name, -1}, os.Remove(out)
	}
	if err != nil {
		return patch{}, fmt.Errorf("%s: %w\n%s", t.name, err, said.String())
	}
	info, err := os.Stat(out)
	if err != nil {
		return patch{}, err
	}
	return patch{t.name, info.Size()}, os.Remove(out)
}
