package fleet

import (
	"context"
	"fmt"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/wire"
)

const (
	// look is the longest pause before a transfer that has to wait asks again, so
	// that a policy that is changed takes effect soon.
	look = 5 * time.Second
	// burstTime is how much of a budget that was not used may be used later.
	burstTime = time.Second
	// lingers is for how long a device counts among those that share their workspace's
	// budget after it asked last; those that wait for their share ask twice as often.
	lingers = 2 * time.Second
	// recount is how often those are counted.
	recount = 250 * time.Millisecond
)

// pacer keeps the transfer of content within what devices and workspaces allow.
type pacer struct {
	mu         sync.Mutex
	policies   map[string]*atelier.TransferPolicy // of workspaces, as far as they are known
	changes    uint64                             // of policies
	devices    map[string]*budget
	workspaces map[string]*shared
}

// pace implements transfer.SenderOptions.Pace.
func (f *Fleet) pace(device string, bytes int) time.Duration {
	p, err := f.peer(context.Background(), device)
	if err != nil {
		return look
	}
	ofWorkspace, err := f.workspacePolicy(p.workspace)
	if err != nil {
		return look
	}
	return f.pacer.take(p, ofWorkspace, bytes, f.clock.Now())
}

// workspacePolicy returns the policy of a workspace, which it remembers until the
// workspace changes.
func (f *Fleet) workspacePolicy(workspace string) (*atelier.TransferPolicy, error) {
	p := &f.pacer
	p.mu.Lock()
	policy, known := p.policies[workspace]
	since := p.changes
	p.mu.Unlock()
	if known {
		return policy, nil
	}
	err := f.store.View(context.Background(), func(tx store.Tx) error {
		w, err := catalog.Workspaces.Get(tx, "", workspace)
		policy = w.Transfer
		return err
	})
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changes == since {
		if p.policies == nil {
			p.policies = map[string]*atelier.TransferPolicy{}
		}
		p.policies[workspace] = policy
	}
	return policy, nil
}

// forget drops what is known of a workspace's policy.
func (p *pacer) forget(workspace string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.policies, workspace)
	p.changes++
}

