// Package vendor loads PCIe cards through their vendors' tools: XRT's xbutil and OPAE's
// fpgaconf. The overlay is reached through a window of the card's address space (package
// window).
//
// The commands are those of the tools' documents: "xbutil program" of XRT's xbutil.rst
// (xilinx.github.io/XRT/2022.1, `xbutil program [--device|-d] <user bdf> [--user|-u]
// <xclbin>`), and the usage in help() of opae-sdk's tools/fpgaconf/fpgaconf.c. Neither tool is
// ever told to force anything, and no card is left for it to choose.
//
// The commands were compared with those documents, with a simulated card behind; they have
// not yet met the tools, nor a board.
package vendor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/driver"
	"github.com/atelier-edge/atelier/fpga/program"
)

// Card is a function on the PCIe bus.
type Card struct{ Domain, Bus, Device, Function uint }

// ParseCard reads a card as lspci writes it, with its domain: 0000:b3:00.1.
func ParseCard(s string) (Card, error) {
	var c Card
	n, err := fmt.Sscanf(s, "%04x:%02x:%02x.%1x", &c.Domain, &c.Bus, &c.Device, &c.Function)
	if err != nil || n != 4 || c.String() != s {
		return c, atelier.Errorf(atelier.Invalid, "the card is %.40q, a function on the bus such as 0000:b3:00.1 was expected", s)
	}
	return c, nil
}

// String writes what ParseCard reads.
func (c Card) String() string {
	return fmt.Sprintf("%04x:%02x:%02x.%x", c.Domain, c.Bus, c.Device, c.Function)
}

// Options say where the card is.
type Options struct {
	Card    Card
	Overlay program.Device
	// Dir is where images lie while a tool reads them; "" is the directory for temporary files.
	Dir string
	// Run runs a tool and returns its combined output; nil runs it as a process, which ends
	// with the context.
	Run func(ctx context.Context, name string, args ...string) ([]byte, error)
}

// Driver drives one card.
type Driver struct {
	kind, file string
	command    func(c Card, image string) []string
	options    Options
}

// NewXRT returns a driver of a card that XRT drives. Its images are xclbin files.
func NewXRT(o Options) *Driver {
	return newDriver("xrt", "image.xclbin", o, func(c Card, image string) []string {
		return []string{"xbutil", "program", "--device", c.String(), "--user", image}
	})
}

// NewOPAE returns a driver of a card that OPAE drives. Its images are Green Bitstreams.
func NewOPAE(o Options) *Driver {
	return newDriver("opae", "image.gbs", o, func(c Card, image string) []string {
		return []string{"fpgaconf", "--segment", fmt.Sprintf("%#x", c.Domain), "--bus", fmt.Sprintf("%#x", c.Bus),
			"--device", fmt.Sprintf("%#x", c.Device), "--function", fmt.Sprintf("%#x", c.Function), image}
	})
}

func newDriver(kind, file string, o Options, command func(Card, string) []string) *Driver {
	if o.Run == nil {
		o.Run = run
	}
	return &Driver{kind, file, command, o}
}

// endTime is how long a tool may take to end once it was killed.
const endTime = time.Second

func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = endTime
	return cmd.CombinedOutput()
}

// Kind implements driver.Driver.
func (d *Driver) Kind() string { return d.kind }

// Load implements driver.Driver.
func (d *Driver) Load(ctx context.Context, image []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(d.options.Dir, "atelier-fpga")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // what stays is temporary
	path := filepath.Join(dir, d.file)
	if err := os.WriteFile(path, image, 0o600); err != nil {
		return err
	}
	command := d.command(d.options.Card, path)
	out, err := d.options.Run(ctx, command[0], command[1:]...)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound):
		return atelier.Errorf(atelier.Unsupported, "%s is not installed", command[0]).WithRemedy("Install the vendor's tools on the device.")
	case ctx.Err() != nil:
		return atelier.Errorf(atelier.Timeout, "%s took too long: %w", command[0], ctx.Err())
	}
	return atelier.Errorf(atelier.Unavailable, "%s failed (%w): %s", strings.Join(command[:2], " "), err, last(out)).
		WithRemedy("Look at what the tool says, and at the kernel's log on the device.")
}

// last returns the last line that a tool wrote, at most 500 bytes.
func last(out []byte) string {
	out = bytes.TrimSpace(out)
	out = out[bytes.LastIndexByte(out, '\n')+1:]
	return string(out[:min(len(out), 500)])
}

// State implements driver.Driver. What the tools print of a card's state is documented
// nowhere in a form that could be relied upon: the overlay's identity and its golden
// inputs tell.
func (d *Driver) State(context.Context) (driver.State, error) {
	return driver.State{Phase: driver.Unknown}, nil
}

// Overlay implements driver.Driver.
func (d *Driver) Overlay() program.Device { return d.options.Overlay }

// Close implements driver.Driver.
func (d *Driver) Close() error {
	if c, ok := d.options.Overlay.(interface{ Close() error }); ok {
		return c.Close()
	}
	return nil
}
