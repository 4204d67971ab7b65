package sim

import (
	"encoding/binary"

	"github.com/atelier-edge/atelier/fpga/program"
)

// Write implements program.Device.
func (p *Processor) Write(address uint32, b []byte) error {
	for i, v := range b {
		p.write(address+uint32(i), v)
	}
	return nil
}

// Read implements program.Device.
func (p *Processor) Read(address uint32, b []byte) error {
	for i := range b {
		b[i] = p.at(address + uint32(i))
	}
	return nil
}

func (p *Processor) write(address uint32, v byte) {
	if address == program.AddressControl && v&1 != 0 && !p.busy {
		p.start()
	}
	if p.busy {
		return
	}
	switch at := int(address & 0xfffff); {
	case address&program.AddressWeights != 0:
		p.weights[int(address&0x7fffff)&(len(p.weights)-1)] = v
	case address>>20 == program.AddressProgram>>20:
		p.words[at/program.WordSize&(len(p.words)-1)][at%program.WordSize] = v
	case address>>20 == program.AddressBiases>>20 && at%4 < 3:
		shift := 8 * (at % 4)
		b := &p.biases[at/4&(len(p.biases)-1)]
		*b = *b&^(0xff<<shift) | uint32(v)<<shift
	case address>>20 == program.AddressActivations>>20:
		p.activations[at&(len(p.activations)-1)] = v
	case address>>20 == program.AddressTables>>20:
		p.tables[at&(len(p.tables)-1)] = v
	}
}

func (p *Processor) at(address uint32) byte {
	switch at := int(address & 0xfffff); {
	case address&program.AddressWeights != 0:
		return p.weights[int(address&0x7fffff)&(len(p.weights)-1)]
	case address>>20 == program.AddressProgram>>20:
		return p.words[at/program.WordSize&(len(p.words)-1)][at%program.WordSize]
	case address>>20 == program.AddressBiases>>20:
		return byte(p.biases[at/4&(len(p.biases)-1)] >> (8 * (at % 4)))
	case address>>20 == program.AddressActivations>>20:
		return p.activations[at&(len(p.activations)-1)]
	case address>>20 == program.AddressTables>>20:
		return p.tables[at&(len(p.tables)-1)]
	case at < len(p.registers()):
		registers := p.registers()
		return registers[at]
	}
	return 0
}

func (p *Processor) registers() (r [40]byte) {
	copy(r[program.AddressMagic:], "ATNP")
	binary.LittleEndian.PutUint16(r[program.AddressISA:], program.ISA)
	binary.LittleEndian.PutUint16(r[program.AddressLanes:], uint16(p.geometry.Lanes))
	g := p.geometry
	copy(r[program.AddressDepths:], []byte{byte(g.Activations), byte(g.Biases), byte(g.Program), byte(g.Weights), byte(g.Tables)})
	copy(r[program.AddressUUID:], p.uuid[:])
	for bit, set := range map[byte]bool{program.StatusBusy: p.busy, program.StatusDone: p.done, program.StatusOverrun: p.overrun} {
		if set {
			r[program.AddressStatus] |= bit
		}
	}
	binary.LittleEndian.PutUint16(r[program.AddressArgMax:], p.argmax)
	binary.LittleEndian.PutUint32(r[program.AddressCycles:], p.cycles)
	return r
}
