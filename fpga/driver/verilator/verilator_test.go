package verilator_test

import (
	"os"
	"testing"

	"github.com/atelier-edge/atelier/fpga/bitstream"
	"github.com/atelier-edge/atelier/fpga/board"
	"github.com/atelier-edge/atelier/fpga/driver/drivertest"
	"github.com/atelier-edge/atelier/fpga/driver/sim"
	"github.com/atelier-edge/atelier/fpga/driver/verilator"
	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/fpga/rtl"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	if os.Getenv("ATELIER_FPGA") != "full" {
		t.Skip("it builds two simulators; 'make fpga' runs it")
	}
	if !rtl.Installed() {
		if os.Getenv("CI") == "true" {
			t.Fatal("Verilator is not installed; fpga/install-tools installs it")
		}
		t.Skip("Verilator is not installed")
	}
	start := verilator.Start(t.Context(), t.TempDir())
	drivertest.Run(t, func(*testing.T) drivertest.Bench {
		b := drivertest.Bench{Driver: sim.New("verilator", board.New(board.Options{Part: bitstream.SimulatedPart, Start: start})), Bad: []byte("no image")}
		for i := range b.Images {
			d := board.Design{Geometry: program.Geometry{Lanes: 4 << i, Activations: 10, Biases: 8, Program: 6, Weights: 10, Tables: 9}, UUID: [16]byte{byte(i + 1)}}
			b.Images[i], b.Identities[i] = d.Image(), program.Identity{ISA: program.ISA, Geometry: d.Geometry, UUID: d.UUID}
		}
		return b
	})
}
