// Package python serves Azure ML scoring scripts: init() once in each of a pool of
// Python processes, run() for each request. Handler answers HTTP as Azure's
// reference server does.
//
// The processes are apart from this one, so that a script that hangs, leaks, dies
// or prints without end costs only the requests that it has. They speak the frames
// of frame.go over a socket pair; docs/adr/0123-scoring-scripts.md tells why.
package python

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Options say what a Pool runs. Durations and numbers that are 0 take the default.
type Options struct {
	Python   string // the interpreter
	Script   string // the scoring script, a path
	ModelDir string // AZUREML_MODEL_DIR
	// Predictor is a model that is served without a script; nil where Script is.
	Predictor *Source

	Workers     int           // processes; 1
	Queue       int           // requests that may wait for a worker besides; 128
	Deadline    time.Duration // for run(); a request waits for its turn at most as long besides; 1 min
	InitTimeout time.Duration // for importing the script and init(); 5 min
	// Memory is how many bytes of resident memory a worker may have. One that has
	// more is replaced after its request, and at once when it has twice as much. 0 is
	// no bound.
	Memory int64
	// Requests is after how many a worker is replaced; 0 is never.
	Requests int64

	Log *slog.Logger // takes what the scripts print, too
}

// The defaults.
const (
	DefaultWorkers     = 1
	DefaultQueue       = 128
	DefaultDeadline    = time.Minute
	DefaultInitTimeout = 5 * time.Minute
)

const (
	// memoryInterval is how often the workers' memory is looked at.
	memoryInterval = 250 * time.Millisecond
	// The pause before a worker is started again that failed repeatedly.
	firstPause, mostPause = 100 * time.Millisecond, 10 * time.Second
	// hopeless is how many starts in a row may fail while no worker is left.
	hopeless = 5
)

// what names to people what the workers run.
func (o *Options) what() string {
	if o.Predictor != nil {
		return "the model"
	}
	return "the script"
}

// Request is one request for the script.
type Request struct {
	ID      string
	Method  string
	Query   string // of the URL, without "?"
	Type    string // the Content-Type
	Headers func() [][2]string
	Body    []byte // not changed and not kept
}

// Answer is what a worker says of a request. Where Message is not "" the request
// was not one that the script can be given; where Failed is true the script
// failed.
type Answer struct {
	Status    int         `json:"status"`
	Headers   [][2]string `json:"headers"` // nil for JSON
	Took      float64     `json:"ms"`      // of run(), in milliseconds
	Message   string      `json:"message"`
	Field     string      `json:"field"` // which part of the request Message is about, where there is one
	Failed    bool        `json:"failed"`
	Raised    string      `json:"raised"`   // type of the exception that run() raised
	Returned  string      `json:"returned"` // type of what run() returned and is no JSON
	Error     string      `json:"error"`    // the exception in a line, for the log
	Traceback string      `json:"traceback"`
	Body      []byte      `json:"-"`
}

// Pool runs a script in worker processes, and replaces those that end.
type Pool struct {
	opts   Options
	starts chan start
	cancel context.CancelFunc
	group  sync.WaitGroup

	about *about // the same in each worker; set before Start returns, and not changed

	failed chan struct{} // closed when no worker can be started any more
	reason error         // why; to be read after failed

	mu       sync.Mutex
	closed   bool
	live     map[*worker]bool
	idle     []*worker      // the last was used last
	waiting  []chan *worker // requests, in the order of their coming
	failures int            // starts that failed in a row
}

// start asks the starting thread for a worker.
type start struct {
	name int
	done chan<- started
}

type started struct {
	worker *worker
	err    error
}

// errTooSlow says that a request took longer than it may.
var errTooSlow = errors.New("the deadline came")

// Start starts the workers and returns when init() has returned in each. Where a
// script fails before that the error is a *ScriptError. The caller closes the pool.
func Start(ctx context.Context, opts Options) (*Pool, error) {
	if opts.Workers <= 0 {
		opts.Workers = DefaultWorkers
	}
	if opts.Queue <= 0 {
		opts.Queue = DefaultQueue
	}
	if opts.Deadline <= 0 {
		opts.Deadline = DefaultDeadline
	}
	if opts.InitTimeout <= 0 {
		opts.InitTimeout = DefaultInitTimeout
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &Pool{opts: opts, starts: make(chan start), cancel: cancel, failed: make(chan struct{}), live: map[*worker]bool{}}
	p.group.Go(func() { p.startThread(running) })
	first := make(chan error, opts.Workers)
	for name := range opts.Workers {
		p.group.Go(func() { p.keep(running, name+1, first) })
	}
	for range opts.Workers {
		select {
		case err := <-first:
			if err != nil {
				p.Close()
				return nil, err
			}
		case <-ctx.Done():
			p.Close()
			return nil, ctx.Err()
		}
	}
	if opts.Memory > 0 {
		p.group.Go(func() { p.watchMemory(running) })
	}
	return p, nil
}

// startThread starts processes on one thread that lives as long as the pool: the
// kernel ends a process with the thread that started it (PR_SET_PDEATHSIG).
func (p *Pool) startThread(ctx context.Context) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	for {
		select {
		case s := <-p.starts:
			w, err := p.spawn(s.name)
			s.done <- started{w, err}
		case <-ctx.Done():
			// The thread may only end when no process depends on it.
			for _, w := range p.all() {
				<-w.ended
			}
			return
		}
	}
}

