package lending

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atelier-edge/atelier/serving/http1"
)

// maxChannels is how many gateways a module borrows from: the one, and one that it
// replaces.
const maxChannels = 4

// Handler answers requests of lent connections. Its methods are safe for
// concurrent use.
type Handler interface {
	// Takes reports whether Answer answers requests with this head. path is the
	// target without the endpoint. Where it does not, the gateway has the request.
	Takes(r *http1.Request, path []byte) bool
	// Answer answers a request that Takes; its memory is the caller's. When ctx ends,
	// the answer is wanted no more.
	Answer(ctx context.Context, r *Request) Answer
}

// Request is one request of a lent connection.
type Request struct {
	Head *http1.Request
	Path []byte // the target without the endpoint
	ID   []byte // the request's id, see atelier.HeaderRequestID
	Body []byte
}

// Answer is the answer to one request.
type Answer struct {
	Status      int
	ContentType string // "" where there is none
	Fields      []byte // further header fields, each with its CR LF
	Body        []byte
}

// Borrower is the module's end of all channels.
type Borrower struct {
	handler Handler
	log     *slog.Logger

	draining atomic.Bool
	mu       sync.Mutex
	listener *net.UnixListener
	channels map[*channel]struct{}
	running  sync.WaitGroup // channels
}

// NewBorrower returns a Borrower; Serve starts it.
func NewBorrower(h Handler, log *slog.Logger) *Borrower {
	return &Borrower{handler: h, log: log, channels: map[*channel]struct{}{}}
}

// Listen opens a lending socket at path, for this user only.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err // whoever owns the socket beside it, owns it
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Serve takes connections from whoever opens a channel at listener, until
// Shutdown. It closes listener.
func (b *Borrower) Serve(listener *net.UnixListener) error {
	defer listener.Close()
	b.mu.Lock()
	b.listener = listener
	b.mu.Unlock()
	for !b.draining.Load() {
		conn, err := listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			b.log.Warn("a gateway could not be accepted", "error", err)
			time.Sleep(50 * time.Millisecond) // out of descriptors, perhaps: others will be given back
			continue
		}
		c := &channel{b: b, conn: conn, loans: map[uint32]*lent{}, first: make(chan struct{}, 1), ended: make(chan struct{})}
		b.mu.Lock()
		full := len(b.channels) >= maxChannels || b.draining.Load()
		if !full {
			b.channels[c] = struct{}{}
			b.running.Add(1)
		}
		b.mu.Unlock()
		if full {
			_ = conn.Close() // the gateway goes on without lending
			continue
		}
		go func() { // ends with the channel; Shutdown waits for it
			defer b.running.Done()
			if err := c.run(); err != nil {
				b.log.Warn("a lending channel ended", "error", err)
			}
			b.mu.Lock()
			delete(b.channels, c)
			b.mu.Unlock()
		}()
	}
	return nil
}

// Shutdown finishes the requests that have begun, gives all connections back and
// ends the channels. When ctx ends before, it returns its error.
func (b *Borrower) Shutdown(ctx context.Context) error {
	b.mu.Lock()
	b.draining.Store(true)
	if b.listener != nil {
		_ = b.listener.Close() // Serve returns
	}
	for c := range b.channels {
		go c.drain() // ends with the channel, for which running waits
	}
	b.mu.Unlock()
	done := make(chan struct{})
	go func() {
		b.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
