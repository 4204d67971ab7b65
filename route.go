package atelier

// RouteTable is the whole of what a device's gateway serves. The agent writes
// it, the gateway only reads it; a newer table replaces an older one at once.
type RouteTable struct {
	// Sequence grows with each table of one agent state directory.
	Sequence uint64  `json:"sequence"`
	Device   string  `json:"device"` // the device's id
	Routes   []Route `json:"routes"`
}

// Route leads one endpoint's requests to a module.
type Route struct {
	Endpoint string       `json:"endpoint"` // the first segment of the path
	Keys     EndpointKeys `json:"keys"`
	Backend  Backend      `json:"backend"`
	// Server is a second first segment of the path, which several endpoints share: the
	// model that the path names, or else the key, says which of them is meant. "" where
	// there is none.
	Server string `json:"server,omitempty"`
	// Trial is a second module, which gets a share of the requests or copies of them; nil
	// where there is none that is ready.
	Trial *RouteTrial `json:"trial,omitempty"`
}

// RouteTrial leads a share of an endpoint's requests to a second module.
type RouteTrial struct {
	Backend Backend `json:"backend"`
	Split   Split   `json:"split"`
}

// Backend is one rollout of a module that answers requests.
type Backend struct {
	// Socket is the path of the Unix socket on which the module answers HTTP/1.1.
	Socket     string `json:"socket"`
	Deployment string `json:"deployment"`
	Rollout    string `json:"rollout"`
	Package    Digest `json:"package"`
	Model      string `json:"model"`
	Version    int    `json:"version"`
	Digest     Digest `json:"digest"` // the model version's digest
}

// HeaderRequestID is the header that carries a request's id in every answer of
// an endpoint. The id is "{rollout}-{random}": from the rollout the hub finds
// deployment, package and model digest again.
const HeaderRequestID = "X-Atelier-Request-Id"

// HeaderModel is the header that says in each answer of an endpoint which version gave
// it, as MODEL:VERSION.
const HeaderModel = "X-Atelier-Model"

// LatencyBounds are the upper bounds, in seconds, of the latency histogram's
// buckets; one more bucket takes what is slower. They are part of the wire
// format between gateway, agent and hub: append only together.
var LatencyBounds = []float64{
	.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10,
}

// EndpointCounters are the gateway's counts for one endpoint and one backend
// since the gateway started.
type EndpointCounters struct {
	Endpoint   string `json:"endpoint"`
	Deployment string `json:"deployment"`
	Rollout    string `json:"rollout"`
	Model      string `json:"model"`
	Version    int    `json:"version"`
	// Requests counts answers by the class of their status: "2xx", "4xx", "5xx".
	Requests map[string]uint64 `json:"requests"`
	// Buckets has one count more than LatencyBounds; the counts are not cumulative.
	Buckets []uint64 `json:"buckets"`
	Seconds float64  `json:"seconds"` // sum of all latencies
	// InFlight is how many requests the backend is answering right now. The
	// agent stops a replaced module only when it reads 0, or after its patience.
	InFlight int64 `json:"in_flight"`
	// Departed says that no route leads to the backend any more: its counts are the
	// last, but for the requests in flight.
	Departed bool `json:"departed,omitempty"`
	// Fallbacks counts requests of a canary's share that it did not answer, and that the
	// version beside it did.
	Fallbacks uint64 `json:"fallbacks,omitempty"`
	// Shadow is what the backend's answers to copies of requests showed; nil where it was
	// never sent any.
	Shadow *ShadowReport `json:"shadow,omitempty"`
}

// GatewayStatus is what the gateway tells the agent.
type GatewayStatus struct {
	PID      int                `json:"pid"`
	Sequence uint64             `json:"sequence"` // of the table in force
	Listen   string             `json:"listen"`   // the address it really listens on; "" when it cannot
	Error    string             `json:"error,omitempty"`
	Started  int64              `json:"started"` // Unix milliseconds; counters begin anew when it changes
	Counters []EndpointCounters `json:"counters"`
}
