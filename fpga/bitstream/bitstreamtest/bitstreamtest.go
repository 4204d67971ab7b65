// Package bitstreamtest writes configurations for tests: whole, with right checksums,
// and of no use to a device.
package bitstreamtest

import (
	"encoding/binary"
	"fmt"
)

// ICE40 writes a configuration for hx8k or up5k, filled by a rule that fill is a part of.
func ICE40(part string, fill byte) []byte {
	switch part {
	case "hx8k":
		return Banks(fill, 872, 272, 272, 272, 272)
	case "up5k":
		return Banks(fill, 692, 336, 176, 336, 176)
	}
	panic(fmt.Sprintf("the part is hx8k or up5k, not %q", part))
}

// Banks writes an iCE40 configuration of banks with that width and those heights.
func Banks(fill byte, width uint16, heights ...uint16) []byte {
	b := append([]byte{0xff, 0x00}, "made for a test\x00"...)
	b = append(b, 0x00, 0xff, 0x7e, 0xaa, 0x99, 0x7e, 0x51, 0x00, 0x01, 0x05)
	since := len(b)
	b = append(b, 0x92, 0x00, 0x20, 0x62)
	b = binary.BigEndian.AppendUint16(b, width-1)
	for bank, h := range heights {
		b = append(b, 0x11, byte(bank), 0x72)
		b = binary.BigEndian.AppendUint16(b, h)
		b = append(b, 0x82, 0, 0, 0x01, 0x01)
		for i := range int(width) * int(h) / 8 {
			b = append(b, byte(i)*fill)
		}
		b = append(b, 0, 0)
	}
	b = append(b, 0x22)
	b = binary.BigEndian.AppendUint16(b, crc(b[since:]))
	return append(b, 0x01, 0x06, 0x00)
}

// crc is CRC-16 with the polynomial 0x1021 from 0xffff on, by a division of bits.
func crc(b []byte) uint16 {
	sum := uint32(0xffff)
	for _, v := range b {
		for bit := 7; bit >= 0; bit-- {
			sum = sum<<1 ^ uint32(v>>bit&1)<<16
			if sum&0x10000 != 0 {
				sum ^= 0x11021
			}
		}
	}
	return uint16(sum)
}

// GBS writes a Green Bitstream for the interface UUID, with size bytes of data.
func GBS(shell string, size int) []byte {
	metadata := `{"version":1,"afu-image":{"interface-uuid":"` + shell + `","accelerator-clusters":[{"accelerator-type-uuid":"d8424dc4a4a3c413f89e433683f9040b"}]}}`
	b := binary.LittleEndian.AppendUint32([]byte("XeonFPGA\xb7GBSv001"), uint32(len(metadata)))
	b = append(b, metadata...)
	for i := range size {
		b = append(b, byte(i+1))
	}
	return b
}
