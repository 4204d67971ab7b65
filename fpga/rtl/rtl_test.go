package rtl_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/atelier-edge/atelier/fpga/networktest"
	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/fpga/reference"
	"github.com/atelier-edge/atelier/fpga/rtl"
)

var uuid = [16]byte{0xa7, 0xe1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff}

// hx8k is the geometry that fits iCE40 HX8K.
func hx8k(lanes int) program.Geometry {
	return program.Geometry{Lanes: lanes, Activations: 10, Biases: 8, Program: 6, Weights: 10, Tables: 9}
}

// amount is how many of something a test takes: some in `make test`, all of them in
// `make fpga`, which sets ATELIER_FPGA=full.
func amount(some, all int) int {
	if os.Getenv("ATELIER_FPGA") == "full" {
		return all
	}
	return some
}

func needVerilator(t *testing.T) {
	t.Helper()
	if rtl.Installed() {
		return
	}
	if ci, _ := strconv.ParseBool(os.Getenv("CI")); ci {
		t.Fatal("verilator, g++ or make is missing: scripts/install-test-tools installs them")
	}
	t.Skip("verilator, g++ or make is missing; on Debian: apt-get install verilator g++ make")
}

func build(t *testing.T, d rtl.Design) string {
	t.Helper()
	needVerilator(t)
	path, err := rtl.Build(t.Context(), t.TempDir(), d)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func start(t *testing.T, path string, args ...string) *rtl.Simulator {
	t.Helper()
	s, err := rtl.Start(context.WithoutCancel(t.Context()), path, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// differs tells how a device's answers differ from the reference and the predicted
// cycles, or "".
func differs(d program.Device, p *program.Program, n *reference.Network, inputs [][]int8) string {
	for _, x := range inputs {
		got, err := p.Infer(d, x)
		if err != nil {
			return err.Error()
		}
		want := n.Infer(x)
		if !slices.Equal(got.Outputs, want) || got.ArgMax != reference.ArgMax(want) {
			return fmt.Sprintf("%d layers of %d inputs give %v, largest at %d; the reference %v, %d", len(p.Layers), p.Inputs(), got.Outputs, got.ArgMax, want, reference.ArgMax(want))
		}
		if got.Cycles != p.Cycles() {
			return fmt.Sprintf("%d cycles, predicted were %d", got.Cycles, p.Cycles())
		}
	}
	return ""
}

func same(t *testing.T, d program.Device, g program.Geometry, n *reference.Network, inputs [][]int8) {
	t.Helper()
	if err := n.Check(); err != nil {
		t.Fatal(err)
	}
	p, err := networktest.Place(g, n)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Load(d); err != nil {
		t.Fatal(err)
	}
	if diff := differs(d, p, n, inputs); diff != "" {
		t.Fatal(diff)
	}
}

func inputs(r *rand.Rand, count, width int) [][]int8 {
	var all [][]int8
	for range count {
		all = append(all, networktest.Inputs(r, width))
	}
	return all
}

func identity(t *testing.T, d program.Device, g program.Geometry) {
	t.Helper()
	var b [program.IdentitySize]byte
	if err := d.Read(program.AddressMagic, b[:]); err != nil {
		t.Fatal(err)
	}
	id, err := program.ParseIdentity(b[:])
	if err != nil {
		t.Fatal(err)
	}
	if id.Geometry != g || id.UUID != uuid {
		t.Errorf("the overlay says it is %+v", id)
	}
}

func tied(t *testing.T, d program.Device, g program.Geometry) {
	t.Helper()
	var every [][]int8
	for x := -128; x < 128; x++ {
		every = append(every, []int8{int8(x)})
	}
	for _, c := range [][3]int8{{0, -128, 127}, {-128, -128, 127}, {127, -128, 127}, {-5, -5, 100}} {
		same(t, d, g, networktest.Ties(c[0], c[1], c[2]), every)
	}
}

// TestRandomNetworks compares the RTL with the reference and with the predicted
// cycles, for all numbers of lanes.
func TestRandomNetworks(t *testing.T) {
	t.Parallel()
	for _, lanes := range []int{4, 8, 16, 32} {
		if lanes != 8 && amount(0, 1) == 0 && lanes != 32 {
			continue
		}
		t.Run(strconv.Itoa(lanes), func(t *testing.T) {
			t.Parallel()
			g := hx8k(lanes)
			s := start(t, build(t, rtl.Design{Geometry: g, UUID: uuid, Fast: true}))
			identity(t, s, g)
			tied(t, s, g)
			r := rand.New(rand.NewPCG(uint64(lanes), 9))
			for range amount(60, 500) {
				n := networktest.Random(r, networktest.RandomWidths(r, g)...)
				same(t, s, g, n, inputs(r, 4, n.Layers[0].Inputs()))
			}
			for range amount(60, 500) {
				n := networktest.RandomImages(r, g)
				same(t, s, g, n, inputs(r, 4, n.Layers[0].Inputs()))
			}
		})
	}
}

// TestFronts compares through the pins of SPI and AXI4-Lite.
func TestFronts(t *testing.T) {
	t.Parallel()
	for name, front := range map[string]rtl.Front{"spi": rtl.SPI, "axilite": rtl.AXILite} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := hx8k(8)
			s := start(t, build(t, rtl.Design{Front: front, Geometry: g, UUID: uuid}))
			identity(t, s, g)
			r := rand.New(rand.NewPCG(5, 9))
			for range amount(3, 20) {
				n := networktest.Random(r, networktest.RandomWidths(r, g)...)
				same(t, s, g, n, inputs(r, 4, n.Layers[0].Inputs()))
			}
		})
	}
}
