// Package gateway is the data side of a device: the one listener, endpoints'
// keys, routes to modules, and counts of what passes.
//
// A gateway answers from the last route table that it was given, also when the
// agent is away, and starts from the saved one. Switching tables drops no request:
// one in flight ends where it began, and clients keep their connections. Requests
// pass through: the package speaks HTTP/1.1 itself, since Go's reverse proxy costs
// more than the models that stand behind it (docs/adr/0072-gateway-pass-through.md).
//
// The package knows nothing of models, MQTT or the hub. Whoever gives it tables
// decides what is served.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
)

// Options say how a gateway works. Zero values stand for the defaults.
type Options struct {
	State   string      // directory that keeps the route table
	Listen  string      // address to answer on, "127.0.0.1:8600"
	TLS     *tls.Config // nil answers in the clear; see TLSProtocols
	MaxBody int64       // largest body of a request, in bytes; 64 MiB
	// MaxConns is how many clients may be connected at a time; 1024. When one more comes,
	// one that only waits makes room.
	MaxConns int
	Times    Times
	FS       durable.FS // the file system below State; the operating system's
	Log      *slog.Logger
}

// TLSProtocols are what a gateway offers over TLS, as tls.Config.NextProtos has it: HTTP/1.1
// to all that speak it, and HTTP/2 to those that speak nothing else, which are gRPC's clients.
var TLSProtocols = []string{"http/1.1", "h2"}

// Times bound how long things may take. Zero values stand for the defaults.
type Times struct {
	Head     time.Duration // until a request's head has come; 10 s
	Body     time.Duration // without any progress of a body, either way; 30 s
	Answer   time.Duration // until a module begins to answer; 5 min
	Idle     time.Duration // between a client's requests; 2 min
	Drain    time.Duration // until the last answers are out when the gateway ends; 10 s
	Relisten time.Duration // between attempts to get an address that is taken; 1 s
}

func (o *Options) fill() {
	set := func(d *time.Duration, otherwise time.Duration) {
		if *d <= 0 {
			*d = otherwise
		}
	}
	set(&o.Times.Head, 10*time.Second)
	set(&o.Times.Body, 30*time.Second)
	set(&o.Times.Answer, 5*time.Minute)
	set(&o.Times.Idle, 2*time.Minute)
	set(&o.Times.Drain, 10*time.Second)
	set(&o.Times.Relisten, time.Second)
	if o.MaxBody <= 0 {
		o.MaxBody = 64 << 20
	}
	if o.MaxConns <= 0 {
		o.MaxConns = 1024
	}
	if o.FS == nil {
		o.FS = durable.OS{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Gateway answers a device's endpoints. Its methods are safe for concurrent use.
type Gateway struct {
	opts    Options
	started time.Time
	table   atomic.Pointer[routes]

	busy atomic.Int64  // exchanges that wait for a module
	wake chan struct{} // told when the first begins to

	applying sync.Mutex // one table at a time is saved and put into force

	mu        sync.Mutex
	backends  []*backend // those with a route, and departed ones
	listen    string     // the address in use, "" for none
	listenErr error
	conns     map[*client]struct{}
	evicted   int // of conns, those that make room for others
	draining  bool
	clients   sync.WaitGroup

	http2 http2
	mqtt  mqtt

	random func() uint64 // by which requests are split
}

// New makes a gateway with the table that is saved in its state directory. A
// saved table that cannot be used is set aside, and the gateway starts with none.
func New(opts Options) (*Gateway, error) {
	opts.fill()
	g := &Gateway{opts: opts, started: time.Now(), conns: map[*client]struct{}{}, wake: make(chan struct{}, 1), random: evenly}
	g.table.Store(&routes{})
	if err := durable.MkdirAll(opts.FS, opts.State, 0o700); err != nil {
		return nil, err
	}
	if err := g.restore(); err != nil {
		// The agent hands over a new table soon; without a gateway nobody could take it.
		path := filepath.Join(opts.State, tableFile)
		opts.Log.Error("the saved route table is set aside", "path", path+".bad", "error", err)
		if err := opts.FS.Rename(path, path+".bad"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, durable.Explain(err, "set aside "+path)
		}
	}
	return g, nil
}

// Status returns what the gateway tells the agent.
func (g *Gateway) Status() atelier.GatewayStatus {
	sequence := g.table.Load().sequence // before the counts: what this table does not have only falls
	g.mu.Lock()
	defer g.mu.Unlock()
	s := atelier.GatewayStatus{
		PID: os.Getpid(), Sequence: sequence, Listen: g.listen, Started: g.started.UnixMilli(),
		Counters: make([]atelier.EndpointCounters, len(g.backends)),
	}
	if g.listenErr != nil {
		s.Error = g.listenErr.Error()
	}
	for i, b := range g.backends {
		s.Counters[i] = b.counters()
	}
	return s
}

// Run answers until ctx ends and the requests in flight are answered. While its
// address is taken it goes on trying.
func (g *Gateway) Run(ctx context.Context) error {
	// Clients that wait are looked after until the last of them is gone.
	nudging, stop := context.WithCancel(context.WithoutCancel(ctx))
	nudged := make(chan struct{})
	go func() {
		defer close(nudged)
		g.nudge(nudging)
	}()
	defer func() {
		stop()
		<-nudged
	}()
	for ctx.Err() == nil {
		listener, err := net.Listen("tcp", g.opts.Listen)
		if err != nil {
			g.listening("", err)
		} else {
			g.opts.Log.Info("listening", "address", listener.Addr().String())
			g.listening(listener.Addr().String(), nil)
			err = g.accept(ctx, listener)
			g.listening("", err)
		}
		if ctx.Err() == nil {
			g.opts.Log.Warn("not listening", "address", g.opts.Listen, "error", err)
		}
		sleep(ctx, g.opts.Times.Relisten)
	}
	g.drain()
	return nil
}

func (g *Gateway) listening(address string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listen, g.listenErr = address, err
}

// accept takes clients until ctx ends or the listener fails for good.
func (g *Gateway) accept(ctx context.Context, listener net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() }) // it is done with
	defer stop()
	defer listener.Close()
	for {
		conn, err := listener.Accept()
		if err == nil {
			g.welcome(conn)
			continue
		}
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return err
		}
		// Out of descriptors, perhaps: others will be given back.
		g.opts.Log.Warn("a client could not be accepted", "error", err)
		sleep(ctx, 50*time.Millisecond)
	}
}

