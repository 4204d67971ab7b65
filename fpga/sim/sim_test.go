package sim_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/atelier-edge/atelier/fpga/networktest"
	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/fpga/reference"
	"github.com/atelier-edge/atelier/fpga/sim"
)

func geometry(lanes int) program.Geometry {
	return program.Geometry{Lanes: lanes, Activations: 10, Biases: 10, Program: 6, Weights: 14, Tables: 9}
}

func load(t testing.TB, g program.Geometry, n *reference.Network) (*sim.Processor, *program.Program) {
	t.Helper()
	if err := n.Check(); err != nil {
		t.Fatal(err)
	}
	p, err := networktest.Place(g, n)
	if err != nil {
		t.Fatal(err)
	}
	s, err := sim.New(g, [16]byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Load(s); err != nil {
		t.Fatal(err)
	}
	return s, p
}

func compare(t *testing.T, s *sim.Processor, p *program.Program, n *reference.Network, x []int8) {
	t.Helper()
	got, err := p.Infer(s, x)
	if err != nil {
		t.Fatal(err)
	}
	want := n.Infer(x)
	if !slices.Equal(got.Outputs, want) || got.ArgMax != reference.ArgMax(want) {
		t.Fatalf("the model gives %v, largest at %d; the reference %v, %d", got.Outputs, got.ArgMax, want, reference.ArgMax(want))
	}
	if got.Cycles != p.Cycles() {
		t.Fatalf("the model takes %d cycles, predicted were %d", got.Cycles, p.Cycles())
	}
}

func TestRandomNetworks(t *testing.T) {
	t.Parallel()
	for _, lanes := range []int{4, 8, 16, 32} {
		t.Run(fmt.Sprint(lanes), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(uint64(lanes), 1))
			for range 100 {
				n := networktest.Random(r, networktest.RandomWidths(r, geometry(lanes))...)
				s, p := load(t, geometry(lanes), n)
				for range 5 {
					compare(t, s, p, n, networktest.Inputs(r, p.Inputs()))
				}
			}
		})
	}
}

func TestRandomImages(t *testing.T) {
	t.Parallel()
	for _, lanes := range []int{4, 8, 16, 32} {
		t.Run(fmt.Sprint(lanes), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(uint64(lanes), 2))
			for range 200 {
				n := networktest.RandomImages(r, geometry(lanes))
				s, p := load(t, geometry(lanes), n)
				for range 3 {
					compare(t, s, p, n, networktest.Inputs(r, p.Inputs()))
				}
			}
		})
	}
}

func TestTies(t *testing.T) {
	t.Parallel()
	for _, c := range [][3]int8{{0, -128, 127}, {-128, -128, 127}, {127, -128, 127}, {-5, -5, 100}} {
		n := networktest.Ties(c[0], c[1], c[2])
		s, p := load(t, geometry(8), n)
		for x := -128; x < 128; x++ {
			compare(t, s, p, n, []int8{int8(x)})
		}
	}
}

// TestUtilisation holds the targets for the shapes that benchmarks report.
func TestUtilisation(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4))
	for _, c := range []struct {
		widths []int
		least  float64
	}{{[]int{64, 32, 10}, 0.85}, {[]int{784, 128, 10}, 0.985}} {
		n := networktest.Random(r, c.widths...)
		s, p := load(t, geometry(8), n)
		x := networktest.Inputs(r, p.Inputs())
		compare(t, s, p, n, x)
		macs := 0
		for k, w := range c.widths[1:] {
			macs += w * c.widths[k]
		}
		got := float64(macs) / float64(8*p.Cycles())
		t.Logf("%v at 8 lanes: %d cycles, %.1f %% of the multipliers' time", c.widths, p.Cycles(), 100*got)
		if got < c.least {
			t.Errorf("%v uses %.3f, want %.3f", c.widths, got, c.least)
		}
	}
}
