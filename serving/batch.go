package serving

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// RowEngine is an Engine that runs the rows of several requests at once without
// anybody putting them together in memory first.
type RowEngine interface {
	Engine
	// InferRows is Infer for the rows of several requests: parts hold what Infer
	// takes of each. The first dimension of every tensor counts rows, the others are
	// alike in all parts. The result holds the rows of the parts one after the other.
	InferRows(ctx context.Context, parts [][]Tensor, outputs []int) ([]Tensor, error)
}

// Batching says how requests are run together. The zero value runs each alone.
type Batching struct {
	// MaxRows is how many rows run together at most. A request with more runs alone.
	MaxRows int
	// MaxDelay is how long a request may wait for others while it could run. Without
	// it none waits: what comes while the model is busy is run together when it is free.
	MaxDelay time.Duration
}

// call is one request of a model that batches.
type call struct {
	ctx     context.Context
	inputs  []Tensor
	outputs []int
	rows    int64 // 0 where it has to run alone
	came    time.Time
	done    chan struct{} // closed when results and err are set
	results []Tensor
	err     error
}

// batcher puts requests together. A request that comes while the model is free runs
// in its own goroutine; what comes meanwhile waits, and is run by a goroutine that
// ends when nobody waits any more.
type batcher struct {
	engine RowEngine
	model  string // its name, for messages
	Batching
	off  atomic.Bool  // the model has shown that its rows cannot be told apart
	note func(string) // tells people why batching ended; may be nil

	mu      sync.Mutex
	waiting []*call // in the order in which they came
	running int     // runs in progress, or about to begin
	most    int     // how many there may be at a time
	changed chan struct{}
	runners sync.WaitGroup
}

// infer runs the model on one request, perhaps together with others.
func (b *batcher) infer(ctx context.Context, inputs []Tensor, outputs []int) ([]Tensor, error) {
	c := &call{ctx: ctx, inputs: inputs, outputs: outputs, came: time.Now()}
	if !b.off.Load() {
		c.rows = b.rowsOf(inputs)
	}
	b.mu.Lock()
	if b.running < b.most && len(b.waiting) == 0 && (b.MaxDelay == 0 || c.rows == 0) {
		b.running++
		b.mu.Unlock()
		defer b.next()
		return b.engine.Infer(ctx, inputs, outputs)
	}
	if len(b.waiting) >= maxWaiting {
		b.mu.Unlock()
		return nil, tooMany(b.model)
	}
	c.done = make(chan struct{})
	b.waiting = append(b.waiting, c)
	if b.running < b.most {
		b.running++
		b.start()
	}
	b.mu.Unlock()
	select {
	case b.changed <- struct{}{}: // to whoever waits for more
	default:
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		if b.leave(c) {
			return nil, gaveUp(ctx)
		}
		<-c.done // it is in a run, which reads its inputs
	}
	return c.results, c.err
}

// rowsOf returns how many rows inputs have, 0 where they have to run alone.
func (b *batcher) rowsOf(inputs []Tensor) int64 {
	rows := int64(0)
	for i := range inputs {
		switch shape := inputs[i].Shape; {
		case len(shape) == 0 || i > 0 && shape[0] != rows:
			return 0
		default:
			rows = shape[0]
		}
	}
	if rows >= int64(b.MaxRows) {
		return 0
	}
	return rows
}

// leave takes c out of those that wait and reports whether it was there still.
func (b *batcher) leave(c *call) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, w := range b.waiting {
		if w == c {
			b.waiting = append(b.waiting[:i], b.waiting[i+1:]...)
			return true
		}
	}
	return false
}

// next follows a run that a request did itself: others may have come meanwhile.
func (b *batcher) next() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) == 0 {
		b.running--
		return
	}
	b.start()
}

// start runs what waits in a goroutine that ends when nothing does. The caller
// holds b.mu and has counted the run.
func (b *batcher) start() {
	b.runners.Add(1)
	go func() {
		defer b.runners.Done()
		for batch := b.take(); batch != nil; batch = b.take() {
			b.run(batch)
		}
	}()
}

// take returns the requests that run together next: the one that waits longest and
// those that fit it. When nobody waits, it takes the run off the count.
func (b *batcher) take() []*call {
	var timer *time.Timer
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		if len(b.waiting) == 0 {
			b.running--
			return nil
		}
		batch, full := b.fitting()
		left := b.MaxDelay - time.Since(batch[0].came)
		if full || left <= 0 {
			b.remove(batch)
			return batch
		}
		if timer == nil {
			timer = time.NewTimer(left)
			defer timer.Stop()
		} else {
			timer.Reset(left)
		}
		b.mu.Unlock()
		select {
		case <-b.changed:
		case <-timer.C:
		}
		b.mu.Lock()
	}
}

