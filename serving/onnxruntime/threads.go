package onnxruntime

import (
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	atelier "github.com/atelier-edge/atelier"
)

// An inference that is little work keeps to one thread: to wake another for its
// share takes longer than the share, and requests that come together run beside
// each other anyway. What is measured is the processor time of the thread that
// calls, which others that run beside it do not lengthen.
const (
	quick     = time.Millisecond       // less keeps to one thread
	slow      = 4 * quick              // more is shared again, and stays so
	unnoticed = 500 * time.Millisecond // of processor time, for loading the model anew
)

// An inference is judged by a few in a row: the first of a session is always slow,
// and inputs may differ in size.
const (
	quickInARow = 2
	slowInARow  = 8
	oneOf       = 16 // inferences is measured, once the first have been
)

// crew finds out how many threads suit a model. It is used where Options leave that open.
type crew struct {
	mu       sync.Mutex
	calls    int  // of this session
	inARow   int  // that speak for a change
	alone    bool // one thread does the work
	done     bool // no change comes any more
	changing sync.WaitGroup
}

// newCrew returns the crew of a model that took so much processor time to load, nil
// where no change will come. How long it took besides says how busy the machine is.
func newCrew(provider string, options Options, loading time.Duration) *crew {
	if provider != atelier.ProviderCPU || options.Threads != 0 || options.Processors == 1 || runtime.NumCPU() == 1 || loading > unnoticed {
		return nil
	}
	return &crew{}
}

// measures reports whether the inference that begins is to be measured.
func (c *crew) measures() bool {
	if c == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	return !c.done && c.calls > 1 && (c.calls <= oneOf || c.calls%oneOf == 0)
}

// note takes how much work an inference was and reports whether the session is to
// be made anew with as many threads. Whoever is told so calls changed.
func (c *crew) note(work time.Duration) (threads int, change bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	need := quickInARow
	speaks := work < quick
	if c.alone {
		need, speaks = slowInARow, work > slow
	}
	if c.inARow++; !speaks {
		c.inARow = 0
	}
	if c.done || c.inARow < need {
		return 0, false
	}
	c.changing.Add(1)
	c.done = true // until changed says otherwise
	if c.alone {
		return 0, true
	}
	return 1, true
}

// changed notes that the session has so many threads now.
func (c *crew) changed(threads int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls, c.inARow, c.alone = 0, 0, err == nil && threads == 1
	c.done = !c.alone
	c.changing.Done()
}

// threadWork calls f and returns the processor time that the calling thread took for it.
func threadWork(f func()) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadTime()
	f()
	return threadTime() - before
}

// threadTime is the processor time that the calling thread has taken.
func threadTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) // the clock exists on every Linux
	return time.Duration(t.Nano())
}

// measured calls infer and sees to it that the model has the threads that suit it.
func (m *Model) measured(infer func() error) {
	var err error
	work := threadWork(func() { err = infer() })
	if err != nil {
		return // its time tells nothing
	}
	threads, change := m.crew.note(work)
	if !change {
		return
	}
	go func() { // Close and Settle wait for it
		options := m.options
		options.Threads = threads
		session, err := m.lib.session(m.path, m.provider, options)
		if err == nil {
			m.exchange(session)
		}
		m.crew.changed(threads, err) // where it failed, all goes on as it was
	}()
}

// exchange puts another session of the same model in the place of the one in use,
// when no inference runs.
func (m *Model) exchange(session handle) {
	m.mu.Lock()
	if !m.closed {
		session, m.session = m.session, session
	}
	m.mu.Unlock()
	m.lib.release(fnReleaseSession, session)
}

// Settle waits until the model has the threads that its inferences so far call for,
// and returns how many; 0 is one for each processor.
func (m *Model) Settle() int {
	if m.crew == nil {
		return m.options.Threads
	}
	m.crew.changing.Wait()
	m.crew.mu.Lock()
	defer m.crew.mu.Unlock()
	if m.crew.alone {
		return 1
	}
	return 0
}
