package wire

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// TelemetryFrame is one batch of measurements on its way from a device to the
// hub (up, on the channel Telemetry).
//
// A device numbers its batches from 1 within a stream, and a stream ends with
// the spool that holds it: a device that lost its spool begins a new one. The hub takes
// a stream's batches in their order, stores each exactly once, and acknowledges
// cumulatively (Ack, with the stream's id) what it has stored durably. The
// device keeps a batch, and sends it again, until it is acknowledged. A batch
// whose Previous was not stored yet came too early: the hub answers with what it
// has, and waits for the missing one.
type TelemetryFrame struct {
	Stream   string // the stream's id
	Sequence uint64 // the batch's number in its stream, from 1
	// Previous is the number of the batch before this one that the device holds
	// and the hub has not acknowledged, 0 where there is none. What lies between
	// Previous and Sequence and was not stored yet will never come: it was dropped
	// when the spool was full.
	Previous uint64
	// Taken is what the device's clocks said when the batch was made, Sent what
	// they said when this frame was. With both, the hub finds out how far the
	// device's wall clock is off, and whether it was set in between.
	Taken, Sent Clock
	Encoding    Encoding
	// Payload is an OTLP ExportMetricsServiceRequest, encoded as Encoding says.
	Payload []byte
}

// Clock is a reading of a device's clocks.
type Clock struct {
	BootID   string        // which boot Monotone counts from; "" where the device cannot tell
	Monotone time.Duration // since boot
	Wall     time.Time     // the wall clock, which may be wrong; whole milliseconds
}

// Encoding says how a telemetry frame's payload is compressed.
type Encoding uint8

// The encodings.
const (
	Plain  Encoding = 0 // as it is
	Snappy Encoding = 1 // one block in Snappy's block format
)

// MaxTelemetry is the largest decoded payload of a telemetry frame, in bytes.
const MaxTelemetry = 1 << 20

// The form, all numbers big-endian:
//
//	0   version, 1
//	1   encoding
//	2   stream, 26 characters
//	28  sequence, 8 bytes
//	36  previous, 8 bytes
//	44  taken: clock
//	    sent: clock
//	    payload
//	-4  CRC-32C of everything before it
//
// A clock is: length of the boot id, 1 byte; boot id; milliseconds since boot,
// 8 bytes; milliseconds since 1970, 8 bytes.
const (
	telemetryVersion = 1
	telemetryFixed   = 44
	telemetryMin     = telemetryFixed + 2*clockMin + 4
	clockMin         = 1 + 8 + 8
	maxBootID        = 64
)

// MaxTelemetryPayload is the largest payload, in bytes, that fits a frame
// whatever its other fields hold.
const MaxTelemetryPayload = MaxPacket - telemetryMin - 2*maxBootID

// maxWall is the year 9999's end in milliseconds: with both clocks below it, no
// sum or difference of the times in a frame can overflow.
const maxWall = 253402300799999

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode appends the frame's binary form to dst. It fails with code Invalid where a
// field is out of its bounds, and with TooLarge where the frame would exceed MaxPacket.
func (f *TelemetryFrame) Encode(dst []byte) ([]byte, error) {
	if err := f.check(); err != nil {
		return dst, err
	}
	begin := len(dst)
	dst = append(dst, telemetryVersion, byte(f.Encoding))
	dst = append(dst, f.Stream...)
	dst = binary.BigEndian.AppendUint64(dst, f.Sequence)
	dst = binary.BigEndian.AppendUint64(dst, f.Previous)
	dst = f.Taken.append(dst)
	dst = f.Sent.append(dst)
	dst = append(dst, f.Payload...)
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[begin:], castagnoli))
	if n := len(dst) - begin; n > MaxPacket {
		return dst[:begin], atelier.Errorf(atelier.TooLarge, "telemetry frame has %d bytes, at most %d fit a packet", n, MaxPacket)
	}
	return dst, nil
}

