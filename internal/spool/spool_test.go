package spool

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
	"github.com/atelier-edge/atelier/internal/wire"
)

const spoolDir = "/state/spool"

// testBatch makes a batch that tells its number.
func testBatch(n, size int) Batch {
	return Batch{
		Taken:   wire.Clock{BootID: "boot", Monotone: time.Duration(n) * time.Second, Wall: time.UnixMilli(int64(n)).UTC()},
		Payload: append(fmt.Appendf(nil, "%08d", n), bytes.Repeat([]byte("x"), size)...), Encoding: wire.Snappy, Samples: n,
	}
}

func openTestSpool(t *testing.T, fs durable.FS) *Spool {
	t.Helper()
	s, err := Open(fs, spoolDir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// contents reads the whole spool.
func contents(t *testing.T, s *Spool) (list []Entry) {
	t.Helper()
	after := uint64(0)
	for {
		e, ok, err := s.Next(after)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return list
		}
		if e.Sequence <= after || e.Stream != s.stream || e.Previous >= e.Sequence || e.Previous > after {
			t.Fatalf("after %d came %+v", after, e)
		}
		list, after = append(list, e), e.Sequence
	}
}

func TestSpoolKeepsOrderAndTrims(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	s := openTestSpool(t, disk)
	for n := 1; n <= 30; n++ {
		if err := s.Append(testBatch(n, 20_000)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(from, to int) {
		t.Helper()
		list := contents(t, s)
		if len(list) != to-from+1 {
			t.Fatalf("%d batches, want %d to %d", len(list), from, to)
		}
		for i, e := range list {
			if e.Sequence != uint64(from+i) || !reflect.DeepEqual(e.Batch, testBatch(from+i, 20_000)) {
				t.Fatalf("batch %d is %d, %v", from+i, e.Sequence, e.Batch.Taken)
			}
			want := uint64(from + i - 1)
			if i == 0 {
				want = 0 // nothing before it is waited for
			}
			if e.Previous != want {
				t.Fatalf("batch %d has previous %d, want %d", from+i, e.Previous, want)
			}
		}
		if st := s.Stats(); st.Pending != len(list) || st.Dropped != (Dropped{}) {
			t.Fatalf("stats %+v", st)
		}
	}
	check(1, 30)
	before := s.Stats().Bytes
	for _, stale := range []func() error{
		func() error { return s.Acknowledge(s.stream, 11) },
		func() error { return s.Acknowledge(s.stream, 4) },
		func() error { return s.Acknowledge(atelier.NewID(), 25) },
	} {
		if err := stale(); err != nil {
			t.Fatal(err)
		}
	}
	check(12, 30)
	if after := s.Stats().Bytes; after >= before {
		t.Errorf("nothing was removed: %d bytes, then %d", before, after)
	}
	stream := s.stream
	disk.Restart(nil)
	s = openTestSpool(t, disk)
	if s.stream != stream {
		t.Error("a new stream after a restart")
	}
	if err := s.Acknowledge(stream, 30); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(testBatch(31, 20_000)); err != nil {
		t.Fatal(err)
	}
	check(31, 31)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// What Append said is on disk is there after a power cut at any step, and no
// number ever stands for two batches that may have been sent.
func TestSpoolSurvivesAPowerCutAtEveryStep(t *testing.T) {
	t.Parallel()
	for step := 1; ; step++ {
		cut := false
		for seed := range uint64(6) {
			disk := durabletest.NewDisk()
			s := openTestSpool(t, disk)
			disk.CutAt(step)
			kept := map[uint64]Batch{}
			for n := 1; n <= 12; n++ {
				next := s.next
				if err := s.Append(testBatch(n, 60_000)); err == nil {
					kept[next] = testBatch(n, 60_000)
				} else {
					cut = true
				}
				if n == 6 {
					if err := s.Acknowledge(s.stream, 4); err != nil {
						cut = true
					}
				}
			}
			stream := s.stream
			var rng *rand.Rand
			if seed > 0 {
				rng = rand.New(rand.NewPCG(seed, uint64(step)))
			}
			disk.Restart(rng)
			s = openTestSpool(t, disk)
			if s.stream != stream {
				t.Fatalf("step %d, seed %d: the stream was lost", step, seed)
			}
			found := map[uint64]Batch{}
			for _, e := range contents(t, s) {
				found[e.Sequence] = e.Batch
			}
			for n, b := range kept {
				if got, ok := found[n]; n > 4 && !ok || ok && !reflect.DeepEqual(got, b) {
					t.Fatalf("step %d, seed %d: batch %d was kept, and %v is there (%v)", step, seed, n, got.Taken, ok)
				}
			}
			next := s.next
			for n := range kept {
				if next <= n {
					t.Fatalf("step %d, seed %d: number %d is used twice", step, seed, next)
				}
			}
			if err := s.Append(testBatch(99, 10)); err != nil {
				t.Fatal(err)
			}
			if list := contents(t, s); list[len(list)-1].Batch.Samples != 99 {
				t.Fatalf("step %d, seed %d: what came after is not there", step, seed)
			}
		}
		if !cut {
			return
		}
	}
}

func TestSpoolGoesOnAfterAFaultAtEveryStep(t *testing.T) {
	t.Parallel()
	for step := 1; ; step++ {
		disk := durabletest.NewDisk()
		s := openTestSpool(t, disk)
		start := disk.Operations()
		disk.FailAt(step, syscall.EIO)
		kept, failed := map[int]bool{}, 0
		for n := 1; n <= 10; n++ {
			err := s.Append(testBatch(n, 60_000))
			switch {
			case err == nil:
				kept[n] = true
			case errors.Is(err, syscall.EIO):
				failed++
			default:
				t.Fatal(err)
			}
		}
		if n := s.Stats().Dropped.Batches; n != uint64(failed) {
			t.Fatalf("step %d: %d failed, %d counted as dropped", step, failed, n)
		}
		for range 2 {
			got := map[int]bool{}
			for _, e := range contents(t, s) {
				got[e.Batch.Samples] = true
			}
			for n := range kept {
				if !got[n] {
					t.Fatalf("step %d: batch %d is gone", step, n)
				}
			}
			disk.Restart(nil)
			s = openTestSpool(t, disk)
		}
		if disk.Operations()-start < step {
			return
		}
	}
}

func TestSpoolDropsTheOldestAndCounts(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	s := openTestSpool(t, disk)
	const all = 100
	samples := 0
	for n := 1; n <= all; n++ {
		samples += n
		if err := s.Append(testBatch(n, 50_000)); err != nil {
			t.Fatal(err)
		}
		if b := s.Stats().Bytes; b > 1<<20 {
			t.Fatalf("%d bytes, over the budget", b)
		}
	}
	list := contents(t, s)
	left := 0
	for i, e := range list {
		left += e.Batch.Samples
		if e.Sequence != uint64(all-len(list)+1+i) {
			t.Fatalf("entry %d is %d: not the newest are kept", i, e.Sequence)
		}
	}
	if list[0].Previous != 0 {
		t.Errorf("the oldest waits for %d, which was dropped", list[0].Previous)
	}
	want := Dropped{uint64(all - len(list)), uint64(samples - left)}
	if st := s.Stats(); st.Dropped != want || len(list) < 10 {
		t.Errorf("dropped %+v, want %+v; %d left", st.Dropped, want, len(list))
	}
	// A full disk is the same, whatever the budget says.
	disk.SetSpace(s.Stats().Bytes + 100)
	if err := s.Append(testBatch(all+1, 50_000)); err != nil {
		t.Fatal(err)
	}
	list = contents(t, s)
	if list[len(list)-1].Batch.Samples != all+1 {
		t.Error("the newest was not kept on a full disk")
	}
}

// A cut or a changed byte anywhere in the files loses what it hit, never the
// rest of the other files, and never lets a number be used again.
func TestSpoolWithDamageAtEveryByte(t *testing.T) {
	t.Parallel()
	build := func() (*durabletest.Disk, string, int64) {
		disk := durabletest.NewDisk()
		s := openTestSpool(t, disk)
		for n := 1; n <= 4; n++ {
			if err := s.Append(testBatch(n, 40)); err != nil {
				t.Fatal(err)
			}
		}
		return disk, s.segments[0].path, s.segments[0].size
	}
	_, _, size := build()
	for _, change := range []string{"cut", "flip"} {
		for at := range size {
			disk, path, _ := build()
			f, err := disk.OpenFile(path, 2, 0)
			if err != nil {
				t.Fatal(err)
			}
			if change == "cut" {
				err = f.Truncate(at)
			} else {
				var b [1]byte
				if _, err = f.ReadAt(b[:], at); err == nil {
					b[0] ^= 0x40
					_, err = f.WriteAt(b[:], at)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			s := openTestSpool(t, disk)
			whole := int(at / (size / 4))
			list := contents(t, s)
			if len(list) != whole {
				t.Fatalf("%s at %d: %d batches, want %d", change, at, len(list), whole)
			}
			onBoundary := change == "cut" && at%(size/4) == 0
			if !onBoundary && s.Stats().Dropped.Batches == 0 {
				t.Fatalf("%s at %d: nothing is counted as dropped", change, at)
			}
			if change == "flip" && s.next <= 4 {
				t.Fatalf("%s at %d: goes on with number %d", change, at, s.next)
			}
			if err := s.Append(testBatch(9, 1)); err != nil {
				t.Fatal(err)
			}
			if list := contents(t, s); len(list) != whole+1 {
				t.Fatalf("%s at %d: then %d batches", change, at, len(list))
			}
		}
	}
}

func TestSpoolBeginsANewStreamWhereNumbersAreLost(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	s := openTestSpool(t, disk)
	first := s.stream
	if err := s.Append(testBatch(1, 1)); err != nil {
		t.Fatal(err)
	}
	// The hub knows of more than there is: an old copy of the disk.
	if err := s.Acknowledge(first, 50); err != nil {
		t.Fatal(err)
	}
	if s.stream == first || len(contents(t, s)) != 0 {
		t.Error("goes on with numbers that are used up")
	}
	// Its files are gone, its name is there.
	second := s.stream
	if err := durable.Remove(disk, s.segments[0].path); err != nil {
		t.Fatal(err)
	}
	if s = openTestSpool(t, disk); s.stream == second {
		t.Error("the stream goes on without its files")
	}
	// Its name is gone, its files are there.
	third := s.stream
	if err := s.Append(testBatch(1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := durable.Remove(disk, filepath.Join(spoolDir, streamFile)); err != nil {
		t.Fatal(err)
	}
	if s = openTestSpool(t, disk); s.stream == third || len(contents(t, s)) != 0 {
		t.Error("batches without their stream are sent in another's")
	}
	if err := s.Append(testBatch(1, wire.MaxTelemetryPayload)); atelier.CodeOf(err) != atelier.TooLarge {
		t.Errorf("got %v for a batch that fits no packet", err)
	}
}

func FuzzReadRecord(f *testing.F) {
	f.Add(appendRecord(nil, 7, testBatch(7, 10)))
	f.Add([]byte{0, 0, 0, 30})
	f.Fuzz(func(t *testing.T, b []byte) {
		disk := durabletest.NewDisk()
		file, err := disk.OpenFile("/f", 2|64, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.Write(b); err != nil {
			t.Fatal(err)
		}
		sequence, batch, size, err := readRecord(file, 0)
		if err != nil {
			return
		}
		if again := appendRecord(nil, sequence, batch); size > int64(len(b)) || len(again) != int(size) {
			t.Fatalf("read %d bytes as %+v", size, batch)
		}
	})
}
