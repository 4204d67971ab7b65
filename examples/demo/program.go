package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

// show prints a command the way one would type it.
func (d *demo) show(name string, args ...string) {
	words := []string{name}
	for _, a := range args {
		a = strings.ReplaceAll(a, d.root+"/", "")
		if strings.ContainsAny(a, " {}()[]$*\"") && !strings.HasPrefix(a, "#") {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	fmt.Printf("\x1b[36m$ %s\x1b[0m\n", strings.Join(words, " "))
}

// shown is what of a command's output goes to the terminal.
type shown int

const (
	nothing  shown = iota
	messages       // standard error
	all
)

// atelier runs the command line and shows what it prints.
func (d *demo) atelier(ctx context.Context, args ...string) error {
	_, err := d.command(ctx, all, "atelier", args...)
	return err
}

// capture runs the command line and returns its standard output.
func (d *demo) capture(ctx context.Context, args ...string) ([]byte, error) {
	return d.command(ctx, messages, "atelier", args...)
}

func (d *demo) command(ctx context.Context, show shown, name string, args ...string) ([]byte, error) {
	d.show(name, args...)
	return d.execute(ctx, show, name, args...)
}

// quietly is capture without showing the command, for questions that are asked
// again and again.
func (d *demo) quietly(ctx context.Context, args ...string) ([]byte, error) {
	return d.execute(ctx, nothing, "atelier", append(args, "--quiet")...)
}

func (d *demo) execute(ctx context.Context, show shown, name string, args ...string) ([]byte, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(d.root, "bin", name), args...)
	cmd.Env = append(os.Environ(), "ATELIER_CONFIG="+d.config())
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if show == all {
		cmd.Stdout = os.Stdout
	}
	if show == nothing {
		cmd.Stderr = &out
	}
	if err := cmd.Run(); err != nil {
		if show == nothing {
			err = fmt.Errorf("%w: %s", err, out.String())
		}
		return nil, fmt.Errorf("%s %s: %w", name, args[0], err)
	}
	return out.Bytes(), nil
}

// program is one of the built programs with a log below the demo's directory.
func (d *demo) program(name, log string, args ...string) *boot.Program {
	return &boot.Program{Path: filepath.Join(d.root, "bin", name), Args: args, Log: filepath.Join(d.dir, log)}
}

// start starts a program in the background.
func (d *demo) start(p *boot.Program) error {
	d.show(p.Name(), append(p.Args[:len(p.Args):len(p.Args)], "&")...)
	return p.Start()
}

// stop ends a program and waits until it has ended.
func (d *demo) stop(p *boot.Program, sig syscall.Signal) error {
	names := map[syscall.Signal]string{syscall.SIGTERM: "TERM", syscall.SIGKILL: "KILL"}
	d.show("kill", "-"+names[sig], strconv.Itoa(p.PID()), "# "+p.Name())
	return p.Stop(sig, 20*time.Second)
}
