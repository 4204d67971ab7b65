package gateway

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"path/filepath"
	"slices"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/serving/http1"
)

// tableFile holds the table in force.
const (
	tableFile   = "routes.json"
	tableFormat = 1
)

// maxDeparted is how many backends that no route leads to are remembered, so
// that the agent still reads their last counts.
const maxDeparted = 64

// routes is a table in force. It never changes; a newer one replaces it.
type routes struct {
	sequence   uint64
	byEndpoint map[string]*route
	byServer   map[string][]*route // of endpoints whose models share a server
}

// route leads to a backend whoever has one of the keys.
type route struct {
	keys    [][sha256.Size]byte
	backend *backend
	trial   *trial // nil where no other version runs beside it
}

// admits reports whether key is one of the route's, and returns its hash. It takes
// the same time whichever it is, and whether or not.
func (r *route) admits(key []byte) (sum [sha256.Size]byte, ok bool) {
	if len(key) == 0 {
		return sum, false
	}
	sum = sha256.Sum256(key)
	same := 0
	for i := range r.keys {
		same |= subtle.ConstantTimeCompare(sum[:], r.keys[i][:])
	}
	return sum, same == 1
}

// Apply checks table, saves it and puts it into force. An older table than the one
// in force is refused with the code Stale.
func (g *Gateway) Apply(table atelier.RouteTable) error {
	g.applying.Lock()
	defer g.applying.Unlock()
	if now := g.table.Load(); table.Sequence < now.sequence {
		return atelier.Errorf(atelier.Stale, "route table %d came, %d is in force", table.Sequence, now.sequence).WithField("sequence")
	}
	if err := checkTable(&table); err != nil {
		return err
	}
	data, err := durable.Encode(tableFormat, &table)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(g.opts.FS, filepath.Join(g.opts.State, tableFile), data, 0o600); err != nil {
		return err
	}
	g.enforce(&table)
	return nil
}

// restore puts the saved table into force, if there is one.
func (g *Gateway) restore() error {
	data, err := durable.ReadFile(g.opts.FS, filepath.Join(g.opts.State, tableFile))
	if atelier.CodeOf(err) == atelier.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	var table atelier.RouteTable
	if err := durable.Decode(data, filepath.Join(g.opts.State, tableFile), tableFormat, &table); err != nil {
		return err
	}
	if err := checkTable(&table); err != nil {
		return err
	}
	g.enforce(&table)
	return nil
}

// enforce replaces the table in force. A backend that both tables have keeps its
// connections and counts. The caller holds g.applying, or is the only one yet.
func (g *Gateway) enforce(table *atelier.RouteTable) {
	next := &routes{sequence: table.Sequence, byEndpoint: make(map[string]*route, len(table.Routes))}
	g.mu.Lock()
	kept := map[*backend]bool{}
	keep := func(endpoint string, to atelier.Backend) *backend {
		at := slices.IndexFunc(g.backends, func(b *backend) bool { return b.endpoint == endpoint && b.Backend == to })
		if at < 0 {
			at = len(g.backends)
			g.backends = append(g.backends, newBackend(endpoint, to))
		}
		b := g.backends[at]
		b.stay()
		kept[b] = true
		return b
	}
	shadows := map[*backend]bool{}
	for _, r := range table.Routes {
		leads := &route{keys: keySums(r.Keys), backend: keep(r.Endpoint, r.Backend)}
		if r.Trial != nil {
			leads.trial = newTrial(r.Trial, keep(r.Endpoint, r.Trial.Backend))
		}
		if t := leads.shadow(); t != nil {
			shadows[t.backend] = true
			if t.backend.shadow.Load() == nil {
				t.backend.shadow.Store(newShadow(t.backend, g.started))
			}
		}
		next.byEndpoint[r.Endpoint] = leads
		if r.Server != "" {
			if next.byServer == nil {
				next.byServer = map[string][]*route{}
			}
			next.byServer[r.Server] = append(next.byServer[r.Server], leads)
		}
	}
	before := g.table.Load()
	g.table.Store(next)
	for endpoint, r := range next.byEndpoint {
		old := before.byEndpoint[endpoint]
		if old != nil && old.backend == r.backend && (!slices.Equal(old.keys, r.keys) || !sameTrial(old.trial, r.trial)) {
			r.backend.recall() // requests on lent connections are the gateway's where they are split
		}
	}
	for _, b := range g.backends {
		if s := b.shadow.Load(); s != nil && !shadows[b] {
			s.rest()
		}
	}
	g.mqtt.recheck()
	departed := 0
	for i := len(g.backends) - 1; i >= 0; i-- { // the newest last
		b := g.backends[i]
		if kept[b] {
			continue
		}
		b.depart()
		if departed++; departed > maxDeparted && b.inFlight.Load() == 0 {
			b.stopLending()
			g.backends = slices.Delete(g.backends, i, i+1)
		}
	}
	g.mu.Unlock()
}

