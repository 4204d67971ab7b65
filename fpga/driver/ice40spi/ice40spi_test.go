package ice40spi

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/bitstream/bitstreamtest"
	"github.com/atelier-edge/atelier/fpga/board"
	"github.com/atelier-edge/atelier/fpga/driver/drivertest"
	"github.com/atelier-edge/atelier/fpga/program"
)

// bus is a device on an SPI bus: it listens for an image after a reset with SS_B low, and
// to the overlay's commands once it is configured.
type bus struct {
	board            *board.Board
	selected, reset  bool
	slave, listening bool   // it came out of reset as a slave; housekeeping is over
	image, command   []byte // that came while selected
	activation       int    // bytes since CDONE
	record           func(string)
}

func (b *bus) note(format string, args ...any) {
	if b.record != nil {
		b.record(fmt.Sprintf(format, args...))
	}
}

func (b *bus) Select(low bool) error {
	b.note("SS_B %t", !low)
	if b.selected && !low {
		switch {
		case b.slave && !b.listening:
			b.listening = true
		case b.listening && len(b.image) > 0:
			_ = b.board.Configure(b.image) // CDONE tells
			b.slave, b.listening, b.image, b.activation = false, false, nil, 0
		}
	}
	b.selected, b.command = low, nil
	return nil
}

func (b *bus) Reset(low bool) error {
	b.note("CRESET_B %t", !low)
	if low {
		b.board.CutPower()
		b.listening, b.image = false, nil
	} else if b.reset {
		b.slave = b.selected
	}
	b.reset = low
	return nil
}

func (b *bus) Done() (bool, error) {
	done := b.board.Phase() == board.Operating
	b.note("CDONE? %t", done)
	return done, nil
}

func (b *bus) Transfer(out []byte) ([]byte, error) {
	b.note("transfer %d", len(out))
	in := make([]byte, len(out))
	if !b.selected || len(out) > chunk {
		return nil, errors.New("a transfer without a chip select, or too long")
	}
	if b.listening {
		b.image = append(b.image, out...)
		return in, nil
	}
	if b.board.Phase() != board.Operating {
		return slices.Repeat([]byte{0xff}, len(out)), nil
	}
	if b.activation < activationBytes { // the design starts only after 49 clocks
		b.activation += len(out)
		return in, nil
	}
	if len(out) < 4 {
		return in, nil
	}
	address := uint32(out[1])<<16 | uint32(out[2])<<8 | uint32(out[3])
	switch out[0] {
	case 2:
		return in, b.board.Write(address, out[4:])
	case 3:
		if err := b.board.Wait(); err != nil {
			return nil, err
		}
		return in, b.board.Read(address, in[5:])
	}
	return nil, fmt.Errorf("the command is %#02x", out[0])
}

func (b *bus) Close() error { return b.board.Close() }

func device() (b *bus, images [2][]byte, designs [2]board.Design) {
	known := map[atelier.Digest]board.Design{}
	for i := range images {
		images[i] = bitstreamtest.ICE40("hx8k", byte(i+1))
		designs[i] = board.Design{Geometry: program.Geometry{Lanes: 8, Activations: 10, Biases: 8, Program: 6, Weights: 10, Tables: 9}, UUID: [16]byte{byte(i + 1)}}
		known[atelier.DigestOf(images[i])] = designs[i]
	}
	return &bus{board: board.New(board.Options{Part: "hx8k", Designs: known})}, images, designs
}

func TestConformance(t *testing.T) {
	t.Parallel()
	drivertest.Run(t, func(*testing.T) drivertest.Bench {
		bus, images, designs := device()
		b := drivertest.Bench{Driver: New(bus), Images: images, Bad: bitstreamtest.ICE40("up5k", 1)}
		for i, d := range designs {
			b.Identities[i] = program.Identity{ISA: program.ISA, Geometry: d.Geometry, UUID: d.UUID}
		}
		return b
	})
}

// TestTranscript compares what happens on the pins with drivers/fpga/ice40-spi.c.
func TestTranscript(t *testing.T) {
	t.Parallel()
	bus, images, _ := device()
	d := New(bus)
	var got []string
	bus.record = func(s string) { got = append(got, s) }
	d.sleep = func(w time.Duration) { bus.note("wait %v", w) }
	if err := d.Load(t.Context(), images[0][:chunk+904]); err == nil {
		t.Error("a part of an image was taken")
	}
	want := []string{
		// write_init: gpiod_set_value(reset, 1); a message that leaves SS_B low, with a delay of 1 µs.
		"CRESET_B false", "SS_B false", "wait 1µs",
		// gpiod_set_value(reset, 0); gpiod_get_value(cdone) must be 0.
		"CRESET_B true", "CDONE? false",
		// a message with a delay of 1200 µs, after which SS_B is released.
		"wait 1.2ms", "SS_B true",
		// write: spi_write of the image.
		"SS_B false", "transfer 4096", "transfer 904", "SS_B true",
		// write_complete: gpiod_get_value(cdone) must be 1.
		"CDONE? false",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the pins saw\n%q\nwant\n%q", got, want)
	}
	got = nil
	if err := d.Load(t.Context(), images[0]); err != nil {
		t.Fatal(err)
	}
	// write_complete: spi_write of ICE40_SPI_NUM_ACTIVATION_BYTES zeros.
	if end := []string{"CDONE? true", "SS_B false", "transfer 7", "SS_B true"}; !slices.Equal(got[len(got)-4:], end) {
		t.Errorf("it ends with %q, want %q", got[len(got)-4:], end)
	}
}
