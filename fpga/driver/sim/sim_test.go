package sim_test

import (
	"context"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/bitstream"
	"github.com/atelier-edge/atelier/fpga/board"
	"github.com/atelier-edge/atelier/fpga/driver"
	"github.com/atelier-edge/atelier/fpga/driver/drivertest"
	"github.com/atelier-edge/atelier/fpga/driver/sim"
	"github.com/atelier-edge/atelier/fpga/program"
)

var geometry = program.Geometry{Lanes: 8, Activations: 10, Biases: 8, Program: 6, Weights: 10, Tables: 9}

func TestConformance(t *testing.T) {
	t.Parallel()
	drivertest.Run(t, func(t *testing.T) drivertest.Bench {
		b := drivertest.Bench{Driver: sim.New("sim", board.New(board.Options{Part: bitstream.SimulatedPart})), Bad: []byte("no image")}
		for i := range b.Images {
			d := board.Design{Geometry: geometry, UUID: [16]byte{byte(i + 1)}}
			b.Images[i], b.Identities[i] = d.Image(), program.Identity{ISA: program.ISA, Geometry: d.Geometry, UUID: d.UUID}
		}
		return b
	})
}

// TestGuard has a driver that hangs.
func TestGuard(t *testing.T) {
	t.Parallel()
	b := board.New(board.Options{Part: bitstream.SimulatedPart})
	g := driver.NewGuard(sim.New("sim", b))
	image := board.Design{Geometry: geometry, UUID: [16]byte{1}}.Image()
	load := func(within time.Duration) error {
		_, err := driver.Within(t.Context(), g, "load", within, func(ctx context.Context, d driver.Driver) (struct{}, error) {
			return struct{}{}, d.Load(ctx, image)
		})
		return err
	}
	b.Break(board.Hang)
	if err := load(10 * time.Millisecond); atelier.CodeOf(err) != atelier.Timeout {
		t.Errorf("a driver that hangs: %v", err)
	}
	if err := load(10 * time.Millisecond); atelier.CodeOf(err) != atelier.Unavailable {
		t.Errorf("a driver that still hangs: %v", err)
	}
	b.Release()
	if err := load(time.Minute); err != nil {
		t.Errorf("a driver that has come back: %v", err)
	}
	if err := g.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
