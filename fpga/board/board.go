// Package board is a simulated FPGA: it takes bitstreams as the silicon does, becomes the
// overlay that they describe, and has switches for faults. The overlay is the cycle
// model in Go, or whatever else Options.Start makes of a design.
package board

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/bitstream"
	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/fpga/sim"
)

// Design is what an image makes of the device.
type Design struct {
	Geometry program.Geometry
	UUID     [16]byte
}

// Image returns an image for simulated devices that makes a device the design.
func (d Design) Image() []byte {
	p, err := sim.New(d.Geometry, d.UUID)
	if err != nil {
		panic(fmt.Sprintf("a design that cannot be built: %v", err)) // of tests and tools
	}
	var registers [program.IdentitySize]byte
	_ = p.Read(program.AddressMagic, registers[:]) // the model's reading does not fail
	return bitstream.EncodeSimulation(registers)
}

// Processor is a running overlay.
type Processor interface {
	program.Device
	Close() error
}

// Options say what the board is.
type Options struct {
	// Part and Shell are what images must be for.
	Part  string
	Shell bitstream.UUID
	// Designs are what images become, by their digests. Images for simulated devices describe
	// themselves and need no entry; any other image becomes something that does not answer.
	Designs map[atelier.Digest]Design
	// Start runs a design; nil takes the cycle model in Go.
	Start func(Design) (Processor, error)
}

// Phase is what the device is at.
type Phase string

// The phases.
const (
	Empty     Phase = "empty"     // after power came, or while it is in reset
	Loading   Phase = "loading"   // an image is coming
	Failed    Phase = "failed"    // the last image was not taken; the device is empty
	Operating Phase = "operating" // an image was taken
)

// Fault is something that goes wrong when an image is loaded.
type Fault string

// The faults.
const (
	Corrupt  Fault = "corrupt"  // a bit flips on the way into the device
	Hang     Fault = "hang"     // loading does not end before Release
	Dead     Fault = "dead"     // the image is taken, and then nothing answers
	Identity Fault = "identity" // another overlay answers than the image should make
	Wrong    Fault = "wrong"    // the overlay answers, and computes wrongly
)

// Board is a simulated FPGA. It is safe for concurrent use.
type Board struct {
	options Options

	mu        sync.Mutex
	phase     Phase
	loaded    atelier.Digest
	loads     int
	processor Processor // nil where nothing answers
	wrong     bool
	faults    []Fault // of the next loads, one each; "" is none
	hang      chan struct{}
}

// New returns a board without a configuration.
func New(o Options) *Board {
	if o.Start == nil {
		o.Start = func(d Design) (Processor, error) {
			p, err := sim.New(d.Geometry, d.UUID)
			return model{p}, err
		}
	}
	return &Board{options: o, phase: Empty, hang: make(chan struct{})}
}

type model struct{ *sim.Processor }

func (model) Close() error { return nil }

// Break lets faults happen: the first at the next load, and so on. "" leaves a load as
// it should be.
func (b *Board) Break(faults ...Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = faults
}

// Release ends what hangs.
func (b *Board) Release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.hang)
	b.hang = make(chan struct{})
}

// Configure loads an image. Whatever comes of it, the former configuration is gone.
func (b *Board) Configure(image []byte) error {
	b.mu.Lock()
	if b.phase == Loading {
		b.mu.Unlock()
		return errors.New("another image is being loaded")
	}
	b.clear(Loading)
	fault := Fault("")
	if len(b.faults) > 0 {
		fault, b.faults = b.faults[0], b.faults[1:]
	}
	hang := b.hang
	b.mu.Unlock()
	if fault == Hang {
		<-hang
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.phase != Loading {
		return errors.New("the power went")
	}
	b.loads++
	if fault == Corrupt {
		image = bytes.Clone(image)
		image[len(image)/2] ^= 0x10
	}
	err := b.take(image, fault)
	if err != nil {
		b.clear(Failed)
	}
	return err
}

func (b *Board) take(image []byte, fault Fault) error {
	info, err := bitstream.Parse(image)
	if err != nil {
		return err
	}
	if info.Part != "" && info.Part != b.options.Part {
		return fmt.Errorf("the image is for the part %s, this is %s", info.Part, b.options.Part)
	}
	b.phase, b.loaded = Operating, atelier.DigestOf(image)
	design, known := b.options.Designs[b.loaded]
	if info.Format == bitstream.Simulation {
		id, err := program.ParseIdentity(info.Registers)
		if err != nil {
			return err
		}
		design, known = Design{id.Geometry, id.UUID}, true
	}
	// A real device does not look at the shell: it loads, and whatever is wired otherwise
	// is dead.
	if !known || info.Shell != b.options.Shell || fault == Dead {
		return nil
	}
	if fault == Identity {
		design.UUID[0] ^= 0xff
	}
	b.wrong = fault == Wrong
	b.processor, err = b.options.Start(design)
	return err
}

// clear is called with the lock.
func (b *Board) clear(to Phase) {
	if b.processor != nil {
		_ = b.processor.Close() // it is of no use any more
	}
	b.processor, b.loaded, b.wrong, b.phase = nil, "", false, to
}

// CutPower empties the device. What is being loaded fails.
func (b *Board) CutPower() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clear(Empty)
}

// Phase returns what the device is at.
func (b *Board) Phase() Phase {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.phase
}

// Loaded returns the digest of the image that the device took, "" where it holds none,
// and how many were loaded so far.
func (b *Board) Loaded() (image atelier.Digest, loads int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.loaded, b.loads
}

// Write implements program.Device. Where no overlay answers, bytes are lost.
func (b *Board) Write(address uint32, p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.processor == nil {
		return nil
	}
	return b.processor.Write(address, p)
}

// Read implements program.Device. Where no overlay answers, all bits are 1, as on a bus
// that nobody drives.
func (b *Board) Read(address uint32, p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.processor == nil {
		for i := range p {
			p[i] = 0xff
		}
		return nil
	}
	err := b.processor.Read(address, p)
	if b.wrong && address >= program.AddressActivations && address < program.AddressWeights {
		for i := range p {
			p[i] ^= 1
		}
	}
	return err
}

// Wait implements program.Device.
func (b *Board) Wait() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.processor == nil {
		return nil
	}
	return b.processor.Wait()
}

// Close ends the overlay that runs.
func (b *Board) Close() error {
	b.CutPower()
	return nil
}
