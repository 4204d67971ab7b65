package atelier

import "encoding/json"

// RoutingTable is all that a device's atelier-router goes by. The agent writes it, the
// router only reads it; a newer one replaces an older one at once.
type RoutingTable struct {
	Device  string         `json:"device"` // the device's id
	Listen  string         `json:"listen"` // the address of the modules\' MQTT
	Modules []RoutedModule `json:"modules"`
	Routes  []MessageRoute `json:"routes"`
	Queue   int64          `json:"queue_bytes"` // disk that one queue may take
}

// RoutedModule is a module that may connect to the router.
type RoutedModule struct {
	Name string `json:"name"` // the deployment's, and the user name
	// Password is the SHA-256 of the module's password, in hex.
	Password string `json:"password_sha256"`
	// Socket is the path on which the module's model server answers HTTP, "" where there
	// is none that is ready: the inputs score, infer and invocations lead to it.
	Socket string       `json:"socket,omitempty"`
	Model  string       `json:"model,omitempty"` // its name
	Twin   *DesiredTwin `json:"twin,omitempty"`
}

// DesiredTwin are the desired properties of a module on one device.
type DesiredTwin struct {
	Version    int64           `json:"version"` // grows with each change
	Properties json.RawMessage `json:"properties"`
}

// MaxTwin is the most bytes that the properties of a twin may have as JSON.
const MaxTwin = 8 << 10

// FeatureMessages is what agents list in Facts.Features that act on Module.Routes and Module.Twin.
const FeatureMessages = "messages"

// RouterStatus is what the router tells the agent.
type RouterStatus struct {
	PID    int    `json:"pid"`
	Table  Digest `json:"table"`  // of the table in force, as it came
	Listen string `json:"listen"` // the address it really listens on; "" when it cannot
	Error  string `json:"error,omitempty"`
	// Started is when it started, in Unix milliseconds: counters begin anew then.
	Started int64          `json:"started"`
	Modules []RouterModule `json:"modules"` // those that are connected
	Queues  []RouterQueue  `json:"queues"`
}

// Waiting returns how many messages wait for the workspace.
func (s *RouterStatus) Waiting() (n int) {
	for i := range s.Queues {
		if s.Queues[i].Into == "" {
			n += s.Queues[i].Pending
		}
	}
	return n
}

// RouterModule tells of a module's connections and of what it may not do.
type RouterModule struct {
	Name        string `json:"name"`
	Connections int    `json:"connections"`
	Refused     uint64 `json:"refused,omitempty"`  // what it published or subscribed and may not
	Unrouted    uint64 `json:"unrouted,omitempty"` // messages for which there is no route
	LastRefusal string `json:"last_refusal,omitempty"`
}

// RouterQueue tells of the messages that wait on the way from a module to a destination.
type RouterQueue struct {
	From  string `json:"from"`
	Into  string `json:"into,omitempty"`  // the module, "" for the workspace
	Input string `json:"input,omitempty"` // "" for the workspace
	// Pending are batches that wait; each holds one message or more.
	Pending   int    `json:"pending"`
	Bytes     int64  `json:"bytes"`
	Taken     uint64 `json:"taken"` // messages, since the router started; so the others
	Delivered uint64 `json:"delivered,omitempty"`
	Expired   uint64 `json:"expired,omitempty"`
	Dropped   uint64 `json:"dropped,omitempty"` // given up since the queue or the disk was full
	Failed    uint64 `json:"failed,omitempty"`  // refused by the model server
}
