// Package routing brings the messages of a device's modules to each other and into the
// workspace, as the routes of its deployments say, and carries the twins of modules.
//
// A module connects by MQTT with a name and a password of its own. It publishes to
// modules/{name}/outputs/{output}, reads modules/{name}/inputs/{input}, gets its desired
// properties from modules/{name}/twin/desired and reports its own on
// modules/{name}/twin/reported. Nothing else is open to it.
//
// What the package promises: a message of QoS 1 is acknowledged when it is synced to disk
// for each route that takes it; it comes to each of them at least once, in the order of its
// module, unless it outlives its time, or the queue's budget has no room for it: then the oldest
// go first, and are counted. All of that outlives a kill or a power cut of the router at any moment.
// Where no route takes a message, it is counted and gone.
//
// The package knows no hub: frames for it go to whoever asks for them (control.go).
package routing

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/spool"
	"github.com/atelier-edge/atelier/internal/wire"
	"github.com/atelier-edge/atelier/routing/mqtt"
)

// Times are the router's patience in several respects.
type Times struct {
	// Upkeep is how often queues are looked at for what has outlived its time, and twins for
	// what the workspace is to be told.
	Upkeep time.Duration
	// Retry is the first pause after a message was not taken, RetryMost the longest.
	Retry, RetryMost time.Duration
}

// DefaultTimes are those of atelier-router.
var DefaultTimes = Times{Upkeep: time.Second, Retry: 500 * time.Millisecond, RetryMost: 30 * time.Second}

// Options say what a router works with.
type Options struct {
	FS    durable.FS // durable.OS{} where nil
	Dir   string
	Clock func() wire.Clock // spool.ReadClock where nil
	Times Times             // DefaultTimes where zero
	Log   *slog.Logger
}

// The bounds of a device.
const (
	maxPacket       = 128 << 10
	maxClients      = 128
	maxConnections  = 8 // of one module
	maxQueues       = 256
	defaultQueue    = 16 << 20
	twinQueueBudget = 1 << 20
)

const (
	tableFile   = "table.json"
	tableFormat = 1
	queuesDir   = "queues"
	twinsDir    = "twins"
)

// Router routes. Its methods are safe for concurrent use.
type Router struct {
	opts    Options
	server  *mqtt.Server
	ctx     context.Context
	cancel  func()
	started time.Time
	moved   chan struct{} // the address to listen on may have changed

	applying  sync.Mutex // held while a table is put into force
	streaming sync.Mutex // held while the queues are told of a stream to the hub, or of its end

	mu       sync.Mutex
	table    atelier.RoutingTable
	digest   atelier.Digest // of the table as it came
	routes   []route
	modules  map[string]*module
	queues   map[queueKey]*queue
	changed  chan struct{} // closed, and made anew, when sinks may have changed
	listen   string        // the address in use
	listened error
	stream   *stream // to the hub, nil where it is away

	reporting sync.Mutex       // held while a module's report is written
	twins     map[string]*twin // by module
}

// route is a route of the table.
type route struct {
	atelier.RoutePath
	ttl uint32 // seconds
}

// module is what is known of a module.
type module struct {
	atelier.RoutedModule
	clients     map[*client]struct{}
	refused     uint64
	unrouted    uint64
	lastRefusal string
}

