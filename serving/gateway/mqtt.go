package gateway

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/atelier-edge/atelier/serving/topics"
)

// mqtt serves clients that speak MQTT on the gateway's address. What they ask takes the
// way of HTTP within this process, so that keys, routes and counts are the same. It is
// made when the first comes.
type mqtt struct {
	mu     sync.Mutex
	server *topics.Server  // nil before
	within *http.Transport // the way of its requests
	ended  bool
}

// begin returns the server, nil where the gateway ends.
func (m *mqtt) begin(g *Gateway) *topics.Server {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.server != nil || m.ended {
		return m.server
	}
	m.within = &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			g.serveConn(theirs)
			return ours, nil
		},
		DisableCompression: true, IdleConnTimeout: idleFor / 2, // before the gateway ends it
	}
	server, err := topics.New(topics.Options{Admit: g.admitMQTT, Path: g.pathMQTT, Transport: m.within, Log: g.opts.Log})
	if err != nil {
		g.opts.Log.Error("MQTT clients cannot be served", "error", err)
		return nil
	}
	m.server = server
	return server
}

// recheck ends connections whose keys the table in force does not have.
func (m *mqtt) recheck() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.server != nil {
		m.server.Recheck()
	}
}

// end lets requests in progress be answered within d.
func (m *mqtt) end(d time.Duration) {
	m.mu.Lock()
	m.ended = true
	server, within := m.server, m.within
	m.server = nil
	m.mu.Unlock()
	if server != nil {
		server.Close(d)
		within.CloseIdleConnections()
	}
}

// serveMQTT serves the client with MQTT until its connection ends.
func (c *client) serveMQTT() {
	if server := c.g.mqtt.begin(c.g); server != nil {
		server.Serve(c.conn.Conn, c.r)
	}
}

// admitMQTT reports whether key is one of the endpoint's.
func (g *Gateway) admitMQTT(endpoint, key string) bool {
	r := g.table.Load().byEndpoint[endpoint]
	if r == nil {
		return false
	}
	_, ok := r.admits([]byte(key))
	return ok
}

// pathMQTT returns where a route is answered over HTTP.
func (g *Gateway) pathMQTT(endpoint, route string) string {
	if route != "infer" {
		return "/" + endpoint + "/" + route
	}
	model := endpoint // there is no endpoint any more, which is answered like that
	if r := g.table.Load().byEndpoint[endpoint]; r != nil {
		model = r.backend.Model
	}
	return "/" + endpoint + "/v2/models/" + model + "/infer"
}
