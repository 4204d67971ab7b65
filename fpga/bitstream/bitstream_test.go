package bitstream

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/bitstream/bitstreamtest"
)

// words writes packets that set registers; a pair of CRC and 0 is replaced by what
// the CRC must be, computed the long way: by division, the highest bit first.
func words(pairs ...[2]uint32) []byte {
	b := []byte{0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0xbb, 0x11, 0x22, 0x00, 0x44, 0xff, 0xff, 0xff, 0xff, 0xaa, 0x99, 0x55, 0x66, 0x20, 0, 0, 0}
	var remainder uint32
	for _, p := range pairs {
		if p[0] == registerCRC {
			p[1] ^= bits.Reverse32(remainder)
			remainder = 0
		} else {
			for i := range 37 {
				bit := p[1] >> i & 1
				if i >= 32 {
					bit = p[0] >> (i - 32) & 1
				}
				top := remainder>>31 ^ bit
				remainder <<= 1
				if top != 0 {
					remainder ^= 0x1edc6f41
				}
			}
			if p[0] == registerCMD && p[1] == commandResetCRC {
				remainder = 0
			}
		}
		b = binary.BigEndian.AppendUint32(b, 1<<29|2<<27|p[0]<<13|1)
		b = binary.BigEndian.AppendUint32(b, p[1])
	}
	return b
}

func configuration() []byte {
	return words([2]uint32{registerCMD, commandResetCRC}, [2]uint32{registerIDCODE, 0x0362d093}, [2]uint32{2, 0xdeadbeef},
		[2]uint32{registerCRC, 0}, [2]uint32{registerCMD, commandDesync})
}