// Open opens the router with what it had; Run makes it work.
func Open(opts Options) (*Router, error) {
	if opts.FS == nil {
		opts.FS = durable.OS{}
	}
	if opts.Clock == nil {
		opts.Clock = spool.ReadClock
	}
	if opts.Times == (Times{}) {
		opts.Times = DefaultTimes
	}
	r := &Router{
		opts: opts, modules: map[string]*module{}, queues: map[queueKey]*queue{}, twins: map[string]*twin{},
		changed: make(chan struct{}), moved: make(chan struct{}, 1), started: time.Now(),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.server = mqtt.New(mqtt.Options{Admit: r.admit, MaxPacket: maxPacket, Clients: maxClients, Log: opts.Log})
	for _, dir := range []string{opts.Dir, filepath.Join(opts.Dir, queuesDir), filepath.Join(opts.Dir, twinsDir)} {
		if err := durable.MkdirAll(opts.FS, dir, 0o700); err != nil {
			return nil, err
		}
	}
	if err := r.load(); err != nil {
		return nil, err
	}
	return r, nil
}

// saved is the table as it lies on disk.
type saved struct {
	Table json.RawMessage `json:"table"`
}

// load reads the table, the twins and the queues.
func (r *Router) load() error {
	b, err := durable.ReadFile(r.opts.FS, filepath.Join(r.opts.Dir, tableFile))
	if err == nil {
		var s saved
		if err = durable.Decode(b, tableFile, tableFormat, &s); err == nil {
			err = r.enforce(s.Table)
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		// The agent says again what shall be; until then nobody is admitted.
		r.opts.Log.Error("the saved routing table cannot be used", "error", err)
	}
	if err := r.loadTwins(); err != nil {
		return err
	}
	list, err := r.opts.FS.ReadDir(filepath.Join(r.opts.Dir, queuesDir))
	if err != nil {
		return durable.Explain(err, "read the queues")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range list {
		if k, ok := parseQueueName(e.Name()); ok && e.IsDir() {
			if _, err := r.queue(k); err != nil {
				return err
			}
		}
	}
	return nil
}

// Apply checks a table, saves it and puts it into force.
func (r *Router) Apply(raw json.RawMessage) error {
	r.applying.Lock()
	defer r.applying.Unlock()
	if _, _, err := readTable(raw); err != nil {
		return err
	}
	b, err := durable.Encode(tableFormat, saved{raw})
	if err == nil {
		err = durable.WriteFile(r.opts.FS, filepath.Join(r.opts.Dir, tableFile), b, 0o600)
	}
	if err != nil {
		return err
	}
	return r.enforce(raw)
}

func readTable(raw []byte) (t atelier.RoutingTable, routes []route, err error) {
	if err := json.Unmarshal(raw, &t); err != nil {
		return t, nil, atelier.Errorf(atelier.Invalid, "the routing table cannot be read: %w", err)
	}
	for _, m := range t.Modules {
		if err := atelier.CheckName("module", m.Name); err != nil {
			return t, nil, err
		}
		if sum, err := hex.DecodeString(m.Password); err != nil || len(sum) != sha256.Size {
			return t, nil, atelier.Errorf(atelier.Invalid, "the password of module %q is no SHA-256 in hex", m.Name)
		}
	}
	for _, one := range t.Routes {
		p, err := atelier.ParseRoute(one.Route)
		if err != nil {
			return t, nil, err
		}
		routes = append(routes, route{p, uint32(one.Live() / time.Second)})
	}
	return t, routes, nil
}

// enforce puts a table into force.
func (r *Router) enforce(raw json.RawMessage) error {
	t, routes, err := readTable(raw)
	if err != nil {
		return err
	}
	var out []*client
	r.mu.Lock()
	before := r.modules
	r.modules = map[string]*module{}
	for _, m := range t.Modules {
		now := before[m.Name]
		if now == nil {
			now = &module{clients: map[*client]struct{}{}}
		} else if now.Password != m.Password {
			for c := range now.clients {
				out = append(out, c)
			}
		}
		now.RoutedModule = m
		r.modules[m.Name] = now
		for c := range now.clients {
			c.nudge() // its twin may have changed
		}
	}
	for name, m := range before {
		if r.modules[name] == nil {
			for c := range m.clients {
				out = append(out, c)
			}
		}
	}
	budget := t.Queue
	if budget <= 0 {
		budget = defaultQueue
	}
	for k, q := range r.queues {
		if k.from != "" {
			q.spool.SetBudget(budget)
		}
	}
	moved := r.table.Listen != t.Listen
	r.table, r.routes, r.digest = t, routes, atelier.DigestOf(raw)
	r.signal()
	r.mu.Unlock()
	for _, c := range out {
		c.conn.End(true)
	}
	if moved {
		select {
		case r.moved <- struct{}{}:
		default:
		}
	}
	return nil
}

// signal tells that sinks may have changed. r.mu is held.
func (r *Router) signal() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// queue returns the queue of a way, made where there is none. r.mu is held.
func (r *Router) queue(k queueKey) (*queue, error) {
	if q := r.queues[k]; q != nil {
		return q, nil
	}
	if len(r.queues) >= maxQueues {
		return nil, atelier.Errorf(atelier.Exhausted, "the device has %d queues of messages; no more are made", maxQueues).
			WithRemedy("Route fewer modules to each other.")
	}
	budget := int64(defaultQueue)
	if r.table.Queue > 0 {
		budget = r.table.Queue
	}
	if k.from == "" {
		budget = twinQueueBudget
	}
	q, err := openQueue(r.opts.FS, filepath.Join(r.opts.Dir, queuesDir), k, budget, r.opts.Clock, r.opts.Times, r.opts.Log)
	if err != nil {
		return nil, err
	}
	r.queues[k] = q
	q.start(r)
	if q.sender != nil && r.stream != nil {
		_ = q.sender.Connected(r.stream.stored) // of a new stream nothing is known; of one from before what was said then
	}
	return q, nil
}

// admit lets a module in.
func (r *Router) admit(conn *mqtt.Conn, user, password string) (mqtt.Peer, error) {
	sum := sha256.Sum256([]byte(password))
	given := hex.EncodeToString(sum[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.modules[user]
	if m == nil || subtle.ConstantTimeCompare([]byte(given), []byte(strings.ToLower(m.Password))) != 1 {
		return nil, atelier.Errorf(atelier.Forbidden, "no module on this device has this name and password").
			WithRemedy("Take the user name from ATELIER_MQTT_USERNAME, and the password from the file that ATELIER_MQTT_PASSWORD_FILE names.")
	}
	c := &client{router: r, module: m, name: user, conn: conn, wake: make(chan struct{}, 1)}
	for other := range m.clients {
		if conn.ID() != "" && other.conn.ID() == conn.ID() {
			delete(m.clients, other)
			go other.conn.End(false) // ends at once, or with a write that waits
		}
	}
	if len(m.clients) >= maxConnections {
		return nil, atelier.Errorf(atelier.Exhausted, "module %s has %d connections; no more are taken", user, maxConnections)
	}
	m.clients[c] = struct{}{}
	go c.tellTwin() // ends with the connection
	return c, nil
}

// publish puts a message into the queue of each way that a route leads it.
func (r *Router) publish(m *module, from, output string, message mqtt.Message, kept func(error)) {
	now := r.opts.Clock()
	ways := map[queueKey]uint32{}
	r.mu.Lock()
	for _, one := range r.routes {
		if one.Match(from, output) {
			k := queueKey{from, one.Into, one.Input}
			ways[k] = max(ways[k], one.ttl)
		}
	}
	var queues []*queue
	var errs []error
	for k := range ways {
		q, err := r.queue(k)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		queues = append(queues, q)
	}
	if len(ways) == 0 {
		m.unrouted++
	}
	r.mu.Unlock()
	done := gather(len(queues), errs, kept)
	for _, q := range queues {
		ttl := ways[q.key]
		if message.Expiry > 0 {
			ttl = min(ttl, message.Expiry)
		}
		q.put(wire.ModuleMessage{
			Kind: wire.FromOutput, Module: from, Output: output, Time: now.Wall.UnixMilli(), TTL: ttl,
			ContentType: message.ContentType, Properties: wireProperties(message.Properties), Payload: message.Payload,
		}, done)
	}
}

// gather returns a function that, called n times, calls kept once with what failed; where
// n is 0, kept is called at once.
func gather(n int, errs []error, kept func(error)) func(error) {
	if n == 0 {
		kept(errors.Join(errs...))
		return nil
	}
	var mu sync.Mutex
	return func(err error) {
		mu.Lock()
		if err != nil {
			errs = append(errs, err)
		}
		n--
		last := n == 0
		mu.Unlock()
		if last {
			if len(errs) == 1 {
				kept(errs[0])
				return
			}
			kept(errors.Join(errs...))
		}
	}
}

func wireProperties(list []mqtt.Property) (all []wire.Property) {
	for _, p := range list {
		if !strings.HasPrefix(p.Key, "$") { // those are the router's to say
			all = append(all, wire.Property{Key: p.Key, Value: p.Value})
		}
	}
	return all
}

// sink returns who takes the messages of a way, nil where nobody does now, and a channel
// that is closed when that may have changed.
func (r *Router) sink(k queueKey) (sink, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.modules[k.into]
	if m == nil {
		return nil, r.changed
	}
	if isModelInput(k.input) {
		if m.Socket == "" {
			return nil, r.changed
		}
		return &modelServer{router: r, module: m, name: k.into, route: k.input}, r.changed
	}
	for c := range m.clients {
		select {
		case <-c.conn.Done():
			continue // Closed says so soon
		default:
		}
		if _, ok := c.conn.Subscribed(inputTopic(k.into, k.input)); ok {
			return c, r.changed
		}
	}
	return nil, r.changed
}

// Run serves modules until ctx ends, and closes the queues.
func (r *Router) Run(ctx context.Context) error {
	var group sync.WaitGroup
	group.Go(func() { r.serve(ctx) })
	group.Go(func() { r.upkeep(ctx) })
	<-ctx.Done()
	group.Wait()
	r.server.Close()
	r.cancel()
	r.mu.Lock()
	queues := slices.Collect(maps.Values(r.queues))
	r.mu.Unlock() // they take it while they end
	var errs []error
	for _, q := range queues {
		errs = append(errs, q.close())
	}
	return errors.Join(errs...)
}

// serve listens on the table's address.
func (r *Router) serve(ctx context.Context) {
	for ctx.Err() == nil {
		r.mu.Lock()
		address := r.table.Listen
		r.mu.Unlock()
		var l net.Listener
		var err error
		if address != "" {
			l, err = net.Listen("tcp", address)
		}
		r.mu.Lock()
		r.listen, r.listened = "", err
		if l != nil {
			r.listen = l.Addr().String()
		}
		r.mu.Unlock()
		if l == nil {
			select {
			case <-ctx.Done():
			case <-r.moved:
			case <-time.After(2 * time.Second): // whoever has the address may have gone
			}
			continue
		}
		served := make(chan error, 1)
		go func() { served <- r.server.Serve(l) }()
		select {
		case <-ctx.Done():
		case <-r.moved:
		case err := <-served:
			r.opts.Log.Error("no further modules can connect; the address is opened again", "error", err)
			served <- nil
		}
		_ = l.Close() // connections stay
		<-served      //nolint:errcheck // the listener is closed
	}
}

// upkeep tells the workspace of twins, and removes queues that no route needs.
func (r *Router) upkeep(ctx context.Context) {
	ticker := time.NewTicker(r.opts.Times.Upkeep)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			r.flushTwins()
			r.sweep()
		case <-ctx.Done():
			return
		}
	}
}

// sweep removes queues that are empty and to which no route leads any more.
func (r *Router) sweep() {
	for _, q := range r.needless() {
		q.cancel()
		q.group.Wait() // what was on its way into it is told that it is not kept
		r.mu.Lock()
		delete(r.queues, q.key)
		err := q.close()
		if q.spool.Stats().Pending > 0 {
			_, again := r.queue(q.key) // a last message came in
			err = errors.Join(err, again)
		} else {
			err = errors.Join(err, q.remove())
		}
		r.mu.Unlock()
		if err != nil {
			r.opts.Log.Warn("a queue cannot be removed", "error", err)
		}
	}
}

func (r *Router) needless() (all []*queue) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, q := range r.queues {
		routed := k.from == ""
		for _, one := range r.routes {
			routed = routed || one.Into == k.into && one.Input == k.input && (one.From == atelier.AnyModule || one.From == k.from)
		}
		if !routed && q.spool.Stats().Pending == 0 {
			all = append(all, q)
		}
	}
	return all
}

// Status describes the router.
func (r *Router) Status() atelier.RouterStatus {
	r.mu.Lock()
	s := atelier.RouterStatus{PID: os.Getpid(), Table: r.digest, Listen: r.listen, Started: r.started.UnixMilli(), Modules: []atelier.RouterModule{}, Queues: []atelier.RouterQueue{}}
	if r.listened != nil {
		s.Error = r.listened.Error()
	}
	for name, m := range r.modules {
		if len(m.clients) > 0 || m.refused > 0 || m.unrouted > 0 {
			s.Modules = append(s.Modules, atelier.RouterModule{Name: name, Connections: len(m.clients), Refused: m.refused, Unrouted: m.unrouted, LastRefusal: m.lastRefusal})
		}
	}
	queues := slices.Collect(maps.Values(r.queues))
	r.mu.Unlock()
	for _, q := range queues { // which waits for disks
		s.Queues = append(s.Queues, q.status())
	}
	return s
}
