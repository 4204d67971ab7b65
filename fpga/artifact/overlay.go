// Package artifact is the form in which overlays and models for them travel: a signed
// manifest beside a bitstream, and one file with a model's program. Decoding is strict
// and takes what may be hostile: an unknown field, something left over, a length that
// does not fit or a number outside its range gives an *atelier.Error.
package artifact

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/bitstream"
	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/internal/trust"
)

// TypeOverlay is the payload type of an overlay's signed manifest.
const TypeOverlay = "application/vnd.atelier.overlay.v1+json"

// The files of an overlay package. GoldenPath is a model of its own that proves the
// overlay: its golden inputs are the overlay's.
const (
	ManifestPath = "overlay.json"
	ImagePath    = "overlay.bin"
	GoldenPath   = "overlay-golden.atn"
)

// MaxImage bounds a bitstream, in bytes.
const MaxImage = 256 << 20

const overlayFormat = 1

// Overlay is the manifest of an overlay package: what its bitstream is, and what it fits.
type Overlay struct {
	Format int `json:"format"` // 1
	// Encoding is how the bitstream is written, and Part, IDCode and Shell are what it is
	// for. They must be what the bitstream says of itself, where its encoding says it.
	Encoding bitstream.Format `json:"encoding"`
	Part     string           `json:"part"`
	IDCode   IDCode           `json:"idcode,omitempty"`
	Shell    UUID             `json:"shell,omitzero"`
	// UUID, ISA and Geometry are what the overlay's registers say once it is loaded.
	UUID     UUID             `json:"overlay"`
	ISA      int              `json:"isa"`
	Geometry program.Geometry `json:"geometry"`
	// Digest and Size are those of the bitstream.
	Digest atelier.Digest `json:"digest"`
	Size   int64          `json:"size"`
	// Toolchain names the programs that made it, and FmaxMHz is the clock that place and
	// route reported; nobody measured it.
	Toolchain string  `json:"toolchain"`
	FmaxMHz   float64 `json:"fmax_mhz"`
	// Golden is the digest of the model whose golden inputs prove the overlay.
	Golden atelier.Digest `json:"golden"`
}

// UUID is an identity. Its JSON form is that of RFC 9562.
type UUID [16]byte

// String returns the form 8-4-4-4-12.
func (u UUID) String() string { return bitstream.UUID(u).String() }

// MarshalText writes what UnmarshalText reads.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText reads the form 8-4-4-4-12 in lower case.
func (u *UUID) UnmarshalText(b []byte) error {
	parsed, err := hex.DecodeString(strings.ReplaceAll(string(b), "-", ""))
	if err == nil && len(parsed) == len(u) {
		copy(u[:], parsed)
		if u.String() == string(b) {
			return nil
		}
	}
	return fmt.Errorf("%.50q is no UUID of the form 01234567-89ab-cdef-0123-456789abcdef", b)
}

// IDCode is a device's JTAG identification. Its JSON form is "0x" and 8 hexadecimal digits.
type IDCode uint32

// MarshalText writes what UnmarshalText reads.
func (c IDCode) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%#08x", uint32(c)), nil }

// UnmarshalText reads "0x" and 8 hexadecimal digits.
func (c *IDCode) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(strings.TrimPrefix(string(b), "0x"), 16, 32)
	if err != nil || fmt.Sprintf("%#08x", v) != string(b) {
		return fmt.Errorf("%.50q is no identification code such as 0x0362d093", b)
	}
	*c = IDCode(v)
	return nil
}

// Check refuses a manifest that is not whole.
func (o *Overlay) Check() error {
	if o.Format != overlayFormat {
		return atelier.Errorf(atelier.Unsupported, "the overlay's manifest has format %d, this program reads %d", o.Format, overlayFormat).
			WithRemedy("Update Atelier, or make the package anew.")
	}
	if o.ISA != program.ISA {
		return atelier.Errorf(atelier.Unsupported, "the overlay has version %d of the instructions, this program knows %d", o.ISA, program.ISA).
			WithRemedy("Update the overlay or Atelier.")
	}
	for field, bad := range map[string]bool{
		"encoding": o.Encoding == "", "part": o.Part == "" || len(o.Part) > 200, "overlay": o.UUID == UUID{},
		"size": o.Size < 1 || o.Size > MaxImage, "toolchain": len(o.Toolchain) > 1000, "fmax_mhz": !(o.FmaxMHz > 0) || math.IsInf(o.FmaxMHz, 0),
	} {
		if bad {
			return invalid("the overlay's manifest lacks %s, or it is out of range", field)
		}
	}
	for field, d := range map[string]atelier.Digest{"digest": o.Digest, "golden": o.Golden} {
		if _, err := atelier.ParseDigest(string(d)); err != nil {
			return invalid("the overlay's manifest has no good %s: %w", field, err)
		}
	}
	return o.Geometry.Check()
}

