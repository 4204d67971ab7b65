// Package transfer moves content between two peers in binary frames: it holds both
// halves of the content protocol, the Receiver that asks and the Sender that
// answers. It knows no MQTT and no topics; frames may be lost, doubled, reordered
// and damaged on their way, and either peer may forget everything at any time.
//
// What it promises: content arrives as a whole, verified, and becomes visible only
// then; or a typed error says why. What has arrived is not asked for again, also
// after a restart (see content.Ingest). Memory stays within a few frames per
// transfer, whatever the size of the content and whatever a peer sends.
//
// The receiver steers. It opens a transfer; the sender answers with a plan: the
// way in which the content comes, as it is or as a difference to content that the
// receiver has named, the size of what comes, and length and SHA-256 of every chunk.
// The receiver says want: all ranges that it misses, and a credit, how many bytes
// of them the sender may send. Data comes until the credit is used; a newer want
// of the same round only raises the credit. When nothing new comes for a
// while, or the round's end came and something is missing, the receiver begins a
// new round with the ranges that it misses then. So wants are idempotent, the
// newest wins, and no frame must arrive for the transfer to go on. A sender that
// knows nothing of a transfer answers gone, and the receiver opens it anew.
package transfer

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"math"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
)

// Every frame is: version (1 byte), kind (1), transfer (8), body, CRC-32C of all
// that (4). Numbers are big-endian. A decoder ignores what follows the fields that
// it knows in open, plan, want and gone, so that fields can be added.
//
//	open    digest (32), largest frame that the receiver takes (4), number of ways (1), ways (1 each),
//	        bytes a second that came last (8, 0 where unknown), number of bases (1), digests of the bases (32 each),
//	        bytes of the content that the receiver has already (8; may be absent)
//	plan    way (1), size (8), number of chunks (4), of each: length (4), SHA-256 (32);
//	        of a difference also: digest of the difference (32), number of bases (1), digests of the bases (32 each)
//	want    round (4), credit (8), number of ranges (4), of each: start (8), end (8)
//	data    round (4), sent (8), chunk (4), offset in the chunk (4), bytes
//	gone    length of code (1), code, length of message (2), message
//	cancel  –
const (
	version = 1

	headerSize = 1 + 1 + 8
	sumSize    = 4
	planHeader = headerSize + 1 + 8 + 4 + sumSize
	planEntry  = 4 + sha256.Size
	wantHeader = headerSize + 4 + 8 + 4 + sumSize
	wantEntry  = 8 + 8
	dataHeader = headerSize + 4 + 8 + 4 + 4 + sumSize
	planTail   = sha256.Size + 1 + MaxBases*sha256.Size // of a difference's plan
)

// Limits of the protocol. Frames beyond them are dropped.
const (
	// DefaultMaxFrame is the largest frame in bytes where nothing else is set;
	// brokers and cloud gateways commonly cut at 128 KiB.
	DefaultMaxFrame = 120 << 10
	// MinMaxFrame is the smallest limit of a frame that a peer may ask for.
	MinMaxFrame = 8 << 10
	// MaxChunks is how many chunks a plan has at most.
	MaxChunks = 2048
	// MaxRanges is how many missing ranges a want lists at most: the rest is
	// asked for in a later round.
	MaxRanges = 512
	// MaxBases is how many bases a receiver names at most, and how many a
	// difference needs at most.
	MaxBases = 16

	maxWays    = 16
	maxMessage = 300
	maxCode    = 64
)

// kind is what a frame is.
type kind byte

const (
	kindOpen   kind = 1
	kindPlan   kind = 2
	kindWant   kind = 3
	kindData   kind = 4
	kindGone   kind = 5
	kindCancel kind = 6
)

// ToSender reports whether a frame is for the sending half of the peer that got
// it; otherwise it is for the receiving half, if it is a frame at all.
func ToSender(frame []byte) bool {
	if len(frame) < headerSize {
		return false
	}
	switch kind(frame[1]) {
	case kindOpen, kindWant, kindCancel:
		return true
	}
	return false
}

// way is how content is sent. Offsets in want and data count in the stream of
// bytes that the way defines.
type way byte

const (
	// wayWhole sends the content's bytes as they are.
	wayWhole way = 1
	// wayDifference sends the bytes of a difference (see internal/content/delta),
	// of which the receiver makes the content together with the bases that it
	// holds. A difference without bases is compressed content.
	wayDifference way = 2
)

func (w way) String() string {
	if w == wayDifference {
		return WayDifference
	}
	return WayWhole
}