// welcome serves a client, or turns it away when there are too many.
func (g *Gateway) welcome(conn net.Conn) {
	if g.opts.TLS != nil {
		conn = tls.Server(conn, g.opts.TLS)
	}
	g.serveConn(conn)
}

// serveConn does the same with a connection that needs no TLS.
func (g *Gateway) serveConn(conn net.Conn) {
	c := newClient(g, conn)
	g.mu.Lock()
	full := len(g.conns)-g.evicted >= g.opts.MaxConns && !g.makeRoom(time.Now())
	if !full && !g.draining {
		g.conns[c] = struct{}{}
	}
	g.clients.Add(1)
	g.mu.Unlock()
	go func() { // ends with the connection; drain waits for it
		defer g.clients.Done()
		if full {
			c.turnAway()
			return
		}
		c.serve()
		g.mu.Lock()
		delete(g.conns, c)
		if c.evicted {
			g.evicted--
		}
		g.mu.Unlock()
	}()
}

// drain lets requests in flight end, then closes what is left.
func (g *Gateway) drain() {
	g.mu.Lock()
	g.draining = true
	for c := range g.conns {
		c.leave()
	}
	for _, b := range g.backends {
		b.recall()
		defer b.stopLending()
	}
	g.mu.Unlock()
	defer g.endShadows()
	done := make(chan struct{})
	go func() { // ends with the last client
		var others sync.WaitGroup
		others.Go(func() { g.http2.end(g.opts.Times.Drain) })
		others.Go(func() { g.mqtt.end(g.opts.Times.Drain) })
		others.Wait()
		g.clients.Wait()
		close(done)
	}()
	select {
	case <-done:
		return
	case <-time.After(g.opts.Times.Drain):
	}
	g.mu.Lock()
	for _, b := range g.backends {
		b.stopLending()
	}
	for c := range g.conns {
		c.cut() // its time is up
	}
	g.mu.Unlock()
	<-done
}

// endShadows ends what sends copies; no client is left that could make any.
func (g *Gateway) endShadows() {
	g.mu.Lock()
	backends := slices.Clone(g.backends)
	g.mu.Unlock()
	for _, b := range backends {
		if s := b.shadow.Load(); s != nil {
			s.end()
		}
	}
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
