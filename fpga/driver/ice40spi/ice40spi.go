// Package ice40spi loads iCE40 FPGAs as an SPI slave, and reaches the overlay over the same
// pins afterwards.
//
// The order and the times are those of Linux' drivers/fpga/ice40-spi.c:
// ice40_fpga_ops_write_init (CRESET_B low with SS_B low for more than 200
// ns, CDONE must be low, 1200 µs of housekeeping, SS_B high), ice40_fpga_ops_write (the image),
// ice40_fpga_ops_write_complete (CDONE must be high; 49 clocks more activate the design).
//
// It has met a simulated device and transcripts of that order, and not yet a board.
package ice40spi

import (
	"context"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/driver"
	"github.com/atelier-edge/atelier/fpga/program"
)

// Bus is an SPI bus in mode 0 with one chip select, and the two pins.
type Bus interface {
	// Select drives SS_B low, or lets it go high.
	Select(low bool) error
	// Transfer sends out and returns what came meanwhile. SS_B stays as it is.
	Transfer(out []byte) (in []byte, err error)
	// Reset drives CRESET_B low, or lets it go high.
	Reset(low bool) error
	// Done reads CDONE.
	Done() (bool, error)
	Close() error
}

// Times and counts of ice40-spi.c: ICE40_SPI_RESET_DELAY, ICE40_SPI_HOUSEKEEPING_DELAY and
// ICE40_SPI_NUM_ACTIVATION_BYTES.
const (
	resetTime        = time.Microsecond // more than 200 ns
	housekeepingTime = 1200 * time.Microsecond
	activationBytes  = (49 + 7) / 8
)

// chunk is what a spidev takes at once when it is not told otherwise (its bufsiz).
const chunk = 4096

// busyTime bounds an inference.
const busyTime = 10 * time.Second

// Driver drives one device.
type Driver struct {
	bus   Bus
	sleep func(time.Duration)
}

// New returns a driver that closes the bus.
func New(b Bus) *Driver { return &Driver{b, time.Sleep} }

// Kind implements driver.Driver.
func (d *Driver) Kind() string { return "ice40spi" }

// Load implements driver.Driver.
func (d *Driver) Load(ctx context.Context, image []byte) error {
	if err := d.reset(); err != nil {
		return err
	}
	if err := d.bus.Select(true); err != nil {
		return err
	}
	for at := 0; at < len(image); at += chunk {
		if err := ctx.Err(); err != nil {
			_ = d.bus.Select(false) // what counts is that nobody waits
			return err
		}
		if _, err := d.bus.Transfer(image[at:min(at+chunk, len(image))]); err != nil {
			return err
		}
	}
	if err := d.bus.Select(false); err != nil {
		return err
	}
	done, err := d.bus.Done()
	if err != nil {
		return err
	}
	if !done {
		return atelier.Errorf(atelier.Invalid, "the device did not take the image: CDONE is low after %d bytes", len(image)).
			WithRemedy("Check that the image is for this part, and the wires of SPI.")
	}
	return d.transaction(make([]byte, activationBytes))
}

// reset takes the device to where it waits for an image.
func (d *Driver) reset() error {
	if err := d.bus.Reset(true); err != nil {
		return err
	}
	if err := d.bus.Select(true); err != nil { // low as the reset ends: the device is a slave then
		return err
	}
	d.sleep(resetTime)
	if err := d.bus.Reset(false); err != nil {
		return err
	}
	done, err := d.bus.Done()
	if err != nil {
		return err
	}
	if done {
		return atelier.Errorf(atelier.Unavailable, "the device cannot be reset: CDONE is high").
			WithRemedy("Check the wires of CRESET_B and CDONE.")
	}
	d.sleep(housekeepingTime)
	return d.bus.Select(false)
}

func (d *Driver) transaction(out []byte) error {
	if err := d.bus.Select(true); err != nil {
		return err
	}
	if _, err := d.bus.Transfer(out); err != nil {
		return err
	}
	return d.bus.Select(false)
}

// State implements driver.Driver. The device tells by CDONE only (ice40_fpga_ops_state).
func (d *Driver) State(context.Context) (driver.State, error) {
	done, err := d.bus.Done()
	switch {
	case err != nil:
		return driver.State{Phase: driver.Unknown}, err
	case done:
		return driver.State{Phase: driver.Operating, Detail: "CDONE is high"}, nil
	}
	return driver.State{Phase: driver.Empty, Detail: "CDONE is low"}, nil
}

// Overlay implements driver.Driver: the commands of fpga/rtl/spi.v.
func (d *Driver) Overlay() program.Device { return registers{d} }

// Close implements driver.Driver.
func (d *Driver) Close() error { return d.bus.Close() }

// registers are the overlay's, over SPI.
type registers struct{ d *Driver }

// Write implements program.Device.
func (r registers) Write(address uint32, b []byte) error {
	for len(b) > 0 {
		n := min(len(b), chunk-4) // whole words of memories that are up to 32 bytes wide
		if n < len(b) {
			n &^= 31
		}
		out := append([]byte{2, byte(address >> 16), byte(address >> 8), byte(address)}, b[:n]...)
		if err := r.d.transaction(out); err != nil {
			return err
		}
		address, b = address+uint32(n), b[n:]
	}
	return nil
}

// Read implements program.Device.
func (r registers) Read(address uint32, b []byte) error {
	for len(b) > 0 {
		n := min(len(b), chunk-5)
		out := make([]byte, 5+n)
		out[0], out[1], out[2], out[3] = 3, byte(address>>16), byte(address>>8), byte(address)
		if err := r.d.bus.Select(true); err != nil {
			return err
		}
		in, err := r.d.bus.Transfer(out)
		if err != nil {
			return err
		}
		if err := r.d.bus.Select(false); err != nil {
			return err
		}
		copy(b[:n], in[5:])
		address, b = address+uint32(n), b[n:]
	}
	return nil
}

// Wait implements program.Device.
func (r registers) Wait() error { return driver.Await(r, busyTime) }
