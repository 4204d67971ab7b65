package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"

	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

func testRecord(n uint64) *record {
	return &record{
		Workspace: "w", Device: "d", Name: "press", Stream: "s", Sequence: n, Received: 1, Shift: -2, Lost: 3, Encoding: 1,
		Payload: bytes.Repeat([]byte{byte(n)}, int(n%7)*100),
	}
}

func replayAll(t *testing.T, disk *durabletest.Disk) (*journal, []uint64) {
	t.Helper()
	var got []uint64
	j, err := openJournal(disk, "/journal", func(r *record) error {
		want := testRecord(r.Sequence)
		if len(r.Payload) == 0 {
			r.Payload = want.Payload
		}
		if !reflect.DeepEqual(r, want) {
			return fmt.Errorf("read %+v", r)
		}
		got = append(got, r.Sequence)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return j, got
}

// Whatever append said is on disk is replayed, in order, wherever the power is cut.
func TestJournalSurvivesAPowerCutAtEveryStep(t *testing.T) {
	t.Parallel()
	const records = 12
	for step := 1; ; step++ {
		cut := false
		for seed := range uint64(5) {
			disk := durabletest.NewDisk()
			j, _ := replayAll(t, disk)
			disk.CutAt(step)
			var kept []uint64
			for n := uint64(1); n <= records; n++ {
				if j.append(t.Context(), testRecord(n)) == nil {
					kept = append(kept, n)
				} else {
					cut = true
				}
				if n != records/2 {
					continue
				}
				// What is there so far may go now, and need not.
				if number, err := j.rotate(); err == nil {
					kept = kept[:0]
					cut = j.remove(number) != nil || cut
				}
			}
			_ = j.close() // the disk may be gone
			var rng *rand.Rand
			if seed > 0 {
				rng = rand.New(rand.NewPCG(seed, uint64(step)))
			}
			disk.Restart(rng)
			again, got := replayAll(t, disk)
			if err := again.close(); err != nil {
				t.Fatal(err)
			}
			there := map[uint64]bool{}
			last := uint64(0)
			for _, n := range got {
				if n <= last {
					t.Fatalf("step %d, seed %d: replayed %v", step, seed, got)
				}
				there[n], last = true, n
			}
			for _, n := range kept {
				if !there[n] {
					t.Fatalf("step %d, seed %d: %d was kept and is gone; replayed %v", step, seed, n, got)
				}
			}
		}
		if !cut {
			return
		}
	}
}

func TestJournalGoesOnAfterAFault(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	j, _ := replayAll(t, disk)
	if err := j.append(t.Context(), testRecord(1)); err != nil {
		t.Fatal(err)
	}
	for step := 1; step <= 2; step++ { // write, sync
		disk.FailAt(step, errors.New("the disk has a bad day"))
		if err := j.append(t.Context(), testRecord(2)); err == nil {
			t.Fatal("the fault was not reported")
		}
	}
	if err := j.append(t.Context(), testRecord(3)); err != nil {
		t.Fatal(err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	disk.Restart(nil)
	again, got := replayAll(t, disk)
	if err := again.close(); err != nil {
		t.Fatal(err)
	}
	if len(got) < 2 || got[0] != 1 || got[len(got)-1] != 3 {
		t.Fatalf("replayed %v", got)
	}
}

func TestJournalTakesManyAtOnce(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	var mu sync.Mutex
	seen := map[uint64]int{}
	j, _ := replayAll(t, disk)
	var all sync.WaitGroup
	for n := uint64(1); n <= 200; n++ {
		all.Go(func() {
			if err := j.append(t.Context(), testRecord(n)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	disk.Restart(nil)
	again, err := openJournal(disk, "/journal", func(r *record) error {
		mu.Lock()
		defer mu.Unlock()
		seen[r.Sequence]++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.close(); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 200 {
		t.Fatalf("%d records, want 200", len(seen))
	}
}

func FuzzDecodeRecord(f *testing.F) {
	for n := range uint64(3) {
		b, err := testRecord(n).encode(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, size, err := decodeRecord(b)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatal(err)
			}
			return
		}
		if size < recordHead || size > len(b) {
			t.Fatalf("%d of %d bytes", size, len(b))
		}
		again, err := r.encode(nil)
		if err != nil {
			return // a payload that is too large with its JSON written anew
		}
		if _, _, err := decodeRecord(again); err != nil {
			t.Fatal(err)
		}
	})
}
