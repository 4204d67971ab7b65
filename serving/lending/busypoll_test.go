package lending

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

// One polls at a time, only while no request is in progress, and nobody after
// a disturbance, longer each time until polls are left in peace.
func TestPollerTerms(t *testing.T) {
	t.Parallel()
	p, now := &poller{limit: DefaultBusyPoll}, time.Unix(1_000_000, 0)
	if !p.begin(now) || p.begin(now) {
		t.Fatal("not one polls, or two do")
	}
	p.end(now, false)
	a, b := &lent{}, &lent{}
	p.enter(a)
	if p.begin(now) {
		t.Fatal("it polls beside a request")
	}
	p.leave()
	for i, l := range []*lent{a, b, b, a} {
		l.habit.brisk = minBrisk
		p.enter(l)
		p.leave()
		if alone := i%2 == 0; (l.habit.brisk > 0) != alone {
			t.Errorf("request %d: %d brisk pauses, want some only where no other connection asked between", i, l.habit.brisk)
		}
	}
	last := time.Duration(0)
	for range 20 {
		if !p.begin(now) {
			t.Fatal("it does not poll after its rest")
		}
		p.end(now, true)
		rest := time.Unix(0, p.until.Load()).Sub(now)
		if rest < minRest || rest > maxRest || rest < last || p.begin(now.Add(rest-1)) {
			t.Fatalf("it rests for %v after %v", rest, last)
		}
		now, last = now.Add(rest), rest
	}
	if last != maxRest {
		t.Errorf("it rests for %v in the end, want %v", last, maxRest)
	}
	for range 400 {
		if !p.begin(now) {
			t.Fatal("it does not poll where nobody is disturbed")
		}
		p.end(now, false)
	}
	p.begin(now)
	if p.end(now, true); time.Duration(p.rest.Load()) != minRest {
		t.Errorf("after long peace it rests for %v, want %v", time.Duration(p.rest.Load()), minRest)
	}
}

// A client counts as brisk by its pauses, and polling is paid for by work.
func TestHabit(t *testing.T) {
	t.Parallel()
	h, now := habit{}, time.Unix(1_000_000, 0)
	const work = 50 * time.Microsecond
	ask := func(pause time.Duration) {
		began := now.Add(pause)
		h.asked(began, DefaultBusyPoll)
		now = began.Add(work)
		h.worked(began, now)
	}
	for range 3 {
		ask(DefaultBusyPoll)
	}
	if h.brisk != 2 || h.credit != 3*work { // nothing is known of the first pause
		t.Errorf("after three quick requests: %+v", h)
	}
	if ask(time.Millisecond); h.brisk != 0 || h.credit != 4*work {
		t.Errorf("after a pause: %+v", h)
	}
	for range 1000 {
		ask(0)
	}
	if h.credit != maxCredit {
		t.Errorf("%v of work are saved up for polling, want %v", h.credit, maxCredit)
	}
}

// busyPoll ends when a request is there, when its time is over and when the
// connection is recalled, and takes no byte.
func TestBusyPoll(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := &Borrower{poller: poller{limit: DefaultBusyPoll}}
	c := &channel{b: b, page: &page{layout: new(layout)}, terms: Terms{Rollout: "r"}}
	l, err := newLent(c, &frame{}, conn)
	if err != nil {
		t.Fatal(err)
	}
	poll := func() (took time.Duration) {
		l.habit = habit{answered: time.Now(), brisk: 2 * minBrisk, need: 2 * minBrisk, credit: maxCredit}
		b.poller.until.Store(0)
		l.busyPoll()
		return maxCredit - l.habit.credit
	}
	for range 20 {
		took := poll()
		if l.habit.need == 2*minBrisk { // another thread came between
			continue
		}
		if l.habit.need != 4*minBrisk || l.habit.brisk != 0 || took < DefaultBusyPoll {
			t.Fatalf("after %v of polling in vain, of %v: %+v", took, DefaultBusyPoll, l.habit)
		}
	}
	b.poller.busy.Add(1)
	if took := poll(); took != 0 {
		t.Errorf("it polled for %v beside a request", took)
	}
	b.poller.busy.Add(-1)
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if poll(); l.habit.need != minBrisk {
		t.Error("it did not find the request that was there")
	}
	l.slot.recalled.Store(1)
	if poll(); l.habit.need == minBrisk {
		t.Error("it looked at a connection that is recalled")
	}
	one := make([]byte, 2)
	if n, err := conn.Read(one); n != 1 || err != nil {
		t.Errorf("%d bytes are left of the one that came: %v", n, err)
	}
}
