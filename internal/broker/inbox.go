package broker

import (
	"context"
	"sync"

	"github.com/atelier-edge/atelier/internal/wire"
)

// Bounds of what may wait for the handler. A queue holds the messages of one
// device on one channel; all queues together share inboxBytes. A full window of
// the content protocol (8 MiB in frames of up to 120 KiB) fits a queue.
const (
	queueLength  = 128
	queueBytes   = 12 << 20
	inboxBytes   = 96 << 20
	inboxWorkers = 16
)

// inbox hands messages to the handler fairly: devices take turns, message by
// message, so that one that floods fills its own queue and delays nobody else
// by more than one message per worker.
type inbox struct {
	handler Handler
	count   *counters

	mu     sync.Mutex
	wake   sync.Cond
	queues map[queueKey]*queue
	ready  []*queue // queues that have work and that no worker holds
	bytes  int      // of all waiting payloads
	closed bool
}

type queueKey struct {
	device  string
	channel wire.Channel
}

type queue struct {
	key   queueKey
	items []item
	bytes int
	held  bool // a worker handles an item of it, or it stands in ready
}

// item is a message, or a notice of presence where payload is nil.
type item struct {
	payload   []byte
	connected bool
}

func newInbox(h Handler, c *counters) *inbox {
	in := &inbox{handler: h, count: c, queues: map[queueKey]*queue{}}
	in.wake.L = &in.mu
	return in
}

// message queues a message, or drops and counts it where there is no room.
func (in *inbox) message(m Message) {
	in.mu.Lock()
	defer in.mu.Unlock()
	q := in.queue(queueKey{m.Device, m.Channel})
	n := len(m.Payload)
	if in.closed || len(q.items) >= queueLength || q.bytes+n > queueBytes || in.bytes+n > inboxBytes {
		in.count.dropped.Add(1)
		in.tidy(q)
		return
	}
	if m.Payload == nil {
		m.Payload = []byte{}
	}
	in.put(q, item{payload: m.Payload})
}

// presence queues a notice behind the device's control messages. Of several
// that wait side by side only the last is kept.
func (in *inbox) presence(device string, connected bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return
	}
	q := in.queue(queueKey{device, wire.Control})
	if n := len(q.items); n > 0 && q.items[n-1].payload == nil {
		q.items[n-1].connected = connected
		return
	}
	in.put(q, item{connected: connected})
}

func (in *inbox) queue(k queueKey) *queue {
	q := in.queues[k]
	if q == nil {
		q = &queue{key: k}
		in.queues[k] = q
	}
	return q
}

func (in *inbox) put(q *queue, it item) {
	q.items = append(q.items, it)
	q.bytes += len(it.payload)
	in.bytes += len(it.payload)
	if !q.held {
		q.held = true
		in.ready = append(in.ready, q)
		in.wake.Signal()
	}
}

// tidy forgets a queue that nobody needs.
func (in *inbox) tidy(q *queue) {
	if !q.held && len(q.items) == 0 {
		delete(in.queues, q.key)
	}
}

// run works until ctx ends and returns when no call of the handler is running.
func (in *inbox) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		in.closed = true
		in.wake.Broadcast()
	})
	defer stop()
	var wg sync.WaitGroup
	for range inboxWorkers {
		wg.Go(func() { in.work(ctx) })
	}
	wg.Wait()
}

func (in *inbox) work(ctx context.Context) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for {
		for len(in.ready) == 0 && !in.closed {
			in.wake.Wait()
		}
		if in.closed {
			return
		}
		q := in.ready[0]
		in.ready = in.ready[1:]
		it := q.items[0]
		q.items[0] = item{}
		q.items = q.items[1:]
		q.bytes -= len(it.payload)
		in.bytes -= len(it.payload)
		in.mu.Unlock()

		if it.payload == nil {
			in.handler.Presence(ctx, q.key.device, it.connected)
		} else {
			in.count.received.Add(1)
			in.handler.Receive(ctx, Message{q.key.device, q.key.channel, it.payload})
		}

		in.mu.Lock()
		if len(q.items) > 0 {
			in.ready = append(in.ready, q)
			in.wake.Signal()
		} else {
			q.held = false
			in.tidy(q)
		}
	}
}
