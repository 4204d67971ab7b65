package transfer

import (
	"testing"
	"testing/synctest"
)

// What a plan says that a transfer costs is what the peer then counts.
func TestCostIsWhatComes(t *testing.T) {
	t.Parallel()
	most := DefaultMaxFrame - dataHeader
	for _, size := range []int{0, 1, most, most + 1, smallestChunk - 1, smallestChunk, smallestChunk + 1, 9*smallestChunk + 12345} {
		synctest.Test(t, func(t *testing.T) {
			c := sample(size, 3)
			w := start(t, c)
			a, err := w.fetchOn(c)
			if want := Cost(int64(size), DefaultMaxFrame); err != nil || a.Received != want {
				t.Errorf("%d bytes cost %d, %v; expected %d", size, a.Received, err, want)
			}
		})
	}
	for _, differs := range []int{3000, 2 * smallestChunk} {
		synctest.Test(t, func(t *testing.T) {
			old, now := edit(differs)
			difference := encode(t, now, old)
			w := startWith(t, old, now, offering(difference, old))
			a, err := w.fetchOn(now, old)
			want := DifferenceCost(int64(len(difference)), DefaultMaxFrame, 1)
			if err != nil || a.Way != WayDifference || a.Received != want {
				t.Errorf("a difference of %d bytes cost %+v, %v; expected %d", len(difference), a, err, want)
			}
		})
	}
}
