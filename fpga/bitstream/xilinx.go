package bitstream

import (
	"bytes"
	"encoding/binary"
	"slices"
)

var (
	bitMagic    = []byte{0x00, 0x09, 0x0f, 0xf0, 0x0f, 0xf0, 0x0f, 0xf0, 0x0f, 0xf0, 0x00, 0x00, 0x01}
	sync        = []byte{0xaa, 0x99, 0x55, 0x66}
	swappedSync = []byte{0x66, 0x55, 0x99, 0xaa}
)

// preamble is how far into a configuration the synchronising word may come.
const preamble = 4096

// Registers and commands of Xilinx' configuration logic, as its configuration guides
// list them.
const (
	registerCRC    = 0
	registerCMD    = 4
	registerIDCODE = 12

	commandResetCRC = 7
	commandDesync   = 13
)

// parseBit reads the keys a to d with their texts, and e with the configuration.
func parseBit(b []byte) (*Info, error) {
	info := &Info{Format: XilinxBit}
	rest := b[len(bitMagic):]
	for _, key := range []byte("abcd") {
		if len(rest) < 3 || rest[0] != key {
			return nil, invalid("its header has no key %q where one must be", key)
		}
		n := int(binary.BigEndian.Uint16(rest[1:]))
		if len(rest) < 3+n {
			return nil, invalid("its header ends within the key %q", key)
		}
		text := string(bytes.TrimRight(rest[3:3+n], "\x00"))
		switch key {
		case 'a':
			info.Comment = text
		case 'b':
			info.Part = text
		}
		rest = rest[3+n:]
	}
	if len(rest) < 5 || rest[0] != 'e' {
		return nil, invalid("its header has no key \"e\" where one must be")
	}
	if n := binary.BigEndian.Uint32(rest[1:]); uint64(n) != uint64(len(rest)-5) {
		return nil, invalid("its header promises %d bytes, %d follow", n, len(rest)-5)
	}
	return info, info.packets(rest[5:])
}

// parseBin reads a configuration whose words have their bytes swapped.
func parseBin(b []byte) (*Info, error) {
	if len(b)%4 != 0 {
		return nil, invalid("it has %d bytes, which is no whole number of words", len(b))
	}
	swapped := slices.Clone(b)
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(swapped[i : i+4])
	}
	info := &Info{Format: XilinxBin}
	return info, info.packets(swapped)
}

// xilinxCRC is CRC-32C, over the word and then the register's 5 bits, the lowest bits first.
func xilinxCRC(crc uint32, register, word uint32) uint32 {
	v := uint64(register)<<32 | uint64(word)
	for range 37 {
		odd := (uint64(crc)^v)&1 != 0
		crc >>= 1
		if odd {
			crc ^= 0x82f63b78
		}
		v >>= 1
	}
	return crc
}

// packets follows what the configuration writes to which register, up to the command
// that ends it.
func (info *Info) packets(b []byte) error {
	at := bytes.Index(b[:min(len(b), preamble)], sync)
	if at < 0 {
		return invalid("the word that begins a Xilinx configuration is not in its first %d bytes", preamble)
	}
	var (
		crc        uint32
		register   uint32
		identified bool
		checked    bool
	)
	for at += 4; ; {
		if len(b)-at < 4 {
			return invalid("it ends without the command that ends a configuration")
		}
		head := binary.BigEndian.Uint32(b[at:])
		at += 4
		operation, count := head>>27&3, 0
		switch head >> 29 {
		case 1:
			register, count = head>>13&0x3fff, int(head&0x7ff)
		case 2:
			count = int(head & 0x7ffffff)
		default:
			return invalid("the packet %#08x at %d is of an unknown type", head, at-4)
		}
		if operation == 0 && count == 0 {
			continue
		}
		if operation != 2 || register > 31 {
			return invalid("the packet %#08x at %d does something else than writing to a register", head, at-4)
		}
		if count > (len(b)-at)/4 {
			return invalid("it ends within the packet at %d", at-4)
		}
		for ; count > 0; count-- {
			word := binary.BigEndian.Uint32(b[at:])
			at += 4
			if register == registerCRC {
				if word != crc {
					return invalid("its CRC at %d is %#08x, computed was %#08x", at-4, word, crc)
				}
				crc, checked = 0, true
				continue
			}
			crc = xilinxCRC(crc, register, word)
			switch {
			case register == registerIDCODE && identified && word != info.IDCode:
				return invalid("it names two devices, %#08x and %#08x", info.IDCode, word)
			case register == registerIDCODE:
				info.IDCode, identified = word, true
			case register == registerCMD && word == commandResetCRC:
				crc = 0
			case register == registerCMD && word == commandDesync:
				if !identified || !checked {
					return invalid("it holds no IDCODE or no CRC")
				}
				return nil
			}
		}
	}
}
