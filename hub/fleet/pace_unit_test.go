package fleet

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

// A downloader asks for one frame after the other, as a transfer of the sender does:
// when it was told to wait, it waits so long; when it was let, its link takes a time.
type downloader struct {
	peer  *peer
	frame int
	link  float64 // bytes a second
	next  time.Time
	until time.Time // it wants nothing after that
	sent  int64
}

type queue []*downloader

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].next.Before(q[j].next) }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(*downloader)) }
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// simulate lets downloaders work until the end, and calls sent for each frame.
func simulate(p *pacer, workspace *atelier.TransferPolicy, all []*downloader, end time.Time, sent func(d *downloader, bytes int, at time.Time)) {
	q := queue{}
	for _, d := range all {
		heap.Push(&q, d)
	}
	for q.Len() > 0 {
		d := heap.Pop(&q).(*downloader)
		now := d.next
		if !now.Before(end) || !now.Before(d.until) {
			continue
		}
		if wait := p.take(d.peer, workspace, d.frame, now); wait > 0 {
			d.next = now.Add(wait)
		} else {
			d.sent += int64(d.frame)
			sent(d, d.frame, now)
			d.next = now.Add(seconds(float64(d.frame) / d.link))
		}
		heap.Push(&q, d)
	}
}

// level checks that over any span no more is sent than a rate times the span and one
// burst: a bucket that leaks at the rate and never holds more than the burst.
type level struct {
	rate, held float64
	at         time.Time
}

func (l *level) add(bytes int, at time.Time) error {
	l.held = max(0, l.held-l.rate*at.Sub(l.at).Seconds()) + float64(bytes)
	l.at = at
	if most := burst(l.rate); l.held > most+1 {
		return fmt.Errorf("%.0f bytes above the rate of %.0f, a burst is %.0f", l.held, l.rate, most)
	}
	return nil
}

var midnight = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// TestBudgetsHold: whatever devices want, over any span neither a device nor a
// workspace gets more than its budget and one burst.
func TestBudgetsHold(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		random := rand.New(rand.NewPCG(seed, 1))
		rate := func(most float64) int64 { return int64(1000 + random.Float64()*random.Float64()*most) }
		workspace := &atelier.TransferPolicy{Bandwidth: rate(50e6)}
		end := midnight.Add(2 * time.Minute)
		levels := map[string]*level{"": {rate: float64(workspace.Bandwidth)}}
		var all []*downloader
		for i := range 1 + random.IntN(20) {
			p := &peer{device: fmt.Sprint("d", i), workspace: "w"}
			if random.IntN(2) == 0 {
				p.transfer = &atelier.TransferPolicy{Bandwidth: rate(5e6)}
				levels[p.device] = &level{rate: float64(p.transfer.Bandwidth)}
			}
			for range 1 + random.IntN(3) { // transfers at once
				begin := midnight.Add(time.Duration(random.Int64N(int64(time.Minute))))
				all = append(all, &downloader{
					peer: p, frame: 1 + random.IntN(wire.MaxPacket), link: float64(rate(100e6)), next: begin,
					until: begin.Add(time.Duration(random.Int64N(int64(2 * time.Minute)))),
				})
			}
		}
		var p pacer
		simulate(&p, workspace, all, end, func(d *downloader, bytes int, at time.Time) {
			for _, name := range []string{"", d.peer.device} {
				if l := levels[name]; l != nil {
					if err := l.add(bytes, at); err != nil {
						t.Fatalf("seed %d, %q at %s: %v", seed, name, at.Sub(midnight), err)
					}
				}
			}
		})
	}
}

