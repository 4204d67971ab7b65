package collect

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Bounds of what waits for the agent in a module.
const (
	queueLength = 256
	queueBytes  = 4 << 20
	patience    = 5 * time.Second // for the agent to take a record
)

// Sampler is the module's end: it chooses requests and hands their records to the agent
// that is connected. A request never waits for it: what finds the queue full is dropped
// and counted. It records nothing while no agent has asked for it. A nil Sampler never does.
type Sampler struct {
	log      *slog.Logger
	settings atomic.Pointer[sampling]
	queue    chan *Record
	bytes    atomic.Int64
	dropped  atomic.Uint64

	mu       sync.Mutex
	listener net.Listener
	agent    net.Conn // nil where none is connected
	closed   bool
	group    sync.WaitGroup
}

// sampling is what an agent asked for.
type sampling struct {
	atelier.Collection
	below uint64 // a request is chosen where a random number is less
	all   bool
}

// NewSampler returns a Sampler; Serve lets agents connect.
func NewSampler(log *slog.Logger) *Sampler {
	return &Sampler{log: log, queue: make(chan *Record, queueLength)}
}

// Serve lets agents connect until Close. One is served at a time: a newer one takes the
// place of the one before.
func (s *Sampler) Serve(l net.Listener) error {
	s.mu.Lock()
	s.listener = l
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return l.Close()
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.closed {
				return nil
			}
			return err
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			_ = conn.Close() // nothing was said
			return nil
		}
		if s.agent != nil {
			_ = s.agent.Close() // its goroutines end by that
		}
		s.agent = conn
		s.group.Add(1)
		s.mu.Unlock()
		go func() {
			defer s.group.Done()
			s.attend(conn)
		}()
	}
}

// Close stops recording. What waits for the agent is handed over first, as long as ctx lasts.
func (s *Sampler) Close(ctx context.Context) {
	s.settings.Store(nil)
	for s.bytes.Load() > 0 && s.connected() && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond): // the writer tells nobody how far it is
		}
	}
	s.mu.Lock()
	s.closed = true
	if s.listener != nil {
		_ = s.listener.Close()
	}
	if s.agent != nil {
		_ = s.agent.Close()
	}
	s.mu.Unlock()
	s.group.Wait()
}

func (s *Sampler) connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.agent != nil
}

// attend serves one agent.
func (s *Sampler) attend(conn net.Conn) {
	gone := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		if err := s.hand(conn, gone); err != nil {
			s.log.Debug("the agent does not take collected records", "error", err)
		}
		_ = conn.Close() // reading ends by that
	})
	for {
		kind, payload, err := readFrame(conn)
		if err != nil {
			break
		}
		if kind == kindSettings {
			s.configure(conn, payload)
		}
	}
	close(gone)
	_ = conn.Close()
	writing.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent == conn {
		s.agent = nil
		s.settings.Store(nil)
	}
}

func (s *Sampler) configure(conn net.Conn, payload []byte) {
	next := &sampling{}
	if err := json.Unmarshal(payload, &next.Collection); err != nil {
		s.log.Warn("what to collect cannot be read; nothing is collected", "error", err)
		next = nil
	} else if next.Share >= 1 {
		next.all = true
	} else if next.Share > 0 {
		next.below = uint64(next.Share * math.MaxUint64)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent != conn || s.closed {
		return
	}
	s.settings.Store(next)
	if next != nil {
		s.log.Info("collecting data", "share", next.Share, "masked", next.Mask)
	}
}

// hand writes records to the agent until gone.
func (s *Sampler) hand(conn net.Conn, gone <-chan struct{}) error {
	var buffer []byte
	for {
		var r *Record
		select {
		case <-gone:
			return nil
		case r = <-s.queue:
		}
		size := r.size()
		buffer = r.Encode(buffer[:0])
		err := conn.SetWriteDeadline(time.Now().Add(patience))
		if n := s.dropped.Swap(0); err == nil && n > 0 {
			if err = writeFrame(conn, kindDropped, binary.BigEndian.AppendUint64(nil, n)); err != nil {
				s.dropped.Add(n)
			}
		}
		if err == nil && len(buffer) > MaxRecord {
			s.dropped.Add(1)
		} else if err == nil {
			err = writeFrame(conn, kindRecord, buffer)
		}
		s.bytes.Add(-size)
		if err != nil {
			s.dropped.Add(1)
			return err
		}
	}
}

// put queues a record, or counts it as dropped.
func (s *Sampler) put(r *Record) {
	size := r.size()
	if s.bytes.Add(size) > queueBytes {
		s.bytes.Add(-size)
		s.dropped.Add(1)
		return
	}
	select {
	case s.queue <- r:
	default:
		s.bytes.Add(-size)
		s.dropped.Add(1)
	}
}

// size is about what the record takes in memory.
func (r *Record) size() int64 {
	n := 200
	for _, values := range [][]Value{r.Inputs, r.Outputs} {
		for i := range values {
			n += 100 + len(values[i].Data)
		}
	}
	return int64(n)
}

// Begin returns the sample of a request that is chosen, nil for one that is not. request
// is the request's id.
func (s *Sampler) Begin(dialect, request string) *Sample {
	if s == nil {
		return nil
	}
	c := s.settings.Load()
	if c == nil || !c.all && rand.Uint64() >= c.below {
		return nil
	}
	if len(request) > maxID {
		request = request[:maxID]
	}
	now := time.Now()
	return &Sample{sampler: s, masks: &c.Collection, began: now, room: MaxRecord - reserved, record: Record{Time: now.UTC().Truncate(time.Microsecond), Request: request, Dialect: dialect}}
}

type sampleKey struct{}

// With returns a context that carries a sample; ctx itself where there is none.
func With(ctx context.Context, x *Sample) context.Context {
	if x == nil {
		return ctx
	}
	return context.WithValue(ctx, sampleKey{}, x)
}

// From returns the sample that ctx carries, nil where it carries none.
func From(ctx context.Context) *Sample {
	x, _ := ctx.Value(sampleKey{}).(*Sample)
	return x
}

// Listen opens the socket at which agents ask for records; one that a former process left
// behind is taken over.
func Listen(path string) (net.Listener, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		return nil, errors.Join(errors.New("another process answers on "+path), conn.Close())
	}
	return listenPrivately(path)
}