// fitting returns the first that waits with those that can run with it, and
// whether there is no use in waiting for more.
func (b *batcher) fitting() (batch []*call, full bool) {
	first := b.waiting[0]
	batch = append(batch, first)
	if first.rows == 0 {
		return batch, true
	}
	rows := first.rows
	for _, c := range b.waiting[1:] {
		if c.rows > 0 && rows+c.rows <= int64(b.MaxRows) && fits(first, c) {
			batch, rows = append(batch, c), rows+c.rows
		}
	}
	return batch, rows >= int64(b.MaxRows)
}

// remove takes batch, which is in their order, out of those that wait.
func (b *batcher) remove(batch []*call) {
	left := b.waiting[:0]
	for _, c := range b.waiting {
		if len(batch) > 0 && c == batch[0] {
			batch = batch[1:]
			continue
		}
		left = append(left, c)
	}
	clear(b.waiting[len(left):]) // they hold requests' bodies
	b.waiting = left
}

// fits reports whether a and c can be rows of one run.
func fits(a, c *call) bool {
	if len(a.outputs) != len(c.outputs) {
		return false
	}
	for i := range a.outputs {
		if a.outputs[i] != c.outputs[i] {
			return false
		}
	}
	for i := range a.inputs {
		if a.inputs[i].Type != c.inputs[i].Type || !equalShape(a.inputs[i].Shape[1:], c.inputs[i].Shape[1:]) {
			return false
		}
	}
	return true
}

// run runs a batch and sets its calls' results. Where it fails as a whole, each
// runs alone, so that only those fail that would have anyway.
func (b *batcher) run(batch []*call) {
	defer func() {
		p := recover() // an engine that panics loses its requests, not the process
		for _, c := range batch {
			if p != nil && c.err == nil {
				c.err = atelier.Errorf(atelier.Internal, "the engine panicked: %v", p)
			}
			close(c.done)
		}
	}()
	if len(batch) > 1 && !b.off.Load() && b.runTogether(batch) {
		return
	}
	for _, c := range batch {
		if c.ctx.Err() != nil {
			c.err = gaveUp(c.ctx)
			continue
		}
		c.results, c.err = b.engine.Infer(c.ctx, c.inputs, c.outputs)
	}
}

// runTogether reports whether the batch's calls have their results.
func (b *batcher) runTogether(batch []*call) bool {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var left atomic.Int64 // calls that still want their results
	left.Store(int64(len(batch)))
	parts, rows := make([][]Tensor, len(batch)), int64(0)
	for i, c := range batch {
		parts[i], rows = c.inputs, rows+c.rows
		stop := context.AfterFunc(c.ctx, func() {
			if left.Add(-1) == 0 {
				cancel()
			}
		})
		defer stop()
	}
	outputs, err := b.engine.InferRows(ctx, parts, batch[0].outputs)
	if err != nil {
		return false
	}
	for i := range outputs {
		if t := &outputs[i]; len(t.Shape) == 0 || t.Shape[0] != rows {
			if b.off.CompareAndSwap(false, true) && b.note != nil {
				b.note("an output has a shape that does not begin with the number of rows")
			}
			return false
		}
	}
	at := int64(0)
	for _, c := range batch {
		c.results = make([]Tensor, len(outputs))
		for i := range outputs {
			c.results[i] = slice(&outputs[i], at, c.rows)
		}
		at += c.rows
	}
	return true
}

// slice returns rows of t, which share its memory.
func slice(t *Tensor, from, rows int64) Tensor {
	s := Tensor{Type: t.Type, Shape: append([]int64(nil), t.Shape...)}
	s.Shape[0] = rows
	each, _ := Elements(t.Shape[1:])
	if t.Type == Bytes {
		s.Strings = t.Strings[from*each : (from+rows)*each : (from+rows)*each]
		return s
	}
	each *= t.Type.Size()
	s.Data = t.Data[from*each : (from+rows)*each : (from+rows)*each]
	return s
}

func tooMany(model string) error {
	return atelier.Errorf(atelier.Exhausted, "%d requests wait for model %s already", maxWaiting, model).
		WithRemedy("Send fewer requests at a time, or try again in a moment.")
}

func gaveUp(ctx context.Context) error {
	return atelier.Errorf(atelier.Timeout, "the request was given up before its turn came: %w", ctx.Err())
}
