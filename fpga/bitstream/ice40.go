package bitstream

import (
	"bytes"
	"encoding/binary"
)

var iceSync = []byte{0x7e, 0xaa, 0x99, 0x7e}

// iceParts tells parts by the geometry of their configuration banks: width, and height
// per bank. The format has no field for the part.
var iceParts = []struct {
	name    string
	width   uint16
	heights [4]uint16
}{
	{"hx8k", 872, [4]uint16{272, 272, 272, 272}},
	{"up5k", 692, [4]uint16{336, 176, 336, 176}},
}

// iceCRC is CRC-16 with the polynomial 0x1021, the highest bit first.
func iceCRC(crc uint16, b []byte) uint16 {
	for _, v := range b {
		crc ^= uint16(v) << 8
		for range 8 {
			carry := crc&0x8000 != 0
			crc <<= 1
			if carry {
				crc ^= 0x1021
			}
		}
	}
	return crc
}

// ice walks the commands of an iCE40 configuration. A command is a byte, its lower
// half the number of bytes that follow; data of a bank follow the command for them.
type ice struct {
	b             []byte
	at, since     int // the CRC covers b[since:at]
	reset         bool
	checked       bool // nothing came since a CRC that was right
	bank          uint32
	width, height uint32
	written       map[uint32][2]uint16 // configuration banks: width and height
}

func parseICE40(b []byte) (*Info, error) {
	info := &Info{Format: ICE40}
	p := &ice{b: b, written: map[uint32][2]uint16{}}
	if bytes.HasPrefix(b, []byte{0xff, 0x00}) {
		end := bytes.Index(b[1:], []byte{0x00, 0xff})
		if end < 0 {
			return nil, invalid("its comment has no end")
		}
		info.Comment = string(bytes.ReplaceAll(bytes.Trim(b[2:1+max(end, 1)], "\x00"), []byte{0}, []byte{'\n'}))
		p.at = end + 3
	}
	if !bytes.HasPrefix(b[p.at:], iceSync) {
		return nil, invalid("the word that begins an iCE40 configuration is not at %d", p.at)
	}
	p.at += len(iceSync)
	for {
		done, err := p.command()
		if err != nil {
			return nil, err
		}
		if done {
			break
		}
	}
	for _, v := range b[p.at:] {
		if v != 0 && v != 0xff {
			return nil, invalid("something comes after its end, at %d", p.at)
		}
	}
	info.Part = p.part()
	if info.Part == "" {
		return nil, invalid("its banks have the sizes %v, which is no known part", p.written)
	}
	return info, nil
}

func (p *ice) part() string {
	for _, c := range iceParts {
		fits := len(p.written) == len(c.heights)
		for bank, h := range c.heights {
			fits = fits && p.written[uint32(bank)] == [2]uint16{c.width, h}
		}
		if fits {
			return c.name
		}
	}
	return ""
}

func (p *ice) take(n int) ([]byte, error) {
	if n > len(p.b)-p.at {
		return nil, invalid("it ends within a command at %d", p.at)
	}
	b := p.b[p.at : p.at+n]
	p.at += n
	return b, nil
}

// command reads one command; done is true after the one that starts the device.
func (p *ice) command() (done bool, err error) {
	at := p.at
	head, err := p.take(1)
	if err != nil {
		return false, err
	}
	argument, err := p.take(int(head[0] & 15))
	if err != nil {
		return false, err
	}
	if len(argument) > 4 {
		return false, invalid("the command %#02x at %d is unknown", head[0], at)
	}
	value := uint32(0)
	for _, v := range argument {
		value = value<<8 | uint32(v)
	}
	wasChecked := p.checked
	p.checked = false
	switch head[0] {
	case 0x01:
		switch value {
		case 1, 3: // configuration or memory of a bank
			return false, p.data(value == 1)
		case 5: // the CRC begins
			p.since, p.reset = p.at, true
			return false, nil
		case 6: // start
			if !wasChecked {
				return false, invalid("it starts the device at %d without a CRC right before", at)
			}
			return true, nil
		}
	case 0x11:
		p.bank = value
		return false, nil
	case 0x22:
		if !p.reset || iceCRC(0xffff, p.b[p.since:p.at]) != 0 {
			return false, invalid("its CRC at %d is wrong", at)
		}
		p.checked = true
		return false, nil
	case 0x51, 0x92: // frequency; boot flags
		return false, nil
	case 0x62:
		p.width = value + 1
		return false, nil
	case 0x72:
		p.height = value
		return false, nil
	case 0x82: // where in the bank data begin
		return false, nil
	}
	return false, invalid("the command %#02x with the argument %#x at %d is unknown", head[0], value, at)
}

func (p *ice) data(configuration bool) error {
	at := p.at
	if p.width > 4096 || p.height > 4096 || p.width*p.height%8 != 0 {
		return invalid("a bank of %d × %d bits at %d", p.width, p.height, at)
	}
	if _, err := p.take(int(p.width * p.height / 8)); err != nil {
		return err
	}
	end, err := p.take(2)
	if err != nil {
		return err
	}
	if binary.BigEndian.Uint16(end) != 0 {
		return invalid("the data of bank %d at %d do not end with zeros", p.bank, at)
	}
	if !configuration {
		return nil
	}
	if _, twice := p.written[p.bank]; twice || p.bank > 3 {
		return invalid("bank %d at %d is written twice, or there is no such bank", p.bank, at)
	}
	p.written[p.bank] = [2]uint16{uint16(p.width), uint16(p.height)}
	return nil
}
