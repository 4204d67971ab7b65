// Package sim drives a simulated device in its own process. It is always there, and what
// it computes is right; microseconds it has none to tell.
package sim

import (
	"context"

	"github.com/atelier-edge/atelier/fpga/board"
	"github.com/atelier-edge/atelier/fpga/driver"
	"github.com/atelier-edge/atelier/fpga/program"
)

// Driver drives a board.
type Driver struct {
	kind  string
	board *board.Board
}

// New returns a driver of b, which it closes. kind is "sim" for the cycle model in Go,
// "verilator" where the RTL is behind it.
func New(kind string, b *board.Board) *Driver { return &Driver{kind, b} }

// Kind implements driver.Driver.
func (d *Driver) Kind() string { return d.kind }

// Load implements driver.Driver.
func (d *Driver) Load(ctx context.Context, image []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.board.Configure(image)
}

// State implements driver.Driver.
func (d *Driver) State(context.Context) (driver.State, error) {
	return driver.State{Phase: driver.Phase(d.board.Phase())}, nil
}

// Overlay implements driver.Driver.
func (d *Driver) Overlay() program.Device { return d.board }

// Close implements driver.Driver. A simulated device loses its configuration with its
// process.
func (d *Driver) Close() error { return d.board.Close() }
