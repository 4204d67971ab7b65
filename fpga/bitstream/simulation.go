package bitstream

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// SimulatedPart is the part that images of Simulation are for.
const SimulatedPart = "sim"

const (
	simulationMagic = "ATNPSIM1"
	registersSize   = 32
)

// EncodeSimulation returns an image for simulated devices: a magic of 8 bytes, the
// identity registers of the overlay that the device becomes, and their CRC-32.
func EncodeSimulation(registers [registersSize]byte) []byte {
	b := append([]byte(simulationMagic), registers[:]...)
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

func parseSimulation(b []byte) (*Info, error) {
	if want := len(simulationMagic) + registersSize + 4; len(b) != want {
		return nil, invalid("an image for simulated devices has %d bytes, it has %d", want, len(b))
	}
	body := b[:len(b)-4]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(b[len(body):]) {
		return nil, invalid("its CRC is wrong")
	}
	registers := bytes.Clone(body[len(simulationMagic):])
	return &Info{Format: Simulation, Part: SimulatedPart, Registers: registers, Overlay: UUID(registers[registersSize-16:])}, nil
}
