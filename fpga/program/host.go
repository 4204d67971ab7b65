package program

import (
	"bytes"
	"encoding/binary"
	"fmt"

	atelier "github.com/atelier-edge/atelier"
)

// Where a host finds what, in the overlay's space of 2^24 bytes. Memories are
// written in whole words, their bytes in ascending order; while the processor runs,
// writes to memories are ignored and what is read from them means nothing.
const (
	AddressMagic       = 0x000000 // "ATNP"
	AddressISA         = 0x000004 // 16 bits
	AddressLanes       = 0x000006 // 16 bits
	AddressDepths      = 0x000008 // a byte each: activations, biases, program, weights, tables; powers of two
	AddressUUID        = 0x000010 // 16 bytes: the overlay's identity
	AddressControl     = 0x000020 // writing a 1 starts an inference
	AddressStatus      = 0x000021 // bits as below
	AddressArgMax      = 0x000022 // 16 bits: the index of the largest of the last outputs
	AddressCycles      = 0x000024 // 32 bits: cycles that the last inference took
	AddressProgram     = 0x100000
	AddressBiases      = 0x200000 // 4 bytes each, the highest is ignored
	AddressActivations = 0x300000
	AddressTables      = 0x400000
	AddressWeights     = 0x800000
)

// Bits of the status register.
const (
	StatusBusy    = 1 // an inference runs
	StatusDone    = 2 // an inference has run since the last start or reset
	StatusOverrun = 4 // a program broke the rule for In, and its results are wrong
)

// Identity is what an overlay says of itself.
type Identity struct {
	ISA      int
	Geometry Geometry
	UUID     [16]byte
}

// IdentitySize is how many bytes ParseIdentity reads, from AddressMagic on.
const IdentitySize = 32

// ParseIdentity reads the identity registers.
func ParseIdentity(b []byte) (Identity, error) {
	if len(b) != IdentitySize || !bytes.Equal(b[:4], []byte("ATNP")) {
		return Identity{}, atelier.Errorf(atelier.Invalid, "the device does not answer as an overlay: its registers begin with %x, expected was %x", b[:min(4, len(b))], "ATNP").
			WithRemedy("Program the overlay's bitstream first.")
	}
	id := Identity{
		ISA: int(binary.LittleEndian.Uint16(b[4:])),
		Geometry: Geometry{Lanes: int(binary.LittleEndian.Uint16(b[6:])), Activations: int(b[8]), Biases: int(b[9]),
			Program: int(b[10]), Weights: int(b[11]), Tables: int(b[12])},
		UUID: [16]byte(b[16:]),
	}
	if id.ISA != ISA {
		return id, atelier.Errorf(atelier.Invalid, "the overlay has version %d of the instructions, this program knows %d", id.ISA, ISA).
			WithRemedy("Update the overlay or Atelier.")
	}
	return id, id.Geometry.Check()
}

// Region is what belongs at an address of the host's space.
type Region struct {
	Address uint32
	Bytes   []byte
}

// Regions returns what the host writes to load the program, in the order in which
// it is to be written and can be read back.
func (p *Program) Regions() []Region {
	var layers, biases []byte
	for k := range p.Layers {
		layers = p.Layers[k].Append(layers)
	}
	for _, b := range p.Biases {
		biases = append(biases, byte(b), byte(b>>8), byte(b>>16), 0)
	}
	regions := []Region{{AddressWeights, p.Weights}, {AddressBiases, biases}, {AddressProgram, layers}}
	if len(p.Tables) > 0 {
		var tables []byte
		for _, t := range p.Tables {
			for _, v := range t {
				tables = append(tables, byte(v))
			}
		}
		regions = append(regions, Region{AddressTables, tables})
	}
	for _, b := range p.Borders {
		regions = append(regions, Region{AddressActivations + uint32(b.At), bytes.Repeat([]byte{byte(b.Value)}, b.Length)})
	}
	return regions
}

// Device is a host's way to the memories and registers of an overlay.
type Device interface {
	Write(address uint32, b []byte) error
	Read(address uint32, b []byte) error
	// Wait returns when the processor is idle, or an error when it is not within a
	// time that the device knows.
	Wait() error
}

// Load writes the program into the device and reads it back.
func (p *Program) Load(d Device) error {
	for _, r := range p.Regions() {
		if err := d.Write(r.Address, r.Bytes); err != nil {
			return err
		}
		back := make([]byte, len(r.Bytes))
		if err := d.Read(r.Address, back); err != nil {
			return err
		}
		if !bytes.Equal(back, r.Bytes) {
			return atelier.Errorf(atelier.Internal, "the overlay's memory at %#x holds something else than was written", r.Address).
				WithRemedy("Program the overlay anew; when it happens again, the link or the device is faulty.")
		}
	}
	return nil
}

// Result is what an inference leaves.
type Result struct {
	Outputs []int8
	ArgMax  int
	Cycles  int
}

// Infer runs one inference on a device into which the program was loaded.
func (p *Program) Infer(d Device, x []int8) (Result, error) {
	if len(x) != p.Inputs() {
		return Result{}, atelier.Errorf(atelier.Invalid, "the network takes %d values, %d came", p.Inputs(), len(x)).
			WithRemedy("Give as many values as the model's signature says.")
	}
	in := make([]byte, len(x))
	for i, v := range x {
		in[i] = byte(v)
	}
	for row := range p.Input.Rows {
		at := AddressActivations + uint32(p.Input.At+row*p.Input.Step)
		if err := d.Write(at, in[row*p.Input.Row:(row+1)*p.Input.Row]); err != nil {
			return Result{}, err
		}
	}
	if err := d.Write(AddressControl, []byte{1}); err != nil {
		return Result{}, err
	}
	if err := d.Wait(); err != nil {
		return Result{}, err
	}
	var status [7]byte // status, argmax, cycles
	if err := d.Read(AddressStatus, status[:]); err != nil {
		return Result{}, err
	}
	if status[0] != StatusDone {
		return Result{}, fmt.Errorf("the overlay's status is %#02x, expected was %#02x", status[0], StatusDone)
	}
	last := p.Layers[len(p.Layers)-1]
	out := make([]byte, last.Outputs())
	if err := d.Read(AddressActivations+uint32(last.Destination), out); err != nil {
		return Result{}, err
	}
	r := Result{Outputs: make([]int8, len(out)), ArgMax: int(binary.LittleEndian.Uint16(status[1:])), Cycles: int(binary.LittleEndian.Uint32(status[3:]))}
	for i, v := range out {
		r.Outputs[i] = int8(v)
	}
	return r, nil
}
