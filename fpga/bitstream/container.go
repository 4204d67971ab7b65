package bitstream

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strings"
)

const (
	xclbinMagic = "xclbin2\x00"
	gbsMagic    = "XeonFPGA\xb7GBSv001"

	// Where things stand in the header of an xclbin.
	xclbinSignature = 8
	xclbinLength    = 304
	xclbinInterface = 336
	xclbinVBNV      = 352
	xclbinUUID      = 416
	xclbinCount     = 448
	xclbinSections  = 456
	sectionSize     = 40
	maxSections     = 1024

	maxMetadata = 1 << 20
)

// parseXCLBIN reads the header and sees that all sections lie within the file.
func parseXCLBIN(b []byte) (*Info, error) {
	if len(b) < xclbinSections {
		return nil, invalid("an xclbin has a header of %d bytes, it has %d", xclbinSections, len(b))
	}
	length := binary.LittleEndian.Uint64(b[xclbinLength:])
	signed := int32(binary.LittleEndian.Uint32(b[xclbinSignature:]))
	if signed < -1 || length+uint64(max(signed, 0)) != uint64(len(b)) || length < xclbinSections {
		return nil, invalid("its header tells of %d bytes and a signature of %d, the file has %d", length, signed, len(b))
	}
	count := uint64(binary.LittleEndian.Uint32(b[xclbinCount:]))
	if count == 0 || count > maxSections || xclbinSections+count*sectionSize > length {
		return nil, invalid("it has %d sections, possible are 1 to %d that fit its length", count, maxSections)
	}
	for i := range count {
		s := b[xclbinSections+i*sectionSize:]
		offset, size := binary.LittleEndian.Uint64(s[24:]), binary.LittleEndian.Uint64(s[32:])
		if offset < xclbinSections+count*sectionSize || offset > length || size > length-offset {
			return nil, invalid("section %d lies at %d with %d bytes, outside of its %d", i, offset, size, length)
		}
	}
	vbnv, _, _ := bytes.Cut(b[xclbinVBNV:xclbinUUID], []byte{0})
	info := &Info{Format: XCLBIN, Part: string(vbnv), Shell: UUID(b[xclbinInterface:]), Image: UUID(b[xclbinUUID:])}
	if info.Shell == (UUID{}) || info.Image == (UUID{}) {
		return nil, invalid("it has no UUID for its interface or for itself")
	}
	return info, nil
}

// parseGBS reads the metadata before the bitstream.
func parseGBS(b []byte) (*Info, error) {
	head := len(gbsMagic) + 4
	if len(b) < head {
		return nil, invalid("it ends within its header")
	}
	n := uint64(binary.LittleEndian.Uint32(b[len(gbsMagic):]))
	if n > maxMetadata || n >= uint64(len(b)-head) {
		return nil, invalid("its metadata have %d bytes and are followed by nothing, or by too little", n)
	}
	var metadata struct {
		Image struct {
			Interface string `json:"interface-uuid"`
			Clusters  []struct {
				Type string `json:"accelerator-type-uuid"`
			} `json:"accelerator-clusters"`
		} `json:"afu-image"`
	}
	text := bytes.TrimRight(b[head:head+int(n)], "\x00")
	if err := json.Unmarshal(text, &metadata); err != nil {
		return nil, invalid("its metadata are no JSON: %v", err)
	}
	info := &Info{Format: GBS}
	var ok bool
	if info.Shell, ok = parseUUID(metadata.Image.Interface); !ok {
		return nil, invalid("its interface UUID is %.40q", metadata.Image.Interface)
	}
	for _, c := range metadata.Image.Clusters {
		u, ok := parseUUID(c.Type)
		if !ok {
			return nil, invalid("the UUID of an accelerator is %.40q", c.Type)
		}
		info.Accelerators = append(info.Accelerators, u)
	}
	if len(info.Accelerators) == 0 {
		return nil, invalid("it names no accelerator")
	}
	return info, nil
}

// parseUUID reads 32 hexadecimal digits with or without hyphens.
func parseUUID(s string) (u UUID, ok bool) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(u) {
		return u, false
	}
	return UUID(b), true
}
