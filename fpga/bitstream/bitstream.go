// Package bitstream reads FPGA configurations before they are loaded: which part or
// shell they are for, and whether they are whole. It promises to read any input,
// however hostile, in time linear in its length, and never to panic. A digest and a
// signature are for others to check: a valid CRC proves no origin.
package bitstream

import (
	"bytes"
	"encoding/hex"

	atelier "github.com/atelier-edge/atelier"
)

// Format is how a configuration is written.
type Format string

// The formats.
const (
	ICE40     Format = "ice40"      // Lattice iCE40, as icepack writes it
	XilinxBit Format = "xilinx-bit" // a .bit file with its header
	XilinxBin Format = "xilinx-bin" // Zynq's .bin: the same words, their bytes swapped
	XCLBIN    Format = "xclbin2"    // Xilinx's container for Alveo
	GBS       Format = "gbs"        // Intel's Green Bitstream for OPAE
	// Simulation is for simulated devices: see EncodeSimulation.
	Simulation Format = "simulation"
)

// UUID is an identity in a container; String writes it as RFC 9562 does.
type UUID [16]byte

// String returns the form 8-4-4-4-12.
func (u UUID) String() string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// Info is what a configuration says of itself. What its format does not tell is empty.
type Info struct {
	Format Format
	// Part is the device: inferred for iCE40, as the header has it for a .bit file, the
	// platform's VBNV for an xclbin.
	Part string
	// IDCode is the device's JTAG identification, of Xilinx' configurations.
	IDCode uint32
	// Comment is free text: of iCE40's files, and the design's name of a .bit file.
	Comment string
	// Shell is the interface UUID of the platform that the configuration fits into.
	Shell UUID
	// Image is the configuration's own UUID, of an xclbin.
	Image UUID
	// Accelerators are the types of a GBS's functions.
	Accelerators []UUID
	// Registers are the identity registers of the overlay that a simulated device becomes,
	// and Overlay is the UUID in them.
	Registers []byte
	Overlay   UUID
}

// Parse recognises the format by its first bytes and checks the whole. Anything wrong,
// unknown or left over gives an *atelier.Error with the code Invalid; so do raw
// formats such as .rbf, which say nothing of themselves.
func Parse(b []byte) (*Info, error) {
	switch {
	case bytes.HasPrefix(b, []byte(simulationMagic)):
		return parseSimulation(b)
	case bytes.HasPrefix(b, []byte(xclbinMagic)):
		return parseXCLBIN(b)
	case bytes.HasPrefix(b, []byte(gbsMagic)):
		return parseGBS(b)
	case bytes.HasPrefix(b, bitMagic):
		return parseBit(b)
	case bytes.HasPrefix(b, iceSync), bytes.HasPrefix(b, []byte{0xff, 0x00}):
		return parseICE40(b)
	case bytes.Contains(b[:min(len(b), preamble)], swappedSync):
		return parseBin(b)
	}
	return nil, invalid("its first bytes are %x, which is the start of no known format", b[:min(8, len(b))])
}

func invalid(format string, args ...any) error {
	return atelier.Errorf(atelier.Invalid, "this is no bitstream that can be loaded: "+format, args...).
		WithRemedy("Take the file anew from where it was built; it may be damaged, or for another kind of device.")
}
