package rtl_test

import (
	"encoding/hex"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/atelier-edge/atelier/fpga/bitstream"
	"github.com/atelier-edge/atelier/fpga/networktest"
	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/fpga/rtl"
)

// synthesised is overlay.json, as fpga/synthesise writes it.
type synthesised struct {
	Part     string           `json:"part"`
	Geometry program.Geometry `json:"geometry"`
	UUID     string           `json:"uuid"`
	MHz      float64          `json:"reported_mhz"`
}

// made returns what fpga/synthesise made for the part; `make fpga` says where.
func made(t *testing.T, part string) (dir string, s synthesised) {
	t.Helper()
	root := os.Getenv("ATELIER_FPGA_BUILD")
	if root == "" {
		t.Skip("there is no netlist: make fpga runs this test")
	}
	needVerilator(t)
	dir, err := filepath.Abs(filepath.Join(root, part))
	if err != nil {
		t.Fatal(err)
	}
	return dir, read[synthesised](t, filepath.Join(dir, "overlay.json"))
}

// compared runs what was made through its SPI pins, and the RTL with the same
// parameters beside it.
func compared(t *testing.T, dir string, s synthesised, netlist, top string, count, networks int) {
	t.Helper()
	id, err := hex.DecodeString(s.UUID)
	if err != nil {
		t.Fatal(err)
	}
	device := start(t, build(t, rtl.Design{Front: rtl.SPI, Netlist: []string{filepath.Join(dir, netlist), filepath.Join(dir, "cells_sim.v")}, Top: top, Fast: true}))
	source := start(t, build(t, rtl.Design{Geometry: s.Geometry, UUID: [16]byte(id), Fast: true}))
	var a, b [program.IdentitySize]byte
	for d, to := range map[program.Device][]byte{device: a[:], source: b[:]} {
		if err := d.Read(program.AddressMagic, to); err != nil {
			t.Fatal(err)
		}
	}
	if a != b {
		t.Fatalf("what was made identifies itself by %x, the RTL by %x", a, b)
	}
	for path, count := range map[string]int{perceptron: count, convolutional: 20} {
		c := classifier(t, s.Geometry, path)
		p := c.Model.Program
		for _, d := range []program.Device{device, source} {
			if err := p.Load(d); err != nil {
				t.Fatal(err)
			}
		}
		for k, x := range heldOut(t, c, count) {
			got, err := p.Infer(device, x)
			if err != nil {
				t.Fatal(err)
			}
			want, err := p.Infer(source, x)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got.Outputs, want.Outputs) || got.ArgMax != want.ArgMax || got.Cycles != want.Cycles || !slices.Equal(want.Outputs, c.Network.Infer(x)) {
				t.Fatalf("%s: input %d gives %+v, in the RTL %+v, in the reference %v", path, k, got, want, c.Network.Infer(x))
			}
		}
		t.Logf("%s: %d inputs without a difference; predicted %.2f µs of computing at the reported %.1f MHz, the link not counted",
			path, count, float64(p.Cycles())/s.MHz, s.MHz)
	}
	for _, tie := range [][3]int8{{0, -128, 127}, {-5, -5, 100}} {
		same(t, device, s.Geometry, networktest.Ties(tie[0], tie[1], tie[2]), [][]int8{{-128}, {-3}, {-1}, {0}, {1}, {3}, {127}})
	}
	r := rand.New(rand.NewPCG(8, 8))
	for range networks {
		n := networktest.Random(r, networktest.RandomWidths(r, s.Geometry)...)
		same(t, device, s.Geometry, n, inputs(r, 2, n.Layers[0].Inputs()))
	}
	for range networks {
		n := networktest.RandomImages(r, s.Geometry)
		same(t, device, s.Geometry, n, inputs(r, 2, n.Layers[0].Inputs()))
	}
	t.Logf("%s: ties and %d random networks of each kind without a difference", netlist, networks)
}

// TestNetlistUP5K compares what synthesis made for UP5K.
func TestNetlistUP5K(t *testing.T) {
	t.Parallel()
	dir, s := made(t, "up5k")
	compared(t, dir, s, "netlist.v", "overlay_spi", 1_000, 2)
}

// TestNetlistHX8K compares what synthesis made for HX8K.
func TestNetlistHX8K(t *testing.T) {
	t.Parallel()
	dir, s := made(t, "hx8k")
	compared(t, dir, s, "netlist.v", "overlay_spi", 50, 2)
}

// TestPackedHX8K compares the bitstream itself: unpacked, and driven through its pins.
func TestPackedHX8K(t *testing.T) {
	t.Parallel()
	dir, s := made(t, "hx8k")
	compared(t, dir, s, "unpacked.v", "chip", 50, 1)
}

// TestBitstreams checks what icepack wrote, and finds what is damaged in it.
func TestBitstreams(t *testing.T) {
	t.Parallel()
	for _, part := range []string{"hx8k", "up5k"} {
		dir, _ := made(t, part)
		b, err := os.ReadFile(filepath.Join(dir, "overlay.bin"))
		if err != nil {
			t.Fatal(err)
		}
		info, err := bitstream.Parse(b)
		if err != nil || info.Part != part {
			t.Errorf("%s: %+v, %v", part, info, err)
		}
		for _, at := range []int{len(b) / 3, len(b) / 2, len(b) - 200} {
			damaged := slices.Clone(b)
			damaged[at] ^= 4
			if _, err := bitstream.Parse(damaged); err == nil {
				t.Errorf("%s: the bit that was flipped at %d was not found", part, at)
			}
		}
	}
}