// take takes bytes off the budgets of a device and its workspace and returns 0, or
// takes nothing and returns how long to wait.
func (p *pacer) take(d *peer, ofWorkspace *atelier.TransferPolicy, bytes int, now time.Time) time.Duration {
	if opens := opening(now, d.transfer, ofWorkspace); opens.After(now) {
		return min(opens.Sub(now), look)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	own := p.own(d.device, d.transfer.Limit(), now)
	if wait := own.wait(bytes); wait > 0 {
		return min(wait, look)
	}
	if rate := ofWorkspace.Limit(); rate > 0 {
		if p.workspaces == nil {
			p.workspaces = map[string]*shared{}
		}
		all := p.workspaces[d.workspace]
		if all == nil {
			all = &shared{shares: map[string]*share{}}
			p.workspaces[d.workspace] = all
		}
		if wait := all.take(d.device, rate, bytes, now); wait > 0 {
			return min(wait, look)
		}
	} else {
		delete(p.workspaces, d.workspace)
	}
	own.spend(bytes)
	return 0
}

// own returns the device's own budget, nil where it has none.
func (p *pacer) own(device string, rate int64, now time.Time) *budget {
	if rate == 0 {
		delete(p.devices, device)
		return nil
	}
	if p.devices == nil {
		p.devices = map[string]*budget{}
	}
	b := p.devices[device]
	if b == nil {
		b = &budget{}
		p.devices[device] = b
	}
	b.fill(rate, now)
	return b
}

// opening returns when all policies next allow a transfer, as far as a week goes; now
// where they do.
func opening(now time.Time, policies ...*atelier.TransferPolicy) time.Time {
	t := now
	for t.Sub(now) < 7*24*time.Hour {
		next := t
		for _, p := range policies {
			next = p.Opens(next)
		}
		if next.Equal(t) {
			break
		}
		t = next
	}
	return t
}

// budget is a token bucket: what was not used of it in the last burstTime may be
// used at once. A nil budget has no end.
type budget struct {
	rate, tokens float64
	filled       time.Time
}

// burst is the most that may be sent at once; a frame must fit.
func burst(rate float64) float64 { return max(rate*burstTime.Seconds(), wire.MaxPacket) }

// fill adds what time brought. A budget begins full.
func (b *budget) fill(rate int64, now time.Time) {
	b.rate = float64(rate)
	if b.filled.IsZero() {
		b.tokens = burst(b.rate)
	} else {
		b.tokens = min(burst(b.rate), b.tokens+b.rate*max(now.Sub(b.filled), 0).Seconds())
	}
	b.filled = now
}

// wait returns how long it takes until the budget has so many bytes.
func (b *budget) wait(bytes int) time.Duration {
	if b == nil || b.tokens >= float64(bytes) {
		return 0
	}
	return max(seconds((float64(bytes)-b.tokens)/b.rate), time.Millisecond)
}

func (b *budget) spend(bytes int) {
	if b != nil {
		b.tokens -= float64(bytes)
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// shared is a budget that several devices share evenly. The level, in bytes, rises for
// all of them as time goes by, each by its part of the rate, and faster when some
// leave of their part: when more than half of the burst is unused. A device may send
// until it has used what the level says.
type shared struct {
	budget
	level   float64
	shares  map[string]*share // by device: those that asked lately
	counted time.Time
}

// share is how far one device is. It may go beyond the level by one frame, and stay
// behind it by its part of the burst.
type share struct {
	used  float64
	asked time.Time
}

// take takes bytes for a device and returns 0, or returns how long to wait.
func (s *shared) take(device string, rate int64, bytes int, now time.Time) time.Duration {
	before := s.filled
	s.fill(rate, now)
	d := s.shares[device]
	if d == nil {
		d = &share{used: s.level}
		s.shares[device] = d
	}
	d.asked = now
	s.count(now)
	devices, most := float64(len(s.shares)), burst(s.rate)
	if !before.IsZero() {
		s.level += s.rate / devices * max(now.Sub(before), 0).Seconds()
	}
	d.used = max(d.used, s.level-most/devices)
	if wait := s.wait(bytes); wait > 0 {
		return min(wait, lingers/2)
	}
	if unused := s.tokens - most/2; d.used > s.level && unused > 0 {
		s.level += min(d.used-s.level, unused/devices)
	}
	if d.used > s.level {
		return min(max(seconds((d.used-s.level)/(s.rate/devices)), time.Millisecond), lingers/2)
	}
	s.spend(bytes)
	d.used += float64(bytes)
	return 0
}

// count forgets the devices that no longer ask.
func (s *shared) count(now time.Time) {
	if now.Sub(s.counted) < recount {
		return
	}
	s.counted = now
	for device, d := range s.shares {
		if now.Sub(d.asked) > lingers {
			delete(s.shares, device)
		}
	}
}

// windowWhy says that content may not be transferred to a device now, nil where it
// may.
func windowWhy(d *atelier.Device, ofWorkspace *atelier.TransferPolicy, now time.Time) *atelier.Why {
	opens := opening(now, d.Transfer, ofWorkspace)
	if !opens.After(now) {
		return nil
	}
	whose, w := "device "+d.Name, d.Transfer
	if !d.Transfer.Opens(now).After(now) {
		whose, w = "the workspace", ofWorkspace
	}
	text := fmt.Sprintf("Content may be transferred to %s from %s; that opens in %s, at %s.", whose, w.Window, ago(opens, now), stamp(opens))
	if opens.Sub(now) >= 7*24*time.Hour {
		text = fmt.Sprintf("Content may be transferred to %s from %s and within its workspace from %s: these never meet.", whose, d.Transfer.Window, ofWorkspace.Window)
	}
	why := atelier.Because(atelier.ReasonWindowClosed, text)
	return &why
}
