package transfer

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content/delta"
)

// edit is an old content and a new one that shares most of it: what differs is as
// large as said, so that it comes in several chunks.
func edit(differs int) (old, now []byte) {
	old = sample(differs+differs/4+400_000, 20)
	now = slices.Clone(old)
	copy(now[100_000:], sample(differs, 21))
	return old, now
}

// encoded keeps differences that several tests need: making one is slow.
var encoded sync.Map // of func() ([]byte, error), by the digests of target and bases

func encode(t testing.TB, target []byte, bases ...[]byte) []byte {
	t.Helper()
	file := func(b []byte) delta.File {
		return delta.File{Digest: atelier.DigestOf(b), Size: int64(len(b)), Content: bytes.NewReader(b)}
	}
	key := string(atelier.DigestOf(target))
	var olds []delta.File
	for _, b := range bases {
		olds = append(olds, file(b))
		key += string(atelier.DigestOf(b))
	}
	made, _ := encoded.LoadOrStore(key, sync.OnceValues(func() ([]byte, error) {
		var out bytes.Buffer
		_, err := delta.Encode(context.Background(), &out, file(target), olds, delta.Options{})
		return out.Bytes(), err
	}))
	b, err := made.(func() ([]byte, error))()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// offering returns a Difference option that has difference, which needs bases.
func offering(difference []byte, bases ...[]byte) func(Offer) (*Difference, *Pending) {
	d := Difference{Blob: memory{bytes.NewReader(difference)}, Digest: atelier.DigestOf(difference)}
	for _, b := range bases {
		d.Bases = append(d.Bases, atelier.DigestOf(b))
	}
	return func(o Offer) (*Difference, *Pending) {
		for _, b := range d.Bases {
			if !slices.Contains(o.Bases, b) {
				return nil, nil
			}
		}
		d := d
		return &d, nil
	}
}

// startWith starts a world whose receiver holds old, and whose sender has now and
// differences.
func startWith(t *testing.T, old, now []byte, differ func(Offer) (*Difference, *Pending)) *world {
	w := start(t, now)
	w.differ = differ
	w.startSender()
	if old != nil {
		w.hold(old)
	}
	return w
}

func TestDifferenceBringsContent(t *testing.T) {
	t.Parallel()
	old, now := edit(300_000)
	difference := encode(t, now, old)
	synctest.Test(t, func(t *testing.T) {
		w := startWith(t, old, now, offering(difference, old))
		var told []int64
		a, err := w.recv.Fetch(t.Context(), fileOf(now), []atelier.Digest{atelier.DigestOf(old)}, func(done int64) { told = append(told, done) })
		if err != nil {
			t.Fatal(err)
		}
		w.check(now, true)
		if a.Way != WayDifference || a.Failed || w.down.sent() != int64(len(difference)) {
			t.Errorf("%+v, %d bytes were sent for a difference of %d", a, w.down.sent(), len(difference))
		}
		if a.Received < int64(len(difference)) || a.Received > int64(len(difference))+2000 {
			t.Errorf("%d bytes are said to have come for a difference of %d", a.Received, len(difference))
		}
		if n := len(told); n == 0 || told[n-1] != int64(len(now)) || !slices.IsSorted(told) {
			t.Errorf("progress %v", told)
		}
		w.nothingElse()
		synctest.Wait()
		if n := w.sender.Active(); n != 0 {
			t.Errorf("the sender still knows of %d transfers", n)
		}
	})
}

func TestDifferenceWithoutBasesIsCompressedContent(t *testing.T) {
	t.Parallel()
	now := bytes.Repeat([]byte("weights and more weights "), 4_000)
	difference := encode(t, now)
	synctest.Test(t, func(t *testing.T) {
		w := startWith(t, nil, now, offering(difference))
		if a, err := w.fetchOn(now); err != nil || a.Way != WayDifference || w.down.sent() != int64(len(difference)) {
			t.Fatalf("%+v, %v, %d bytes were sent for %d", a, err, w.down.sent(), len(difference))
		}
		if err := w.store.Delete(atelier.DigestOf(now)); err != nil {
			t.Fatal(err)
		}
		// Who asks for the content as it is gets it so.
		if err := w.fetch(now); err != nil || w.down.sent() != int64(len(difference)+len(now)) {
			t.Fatalf("%v, %d bytes were sent", err, w.down.sent())
		}
	})
}

func TestDifferenceOverBadLines(t *testing.T) {
	t.Parallel()
	old, now := edit(smallestChunk + 100_000)
	difference := encode(t, now, old)
	for _, p := range []float64{0.02, 0.2, 0.5} {
		for seed := range uint64(3) {
			t.Run(fmt.Sprint(p, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := startWith(t, old, now, offering(difference, old))
					w.down.latency, w.up.latency = 20*time.Millisecond, 20*time.Millisecond
					kinds := []string{"drop", "double", "reorder", "damage", "cut"}
					w.down.fault = faulty(rand.New(rand.NewPCG(seed, 1)), p, kinds...)
					w.up.fault = faulty(rand.New(rand.NewPCG(seed, 2)), p, kinds...)
					a, err := w.fetchOn(now, old)
					if err != nil || a.Way != WayDifference {
						t.Fatalf("%+v, %v", a, err)
					}
					if most := int64(float64(len(difference)) * (1.5 + 3*p)); w.down.sent() > most {
						t.Fatalf("%d bytes were sent for %d", w.down.sent(), len(difference))
					}
					w.nothingElse()
				})
			})
		}
	}
}