func bitFile(data []byte) []byte {
	b := slices.Clone(bitMagic)
	for _, k := range []struct {
		key  byte
		text string
	}{{'a', "top;UserID=0XFFFFFFFF"}, {'b', "7a35tcpg236"}, {'c', "2026/11/26"}, {'d', "03:00:00"}} {
		b = append(b, k.key)
		b = binary.BigEndian.AppendUint16(b, uint16(len(k.text)+1))
		b = append(append(b, k.text...), 0)
	}
	b = append(b, 'e')
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func swapped(b []byte) []byte {
	b = slices.Clone(b)
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	return b
}

func xclbin() []byte {
	b := make([]byte, 512)
	copy(b, xclbinMagic)
	binary.LittleEndian.PutUint32(b[xclbinSignature:], 0xffffffff)
	binary.LittleEndian.PutUint64(b[xclbinLength:], 512)
	b[xclbinInterface], b[xclbinUUID] = 1, 2
	copy(b[xclbinVBNV:], "xilinx_u250_gen3x16_xdma_shell_4_1")
	binary.LittleEndian.PutUint32(b[xclbinCount:], 1)
	binary.LittleEndian.PutUint64(b[xclbinSections+24:], 496)
	binary.LittleEndian.PutUint64(b[xclbinSections+32:], 16)
	return b
}

func whole() map[string][]byte {
	return map[string][]byte{
		"hx8k": bitstreamtest.ICE40("hx8k", 7), "up5k": bitstreamtest.ICE40("up5k", 7), "bit": bitFile(configuration()),
		"bin": swapped(configuration()), "xclbin": xclbin(), "gbs": bitstreamtest.GBS("69528db6-eb31-577a-8c36-68f9faa081f6", 4),
		"sim": EncodeSimulation([32]byte{16: 1}),
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	files := whole()
	for name, check := range map[string]func(i *Info) bool{
		"hx8k": func(i *Info) bool { return i.Format == ICE40 && i.Part == "hx8k" && i.Comment == "made for a test" },
		"up5k": func(i *Info) bool { return i.Part == "up5k" },
		"bit":  func(i *Info) bool { return i.Format == XilinxBit && i.Part == "7a35tcpg236" && i.IDCode == 0x0362d093 },
		"bin":  func(i *Info) bool { return i.Format == XilinxBin && i.IDCode == 0x0362d093 },
		"xclbin": func(i *Info) bool {
			return i.Part == "xilinx_u250_gen3x16_xdma_shell_4_1" && i.Shell[0] == 1 && i.Image[0] == 2
		},
		"gbs": func(i *Info) bool {
			return i.Shell.String() == "69528db6-eb31-577a-8c36-68f9faa081f6" && len(i.Accelerators) == 1 &&
				i.Accelerators[0].String() == "d8424dc4-a4a3-c413-f89e-433683f9040b"
		},
		"sim": func(i *Info) bool {
			return i.Format == Simulation && i.Part == "sim" && i.Overlay[0] == 1 && len(i.Registers) == 32
		},
	} {
		info, err := Parse(files[name])
		if err != nil || !check(info) {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
}

// TestCRC16 has the published check value of CRC-16/IBM-3740.
func TestCRC16(t *testing.T) {
	t.Parallel()
	if got := iceCRC(0xffff, []byte("123456789")); got != 0x29b1 {
		t.Errorf("the CRC is %#04x", got)
	}
}

// TestEveryFlippedBitIsFound flips single bits of what CRCs protect.
func TestEveryFlippedBitIsFound(t *testing.T) {
	t.Parallel()
	for name, from := range map[string]int{"hx8k": 32, "up5k": 32, "bit": len(bitFile(nil)) + 24, "bin": 24, "sim": 0} {
		b := whole()[name]
		for at := from; at < len(b)-3; at += 1 + (len(b)-from)/100 {
			damaged := slices.Clone(b)
			damaged[at] ^= 1 << (at % 8)
			if _, err := Parse(damaged); atelier.CodeOf(err) != atelier.Invalid {
				t.Errorf("%s: the bit that was flipped at %d was not found: %v", name, at, err)
			}
		}
	}
}

func TestTruncated(t *testing.T) {
	t.Parallel()
	for name, b := range whole() {
		for n := 0; n < len(b)-5; n += 1 + len(b)/100 {
			if _, err := Parse(b[:n]); atelier.CodeOf(err) != atelier.Invalid {
				t.Errorf("%s: its first %d bytes of %d are taken: %v", name, n, len(b), err)
			}
		}
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	outside := xclbin()
	binary.LittleEndian.PutUint64(outside[xclbinSections+32:], 17)
	unknown := configuration()
	unknown = append(unknown[:len(unknown)-8:len(unknown)-8], 0x70, 0, 0, 0)
	for name, c := range map[string]struct {
		b    []byte
		says string
	}{
		"raw":                 {[]byte{0x6a, 0x6a, 0x6a, 0x6a}, "no known format"},
		"another iCE40":       {bitstreamtest.Banks(7, 332, 144, 144, 144, 144), "no known part"},
		"after the end":       {append(bitstreamtest.ICE40("hx8k", 7), 1), "after its end"},
		"unknown packet type": {bitFile(unknown), "unknown type"},
		"no CRC":              {bitFile(words([2]uint32{registerIDCODE, 1}, [2]uint32{registerCMD, commandDesync})), "no CRC"},
		"two devices": {bitFile(words([2]uint32{registerIDCODE, 1}, [2]uint32{registerIDCODE, 2}, [2]uint32{registerCRC, 0},
			[2]uint32{registerCMD, commandDesync})), "two devices"},
		"section outside": {outside, "outside"},
		"no accelerator":  {[]byte(strings.ReplaceAll(string(bitstreamtest.GBS("69528db6-eb31-577a-8c36-68f9faa081f6", 4)), "accelerator-clusters", "accelerator-cluster_")), "no accelerator"},
	} {
		if _, err := Parse(c.b); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want an error that says %q", name, err, c.says)
		}
	}
}

func FuzzParse(f *testing.F) {
	for name, b := range whole() {
		if name != "hx8k" && name != "up5k" { // they are large, and their start is what matters
			f.Add(b)
		}
	}
	f.Add(bitstreamtest.ICE40("hx8k", 7)[:200])
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := Parse(b)
		if (err == nil) != (info != nil) || err != nil && atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%+v, %v", info, err)
		}
	})
}
