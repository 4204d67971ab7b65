// Command demo shows the main job, with the built programs and the command line
// only: a model goes from the operator's hands into the hub's registry, over
// MQTT to two devices, into REST endpoints that answer, and its telemetry comes
// back. It prints each command before it runs it. `make demo` runs it;
// `make demo KEEP=1` leaves everything running and says how to look around.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "\nThe demo failed:", err)
		os.Exit(1)
	}
}

// demo is one run.
type demo struct {
	root  string // the repository
	dir   string // everything of this run lies below
	began time.Time

	hub    *boot.Program
	listen string // the hub's address
	agents []*device
}

// device is one device of the demo: an agent with directories of its own.
type device struct {
	name    string
	dir     string
	gateway string // address of its endpoints
	agent   *boot.Program
}

func run(ctx context.Context) (err error) {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(root, "bin", "atelier-hub")); err != nil {
		return fmt.Errorf("run it with 'make demo' from the repository: %w", err)
	}
	d := &demo{root: root, dir: filepath.Join(root, "demo-run"), began: time.Now()}
	if len(os.Args) > 1 && os.Args[1] == "stop" {
		return d.clear()
	}
	keep := os.Getenv("KEEP") != "" && os.Getenv("KEEP") != "0"
	if err := d.clear(); err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	defer func() {
		if keep && err == nil {
			err = d.lookAround()
			return
		}
		if cleanErr := d.clear(); cleanErr != nil && err == nil {
			err = fmt.Errorf("clean up: %w", cleanErr)
		}
	}()
	for _, step := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"Start a hub: one program, one directory", d.startHub},
		{"Register what the devices will run", d.register},
		{"Join two devices", d.join},
		{"Deploy: one model to both devices by label, the other to one", d.deploy},
		{"Ask the endpoints", d.ask},
		{"Bring version 2 to both devices while requests come in", d.upgrade},
		{"Stop the hub: the devices go on, and hand in their telemetry later", d.hubAway},
		{"Kill an agent: its models go on answering, and the hub says why it is silent", d.why},
	} {
		fmt.Printf("\n\x1b[1m── %s\x1b[0m\n\n", step.title)
		if err := step.do(ctx); err != nil {
			d.tails()
			return fmt.Errorf("%s: %w", strings.ToLower(step.title[:1])+step.title[1:], err)
		}
	}
	fmt.Printf("\n\x1b[1m── Done in %s\x1b[0m\n", time.Since(d.began).Round(time.Second))
	return nil
}

// clear ends what an earlier run left running in the directory, and deletes it.
func (d *demo) clear() error {
	if err := boot.EndAll(context.Background(), d.dir); err != nil {
		return err
	}
	return os.RemoveAll(d.dir)
}

// tails prints the end of the logs, for whoever has to find out what went wrong.
func (d *demo) tails() {
	programs := []*boot.Program{d.hub}
	for _, a := range d.agents {
		programs = append(programs, a.agent)
	}
	for _, p := range programs {
		if p != nil {
			fmt.Fprintf(os.Stderr, "\nThe end of %s:\n%s\n", p.Log, p.Tail(25))
		}
	}
}

func (d *demo) lookAround() error {
	bin, err := filepath.Rel(d.root, filepath.Join(d.root, "bin"))
	if err != nil {
		return err
	}
	fmt.Printf(`
Everything is still running. To look around:

  export ATELIER_CONFIG=%s
  export PATH=$PWD/%s:$PATH
  atelier status
  atelier why demo-1
  atelier endpoint list
  atelier telemetry metrics

The API's documentation is at https://%s/docs. 'make demo' begins anew, 'make demo-stop' ends everything.
`, d.config(), bin, d.listen)
	return nil
}

func (d *demo) config() string { return filepath.Join(d.dir, "atelier.toml") }

var errNoLogin = errors.New("the hub did not print how to log in")
