package report

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// bench is a reporter with a hub that answers when the test says so.
type bench struct {
	*Reporter
	sent   chan atelier.ReportedState
	silent atomic.Int64
	agent  atomic.Value // what the picture shows
}

func start(t *testing.T) *bench {
	t.Helper()
	b := &bench{sent: make(chan atelier.ReportedState, 1000)}
	b.agent.Store("first")
	b.Reporter = New(Options{
		Snapshot: func() atelier.ReportedState { return atelier.ReportedState{Agent: b.agent.Load().(string)} },
		Send:     func(_ context.Context, r atelier.ReportedState) error { b.sent <- r; return nil },
		Silent:   func() { b.silent.Add(1) },
		Times:    DefaultTimes,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { b.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return b
}

func TestReportsAtMostOnceASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.Begin("s")
		began := time.Now()
		for time.Since(began) < 10*time.Second {
			b.Changed()
			time.Sleep(10 * time.Millisecond)
			if n := len(b.sent); n > 0 {
				r := <-b.sent
				b.Acked(r.Session, r.Sequence)
			}
		}
		synctest.Wait()
		b.mu.Lock()
		n := b.sequence
		b.mu.Unlock()
		if n < 9 || n > 11 {
			t.Errorf("%d reports in 10 s", n)
		}
	})
}

// How far something is alone is told less often, and holds nothing else up.
func TestProgressIsToldLessOften(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.Begin("s")
		reports := func(d time.Duration) (n int) {
			for began := time.Now(); time.Since(began) < d; time.Sleep(10 * time.Millisecond) {
				b.Progressed()
				synctest.Wait()
				for len(b.sent) > 0 {
					r := <-b.sent
					b.Acked(r.Session, r.Sequence)
					n++
				}
			}
			return n
		}
		// At the beginning, then after 5, 10, 20, 30 and 30 s.
		if n := reports(100 * time.Second); n != 6 {
			t.Errorf("%d reports in 100 s, expected were 6", n)
		}
		b.Changed()
		if n := reports(500 * time.Millisecond); n != 1 {
			t.Errorf("%d reports in the moment after a change, expected was one", n)
		}
		if n := reports(6 * time.Second); n != 1 {
			t.Errorf("%d reports of progress in the 6 s after that, expected was one", n)
		}
	})
}

func TestRepeatsUntilAcknowledgedWithTheNewestPicture(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.Begin("s")
		first := <-b.sent
		b.agent.Store("second") // nobody said that it changed
		second := <-b.sent
		if second.Sequence <= first.Sequence || second.Agent != "second" || second.Session != "s" {
			t.Errorf("the repetition is %+v", second)
		}
		b.Acked("other", second.Sequence)
		third := <-b.sent
		b.Acked("s", third.Sequence)
		synctest.Wait()
		time.Sleep(5 * time.Minute)
		if len(b.sent) != 0 {
			t.Error("an acknowledged report is repeated")
		}
		time.Sleep(10 * time.Minute)
		if len(b.sent) == 0 {
			t.Error("no picture is made from time to time")
		}
	})
}

func TestTellsOfASilentHub(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.Begin("s")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if b.silent.Load() == 0 {
			t.Error("a silent hub was not noticed")
		}
		if n := len(b.sent); n > 25 {
			t.Errorf("%d repetitions in 10 minutes", n)
		}
	})
}

func TestNothingWithoutASession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.Changed()
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(b.sent) != 0 {
			t.Error("a report without a session")
		}
		b.Begin("a")
		r := <-b.sent
		b.Acked("a", r.Sequence)
		b.End()
		b.Changed()
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(b.sent) != 0 {
			t.Error("a report after the session")
		}
		b.Begin("b")
		if r := <-b.sent; r.Session != "b" {
			t.Errorf("the session is %q", r.Session)
		}
	})
}
