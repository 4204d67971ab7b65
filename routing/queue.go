package routing

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/spool"
	"github.com/atelier-edge/atelier/internal/wire"
)

// queueKey is the way on which a queue lies. Each has a queue of its own, so that a module
// that floods a way, or one that takes nothing, holds up no other.
type queueKey struct {
	from  string // the module; "" of the queue of twins
	into  string // the module, "" for the workspace
	input string
}

// name is the queue's directory. No name of a module or input has a tilde.
func (k queueKey) name() string { return k.from + "~" + k.into + "~" + k.input }

func parseQueueName(name string) (k queueKey, ok bool) {
	parts := strings.Split(name, "~")
	if len(parts) != 3 {
		return k, false
	}
	k = queueKey{parts[0], parts[1], parts[2]}
	named := func(s string) bool { return s == "" || atelier.CheckName("module", s) == nil }
	return k, named(k.from) && named(k.into) && (k.into == "") == (k.input == "") && (k.input == "" || atelier.IsPortName(k.input))
}

// put is a message on its way into a queue. kept is called once.
type put struct {
	message wire.ModuleMessage
	kept    func(error)
}

// queue keeps the messages of one way until they are taken, or have outlived their time.
type queue struct {
	key   queueKey
	dir   string
	fs    durable.FS
	spool *spool.Spool
	clock func() wire.Clock
	log   *slog.Logger
	times Times

	in      chan put
	putting sync.RWMutex // held for reading by put
	ctx     context.Context
	cancel  func()
	group   sync.WaitGroup
	sender  *spool.Sender // of a queue into the workspace

	taken, delivered, expired, failed, refused atomic.Uint64

	mu    sync.Mutex
	saved uint64 // the acknowledgement that is on disk
	// Of the batch with the number part, the first done messages were taken already.
	part uint64
	done int
}

const (
	// batchBytes is the size from which on a batch takes no further message: the largest
	// message still fits a frame with it.
	batchBytes = 12 << 10
	waitingIn  = 16 // messages that wait for the disk
	inFlight   = 16 // messages that the taker has not acknowledged
)

const (
	ackFile   = "acknowledged.json"
	ackFormat = 1
)

// acknowledgement is how far a queue was taken, so that little is delivered twice when
// the router begins anew.
type acknowledgement struct {
	Stream  string `json:"stream"`
	Through uint64 `json:"through"`
}

// openQueue opens the queue of a way, or makes it.
func openQueue(fsys durable.FS, dir string, key queueKey, budget int64, clock func() wire.Clock, times Times, log *slog.Logger) (*queue, error) {
	q := &queue{key: key, dir: filepath.Join(dir, key.name()), fs: fsys, clock: clock, times: times, in: make(chan put, waitingIn), log: log.With("from", key.from, "into", key.into, "input", key.input)}
	s, err := spool.Open(fsys, q.dir, budget)
	if err != nil {
		return nil, err
	}
	q.spool = s
	if b, err := durable.ReadFile(fsys, filepath.Join(q.dir, ackFile)); err == nil {
		var a acknowledgement
		// What cannot be read costs messages that come twice, not the queue.
		if durable.Decode(b, ackFile, ackFormat, &a) == nil && a.Stream == s.Stats().Stream {
			q.saved = a.Through
			if err := s.Acknowledge(a.Stream, a.Through); err != nil {
				return nil, errors.Join(err, s.Close())
			}
		}
	}
	return q, nil
}

// start lets the queue take messages and hand them on until close.
func (q *queue) start(r *Router) {
	q.ctx, q.cancel = context.WithCancel(r.ctx)
	q.group.Go(q.write)
	if q.key.into == "" {
		q.sender = spool.NewSender(q.spool, r, q.clock, q.log)
		q.sender.Over(wire.Messages, nil)
		q.group.Go(func() { q.sender.Run(q.ctx) })
		q.group.Go(q.upkeep)
		return
	}
	q.group.Go(func() { q.deliver(r) })
}

// close ends the queue; its messages stay.
func (q *queue) close() error {
	q.cancel()
	q.group.Wait()
	return errors.Join(q.save(), q.spool.Close())
}

// put takes a message, and calls kept when it is on disk or cannot be kept.
func (q *queue) put(m wire.ModuleMessage, kept func(error)) {
	q.putting.RLock()
	defer q.putting.RUnlock()
	if q.ctx.Err() != nil {
		kept(errEnding)
		return
	}
	select {
	case q.in <- put{m, kept}:
	case <-q.ctx.Done():
		kept(errEnding)
	}
}

var errEnding = atelier.Errorf(atelier.Unavailable, "the router ends")

