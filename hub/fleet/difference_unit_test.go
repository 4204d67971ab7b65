package fleet

import (
	"bytes"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content/transfer"
)

type closing struct {
	*bytes.Reader
	closed *int
}

func (c closing) Close() error { *c.closed++; return nil }
func (c closing) Size() int64  { return c.Reader.Size() }

// What a difference saves on the line must be worth the time of decoding it.
func TestDifferencesThatAreWorthIt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rate     uint64
		decoding time.Duration
		most     time.Duration
		want     bool
	}{
		"slow line, quick to decode": {10_000, time.Second, 0, true},
		"slow line, slow to decode":  {10_000, 100 * time.Second, 0, false}, // 90 s are saved
		"fast line, compressed":      {100 << 20, time.Second, 0, false},
		"fast line, with a base":     {100 << 20, 30 * time.Second, worth, true},
		"fast line, far too slow":    {100 << 20, 2 * worth, worth, false},
		"no rate is known":           {0, 0, 0, true},
	} {
		closed := 0
		d := &transfer.Difference{Blob: closing{bytes.NewReader(make([]byte, 100_000)), &closed}, Digest: atelier.DigestOf(nil), Decoding: c.decoding}
		got := (&Fleet{}).ifWorth(transfer.Offer{Size: 1_000_000, Rate: c.rate}, d, c.most)
		if (got != nil) != c.want || (closed == 0) != c.want {
			t.Errorf("%s: %v, closed %d times", name, got != nil, closed)
		}
	}
}

func TestPatience(t *testing.T) {
	t.Parallel()
	for want, o := range map[time.Duration]transfer.Offer{
		500 * time.Millisecond: {Size: 1000, Rate: 1000},
		longestPending:         {Size: 1 << 40, Rate: 1},
		50 * time.Millisecond:  {Size: assumedRate / 10},
	} {
		if got := patience(o); got != want {
			t.Errorf("%+v waits %v, want %v", o, got, want)
		}
	}
}