// Sign returns the manifest in a DSSE envelope.
func (o *Overlay) Sign(signers ...trust.Signer) ([]byte, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	payload, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	return trust.Sign(TypeOverlay, payload, signers...)
}

// Open returns the manifest in an envelope that one of the keys signed. trust.WhyOf
// tells the reason of an error.
func Open(envelope []byte, keys trust.KeySet) (*Overlay, error) {
	kind, payload, err := trust.Open(envelope, keys)
	if err != nil {
		return nil, err
	}
	if kind != TypeOverlay {
		return nil, invalid("the envelope carries %.100q, an overlay's manifest is %s", kind, TypeOverlay)
	}
	return ParseOverlay(payload)
}

// ParseOverlay reads a manifest that is not signed, or whose signature was verified.
func ParseOverlay(b []byte) (*Overlay, error) {
	o := &Overlay{}
	if err := decodeStrictly(b, o); err != nil {
		return nil, invalid("the overlay's manifest cannot be read: %w", err)
	}
	return o, o.Check()
}

// CheckDigest compares the bitstream's size and digest with the manifest: Corrupt where
// it is another.
func (o *Overlay) CheckDigest(image []byte) error {
	if int64(len(image)) == o.Size && atelier.DigestOf(image) == o.Digest {
		return nil
	}
	return atelier.Errorf(atelier.Corrupt, "the bitstream has %d bytes and digest %s, the overlay's manifest says %d and %s",
		len(image), atelier.DigestOf(image).Short(), o.Size, o.Digest.Short()).WithRemedy("Fetch the overlay package anew.")
}

// CheckImage parses the bitstream, with its checksums, and compares what it says of
// itself with the manifest.
func (o *Overlay) CheckImage(image []byte) error {
	info, err := bitstream.Parse(image)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		what, is, said string
		tells          bool // whether the encoding has it
	}{
		{"encoding", string(info.Format), string(o.Encoding), true},
		{"part", info.Part, o.Part, info.Part != ""},
		{"identification code", fmt.Sprintf("%#08x", info.IDCode), fmt.Sprintf("%#08x", uint32(o.IDCode)), info.IDCode != 0},
		{"shell", info.Shell.String(), o.Shell.String(), info.Shell != bitstream.UUID{} || o.Shell != UUID{}},
		{"overlay", info.Overlay.String(), o.UUID.String(), info.Overlay != bitstream.UUID{}},
	} {
		if c.tells && c.is != c.said {
			return invalid("the bitstream's %s is %s, the overlay's manifest says %s", c.what, c.is, c.said)
		}
	}
	return nil
}

// Target is the device that an image is to go into.
type Target struct {
	Part   string
	IDCode IDCode // 0 where the device has none, or it is not known
	Shell  UUID   // zero where the device has none
}

// CheckTarget refuses an overlay for another part, identification code or shell, with the
// code Conflict. Nothing overrides it.
func (o *Overlay) CheckTarget(t Target) error {
	var what, is, has string
	switch {
	case o.Part != t.Part:
		what, is, has = "part", o.Part, t.Part
	case t.IDCode != 0 && o.IDCode != 0 && o.IDCode != t.IDCode:
		what, is, has = "identification code", fmt.Sprintf("%#08x", uint32(o.IDCode)), fmt.Sprintf("%#08x", uint32(t.IDCode))
	case o.Shell != t.Shell:
		what, is, has = "shell", o.Shell.String(), t.Shell.String()
	default:
		return nil
	}
	return atelier.Errorf(atelier.Conflict, "the overlay is for the %s %s, the device has %s", what, is, has).
		WithRemedy("Register an overlay that was made for this device.")
}

// CheckIdentity compares what the loaded overlay says of itself with the manifest.
func (o *Overlay) CheckIdentity(id program.Identity) error {
	if UUID(id.UUID) == o.UUID && id.ISA == o.ISA && id.Geometry == o.Geometry {
		return nil
	}
	return atelier.Errorf(atelier.Conflict, "the device holds the overlay %s with version %d of the instructions and %+v, expected was %s with %d and %+v",
		UUID(id.UUID), id.ISA, id.Geometry, o.UUID, o.ISA, o.Geometry).WithRemedy("Program the overlay anew.")
}

func decodeStrictly(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("it goes on after its JSON ends, at byte %d", d.InputOffset())
	}
	return nil
}

func invalid(format string, args ...any) error {
	return atelier.Errorf(atelier.Invalid, format, args...).WithRemedy("Make the package anew.")
}