// A frame's parts are decoded on their own, to types of their own. What holds
// bytes refers to the frame that it was decoded from.
type (
	openFrame struct {
		digest   atelier.Digest
		maxFrame int
		ways     []way
		rate     uint64           // bytes a second that came to the receiver lately; 0 where it does not know
		bases    []atelier.Digest // content that the receiver holds, the most promising first
		has      uint64           // bytes of the content that came before, as it is
	}
	planFrame struct {
		way    way
		size   int64 // of the stream that comes
		chunks []chunk
		recipe
	}
	// recipe is what a receiver needs to know of a difference besides its bytes.
	recipe struct {
		difference atelier.Digest
		bases      []atelier.Digest
	}
	wantFrame struct {
		round  uint32
		credit int64 // bytes that may be sent in this round, from its begin
		ranges content.Ranges
	}
	dataFrame struct {
		round  uint32
		sent   int64 // bytes sent in this round, these included
		chunk  int
		offset int64
		bytes  []byte
	}
	goneFrame struct {
		code    atelier.Code // "" where the sender merely forgot
		message string
	}
)

// chunk is a piece of the stream that is verified on its own.
type chunk struct {
	content.Range
	sum [sha256.Size]byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func begin(k kind, id uint64, size int) []byte {
	b := make([]byte, 0, size)
	b = append(b, version, byte(k))
	return binary.BigEndian.AppendUint64(b, id)
}

func seal(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// unseal returns what a frame is, of which transfer, and its body. ok is false for
// a frame that was damaged, is too large for anybody, or of another version.
func unseal(frame []byte, limit int) (k kind, id uint64, body []byte, ok bool) {
	if len(frame) < headerSize+sumSize || len(frame) > limit || frame[0] != version {
		return 0, 0, nil, false
	}
	end := len(frame) - sumSize
	if binary.BigEndian.Uint32(frame[end:]) != crc32.Checksum(frame[:end], castagnoli) {
		return 0, 0, nil, false
	}
	return kind(frame[1]), binary.BigEndian.Uint64(frame[2:]), frame[headerSize:end], true
}

func encodeOpen(id uint64, o openFrame) ([]byte, error) {
	sum, err := o.digest.Sum()
	if err != nil {
		return nil, err
	}
	b := begin(kindOpen, id, 64)
	b = append(b, sum[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(o.maxFrame))
	b = append(b, byte(len(o.ways)))
	for _, w := range o.ways {
		b = append(b, byte(w))
	}
	if o.rate != 0 || len(o.bases) > 0 || o.has > 0 {
		b = binary.BigEndian.AppendUint64(b, o.rate)
		if b, err = appendDigests(b, o.bases); err != nil {
			return nil, err
		}
	}
	if o.has > 0 {
		b = binary.BigEndian.AppendUint64(b, o.has)
	}
	return seal(b), nil
}

// appendDigests appends the number of digests, then them.
func appendDigests(b []byte, digests []atelier.Digest) ([]byte, error) {
	b = append(b, byte(len(digests)))
	for _, d := range digests {
		sum, err := d.Sum()
		if err != nil {
			return nil, err
		}
		b = append(b, sum[:]...)
	}
	return b, nil
}

func decodeOpen(b []byte) (o openFrame, ok bool) {
	r := reader{b: b}
	o.digest = r.digest()
	largest := r.u32()
	for _, w := range r.bytes(int(r.u8())) {
		o.ways = append(o.ways, way(w))
	}
	if len(r.b) > 0 { // an earlier peer says no more
		o.rate = r.u64()
		o.bases = r.digests()
	}
	if len(r.b) >= 8 {
		o.has = r.u64()
	}
	o.maxFrame = int(min(largest, math.MaxInt32))
	return o, !r.short && largest >= MinMaxFrame && largest <= math.MaxInt32 && len(o.ways) <= maxWays && len(o.bases) <= MaxBases
}

func encodePlan(id uint64, p planFrame) ([]byte, error) {
	b := begin(kindPlan, id, planHeader+planEntry*len(p.chunks)+planTail)
	b = append(b, byte(p.way))
	b = binary.BigEndian.AppendUint64(b, uint64(p.size))
	b = binary.BigEndian.AppendUint32(b, uint32(len(p.chunks)))
	for _, c := range p.chunks {
		b = binary.BigEndian.AppendUint32(b, uint32(c.Len()))
		b = append(b, c.sum[:]...)
	}
	if p.way == wayDifference {
		sum, err := p.difference.Sum()
		if err != nil {
			return nil, err
		}
		b = append(b, sum[:]...)
		if b, err = appendDigests(b, p.bases); err != nil {
			return nil, err
		}
	}
	return seal(b), nil
}

// decodePlan checks that the chunks make up the whole size, none of them empty.
func decodePlan(b []byte) (p planFrame, ok bool) {
	r := reader{b: b}
	p.way = way(r.u8())
	size, n := r.u64(), r.u32()
	if r.short || size > math.MaxInt64 || n > MaxChunks || int(n)*planEntry > len(r.b) {
		return planFrame{}, false
	}
	p.size = int64(size)
	p.chunks = make([]chunk, n)
	var at int64
	for i := range p.chunks {
		c := &p.chunks[i]
		c.Range = content.Range{Start: at, End: at + int64(r.u32())}
		copy(c.sum[:], r.bytes(sha256.Size))
		if c.Len() == 0 {
			return planFrame{}, false
		}
		at = c.End
	}
	if p.way == wayDifference {
		p.difference = r.digest()
		p.bases = r.digests()
	}
	return p, !r.short && at == p.size && len(p.bases) <= MaxBases
}

func encodeWant(id uint64, w wantFrame) []byte {
	b := begin(kindWant, id, wantHeader+wantEntry*len(w.ranges))
	b = binary.BigEndian.AppendUint32(b, w.round)
	b = binary.BigEndian.AppendUint64(b, uint64(w.credit))
	b = binary.BigEndian.AppendUint32(b, uint32(len(w.ranges)))
	for _, e := range w.ranges {
		b = binary.BigEndian.AppendUint64(b, uint64(e.Start))
		b = binary.BigEndian.AppendUint64(b, uint64(e.End))
	}
	return seal(b)
}

// decodeWant checks that the ranges are in order and do not overlap, so that
// nothing is asked for twice.
func decodeWant(b []byte) (w wantFrame, ok bool) {
	r := reader{b: b}
	w.round = r.u32()
	credit, n := r.u64(), r.u32()
	if r.short || credit > math.MaxInt64 || n > MaxRanges || int(n)*wantEntry > len(r.b) {
		return wantFrame{}, false
	}
	w.credit = int64(credit)
	w.ranges = make(content.Ranges, n)
	last := int64(0)
	for i := range w.ranges {
		start, end := int64(r.u64()), int64(r.u64())
		if start < last || end <= start {
			return wantFrame{}, false
		}
		w.ranges[i], last = content.Range{Start: start, End: end}, end
	}
	return w, true
}

// encodeData returns a frame with room for n bytes, which fill must put there.
// encodeData makes a data frame; content appends its bytes to what it is given. With
// that the frame's memory comes to be, which so need not be cleared before.
func encodeData(id uint64, d dataFrame, content func([]byte) ([]byte, error)) ([]byte, error) {
	b := begin(kindData, id, dataHeader)
	b = binary.BigEndian.AppendUint32(b, d.round)
	b = binary.BigEndian.AppendUint64(b, uint64(d.sent))
	b = binary.BigEndian.AppendUint32(b, uint32(d.chunk))
	b = binary.BigEndian.AppendUint32(b, uint32(d.offset))
	b, err := content(b)
	if err != nil {
		return nil, err
	}
	return seal(b), nil
}

func decodeData(b []byte) (d dataFrame, ok bool) {
	r := reader{b: b}
	d.round = r.u32()
	sent := r.u64()
	i := r.u32()
	d.chunk, d.sent, d.offset, d.bytes = int(min(i, MaxChunks)), int64(sent), int64(r.u32()), r.b
	return d, !r.short && i < MaxChunks && sent <= math.MaxInt64 && len(d.bytes) > 0
}

func encodeGone(id uint64, g goneFrame) []byte {
	b := begin(kindGone, id, 64)
	code := clip(string(g.code), maxCode)
	b = append(b, byte(len(code)))
	b = append(b, code...)
	message := clip(g.message, maxMessage)
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	b = append(b, message...)
	return seal(b)
}

func decodeGone(b []byte) (g goneFrame, ok bool) {
	r := reader{b: b}
	code := int(r.u8())
	g.code = atelier.Code(r.bytes(code))
	n := int(r.u16())
	if code > maxCode || n > maxMessage {
		return goneFrame{}, false
	}
	g.message = string(r.bytes(n))
	return g, !r.short
}

func encodeCancel(id uint64) []byte { return seal(begin(kindCancel, id, headerSize+sumSize)) }

func clip(s string, n int) string { return s[:min(len(s), n)] }

// reader takes fields off the front of b. Past the end it returns zeros and
// remembers that b was too short.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) bytes(n int) []byte {
	if n > len(r.b) {
		r.short, r.b = true, nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) number(n int) (v uint64) {
	for _, c := range r.bytes(n) {
		v = v<<8 | uint64(c)
	}
	return v
}

func (r *reader) digest() atelier.Digest {
	var sum [sha256.Size]byte
	copy(sum[:], r.bytes(sha256.Size))
	return atelier.DigestFromSum(sum)
}

// digests reads a number of digests, then them. At most 255 can be said.
func (r *reader) digests() (all []atelier.Digest) {
	for range r.u8() {
		if all = append(all, r.digest()); r.short {
			return nil
		}
	}
	return all
}

func (r *reader) u8() uint8   { return uint8(r.number(1)) }
func (r *reader) u16() uint16 { return uint16(r.number(2)) }
func (r *reader) u32() uint32 { return uint32(r.number(4)) }
func (r *reader) u64() uint64 { return r.number(8) }