// interruptedDifference does what interrupted does, while content comes as a difference.
func interruptedDifference(t *testing.T, extra int64, interrupt func(w *world)) {
	old, now := edit(smallestChunk + 100_000)
	difference := encode(t, now, old)
	for n := 1; ; n++ {
		happened := false
		synctest.Test(t, func(t *testing.T) {
			w := startWith(t, old, now, offering(difference, old))
			w.ropts.Window = smallWindow
			w.startReceiver()
			w.down.latency, w.up.latency = 5*time.Millisecond, 5*time.Millisecond
			at := make(chan struct{})
			w.down.fault = func(i int, f []byte) [][]byte {
				if i == n {
					close(at)
				}
				return [][]byte{f}
			}
			type result struct {
				a   Arrival
				err error
			}
			done := make(chan result, 1)
			fetch := func() {
				w.mu.Lock()
				r := w.recv
				w.mu.Unlock()
				a, err := r.Fetch(t.Context(), fileOf(now), []atelier.Digest{atelier.DigestOf(old)}, nil)
				done <- result{a, err}
			}
			go fetch()
			select {
			case <-at:
				happened = true
				interrupt(w)
			case r := <-done:
				done <- r
			}
			r := <-done
			if happened && r.err != nil { // the receiver was interrupted: once more
				go fetch()
				r = <-done
			}
			if r.err != nil {
				t.Fatalf("frame %d: %v", n, r.err)
			}
			w.check(now, true)
			if w.down.sent() > int64(len(difference))+extra {
				t.Fatalf("frame %d: %d bytes were sent for %d, %+v", n, w.down.sent(), len(difference), r.a)
			}
			w.nothingElse()
		})
		if t.Failed() {
			return
		}
		if !happened {
			if n < 10 {
				t.Fatalf("only %d frames were seen", n)
			}
			return
		}
	}
}

func TestSenderRestartsAtEveryFrameOfADifference(t *testing.T) {
	t.Parallel()
	interruptedDifference(t, 2*smallWindow, func(w *world) { w.startSender() })
}

func TestReceiverLosesPowerAtEveryFrameOfADifference(t *testing.T) {
	t.Parallel()
	interruptedDifference(t, smallestChunk+2*smallWindow, func(w *world) {
		w.disk.CutAt(1)
		time.Sleep(time.Second)
		w.disk.Restart(nil)
		w.startReceiver()
	})
}

// The power goes at each thing that is done to the disk while the content is made of
// the difference and committed.
func TestPowerCutAtEveryStepOfADifference(t *testing.T) {
	t.Parallel()
	old, now := edit(10_000)
	difference := encode(t, now, old)
	for n := 1; ; n++ {
		cut := false
		synctest.Test(t, func(t *testing.T) {
			w := startWith(t, old, now, offering(difference, old))
			w.disk.CutAt(n)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := w.recv.Fetch(ctx, fileOf(now), []atelier.Digest{atelier.DigestOf(old)}, nil)
			cut = err != nil
			w.disk.Restart(rand.New(rand.NewPCG(uint64(n), 1)))
			w.startReceiver()
			w.check(now, err == nil)
			w.check(old, true)
			if _, err := w.fetchOn(now, old); err != nil {
				t.Fatalf("step %d: %v", n, err)
			}
			w.nothingElse()
		})
		if t.Failed() {
			return
		}
		if !cut {
			if n < 15 {
				t.Fatalf("only %d steps were seen", n)
			}
			return
		}
	}
}

