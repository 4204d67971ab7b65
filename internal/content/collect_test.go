package content_test

import (
	"errors"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

func TestCollect(t *testing.T) {
	t.Parallel()
	const wait = time.Hour
	disk := durabletest.NewDisk()
	now := time.Now()
	s := open(t, disk, content.WithClock(func() time.Time { return now }))
	needed := put(t, s, sample(100, 1))
	garbage := put(t, s, sample(200, 2))
	again := put(t, s, sample(300, 3))
	kept := put(t, s, sample(400, 4))
	pass := func(refs ...atelier.Digest) content.Collected {
		t.Helper()
		got, err := s.Collect(t.Context(), wait, func(d atelier.Digest) (bool, error) {
			for _, r := range refs {
				if r == d {
					return true, nil
				}
			}
			return false, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := pass(needed); got != (content.Collected{Condemned: 3}) {
		t.Fatalf("the first pass: %+v", got)
	}
	now = now.Add(wait / 2)
	if got := pass(needed); got != (content.Collected{Condemned: 3}) {
		t.Fatalf("half way: %+v", got)
	}
	now = now.Add(wait / 2)
	put(t, s, sample(300, 3)) // deduplicates, which takes the condemnation back
	if err := s.Keep(kept); err != nil {
		t.Fatal(err)
	}
	if got := pass(needed); got != (content.Collected{Blobs: 1, Bytes: 200, Condemned: 2}) {
		t.Fatalf("after the wait: %+v", got)
	}
	if has, err := s.Has(garbage); has || err != nil {
		t.Fatalf("garbage is there: %v, %v", has, err)
	}
	wantCode(t, s.Keep(garbage), atelier.NotFound)
	now = now.Add(wait)
	pass(needed, again) // referenced meanwhile
	now = now.Add(wait)
	pass(needed)
	for d, want := range map[atelier.Digest]bool{needed: true, again: true, kept: false} {
		if has, err := s.Has(d); has != want || err != nil {
			t.Fatalf("%s: there %v, %v; want %v", d, has, err, want)
		}
	}
}

func TestCollectEndsWhenReferencesCannotBeTold(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	s := open(t, disk)
	d := put(t, s, sample(100, 1))
	fault := errors.New("the database is away")
	for range 3 {
		_, err := s.Collect(t.Context(), 0, func(atelier.Digest) (bool, error) { return false, fault })
		if !errors.Is(err, fault) {
			t.Fatalf("got %v", err)
		}
	}
	if has, err := s.Has(d); !has || err != nil {
		t.Fatalf("the blob is gone: %v, %v", has, err)
	}
}

// A commit that deduplicates while a pass is between its last look at the
// references and the deletion must win.
func TestCollectSparesWhatIsCommittedMeanwhile(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	s := open(t, disk)
	data := sample(100, 1)
	d := put(t, s, data)
	passes := 0
	for range 2 {
		_, err := s.Collect(t.Context(), 0, func(atelier.Digest) (bool, error) {
			if passes++; passes == 2 {
				put(t, s, data)
			}
			return false, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if has, err := s.Has(d); !has || err != nil {
		t.Fatalf("the blob is gone: %v, %v", has, err)
	}
}