func (c Clock) append(dst []byte) []byte {
	dst = append(dst, byte(len(c.BootID)))
	dst = append(dst, c.BootID...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(c.Monotone.Milliseconds()))
	return binary.BigEndian.AppendUint64(dst, uint64(c.Wall.UnixMilli()))
}

// DecodeTelemetry reads what Encode wrote. It checks the checksum and every
// bound, but not the payload. The frame's Payload shares b's memory. Errors have the code
// Invalid, TooLarge, Unsupported for another version, or Corrupt for a wrong checksum.
func DecodeTelemetry(b []byte) (TelemetryFrame, error) {
	var f TelemetryFrame
	switch {
	case len(b) > MaxPacket:
		return f, atelier.Errorf(atelier.TooLarge, "telemetry frame has %d bytes, at most %d are allowed", len(b), MaxPacket)
	case len(b) < telemetryMin:
		return f, atelier.Errorf(atelier.Invalid, "telemetry frame has %d bytes, at least %d are needed", len(b), telemetryMin)
	case b[0] != telemetryVersion:
		return f, atelier.Errorf(atelier.Unsupported, "telemetry frame has version %d, this program reads version %d", b[0], telemetryVersion).
			WithRemedy("Update the hub.")
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return f, atelier.Errorf(atelier.Corrupt, "telemetry frame's checksum is %08x, its content has %08x", sum, got)
	}
	f.Encoding = Encoding(body[1])
	f.Stream = string(body[2:28])
	f.Sequence = binary.BigEndian.Uint64(body[28:])
	f.Previous = binary.BigEndian.Uint64(body[36:])
	var ok bool
	rest := body[telemetryFixed:]
	if f.Taken, rest, ok = readClock(rest); ok {
		f.Sent, rest, ok = readClock(rest)
	}
	if !ok {
		return TelemetryFrame{}, atelier.Errorf(atelier.Invalid, "telemetry frame ends within its clocks, or a clock is out of bounds")
	}
	f.Payload = rest
	if err := f.check(); err != nil {
		return TelemetryFrame{}, err
	}
	return f, nil
}

func readClock(b []byte) (c Clock, rest []byte, ok bool) {
	if len(b) < clockMin || int(b[0]) > maxBootID || len(b) < clockMin+int(b[0]) {
		return c, nil, false
	}
	n := 1 + int(b[0])
	c.BootID = string(b[1:n])
	mono := int64(binary.BigEndian.Uint64(b[n:]))
	wall := int64(binary.BigEndian.Uint64(b[n+8:]))
	if mono < 0 || mono > math.MaxInt64/int64(time.Millisecond) || wall < -maxWall || wall > maxWall {
		return c, nil, false
	}
	c.Monotone = time.Duration(mono) * time.Millisecond
	c.Wall = time.UnixMilli(wall).UTC()
	return c, b[n+16:], true
}

func (f *TelemetryFrame) check() error {
	switch {
	case !atelier.IsID(f.Stream):
		return atelier.Errorf(atelier.Invalid, "telemetry frame's stream %q is no id", f.Stream)
	case f.Previous >= f.Sequence:
		return atelier.Errorf(atelier.Invalid, "telemetry frame has sequence %d and previous %d; previous must be less", f.Sequence, f.Previous)
	case f.Encoding > Snappy:
		return atelier.Errorf(atelier.Unsupported, "telemetry frame has encoding %d, this program knows 0 to %d", f.Encoding, Snappy)
	}
	for _, c := range []Clock{f.Taken, f.Sent} {
		if wall := c.Wall.UnixMilli(); len(c.BootID) > maxBootID || c.Monotone < 0 || wall < -maxWall || wall > maxWall {
			return atelier.Errorf(atelier.Invalid, "telemetry frame's clock is out of bounds (boot id of %d bytes, %v since boot, %v)", len(c.BootID), c.Monotone, c.Wall)
		}
	}
	return nil
}