func (p *Pool) all() []*worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*worker, 0, len(p.live))
	for w := range p.live {
		all = append(all, w)
	}
	return all
}

// keep has one worker at a time until ctx ends. The outcome of the first start
// goes to first; where it is an error there is no second.
func (p *Pool) keep(ctx context.Context, name int, first chan<- error) {
	pause := time.Duration(0)
	for ctx.Err() == nil {
		begin := time.Now()
		w, err := p.bring(ctx, name)
		if first != nil {
			first <- err
			if err != nil {
				return
			}
			first = nil
		}
		switch {
		case ctx.Err() != nil && err != nil:
			return
		case err != nil:
			p.opts.Log.Error("a worker could not be started", "worker", name, "error", err)
			if p.giveUp(err) {
				return
			}
		default:
			p.opts.Log.Info("a worker is ready", "worker", name, "pid", w.cmd.Process.Pid, "took", time.Since(begin).Round(time.Millisecond))
			p.see(ctx, w)
			if w.answered.Load() > 0 {
				pause = 0
			}
		}
		if ctx.Err() == nil && !sleep(ctx, pause) {
			return
		}
		pause = min(max(2*pause, firstPause), mostPause)
	}
}

// see returns when the worker has ended.
func (p *Pool) see(ctx context.Context, w *worker) {
	select {
	case <-w.ended:
		if ctx.Err() == nil {
			p.opts.Log.Warn("a worker ended", "worker", w.name, "how", p.opts.what()+" "+w.how, "requests", w.answered.Load())
		}
	case <-ctx.Done():
		w.leave()
	}
	p.drop(w)
}

// bring starts a worker, has it call init(), and gives it to requests.
func (p *Pool) bring(ctx context.Context, name int) (*worker, error) {
	done := make(chan started, 1)
	select {
	case p.starts <- start{name, done}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s := <-done
	if s.err != nil {
		return nil, atelier.Errorf(atelier.Unavailable, "the interpreter %s cannot be started: %w", p.opts.Python, s.err).
			WithRemedy("Check that it is there and made for this machine.")
	}
	w := s.worker
	p.mu.Lock()
	p.live[w] = true
	p.mu.Unlock()
	if err := w.initialise(ctx, p); err != nil {
		w.end("was not needed any more", syscall.SIGKILL)
		p.drop(w)
		return nil, err
	}
	p.mu.Lock()
	if p.about == nil {
		p.about = &w.about
	}
	p.failures = 0
	p.mu.Unlock()
	w.ready.Store(true)
	p.release(w)
	return w, nil
}

// drop forgets a worker that has ended.
func (p *Pool) drop(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.live, w)
	p.idle = slices.DeleteFunc(p.idle, func(i *worker) bool { return i == w })
}

// giveUp counts a start that failed, and reports whether there is no use in more.
func (p *Pool) giveUp(err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures++
	if p.failures < hopeless || len(p.live) > 0 {
		return false
	}
	if p.reason == nil {
		p.reason = err
		close(p.failed)
	}
	return true
}

// Failed is closed when no worker is left and none can be started; Reason then
// says why.
func (p *Pool) Failed() <-chan struct{} { return p.failed }

// Reason returns why the pool failed. It may be called once Failed is closed.
func (p *Pool) Reason() error { return p.reason }

