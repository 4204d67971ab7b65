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
}

// route leads to a backend whoever has one of the keys.
type route struct {
	keys    [][sha256.Size]byte
	backend *backend
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
	for _, r := range table.Routes {
		at := slices.IndexFunc(g.backends, func(b *backend) bool { return b.endpoint == r.Endpoint && b.Backend == r.Backend })
		if at < 0 {
			at = len(g.backends)
			g.backends = append(g.backends, newBackend(r.Endpoint, r.Backend))
		}
		b := g.backends[at]
		b.stay()
		kept[b] = true
		next.byEndpoint[r.Endpoint] = &route{keys: keySums(r.Keys), backend: b}
	}
	before := g.table.Load()
	g.table.Store(next)
	for endpoint, r := range next.byEndpoint {
		if old := before.byEndpoint[endpoint]; old != nil && old.backend == r.backend && !slices.Equal(old.keys, r.keys) {
			r.backend.recall()
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

// acquire returns the backend that endpoint leads to and counts a request in
// flight at it, nil where there is no such endpoint any more. Once a newer table is
// in force, nobody acquires a backend that it does not have: the count of a
// departed one only falls.
func (g *Gateway) acquire(endpoint string) *backend {
	for {
		table := g.table.Load()
		r := table.byEndpoint[endpoint]
		if r == nil {
			return nil
		}
		r.backend.inFlight.Add(1)
		if g.table.Load() == table {
			return r.backend
		}
		r.backend.inFlight.Add(-1)
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
		bad := func(format string, args ...any) error {
			return atelier.Errorf(atelier.Invalid, "route of endpoint "+r.Endpoint+": "+format, args...).WithField("routes")
		}
		switch {
		case seen[r.Endpoint]:
			return bad("it came twice")
		case !http1.IsToken([]byte(r.Backend.Rollout)) || len(r.Backend.Rollout) > 100:
			return bad("rollout %.100q cannot be part of a header", r.Backend.Rollout)
		case !filepath.IsAbs(r.Backend.Socket) || len(r.Backend.Socket) > maxSocketPath:
			return bad("socket %.120q is no absolute path of at most %d bytes", r.Backend.Socket, maxSocketPath)
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
