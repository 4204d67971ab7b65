// Package driver lets the agent use kinds of targets whose code is too large for it: each is a
// program of its own, a driver, that the agent starts when it needs it and asks over a local
// Unix socket. Client is the agent's side, and a Target like any other; package serve is the
// driver's.
//
// The protocol is HTTP/1.1 with JSON on a socket that only its owner can open:
//
//	GET    /v1                          Hello
//	GET    /v1/instances                []targets.Status
//	PUT    /v1/instances/{id}           targets.Spec; answers when the instance runs
//	GET    /v1/instances/{id}           targets.Status
//	DELETE /v1/instances/{id}           forget an instance that has ended
//	POST   /v1/instances/{id}/stop      ?grace=10s
//	GET    /v1/instances/{id}/wait      targets.Status, once it is not running
//	GET    /v1/instances/{id}/log       ?max=BYTES; the end of the log
//	POST   /v1/instances/{id}/probe     Command; run in the instance
//	POST   /v1/end                      end the driver; instances stay
//
// Errors have the status of their code, and an atelier.Error as body. A request that is given
// up ends what it asked for. Members that one side does not know it ignores; what cannot be
// ignored is another Protocol.
package driver

// Protocol is the version of the protocol.
const Protocol = 1

// Hello is what a driver says of itself.
type Hello struct {
	Protocol int    `json:"protocol"`
	Kind     string `json:"kind"`
	Version  string `json:"version"` // of the program
}

// Command is what a probe runs.
type Command struct {
	Command []string `json:"command"`
}

// MaxBody bounds requests and answers but for logs, in bytes.
const MaxBody = 4 << 20
