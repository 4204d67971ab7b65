// Package drivertest is the conformance suite of FPGA drivers. A driver joins by one call
// of Run.
package drivertest

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/fpga/driver"
	"github.com/atelier-edge/atelier/fpga/networktest"
	"github.com/atelier-edge/atelier/fpga/program"
)

// Bench is a device without a configuration, its driver, and what can be loaded into it.
type Bench struct {
	Driver driver.Driver
	// Images are taken by the device, which then has these identities.
	Images     [2][]byte
	Identities [2]program.Identity
	// Bad is an image that the device does not take.
	Bad []byte
}

// Run tests a driver.
func Run(t *testing.T, bench func(t *testing.T) Bench) {
	closing := func(t *testing.T) Bench {
		t.Helper()
		b := bench(t)
		t.Cleanup(func() {
			if err := b.Driver.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
		return b
	}
	t.Run("empty", func(t *testing.T) {
		b := closing(t)
		b.phase(t, driver.Empty, driver.Unknown)
		if id, err := driver.Identity(b.Driver.Overlay()); err == nil {
			t.Errorf("a device without a configuration says it is %+v", id)
		}
		if b.Driver.Kind() == "" {
			t.Error("the driver has no kind")
		}
	})
	t.Run("loading", func(t *testing.T) {
		b := closing(t)
		for _, i := range []int{0, 0, 1, 0} {
			b.load(t, i)
		}
	})
	t.Run("refused image", func(t *testing.T) {
		b := closing(t)
		b.load(t, 0)
		if err := b.Driver.Load(t.Context(), b.Bad); err == nil {
			t.Error("an image that is not for the device was taken")
		}
		b.phase(t, driver.Failed, driver.Empty, driver.Unknown)
		if id, err := driver.Identity(b.Driver.Overlay()); err == nil {
			t.Errorf("after an image that was refused, the device says it is %+v", id)
		}
		b.load(t, 1)
	})
	t.Run("ended context", func(t *testing.T) {
		b := closing(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.Driver.Load(ctx, b.Images[0]); err == nil {
			t.Error("it loaded though nobody waits")
		}
		b.load(t, 0)
	})
	t.Run("inference", func(t *testing.T) { b := closing(t); b.inference(t) })
	t.Run("guarded", func(t *testing.T) {
		b := closing(t)
		g := driver.NewGuard(b.Driver)
		id, err := driver.Within(t.Context(), g, "load", time.Minute, func(ctx context.Context, d driver.Driver) (program.Identity, error) {
			if err := d.Load(ctx, b.Images[1]); err != nil {
				return program.Identity{}, err
			}
			return driver.Identity(d.Overlay())
		})
		if err != nil || id != b.Identities[1] {
			t.Errorf("%+v, %v", id, err)
		}
	})
}

func (b *Bench) phase(t *testing.T, want ...driver.Phase) {
	t.Helper()
	s, err := b.Driver.State(t.Context())
	if err != nil || !slices.Contains(want, s.Phase) {
		t.Errorf("the state is %+v (%v), want one of %v", s, err, want)
	}
}

func (b *Bench) load(t *testing.T, i int) {
	t.Helper()
	if err := b.Driver.Load(t.Context(), b.Images[i]); err != nil {
		t.Fatal(err)
	}
	b.phase(t, driver.Operating, driver.Unknown)
	if id, err := driver.Identity(b.Driver.Overlay()); err != nil || id != b.Identities[i] {
		t.Fatalf("the device says it is %+v (%v), want %+v", id, err, b.Identities[i])
	}
}

// inference loads networks, reads them back, and compares what they compute with the
// reference.
func (b *Bench) inference(t *testing.T) {
	b.load(t, 0)
	g := b.Identities[0].Geometry
	r := rand.New(rand.NewPCG(11, 12))
	for k := range 6 {
		n := networktest.Random(r, networktest.RandomWidths(r, g)...)
		if k%2 == 1 {
			n = networktest.RandomImages(r, g)
		}
		if err := n.Check(); err != nil {
			t.Fatal(err)
		}
		p, err := networktest.Place(g, n)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Load(b.Driver.Overlay()); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			x := networktest.Inputs(r, p.Inputs())
			got, err := p.Infer(b.Driver.Overlay(), x)
			if err != nil {
				t.Fatal(err)
			}
			if want := n.Infer(x); !slices.Equal(got.Outputs, want) || got.Cycles != p.Cycles() {
				t.Fatalf("%v in %d cycles, want %v in %d", got.Outputs, got.Cycles, want, p.Cycles())
			}
		}
	}
	// Another configuration begins without what was in the memories.
	b.load(t, 1)
	back := make([]byte, 64)
	if err := b.Driver.Overlay().Read(program.AddressActivations, back); err != nil {
		t.Error(err)
	}
}
