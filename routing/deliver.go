package routing

import (
	"context"
	"errors"
	"time"

	"github.com/atelier-edge/atelier/internal/spool"
	"github.com/atelier-edge/atelier/internal/wire"
)

// delivery is a message on its way to who takes it. err is set before done is closed.
type delivery struct {
	done <-chan struct{}
	err  error
}

// sink is who takes the messages of a queue: a module's connection, or its model server.
type sink interface {
	// send sends a message that may wait for ttl more seconds. An error means that the sink
	// can take none now.
	send(ctx context.Context, q *queue, m *wire.ModuleMessage, ttl uint32) (*delivery, error)
	// closed is closed when the sink takes no more; nil where that does not end.
	closed() <-chan struct{}
}

// deliver hands messages to whoever takes them, in order, until the queue is closed.
func (q *queue) deliver(r *Router) {
	ticker := time.NewTicker(q.times.Upkeep)
	defer ticker.Stop()
	pause := q.times.Retry
	for q.ctx.Err() == nil {
		s, changed := r.sink(q.key)
		if s == nil {
			select {
			case <-changed:
			case <-ticker.C:
				q.purge()
			case <-q.ctx.Done():
			}
			continue
		}
		before := q.delivered.Load() + q.failed.Load()
		if err := q.pump(s, ticker.C); err != nil && q.ctx.Err() == nil {
			q.log.Debug("a message was not taken and is sent again", "error", err)
			if q.delivered.Load()+q.failed.Load() > before {
				pause = q.times.Retry
			}
			select {
			case <-time.After(pause):
			case <-changed:
			case <-q.ctx.Done():
			}
			pause = min(2*pause, q.times.RetryMost)
		}
	}
}

// flight is a message that was sent.
type flight struct {
	*delivery
	sequence uint64
	index    int
	last     bool // of its batch
	expired  bool // and was not sent
}

// reading is where a pump reads.
type reading struct {
	entry spool.Entry
	list  []wire.ModuleMessage
	next  int
	after uint64
}

// pump sends messages to one sink until that or the queue is closed, or takes one not.
func (q *queue) pump(s sink, upkeep <-chan time.Time) error {
	var out []flight
	var at reading
	defer func() { _ = q.settle(&out) }() // what cannot be settled is delivered again
	for {
		for len(out) < inFlight {
			f, err := q.next(&at, s)
			if err != nil {
				return err
			}
			if f == nil {
				break
			}
			out = append(out, *f)
		}
		var head <-chan struct{}
		if len(out) > 0 {
			head = out[0].done
		}
		select {
		case <-head:
			if err := q.settle(&out); err != nil {
				return err
			}
		case <-q.spool.Changed():
		case <-upkeep:
			if err := q.save(); err != nil {
				q.log.Warn("cannot note how far a queue was taken", "error", err)
			}
		case <-s.closed():
			return nil
		case <-q.ctx.Done():
			return nil
		}
	}
}

var gone = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// next sends the next message, nil where there is none.
func (q *queue) next(at *reading, s sink) (*flight, error) {
	for at.next >= len(at.list) {
		e, ok, err := q.spool.Next(at.after)
		if err != nil || !ok {
			return nil, err
		}
		at.entry, at.next, at.after = e, 0, e.Sequence
		if at.list, err = wire.DecodeMessages(e.Batch.Payload); err != nil {
			// Its checksum was right: a newer program wrote it, and this one cannot read it.
			q.log.Error("a batch of messages cannot be read and is given up", "error", err)
			return &flight{delivery: &delivery{done: gone}, sequence: e.Sequence, last: true, expired: true}, nil
		}
		q.mu.Lock()
		if q.part == e.Sequence {
			at.next = min(q.done, len(at.list)-1)
		}
		q.mu.Unlock()
	}
	m := &at.list[at.next]
	f := &flight{sequence: at.entry.Sequence, index: at.next, last: at.next == len(at.list)-1}
	ttl, live := left(m, age(q.clock(), at.entry.Batch.Taken))
	if !live {
		f.delivery, f.expired = &delivery{done: gone}, true
	} else {
		d, err := s.send(q.ctx, q, m, ttl)
		if err != nil {
			return nil, err
		}
		f.delivery = d
	}
	at.next++
	return f, nil
}

// settle acknowledges what was taken, in order, up to the first that was not yet.
func (q *queue) settle(out *[]flight) error {
	for len(*out) > 0 {
		f := &(*out)[0]
		select {
		case <-f.done:
		default:
			return nil
		}
		var refused *refusedError
		switch {
		case f.expired:
			q.expired.Add(1)
		case f.err == nil:
			q.delivered.Add(1)
		case errors.As(f.err, &refused):
			q.failed.Add(1)
		default:
			return f.err
		}
		q.mu.Lock()
		q.part, q.done = f.sequence, f.index+1
		q.mu.Unlock()
		if f.last {
			if err := q.spool.Acknowledge(q.spool.Stats().Stream, f.sequence); err != nil {
				return err
			}
		}
		*out = (*out)[1:]
	}
	return nil
}