// Do has a worker answer r. Errors are *DiedError where the script ended over it,
// or carry one of the codes Exhausted (too many wait), Timeout (the deadline came,
// or ctx ended before a worker was free) and Unavailable (there is no worker). A
// request that has begun goes on when ctx ends: to end it would take the script's
// state with it.
func (p *Pool) Do(ctx context.Context, r *Request) (*Answer, error) {
	patience := time.Now().Add(p.opts.Deadline)
	for {
		w, err := p.acquire(ctx, patience)
		if err != nil {
			return nil, err
		}
		a, err := w.exchange(r, time.Now().Add(p.opts.Deadline))
		switch {
		case errors.Is(err, errNotTaken):
			continue
		case errors.Is(err, errTooSlow):
			return nil, atelier.Errorf(atelier.Timeout, "%s did not answer within %v, and was ended", p.opts.what(), p.opts.Deadline).
				WithRemedy("Send less at a time, or raise the deadline; the log tells where it was.")
		}
		if !w.gone() {
			p.finish(w)
		}
		var died *DiedError
		if errors.As(err, &died) {
			died.Model = p.opts.Predictor != nil
		}
		return a, err
	}
}

// finish gives w to the next request, or has it replaced.
func (p *Pool) finish(w *worker) {
	if w.heavy.Load() || p.opts.Requests > 0 && w.answered.Load() >= p.opts.Requests {
		p.group.Go(w.leave) // Close waits for it; the pool is not closed while a request is in progress
		return
	}
	p.release(w)
}

// acquire returns a worker that nobody else has.
func (p *Pool) acquire(ctx context.Context, deadline time.Time) (*worker, error) {
	p.mu.Lock()
	if p.closed || p.reason != nil {
		p.mu.Unlock()
		return nil, atelier.Errorf(atelier.Unavailable, "%s takes no more requests: the server ends", p.opts.what()).WithRemedy("Try again in a moment.")
	}
	if n := len(p.idle); n > 0 {
		w := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return w, nil
	}
	if len(p.waiting) >= p.opts.Queue {
		p.mu.Unlock()
		return nil, atelier.Errorf(atelier.Exhausted, "%d requests wait for %s already", p.opts.Queue, p.opts.what()).
			WithRemedy("Send fewer requests at a time, or try again in a moment.")
	}
	turn := make(chan *worker, 1)
	p.waiting = append(p.waiting, turn)
	p.mu.Unlock()

	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	var err error
	select {
	case w := <-turn:
		return w, nil
	case <-p.failed:
		err = atelier.Errorf(atelier.Unavailable, "%s cannot be started any more", p.opts.what()).WithRemedy("'atelier why' tells the reason.")
	case <-timer.C:
		err = p.late()
	case <-ctx.Done():
		err = atelier.Errorf(atelier.Timeout, "the request was given up before its turn came: %w", ctx.Err())
	}
	p.mu.Lock()
	if i := slices.Index(p.waiting, turn); i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
		p.mu.Unlock()
		return nil, err
	}
	p.mu.Unlock()
	p.release(<-turn) // it came all the same
	return nil, err
}

// late says why a request's turn did not come in time.
func (p *Pool) late() error {
	if !slices.ContainsFunc(p.all(), func(w *worker) bool { return w.ready.Load() }) {
		return atelier.Errorf(atelier.Unavailable, "%s is being started again, for %v at least", p.opts.what(), p.opts.Deadline).
			WithRemedy("Try again in a moment; the log tells how it ended.")
	}
	return atelier.Errorf(atelier.Timeout, "%s was busy with other requests for %v", p.opts.what(), p.opts.Deadline).
		WithRemedy("Send fewer requests at a time, or give the module more workers.")
}

// release gives w to whoever waits longest.
func (p *Pool) release(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.gone() || p.closed {
		return
	}
	if len(p.waiting) > 0 {
		p.waiting[0] <- w // it has room for this one
		p.waiting = p.waiting[1:]
		return
	}
	p.idle = append(p.idle, w)
}

// watchMemory replaces workers that have more memory than they may.
func (p *Pool) watchMemory(ctx context.Context) {
	for sleep(ctx, memoryInterval) {
		for _, w := range p.all() {
			has := resident(w.cmd.Process.Pid)
			if has <= p.opts.Memory {
				continue
			}
			if !w.heavy.Swap(true) {
				p.opts.Log.Warn("a worker has more memory than it may, and is replaced", "worker", w.name,
					"has", atelier.FormatBytes(has), "limit", atelier.FormatBytes(p.opts.Memory))
			}
			switch {
			case has > 2*p.opts.Memory:
				w.end(fmt.Sprintf("was ended at %s of memory, twice its limit of %s,", atelier.FormatBytes(has), atelier.FormatBytes(p.opts.Memory)), syscall.SIGKILL)
			case p.take(w):
				w.leave()
			}
		}
	}
}

// take takes w from the idle workers, where it is one.
func (p *Pool) take(w *worker) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.idle, w)
	if i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
	}
	return i >= 0
}

// Close ends the workers. No Do may be in progress or follow.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.group.Wait()
}

// sleep waits, or returns false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
