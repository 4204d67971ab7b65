package gateway

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"net/http"
	"strconv"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/http1"
)

// trial leads a share of an endpoint's requests, or copies of them, to a second backend.
type trial struct {
	split   atelier.Split
	header  string // the field that makes requests belong together, "" for none
	backend *backend
}

func newTrial(t *atelier.RouteTrial, b *backend) *trial {
	return &trial{split: t.Split, header: t.Split.StickyHeader(), backend: b}
}

// sameTrial reports whether requests are split the same way by both.
func sameTrial(a, b *trial) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.backend == b.backend && a.split == b.split
}

// canary returns the route's canary, nil where it has none.
func (r *route) canary() *trial {
	if r.trial != nil && r.trial.split.Kind == atelier.Canary {
		return r.trial
	}
	return nil
}

// shadow returns the route's shadow, nil where it has none.
func (r *route) shadow() *trial {
	if r.trial != nil && r.trial.split.Kind == atelier.Shadow {
		return r.trial
	}
	return nil
}

// numberOf returns the number by which requests with a value are split: the same for the
// same value, and others for the next canary.
func (t *trial) numberOf(value []byte) uint64 {
	h := sha256.New()
	h.Write([]byte(t.backend.Rollout))
	h.Write([]byte{0})
	h.Write(value)
	var sum [sha256.Size]byte
	return binary.BigEndian.Uint64(h.Sum(sum[:0]))
}

// asked is what decides which version answers a request.
type asked struct {
	path   []byte                           // below the endpoint
	key    [sha256.Size]byte                // hash of the one that came
	field  func(name string) (value []byte) // of the request's head; nil where it has none of that name
	random uint64                           // for a request that belongs to no other
}

// pick returns the backend that answers a request on the route.
func (r *route) pick(a *asked) *backend {
	t := r.canary()
	if t == nil {
		return r.backend
	}
	if version, named := versionIn(a.path); named {
		if version == t.backend.Version && version != r.backend.Version {
			return t.backend
		}
		return r.backend
	}
	number := a.random
	switch {
	case t.split.Sticky == atelier.StickyKey:
		number = t.numberOf(a.key[:])
	case t.header != "":
		if value := a.field(t.header); value != nil {
			number = t.numberOf(value)
		}
	}
	if t.split.Takes(number) {
		return t.backend
	}
	return r.backend
}

// versionIn returns the version that a path of Open Inference Protocol names,
// v2/models/MODEL/versions/VERSION/…
func versionIn(path []byte) (version int, named bool) {
	path, _, _ = bytes.Cut(path, []byte("?"))
	parts := bytes.SplitN(path, []byte("/"), 6)
	if len(parts) < 5 || string(parts[0]) != "v2" || string(parts[1]) != "models" || string(parts[3]) != "versions" {
		return 0, false
	}
	version, err := strconv.Atoi(string(parts[4]))
	return version, err == nil
}

// asked returns what decides which version answers the exchange's request.
func (x *exchange) asked() asked {
	return asked{path: x.path, key: x.key, random: x.g.random(), field: func(name string) []byte { return fieldOf(x.req.Fields, name) }}
}

// fieldOf returns the value of a field, nil where there is none; an empty one is none.
func fieldOf(fields []http1.Field, name string) []byte {
	for _, f := range fields {
		if len(f.Name) == len(name) && bytes.EqualFold(f.Name, []byte(name)) && len(f.Value) > 0 {
			return f.Value
		}
	}
	return nil
}

// askedBy returns what decides which version answers a call of gRPC.
func (g *Gateway) askedBy(r *http.Request, key [sha256.Size]byte) asked {
	return asked{key: key, random: g.random(), field: func(name string) []byte {
		if value := r.Header.Get(name); value != "" {
			return []byte(value)
		}
		return nil
	}}
}

// evenly returns a number that is spread evenly.
func evenly() uint64 { return rand.Uint64() }
