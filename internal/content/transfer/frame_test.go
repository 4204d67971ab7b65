package transfer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
)

func examples() map[kind][]byte {
	open, err := encodeOpen(7, openFrame{digest: atelier.DigestOf(nil), maxFrame: DefaultMaxFrame, ways: []way{wayWhole, 9}, rate: 5, bases: []atelier.Digest{atelier.DigestOf([]byte("base"))}})
	if err != nil {
		panic(err)
	}
	data, err := encodeData(7, dataFrame{round: 3, sent: 100, chunk: 1, offset: 50}, func(b []byte) ([]byte, error) { return append(b, "data"...), nil })
	if err != nil {
		panic(err)
	}
	return map[kind][]byte{
		kindOpen: open,
		kindPlan: mustPlan(7, planFrame{way: wayWhole, size: 30, chunks: []chunk{
			{content.Range{Start: 0, End: 20}, sha256.Sum256([]byte("a"))},
			{content.Range{Start: 20, End: 30}, sha256.Sum256([]byte("b"))},
		}}),
		kindWant:   encodeWant(7, wantFrame{round: 3, credit: 1000, ranges: content.Ranges{{Start: 0, End: 5}, {Start: 9, End: 30}}}),
		kindData:   data,
		kindGone:   encodeGone(7, goneFrame{atelier.NotFound, "no such content"}),
		kindCancel: encodeCancel(7),
	}
}

func mustPlan(id uint64, p planFrame) []byte {
	b, err := encodePlan(id, p)
	if err != nil {
		panic(err)
	}
	return b
}

// again encodes what was decoded.
func again(k kind, id uint64, body []byte) (out []byte, ok bool) {
	var err error
	switch k {
	case kindOpen:
		var o openFrame
		if o, ok = decodeOpen(body); ok {
			out, err = encodeOpen(id, o)
		}
	case kindPlan:
		var p planFrame
		if p, ok = decodePlan(body); ok {
			out, err = encodePlan(id, p)
		}
	case kindWant:
		var w wantFrame
		if w, ok = decodeWant(body); ok {
			out = encodeWant(id, w)
		}
	case kindData:
		var d dataFrame
		if d, ok = decodeData(body); ok {
			out, err = encodeData(id, d, func(b []byte) ([]byte, error) { return append(b, d.bytes...), nil })
		}
	case kindGone:
		var g goneFrame
		if g, ok = decodeGone(body); ok {
			out = encodeGone(id, g)
		}
	}
	return out, ok && err == nil
}

func TestFramesComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	for want, frame := range examples() {
		k, id, body, ok := unseal(frame, DefaultMaxFrame)
		if !ok || k != want || id != 7 {
			t.Fatalf("kind %d came as %d of %d, %v", want, k, id, ok)
		}
		if toSender := want == kindOpen || want == kindWant || want == kindCancel; ToSender(frame) != toSender {
			t.Fatalf("kind %d: ToSender is %v", k, !toSender)
		}
		if k == kindCancel {
			continue
		}
		if got, ok := again(k, id, body); !ok || !bytes.Equal(got, frame) {
			t.Fatalf("kind %d: %x came back as %x", k, frame, got)
		}
		if k != kindData { // a newer peer may say more
			if _, ok := again(k, id, append(slices.Clone(body), "more"...)); !ok {
				t.Fatalf("kind %d: more bytes were refused", k)
			}
		}
		for i := range frame {
			bad := slices.Clone(frame)
			bad[i] ^= 0x10
			if _, _, _, ok := unseal(bad, DefaultMaxFrame); ok {
				t.Fatalf("kind %d: a changed byte %d was not noticed", k, i)
			}
		}
	}
}

// The bytes of the protocol, so that a change of it does not go unnoticed.
func TestFramesGolden(t *testing.T) {
	t.Parallel()
	want := []byte{
		1, 3, 0, 0, 0, 0, 0, 0, 0, 7, // version, kind, transfer
		0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 3, 0xe8, 0, 0, 0, 2, // round, credit, ranges
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5,
		0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 30,
	}
	got := examples()[kindWant]
	if !bytes.Equal(got[:len(got)-sumSize], want) {
		t.Fatalf("got %x, want %x", got, want)
	}
	data := examples()[kindData]
	want = []byte{1, 4, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 1, 0, 0, 0, 50, 'd', 'a', 't', 'a'}
	if !bytes.Equal(data[:len(data)-sumSize], want) {
		t.Fatalf("got %x, want %x", data, want)
	}
}

// FuzzFrame decodes a body of any kind; what decodes encodes to the same.
func FuzzFrame(f *testing.F) {
	for k, frame := range examples() {
		f.Add(byte(k), frame[headerSize:len(frame)-sumSize])
	}
	f.Add(byte(kindPlan), binary.BigEndian.AppendUint32(make([]byte, 9), 1<<31))
	f.Add(byte(kindWant), binary.BigEndian.AppendUint32(make([]byte, 12), 1<<31))
	f.Add(byte(kindData), bytes.Repeat([]byte{'0'}, 21)) // a chunk that no plan has
	f.Fuzz(func(t *testing.T, k byte, body []byte) {
		frame := seal(append(begin(kind(k), 7, 0), body...))
		_, _, b, ok := unseal(frame, 1<<30)
		if !ok {
			t.Fatal("a sealed frame was refused")
		}
		out, ok := again(kind(k), 7, b)
		if !ok {
			return
		}
		// What follows the known fields is not kept, so compare the front.
		if out = out[:len(out)-sumSize]; !bytes.HasPrefix(frame, out) {
			t.Fatalf("kind %d: %x came back as %x", k, frame, out)
		}
	})
}

// FuzzUnseal takes any bytes for a frame.
func FuzzUnseal(f *testing.F) {
	for _, frame := range examples() {
		f.Add(frame)
	}
	f.Fuzz(func(_ *testing.T, frame []byte) {
		ToSender(frame)
		if k, id, body, ok := unseal(frame, DefaultMaxFrame); ok {
			again(k, id, body)
		}
	})
}

func TestPlansFitIntoFrames(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{0, 1, 1 << 20, 5 << 30, 500 << 30} {
		for _, frame := range []int{MinMaxFrame, 64 << 10, DefaultMaxFrame, 1 << 20} {
			n := chunkLength(size, frame)
			if chunks := (size + n - 1) / n; chunks > MaxChunks || planHeader+int(chunks)*planEntry > frame {
				t.Fatalf("%d bytes in chunks of %d do not fit into a plan of %d", size, n, frame)
			}
		}
	}
	if n := chunkLength(2<<30, DefaultMaxFrame); n != 1<<20 {
		t.Fatalf("2 GiB come in chunks of %d", n)
	}
}