// acquire returns the route of endpoint and the one of its backends that pick chooses,
// and counts a request in flight at that; nil where there is no such endpoint any more.
// Once a newer table is in force, nobody acquires a backend that it does not have: the
// count of a departed one only falls.
func (g *Gateway) acquire(endpoint string, pick func(*route) *backend) (*route, *backend) {
	for {
		table := g.table.Load()
		r := table.byEndpoint[endpoint]
		if r == nil {
			return nil, nil
		}
		b := pick(r)
		b.inFlight.Add(1)
		if g.table.Load() == table {
			return r, b
		}
		b.inFlight.Add(-1)
	}
}

func keySums(keys atelier.EndpointKeys) (sums [][sha256.Size]byte) {
	for _, text := range []string{keys.Primary, keys.Secondary} {
		if sum, err := hex.DecodeString(text); err == nil && len(sum) == sha256.Size {
			sums = append(sums, [sha256.Size]byte(sum))
		}
	}
	return sums
}

// maxSocketPath is the longest path of a Unix socket, see unix(7).
const maxSocketPath = 107

// checkTable checks what becomes part of paths and headers.
func checkTable(table *atelier.RouteTable) error {
	seen := map[string]bool{}
	for i := range table.Routes {
		r := &table.Routes[i]
		if err := atelier.CheckName("endpoint", r.Endpoint); err != nil {
			return err
		}
		if r.Server != "" {
			if err := atelier.CheckName("server", r.Server); err != nil {
				return err
			}
		}
		bad := func(format string, args ...any) error {
			return atelier.Errorf(atelier.Invalid, "route of endpoint "+r.Endpoint+": "+format, args...).WithField("routes")
		}
		if seen[r.Endpoint] {
			return bad("it came twice")
		}
		backends := []*atelier.Backend{&r.Backend}
		if r.Trial != nil {
			backends = append(backends, &r.Trial.Backend)
			if err := r.Trial.Split.Check(); err != nil {
				return bad("%w", err)
			}
			if r.Trial.Backend == r.Backend {
				return bad("the version beside the one that serves is the same")
			}
		}
		for _, b := range backends {
			switch {
			case !http1.IsToken([]byte(b.Rollout)) || len(b.Rollout) > 100:
				return bad("rollout %.100q cannot be part of a header", b.Rollout)
			case b.Model != "" && !http1.IsToken([]byte(b.Model)) || len(b.Model) > 100:
				return bad("model %.100q cannot be part of a header", b.Model)
			case !filepath.IsAbs(b.Socket) || len(b.Socket) > maxSocketPath:
				return bad("socket %.120q is no absolute path of at most %d bytes", b.Socket, maxSocketPath)
			}
		}
		for _, key := range []string{r.Keys.Primary, r.Keys.Secondary} {
			if sum, err := hex.DecodeString(key); err != nil || key != "" && len(sum) != sha256.Size {
				return bad("a key is no SHA-256 in hexadecimal digits")
			}
		}
		seen[r.Endpoint] = true
	}
	return nil
}