// write puts what comes onto the disk: what came while the disk was busy goes together.
func (q *queue) write() {
	for {
		select {
		case first := <-q.in:
			q.commit(first)
		case <-q.ctx.Done():
			// Who puts from now on sees that it has ended, so that nothing is left in the channel.
			q.putting.Lock()
			q.putting.Unlock()
			for {
				select {
				case p := <-q.in:
					p.kept(errEnding)
				default:
					return
				}
			}
		}
	}
}

func (q *queue) commit(first put) {
	var batch []put
	var payload []byte
	for p, more := first, true; more; {
		b, err := wire.AppendMessages(payload, &p.message)
		if err != nil {
			q.refused.Add(1)
			p.kept(err)
		} else {
			payload, batch = b, append(batch, p)
		}
		if len(payload) >= batchBytes {
			break
		}
		select {
		case p = <-q.in:
		default:
			more = false
		}
	}
	if len(batch) == 0 {
		return
	}
	err := q.spool.Append(spool.Batch{Taken: q.clock(), Encoding: wire.Plain, Payload: payload, Samples: len(batch)})
	if err == nil {
		q.taken.Add(uint64(len(batch)))
	}
	for _, p := range batch {
		p.kept(err)
	}
}

// age is how long ago something was taken, by the clock that no one sets where that still runs.
func age(now, taken wire.Clock) time.Duration {
	if now.BootID != "" && now.BootID == taken.BootID {
		return now.Monotone - taken.Monotone
	}
	if taken.Wall.Before(earliest) { // by a clock that was not set yet
		return 0
	}
	return max(0, now.Wall.Sub(taken.Wall))
}

// earliest is before any message that was taken by a clock that was right.
var earliest = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// left returns how many seconds a message may still wait, 0 for as long as it must; false
// where it has outlived its time.
func left(m *wire.ModuleMessage, old time.Duration) (uint32, bool) {
	if m.TTL == 0 {
		return 0, true
	}
	rest := time.Duration(m.TTL)*time.Second - old
	return uint32((rest + time.Second - 1) / time.Second), rest > 0
}

// upkeep is what a queue into the workspace does beside sending.
func (q *queue) upkeep() {
	ticker := time.NewTicker(q.times.Upkeep)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			q.purge()
		case <-q.ctx.Done():
			return
		}
	}
}

// purge takes away batches of which every message has outlived its time, as long as such
// a one is the oldest, and notes how far the queue was taken.
func (q *queue) purge() {
	defer func() {
		if err := q.save(); err != nil {
			q.log.Warn("cannot note how far a queue was taken", "error", err)
		}
	}()
	for {
		e, ok, err := q.spool.Next(0)
		if err != nil || !ok {
			return
		}
		list, err := wire.DecodeMessages(e.Batch.Payload)
		old := age(q.clock(), e.Batch.Taken)
		for i := range list {
			if _, live := left(&list[i], old); live {
				return
			}
		}
		q.expired.Add(uint64(len(list)))
		if err != nil {
			q.log.Error("a batch of messages cannot be read and is given up", "error", err)
		}
		if err := q.spool.Acknowledge(e.Stream, e.Sequence); err != nil {
			q.log.Warn("old messages cannot be removed", "error", err)
			return
		}
	}
}

// save notes on disk how far the queue was taken.
func (q *queue) save() error {
	st := q.spool.Stats()
	through := q.spool.Acknowledged()
	q.mu.Lock()
	same := through == q.saved
	q.mu.Unlock()
	if same {
		return nil
	}
	b, err := durable.Encode(ackFormat, acknowledgement{st.Stream, through})
	if err == nil {
		err = durable.WriteFile(q.fs, filepath.Join(q.dir, ackFile), b, 0o600)
	}
	if err != nil {
		return err
	}
	q.mu.Lock()
	q.saved = through
	q.mu.Unlock()
	return nil
}

// remove removes the queue, which is closed and empty.
func (q *queue) remove() error {
	list, err := q.fs.ReadDir(q.dir)
	if err != nil {
		return durable.Explain(err, "remove "+q.dir)
	}
	for _, e := range list {
		if err := q.fs.Remove(filepath.Join(q.dir, e.Name())); err != nil {
			return durable.Explain(err, "remove "+q.dir)
		}
	}
	return durable.Remove(q.fs, q.dir)
}

func (q *queue) status() atelier.RouterQueue {
	st := q.spool.Stats()
	return atelier.RouterQueue{
		From: q.key.from, Into: q.key.into, Input: q.key.input, Pending: st.Pending, Bytes: st.Bytes, Taken: q.taken.Load(),
		Delivered: q.delivered.Load(), Expired: q.expired.Load(), Dropped: st.Dropped.Samples, Failed: q.failed.Load(),
	}
}
