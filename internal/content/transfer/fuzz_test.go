package transfer

import (
	"context"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

// conversation reads fuzzed bytes as frames of one transfer: a kind, and how the
// genuine frame of that kind is bent.
func conversation(script []byte, id uint64, genuine func(kind) []byte, deliver func([]byte)) {
	for ; len(script) >= 4; script = script[4:] {
		k := kind(script[0]%6 + 1)
		frame := genuine(k)
		body := append([]byte{}, frame[headerSize:len(frame)-sumSize]...)
		if n := len(body); n > 0 && script[1] > 0 {
			body[int(script[2])%n] ^= script[1]
			if script[3] > 0 {
				body = body[:int(script[3])%n+1]
			}
		}
		deliver(seal(append(begin(k, id, 0), body...)))
	}
}

// FuzzReceiver lets a hostile sender answer a Fetch. Nothing but the wanted
// content may ever be visible.
func FuzzReceiver(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 3, 0, 0, 0})
	f.Add([]byte{1, 8, 5, 0, 3, 255, 20, 30, 4, 0, 0, 0})
	f.Add([]byte{3, 0, 0, 0, 1, 0, 0, 0, 1, 1, 9, 0, 3, 0, 0, 0})
	f.Add([]byte{192, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0}) // 192 % 6 is an open; what follows is the lie
	f.Add([]byte{133, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0})
	f.Add([]byte{133, 0, 0, 0, 1, 7, 60, 0, 1, 0, 0, 0, 3, 9, 200, 0, 3, 0, 0, 0})
	want := sample(30_000, 9)
	old := slices.Clone(want)
	copy(old[500:], sample(1000, 11))
	difference, lie := encode(f, want, old), encode(f, sample(30_000, 12), old)
	f.Fuzz(func(t *testing.T, script []byte) {
		synctest.Test(t, func(t *testing.T) {
			store, err := content.Open(durabletest.NewDisk(), "/content", content.WithCheckpoint(smallestChunk, time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			asked := make(chan uint64, 1)
			r := NewReceiver(store, func(frame []byte) error {
				if k, id, _, ok := unseal(frame, DefaultMaxFrame); ok && k == kindOpen {
					select {
					case asked <- id:
					default:
					}
				}
				return nil
			}, ReceiverOptions{})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			done := make(chan error, 1)
			base := old
			hold(t, store, base)
			go func() {
				_, err := r.Fetch(ctx, fileOf(want), []atelier.Digest{atelier.DigestOf(base)}, nil)
				done <- err
			}()
			id := <-asked
			// The scripts that begin with a byte of 128 and more are of a hub that sends a
			// difference, to the right content or to another one.
			comes, plan := want, planFrame{way: wayWhole}
			if len(script) > 0 && script[0] >= 128 {
				comes = difference
				if script[0] >= 192 {
					comes = lie
				}
				plan = planFrame{way: wayDifference, recipe: recipe{atelier.DigestOf(comes), []atelier.Digest{atelier.DigestOf(base)}}}
			}
			plan.size, plan.chunks = int64(len(comes)), []chunk{{Range: content.Range{End: int64(len(comes))}, sum: mustSum(comes)}}
			conversation(script, id, func(k kind) []byte {
				switch k {
				case kindPlan:
					return mustPlan(id, plan)
				case kindData:
					b, err := encodeData(id, dataFrame{round: 1, sent: int64(len(comes))}, func(b []byte) ([]byte, error) { return append(b, comes...), nil })
					if err != nil {
						t.Fatal(err)
					}
					return b
				case kindGone:
					return encodeGone(id, goneFrame{message: "forgotten"})
				}
				return encodeCancel(id)
			}, func(frame []byte) { r.Handle(frame); synctest.Wait() })
			cancel()
			err = <-done
			visible := 0
			walked := store.Walk(func(info content.Info) error {
				if info.Digest == atelier.DigestOf(base) {
					return nil
				}
				visible++
				if info.Digest != atelier.DigestOf(want) {
					t.Errorf("%s is visible", info.Digest)
				}
				return store.Verify(t.Context(), info.Digest)
			})
			if walked != nil || (err == nil) != (visible == 1) {
				t.Fatalf("Fetch says %v, %d contents are visible, %v", err, visible, walked)
			}
		})
	})
}

func mustSum(b []byte) [32]byte {
	sum, err := atelier.DigestOf(b).Sum()
	if err != nil {
		panic(err) // made by DigestOf
	}
	return sum
}

// FuzzSender lets a hostile receiver talk to a Sender. What it makes it hold and
// send stays within the limits.
func FuzzSender(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 0, 0, 0}, uint64(1))
	f.Add([]byte{0, 0, 0, 0, 2, 255, 4, 0, 2, 1, 0, 9, 5, 0, 0, 0}, uint64(7))
	c := sample(5000, 8)
	f.Fuzz(func(t *testing.T, script []byte, id uint64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		synctest.Test(t, func(t *testing.T) {
			w := newFlood(t, c)
			open, err := encodeOpen(id, openFrame{digest: atelier.DigestOf(c), maxFrame: DefaultMaxFrame, ways: []way{wayWhole}})
			if err != nil {
				t.Fatal(err)
			}
			wants := int64(0)
			conversation(script, id, func(k kind) []byte {
				switch k {
				case kindOpen:
					return open
				case kindWant:
					wants++
					return encodeWant(id, wantFrame{round: uint32(wants), credit: int64(len(c)), ranges: content.Ranges{{End: int64(len(c))}}})
				}
				return encodeCancel(id)
			}, func(frame []byte) { w.w.sender.Handle("hostile", frame); synctest.Wait() })
			if n := w.w.sender.Active(); n > 1 {
				t.Fatalf("%d transfers for one id", n)
			}
			if sent := w.w.down.sent(); sent > wants*int64(len(c)) {
				t.Fatalf("%d bytes were sent for %d wants", sent, wants)
			}
			w.w.stop()
			if w.opened.Load() != w.closed.Load() {
				t.Fatalf("%d of %d blobs were closed", w.closed.Load(), w.opened.Load())
			}
		})
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 16<<20+uint64(len(script))*(64<<10) {
			t.Fatalf("%d bytes were allocated for a script of %d", grown, len(script))
		}
	})
}
