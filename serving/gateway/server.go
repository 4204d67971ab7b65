package gateway

import (
	"bytes"
	"net/http"
)

// modelsPath begins the paths that name a model.
var modelsPath = []byte("v2/models/")

// shared returns which of the endpoints that share a server a request is for: the one
// whose model the path names, or whose key came where it names none, or several have it.
// Where no key admits to any, it is the first that is meant, to be refused by; nil where
// none is.
func (c *client) shared(routes []*route, rest []byte) *route {
	var meant *route
	model, named := modelOf(rest)
	for _, r := range routes {
		if named && !r.serves(model) {
			continue
		}
		if c.authenticated(r) {
			return r
		}
		if meant == nil {
			meant = r
		}
	}
	return meant
}

// modelOf returns the model that a path below a server names.
func modelOf(rest []byte) (model []byte, named bool) {
	rest, named = bytes.CutPrefix(rest, modelsPath)
	if end := bytes.IndexAny(rest, "/?"); end >= 0 {
		rest = rest[:end]
	}
	return rest, named && len(rest) > 0
}

// serves reports whether one of the route's versions is of the model.
func (r *route) serves(model []byte) bool {
	return r.backend.Model == string(model) || r.trial != nil && r.trial.backend.Model == string(model)
}

// sharedCall is shared for a call of gRPC, whose message, not its path, names the model:
// the key says which endpoint is meant.
func sharedCall(routes []*route, r *http.Request) *route {
	for _, route := range routes {
		if _, ok := admitted(route, r); ok {
			return route
		}
	}
	if len(routes) > 0 {
		return routes[0] // to be refused by
	}
	return nil
}
