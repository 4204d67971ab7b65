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
		got := (&Fleet{}).ifWorth(transfer.Offer{Size: 2_000_000, Missing: 1_000_000, Rate: c.rate}, d, c.most)
		if (got != nil) != c.want || (closed == 0) != c.want {
			t.Errorf("%s: %v, closed %d times", name, got != nil, closed)
		}
	}
}

// expecting expects the same of every difference.
type expecting struct {
	Differences
	transfer.Expectation
}

func (e expecting) Expect(atelier.Digest, atelier.Digest) (transfer.Expectation, bool) {
	return e.Expectation, e.For >= 0
}

// A device waits for a difference only where it has the content earlier by waiting.
func TestPatience(t *testing.T) {
	t.Parallel()
	const s = time.Second
	slow := transfer.Offer{Size: 200_000, Missing: 100_000, Rate: 1000} // 100 s are missing
	for name, c := range map[string]struct {
		offer transfer.Offer
		is    transfer.Expectation
		want  time.Duration
	}{
		"not its turn yet":          {slow, transfer.Expectation{For: -1}, 0},
		"no estimate yet":           {slow, transfer.Expectation{For: s / 4}, 3 * s / 4},
		"no estimate for long":      {slow, transfer.Expectation{For: 2 * s}, 0},
		"no estimate, a fast line":  {transfer.Offer{Missing: 100_000, Rate: 100_000}, transfer.Expectation{For: s / 200}, s / 200},
		"small":                     {slow, transfer.Expectation{Known: true, Size: 10_000, Rest: 80 * s}, 80 * s},
		"not that small":            {slow, transfer.Expectation{Known: true, Size: 30_000, Rest: 80 * s}, 0},
		"slow to decode":            {slow, transfer.Expectation{Known: true, Size: 10_000, Rest: 80 * s, Decoding: 20 * s}, 0},
		"overdue":                   {slow, transfer.Expectation{Known: true, Size: 10_000, Rest: -1}, 0},
		"a fast line":               {transfer.Offer{Missing: 100_000, Rate: 100_000}, transfer.Expectation{Known: true, Size: 1000, Rest: s}, 0},
		"larger than what is to do": {slow, transfer.Expectation{Known: true, Size: 150_000, Rest: s}, 0},
		"no rate is known":          {transfer.Offer{Missing: 10 * assumedRate}, transfer.Expectation{Known: true, Rest: 9 * s}, 9 * s},
	} {
		if got := (&Fleet{differences: expecting{Expectation: c.is}}).patience(c.offer, ""); got != c.want {
			t.Errorf("%s: waits %v, want %v", name, got, c.want)
		}
	}
}
