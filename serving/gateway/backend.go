package gateway

import (
	"bufio"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/http1"
)

// The pool of connections to one module.
const (
	maxIdle     = 64
	idleFor     = 2 * time.Minute // shorter than atelier-serve waits
	dialTimeout = 5 * time.Second
)

// backend is one rollout of a module, with its counts and its idle connections.
type backend struct {
	endpoint string
	atelier.Backend

	inFlight atomic.Int64
	requests [6]atomic.Uint64 // by the first digit of the status
	buckets  []atomic.Uint64
	nanos    atomic.Uint64

	mu   sync.Mutex
	idle []*backendConn // the one that was used last comes last
	gone bool           // no route leads here any more
	// transport is for calls of gRPC, nil until the first.
	transport *http.Transport

	lends lends

	name      string                 // of the model and its version, as answers say it
	fallbacks atomic.Uint64          // requests that another answered in its place
	shadow    atomic.Pointer[shadow] // nil where it never was one
}

func newBackend(endpoint string, b atelier.Backend) *backend {
	return &backend{
		endpoint: endpoint, Backend: b, buckets: make([]atomic.Uint64, len(atelier.LatencyBounds)+1),
		name: b.Model + ":" + strconv.Itoa(b.Version),
	}
}

// backendConn is one connection to a module.
type backendConn struct {
	http1.Conn
	r    *bufio.Reader // nil while it is idle: a device may have a thousand of those
	used time.Time
}

// readers are buffers of connections in use.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, http1.MaxHead) }}

// take gives c a buffer.
func (c *backendConn) take() *backendConn {
	c.r = readers.Get().(*bufio.Reader)
	c.r.Reset(c.Conn.Conn)
	return c
}

// get returns an idle connection, or a new one, and whether it was used before.
func (b *backend) get() (c *backendConn, reused bool, err error) {
	b.mu.Lock()
	if n := len(b.idle); n > 0 {
		c, b.idle = b.idle[n-1], b.idle[:n-1]
	}
	b.mu.Unlock()
	if c != nil {
		if time.Since(c.used) < idleFor {
			return c.take(), true, nil
		}
		_ = c.Close() // the others are older still: they go in put
	}
	c, err = b.dial()
	return c, false, err
}

func (b *backend) dial() (*backendConn, error) {
	conn, err := net.DialTimeout("unix", b.Socket, dialTimeout)
	if err != nil {
		return nil, err
	}
	return (&backendConn{Conn: http1.Conn{Conn: conn}}).take(), nil
}

// reachable reports whether the module takes connections.
func (b *backend) reachable() bool {
	conn, err := net.DialTimeout("unix", b.Socket, dialTimeout)
	return err == nil && conn.Close() == nil
}

// put takes back a connection whose last answer was read to its end.
func (b *backend) put(c *backendConn) {
	c.used = time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone || c.r.Buffered() > 0 || len(b.idle) >= maxIdle {
		_ = c.Close() // nothing is lost with it
		return
	}
	if len(b.idle) > 0 && time.Since(b.idle[0].used) > idleFor {
		_ = b.idle[0].Close() // likewise
		b.idle = append(b.idle[:0], b.idle[1:]...)
	}
	c.r.Reset(nil)
	readers.Put(c.r)
	c.r = nil
	b.idle = append(b.idle, c)
}

// depart closes the idle connections; those in use are closed when they come back,
// and those that are lent come back.
func (b *backend) depart() {
	defer b.recall()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = true
	for _, c := range b.idle {
		_ = c.Close() // nothing is lost with it
	}
	b.idle = nil
	if b.transport != nil {
		b.transport.CloseIdleConnections()
	}
}

// stay undoes depart: a newer table leads here again.
func (b *backend) stay() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = false
}

// record counts one answer.
func (b *backend) record(status int, took time.Duration) {
	if class := status / 100; class > 0 && class < len(b.requests) {
		b.requests[class].Add(1)
	}
	b.buckets[bucketOf(took)].Add(1)
	b.nanos.Add(uint64(max(took, 0)))
}

// bucketOf returns which of the latency histogram's buckets counts what took so long.
func bucketOf(took time.Duration) int {
	i, seconds := 0, took.Seconds()
	for i < len(atelier.LatencyBounds) && seconds > atelier.LatencyBounds[i] {
		i++
	}
	return i
}

// counters returns the counts so far.
func (b *backend) counters() atelier.EndpointCounters {
	c := atelier.EndpointCounters{
		Endpoint: b.endpoint, Deployment: b.Deployment, Rollout: b.Rollout, Model: b.Model, Version: b.Version,
		Requests: map[string]uint64{}, Buckets: make([]uint64, len(b.buckets)),
	}
	b.mu.Lock()
	c.Departed = b.gone
	b.mu.Unlock()
	c.Fallbacks = b.fallbacks.Load()
	if s := b.shadow.Load(); s != nil {
		c.Shadow = s.report()
	}
	b.lends.mu.Lock() // what is lent moves to the others when lending ends
	defer b.lends.mu.Unlock()
	lent := b.lends.counts()
	c.InFlight = b.inFlight.Load() + int64(lent.InFlight)
	c.Seconds = float64(b.nanos.Load()+lent.Nanos) / 1e9
	for class := range b.requests {
		if n := b.requests[class].Load() + lent.Requests[class]; n > 0 {
			c.Requests[string(rune('0'+class))+"xx"] = n
		}
	}
	for i := range b.buckets {
		c.Buckets[i] = b.buckets[i].Load() + lent.Buckets[i]
	}
	return c
}