// TestBudgetIsSharedAndUsed: devices that all want get the same, those that want or
// may less leave the rest to the others, and nothing of the budget is left over.
func TestBudgetIsSharedAndUsed(t *testing.T) {
	t.Parallel()
	const frame = wire.MaxPacket - 100
	end := midnight.Add(5 * time.Minute)
	one := func(name string, link float64, own int64, transfers int) []*downloader {
		p := &peer{device: name, workspace: "w"}
		if own > 0 {
			p.transfer = &atelier.TransferPolicy{Bandwidth: own}
		}
		var all []*downloader
		for range transfers {
			all = append(all, &downloader{peer: p, frame: frame, link: link, next: midnight, until: end})
		}
		return all
	}
	many := func(n int, link float64) (all []*downloader) {
		for i := range n {
			all = append(all, one(fmt.Sprint("m", i), link, 0, 1+i%3)...)
		}
		return all
	}
	for name, c := range map[string]struct {
		rate int64
		all  []*downloader
		want map[string]float64 // bytes a second; the others share the rest
	}{
		"one alone":              {10e6, one("a", 1e9, 0, 1), nil},
		"all want all":           {10e6, many(20, 1e9), nil},
		"more than a frame each": {1e6, many(200, 1e8), nil},
		"one has a slow link":    {10e6, append(one("slow", 2e5, 0, 1), many(4, 1e9)...), map[string]float64{"slow": 2e5}},
		"one may little":         {10e6, append(one("little", 1e9, 1e5, 2), many(4, 1e9)...), map[string]float64{"little": 1e5}},
	} {
		var p pacer
		simulate(&p, &atelier.TransferPolicy{Bandwidth: c.rate}, c.all, end, func(*downloader, int, time.Time) {})
		got, rest, others, sum := map[string]float64{}, float64(c.rate), 0.0, 0.0
		for _, d := range c.all {
			got[d.peer.device] += float64(d.sent) / end.Sub(midnight).Seconds()
		}
		for _, rate := range c.want {
			rest -= rate
		}
		for device, rate := range got {
			if sum += rate; c.want[device] == 0 {
				others++
			} else if rate < 0.9*c.want[device] || rate > 1.1*c.want[device] {
				t.Errorf("%s: %s got %.0f bytes a second, expected were %.0f", name, device, rate, c.want[device])
			}
		}
		slack := 2 * float64(frame) / end.Sub(midnight).Seconds()
		for device, rate := range got {
			if want := rest / others; c.want[device] == 0 && (rate < 0.9*want-slack || rate > 1.1*want+slack) {
				t.Errorf("%s: %s got %.0f bytes a second, its share is %.0f", name, device, rate, want)
			}
		}
		if sum < 0.97*float64(c.rate) {
			t.Errorf("%s: %.0f bytes a second were sent, the budget is %d", name, sum, c.rate)
		}
	}
}

// TestWindows: nothing is sent outside of a device's and its workspace's windows, and
// it goes on by itself when both are open.
func TestWindows(t *testing.T) {
	t.Parallel()
	policy := func(s string) *atelier.TransferPolicy {
		w, err := atelier.ParseWindow(s)
		if err != nil {
			t.Fatal(err)
		}
		return &atelier.TransferPolicy{Window: &w}
	}
	device, workspace := policy("01:00-04:00"), policy("03:00-05:00")
	d := &downloader{peer: &peer{device: "d", workspace: "w", transfer: device}, frame: 1000, link: 100, next: midnight, until: midnight.Add(48 * time.Hour)}
	var p pacer
	var first time.Time
	simulate(&p, workspace, []*downloader{d}, d.until, func(_ *downloader, _ int, at time.Time) {
		if first.IsZero() {
			first = at
		}
		if at.Hour() != 3 {
			t.Fatalf("a frame was sent at %s", at)
		}
	})
	if late := first.Sub(midnight.Add(3 * time.Hour)); late < 0 || late > look {
		t.Errorf("the first frame was sent at %s", first)
	}
	if hours := float64(d.sent) / 100 / 3600; hours < 1.9 || hours > 2.1 {
		t.Errorf("%d bytes were sent in two days, of two hours", d.sent)
	}

	who := &atelier.Device{Meta: atelier.Meta{Name: "press"}, Transfer: device}
	for at, want := range map[time.Duration]string{
		0:             "Content may be transferred to device press from 01:00-04:00 UTC; that opens in 3 h, at 2026-03-01 03:00:00 UTC.",
		2 * time.Hour: "Content may be transferred to the workspace from 03:00-05:00 UTC; that opens in 1 h, at 2026-03-01 03:00:00 UTC.",
		3 * time.Hour: "",
	} {
		got := ""
		if why := windowWhy(who, workspace, midnight.Add(at)); why != nil {
			got = why.Message()
			if why.Reason() != atelier.ReasonWindowClosed || why.Remedy() == "" {
				t.Errorf("after %s it is %s, remedy %q", at, why.Reason(), why.Remedy())
			}
		}
		if got != want {
			t.Errorf("after %s: %q, expected was %q", at, got, want)
		}
	}
	who.Transfer = policy("06:00-07:00")
	if why := windowWhy(who, workspace, midnight); why == nil || why.Message() != "Content may be transferred to device press from 06:00-07:00 UTC and within its workspace from 03:00-05:00 UTC: these never meet." {
		t.Errorf("got %v", why)
	}
}

// TestBudgetTakenAway: a budget that is taken away, or made anew, binds nothing that
// was sent before.
func TestBudgetTakenAway(t *testing.T) {
	t.Parallel()
	var p pacer
	d := &peer{device: "d", workspace: "w", transfer: &atelier.TransferPolicy{Bandwidth: 1000}}
	now := midnight
	for p.take(d, nil, 1000, now) == 0 {
	}
	d.transfer = nil
	for range 1000 {
		if wait := p.take(d, nil, wire.MaxPacket, now); wait > 0 {
			t.Fatalf("without a budget it waits for %s", wait)
		}
	}
	if len(p.devices)+len(p.workspaces) > 0 {
		t.Errorf("something is kept of %v, %v", p.devices, p.workspaces)
	}
}
