package atelier

import (
	"slices"
	"sync"
	"testing"
	"time"
)

func TestIDsAreUniqueAndSorted(t *testing.T) {
	t.Parallel()
	const goroutines, each = 8, 2000
	lists := make([][]string, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for range each {
				lists[g] = append(lists[g], NewID())
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, ids := range lists {
		if !slices.IsSorted(ids) {
			t.Error("ids of one goroutine do not sort in the order in which they were made")
		}
		for _, id := range ids {
			if !IsID(id) {
				t.Fatalf("%q is no id", id)
			}
			if seen[id] {
				t.Fatalf("%q came twice", id)
			}
			seen[id] = true
		}
	}
}

func TestIDsSortWhenTheClockStepsBack(t *testing.T) {
	t.Parallel()
	now := time.Now().Add(24 * time.Hour)
	a := newIDAt(now)
	b := newIDAt(now.Add(-48 * time.Hour))
	if a >= b {
		t.Errorf("%s came before %s but does not sort before it", a, b)
	}
}

func TestEncodeID(t *testing.T) {
	t.Parallel()
	// The example of the ULID specification.
	b := [16]byte{0x01, 0x56, 0x3d, 0xf3, 0x64, 0x81, 0x4c, 0x8f, 0x4c, 0x8f, 0x4c, 0x8f, 0x4c, 0x8f, 0x4c, 0x8f}
	if got := encodeID(b); got[:10] != "01aryz6s41" {
		t.Errorf("encodeID gave %q, whose time is not 01aryz6s41", got)
	}
	all := [16]byte{}
	for i := range all {
		all[i] = 0xff
	}
	if got := encodeID(all); got != "7zzzzzzzzzzzzzzzzzzzzzzzzz" {
		t.Errorf("the largest id is %q", got)
	}
}

func TestIsID(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "digits", "8zzzzzzzzzzzzzzzzzzzzzzzzz", "01ARYZ6S41ARYZ6S41ARYZ6S41", "01aryz6s41aryz6s41aryz6s4i", "../aryz6s41aryz6s41aryz6s4"} {
		if IsID(s) {
			t.Errorf("IsID(%q) is true", s)
		}
	}
}