// What is no difference, or leads elsewhere, costs its bytes, and the content comes
// as it is. Nothing is tried for ever.
func TestWrongDifferences(t *testing.T) {
	t.Parallel()
	old, now := edit(200_000)
	good := encode(t, now, old)
	other := slices.Clone(now)
	other[len(other)-9] ^= 1
	damaged := func(at int) []byte {
		b := slices.Clone(good)
		b[at] ^= 0x40
		return b
	}
	for name, difference := range map[string][]byte{
		"of other content": encode(t, other, old),
		"to nothing":       encode(t, nil, old),
		"no difference":    sample(100_000, 22),
		"cut":              good[:len(good)/2],
		"without its end":  good[:len(good)-5],
		"with more behind": append(slices.Clone(good), good...),
		"damaged head":     damaged(2),
		"damaged base":     damaged(20),
		"damaged data":     damaged(len(good) / 2),
		"damaged sum":      damaged(len(good) - 1),
		"empty":            {},
		"bomb":             encode(t, make([]byte, 2<<20), old),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := startWith(t, old, now, offering(difference, old))
				w.room(3 * len(now))
				a, err := w.fetchOn(now, old)
				if err != nil || name != "with more behind" && (a.Way != WayWhole || !a.Failed) {
					t.Fatalf("%+v, %v", a, err)
				}
				if w.down.sent() > int64(len(difference)+len(now)) {
					t.Errorf("%d bytes were sent", w.down.sent())
				}
				w.nothingElse()
			})
		})
	}
}

func TestSenderNoticesADamagedDifference(t *testing.T) {
	t.Parallel()
	old, now := edit(200_000)
	difference := encode(t, now, old)
	synctest.Test(t, func(t *testing.T) {
		var spoiled atomic.Int64
		w := startWith(t, old, now, func(o Offer) (*Difference, *Pending) {
			d, _ := offering(difference, old)(o)
			bad := slices.Clone(difference)
			bad[1000] ^= 1
			d.Blob, d.Spoiled = memory{bytes.NewReader(bad)}, func() { spoiled.Add(1) }
			return d, nil
		})
		a, err := w.fetchOn(now, old)
		if err != nil || a.Way != WayWhole || a.Failed || w.down.sent() != int64(len(now)) {
			t.Fatalf("%+v, %v, %d bytes were sent", a, err, w.down.sent())
		}
		if spoiled.Load() != 1 {
			t.Errorf("it was told %d times that the difference is damaged", spoiled.Load())
		}
	})
	synctest.Test(t, func(t *testing.T) { // after its plan was made
		w := startWith(t, old, now, func(o Offer) (*Difference, *Pending) {
			d, _ := offering(difference, old)(o)
			d.Blob = &rot{memory: memory{bytes.NewReader(difference)}, at: 1000, times: 100}
			return d, nil
		})
		a, err := w.fetchOn(now, old)
		if err != nil || a.Way != WayWhole || !a.Failed || w.down.sent() != int64(len(now)+strikes*len(difference)) {
			t.Fatalf("%+v, %v, %d bytes were sent", a, err, w.down.sent())
		}
		w.nothingElse()
	})
}

func TestBaseVanishes(t *testing.T) {
	t.Parallel()
	old, now := edit(smallestChunk + 100_000)
	difference := encode(t, now, old)
	for name, c := range map[string]struct {
		at  int // frame of the sender
		way string
	}{"before the plan": {1, WayWhole}, "after the plan": {5, WayDifference}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := startWith(t, old, now, offering(difference, old))
				w.down.fault = func(n int, f []byte) [][]byte {
					if n == c.at {
						if err := w.store.Delete(atelier.DigestOf(old)); err != nil {
							t.Error(err)
						}
					}
					return [][]byte{f}
				}
				a, err := w.fetchOn(now, old)
				if err != nil || a.Way != c.way || a.Failed {
					t.Fatalf("%+v, %v", a, err)
				}
				w.nothingElse()
			})
		})
	}
	t.Run("not offered", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := startWith(t, old, now, func(Offer) (*Difference, *Pending) {
				d, _ := offering(difference)(Offer{})
				d.Bases = []atelier.Digest{atelier.DigestOf(old)}
				return d, nil
			})
			if a, err := w.fetchOn(now); err != nil || a.Way != WayWhole {
				t.Fatalf("%+v, %v", a, err)
			}
		})
	})
}

func TestDifferenceNeedsRoom(t *testing.T) {
	t.Parallel()
	old, now := edit(smallestChunk + 100_000)
	difference := encode(t, now, old)
	for name, c := range map[string]struct {
		free int // the disk counts the place of the content as soon as it is begun
		way  string
	}{
		"for both":    {2*len(now) + 2*len(difference) + 100_000, WayDifference},
		"for one":     {2*len(now) + len(difference)/2, WayWhole},
		"for neither": {len(now) / 2, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := startWith(t, old, now, offering(difference, old))
				w.room(c.free)
				a, err := w.fetchOn(now, old)
				if a.Way != c.way || (err == nil) != (c.way != "") {
					t.Fatalf("%+v, %v", a, err)
				}
			})
		})
	}
}

