// Command bench measures Atelier with its real programs, each figure in turn with
// a peer or a physical limit where there is one. `make bench` runs all benchmarks,
// `make bench BENCH=spine` one of them. It prints a table and writes
// bench/results/NAME.json. It judges nothing: a target that is missed is
// reported, not failed. docs/benchmarks.md holds the last results.
//
// It uses the programs as their users do, and knows nothing of their inside.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

// benchmark is one benchmark: parts that can be run alone while one works on
// what they measure.
type benchmark struct {
	name  string
	about string
	parts []part
	named bool // runs only when it is named
}

// part measures some figures in a world of its own.
type part struct {
	name    string
	measure func(context.Context, *world) ([]Figure, error)
}

var benchmarks = []benchmark{spine, transfer, serving, packaged, containers, overlays, huge}

// limit is how long one benchmark may take.
const limit = 20 * time.Minute

func main() {
	if len(os.Args) > 1 && os.Args[1] == relayVerb {
		fmt.Fprintln(os.Stderr, "bench:", relay(os.Args[2:]))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	only := flags.String("part", "", "run one `PART` of each benchmark, and write no results")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: bench [-part PART] [NAME…]")
		for _, b := range benchmarks {
			fmt.Fprintf(flags.Output(), "  %-10s %s; parts: %s\n", b.name, b.about, b.partNames())
		}
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	for _, name := range flags.Args() {
		if !slices.ContainsFunc(benchmarks, func(b benchmark) bool { return b.name == name }) {
			return fmt.Errorf("there is no benchmark %q; see bench -h", name)
		}
	}
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(root, "bin", "atelier-hub")); err != nil {
		return fmt.Errorf("run it with 'make bench' from the repository: %w", err)
	}
	fmt.Fprintln(out, machine(ctx))
	for _, b := range benchmarks {
		if (flags.NArg() > 0 || b.named) && !slices.Contains(flags.Args(), b.name) {
			continue
		}
		if err := b.run(ctx, root, *only, out); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
	}
	return nil
}

// run measures all parts, or only one, prints the table and, where all parts
// were measured, writes the results.
func (b benchmark) run(ctx context.Context, root, only string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	var figures []Figure
	for _, p := range b.parts {
		if only != "" && p.name != only {
			continue
		}
		fmt.Fprintf(out, "\n%s/%s after %s, load %s\n", b.name, p.name, time.Since(began).Round(time.Second), load())
		measured, err := p.run(ctx, root, filepath.Join(root, "bench", "work", p.name), out)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		figures = append(figures, measured...)
	}
	if len(figures) == 0 {
		return fmt.Errorf("there is no part %q; there are: %s", only, b.partNames())
	}
	fmt.Fprintf(out, "\n%s, %s, load %s\n\n", b.name, time.Since(began).Round(time.Second), load())
	if err := printTable(out, figures); err != nil {
		return err
	}
	if only != "" {
		return nil
	}
	path := filepath.Join(root, "bench", "results", b.name+".json")
	if err := writeResults(path, figures); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nWritten to %s\n", path)
	return nil
}

// run gives the part a directory of its own and ends whatever it started there.
func (p part) run(ctx context.Context, root, dir string, out io.Writer) (figures []Figure, err error) {
	clean := func() error {
		return errors.Join(boot.EndAll(context.WithoutCancel(ctx), dir), os.RemoveAll(dir))
	}
	if err := clean(); err != nil { // what an interrupted run left
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	w := &world{root: root, dir: dir, out: out}
	defer func() {
		if err != nil && w.hub != nil {
			err = fmt.Errorf("%w\nThe end of the hub's log:\n%s", err, w.hub.Tail(10))
		}
		for _, other := range w.others {
			err = errors.Join(err, other.Stop(syscall.SIGKILL, 10*time.Second))
		}
		for _, peer := range w.peers {
			err = errors.Join(err, peer.stop())
		}
		err = errors.Join(err, clean())
	}()
	return p.measure(ctx, w)
}

func (b benchmark) partNames() string {
	var names []string
	for _, p := range b.parts {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

// machine describes what is measured and where.
func machine(ctx context.Context) string {
	commit := "unknown"
	if b, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output(); err == nil {
		commit = strings.TrimSpace(string(b))
	}
	cpu := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.SplitSeq(string(b), "\n") {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	kernel := "unknown"
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel = strings.TrimSpace(string(b))
	}
	return fmt.Sprintf("%s, commit %s, %d processors (%s), %s/%s, kernel %s, %s",
		time.Now().UTC().Format(time.DateOnly), commit, runtime.NumCPU(), cpu, runtime.GOOS, runtime.GOARCH, kernel, runtime.Version())
}

// load is the machine's load average over one, five and fifteen minutes.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}