// Content that has come in for the most part is not begun anew as a difference.
func TestLittleMissingComesAsItIs(t *testing.T) {
	t.Parallel()
	old, now := edit(smallestChunk + 100_000)
	difference := encode(t, now, old)
	synctest.Test(t, func(t *testing.T) {
		w := startWith(t, old, now, offering(difference, old))
		in, err := w.store.Ingest(atelier.DigestOf(now), int64(len(now)))
		if err != nil {
			t.Fatal(err)
		}
		plan, err := makePlan(t.Context(), planKey{atelier.DigestOf(now), wayWhole, smallestChunk}, memory{bytes.NewReader(now)})
		if err != nil {
			t.Fatal(err)
		}
		c := plan.chunks[0]
		if _, err := in.WriteAt(now[c.Start:c.End], c.Start); err != nil {
			t.Fatal(err)
		}
		if err := in.Accept(c.Range, c.sum); err != nil {
			t.Fatal(err)
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		a, err := w.fetchOn(now, old)
		if err != nil || a.Way != WayWhole || w.down.sent() != int64(len(now)-smallestChunk) {
			t.Fatalf("%+v, %v, %d bytes were sent", a, err, w.down.sent())
		}
		w.nothingElse()
	})
}

func TestDifferenceThatIsBeingMade(t *testing.T) {
	t.Parallel()
	old, now := edit(50_000)
	difference := encode(t, now, old)
	for name, c := range map[string]struct {
		after time.Duration // it is ready
		none  bool          // and there is none
		way   string
		took  time.Duration
		sent  int // at most
	}{
		// The content takes four seconds as it is.
		"soon":         {after: time.Second, way: WayDifference, took: 1500 * time.Millisecond, sent: len(difference)},
		"late":         {after: 3 * time.Second, way: WayDifference, took: 4400 * time.Millisecond, sent: len(now)/4 + len(difference) + 100_000},
		"at the end":   {after: 5900 * time.Millisecond, way: WayWhole, took: 6500 * time.Millisecond, sent: len(now)},
		"never":        {after: time.Hour, way: WayWhole, took: 6500 * time.Millisecond, sent: len(now)},
		"soon, no use": {after: time.Second, none: true, way: WayWhole, took: 6500 * time.Millisecond, sent: len(now)},
		"late, no use": {after: 3 * time.Second, none: true, way: WayWhole, took: 6500 * time.Millisecond, sent: len(now)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ready := make(chan struct{})
				asked := time.Now()
				timer := time.AfterFunc(c.after, func() { close(ready) })
				defer timer.Stop()
				w := startWith(t, old, now, func(o Offer) (*Difference, *Pending) {
					select {
					case <-ready:
						if c.none {
							return nil, nil
						}
						return offering(difference, old)(o)
					default:
						return nil, &Pending{Ready: ready, Wait: max(0, 2*time.Second-time.Since(asked))}
					}
				})
				w.down.rate = float64(len(now) / 4)
				w.ropts.MaxFrame = 16 << 10
				w.startReceiver()
				began := time.Now()
				a, err := w.fetchOn(now, old)
				took := time.Since(began)
				if err != nil || a.Way != c.way || a.Failed || took > c.took {
					t.Errorf("%+v, %v after %v", a, err, took)
				}
				if w.down.sent() > int64(c.sent) {
					t.Errorf("%d bytes were sent", w.down.sent())
				}
				w.nothingElse()
			})
		})
	}
}

// Peers of before there were differences: a receiver that names no base gets the
// content as it is, and a sender that knows none is asked in words that it knows.
func TestPeersWithoutDifferences(t *testing.T) {
	t.Parallel()
	old, now := edit(50_000)
	synctest.Test(t, func(t *testing.T) {
		w := startWith(t, old, now, offering(encode(t, now, old), old))
		if err := w.fetch(now); err != nil || w.down.sent() != int64(len(now)) {
			t.Fatalf("%v, %d bytes were sent", err, w.down.sent())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := startWith(t, old, now, nil)
		if a, err := w.fetchOn(now, old); err != nil || a.Way != WayWhole {
			t.Fatalf("%+v, %v", a, err)
		}
	})
	before, err := encodeOpen(7, openFrame{digest: atelier.DigestOf(nil), maxFrame: DefaultMaxFrame, ways: []way{wayWhole}})
	if err != nil || len(before) != headerSize+32+4+1+1+sumSize {
		t.Errorf("an open without bases has %d bytes, %v", len(before), err)
	}
}
